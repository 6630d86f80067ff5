"""What the machine in replay.py asks a driver for, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias

import msgspec

from perdure import journal as j
from perdure.life import Cursor


class Load(msgspec.Struct, frozen=True):
    digests: tuple[str, ...]


class Read(msgspec.Struct, frozen=True):
    seq: int


class Append(msgspec.Struct, frozen=True):
    entries: tuple[j.Entry, ...]
    wait: bool
    blobs: dict[str, bytes] = {}
    flush: bool = False
    """others are going to look at it: whatever the durability, nothing before it is held back"""


class Call(msgspec.Struct, frozen=True):
    """Run the body (or, for ``what="verify"``, the callable that finds out whether it had its effect; for
    ``what="notify"``, what tells people of a question)."""

    what: str
    step: int
    attempt: int
    idempotency_key: Callable[[], str]
    progress: object
    partial_text: str
    inner: Cursor | None
    commit: Commit | None = None
    """for a step that takes a transaction: what is to be recorded of its outcome in that, if it is to be committed"""


class Outcome(msgspec.Struct, frozen=True):
    value: object
    error: Exception | None
    seconds: float
    progress: object = None
    text: str = ""
    """what the attempt saved and streamed, for the next one where there is no journal"""
    committed: bool = False
    """its completion is recorded already"""


class Found(msgspec.Struct, frozen=True):
    """What ``verify`` may return to say that the step had its effect, whatever its result is; None is one too."""

    value: object


class Wait(msgspec.Struct, frozen=True):
    until: float
    """seconds since 1970; 0: no date"""
    is_up: Callable[[], bool] | None = None
    """whether what is waited for has come from outside; None: only the date counts"""


class Post(msgspec.Struct, frozen=True):
    entry: j.Posted


class Now(msgspec.Struct, frozen=True):
    pass


Commit: TypeAlias = Callable[[Outcome], tuple[j.Entry, dict[str, bytes]] | None]
Command: TypeAlias = Load | Read | Append | Call | Wait | Post | Now
Machine: TypeAlias = Generator[Command, Any, Any]
