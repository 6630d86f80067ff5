"""What is known of one step: its identity, its attempts, what became of it. The fold makes these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from perdure import states
from perdure.codec import Payload
from perdure.model import ArgInfo, ErrorInfo, Usage


class Attempt(msgspec.Struct):
    """One execution of a step's body."""

    number: int
    started: float
    ended: float = 0.0
    outcome: str = states.RUNNING
    """running, completed, flagged, failed, timed_out, refused, waiting, crashed, interrupted or copied"""
    error: ErrorInfo | None = None
    seconds: float = 0.0
    progress: Payload | None = None
    text: list[str] = []
    """what it streamed, in order"""
    usage: Usage = Usage()
    metered: bool = False
    """it counts as a call, unless a rate limit turned it away"""


class Identity(NamedTuple):
    """What makes a step the same step in another life of the run."""

    scope: str
    name: str
    fingerprint: str
    n: int
    """ordinal among requests equal in all the rest"""


def enclosing(scope: str) -> Iterator[str]:
    """A scope's path and those of all scopes around it, but for the top."""
    while scope:
        yield scope
        scope = scope.rpartition("/")[0]


class Step(msgspec.Struct):
    """Everything known of one step."""

    number: int
    identity: Identity
    args: tuple[ArgInfo, ...]
    digest: str
    status: str = states.RUNNING
    attempts: list[Attempt] = []
    output: Payload | None = None
    flagged: str = ""
    failures: int = 0
    """failed attempts since the flow was last told of a failure; what the retry policy counts"""
    until: float = 0.0
    """when the next attempt is due"""
    wake: float = 0.0
    """when what its last attempt was waiting for can go on by itself; 0: not by a date"""
    generation: int = 0
    """how often a person asked for it to be executed again"""
    spoken: bool = False
    """its output is a message of a conversation"""
    unused: bool = False
    """the last completed life of the run did not ask for it"""

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def path(self) -> str:
        """Scope and name, as shown to people."""
        return f"{self.identity.scope}/{self.name}" if self.identity.scope else self.name

    @property
    def recorded(self) -> bool:
        return self.status in states.STEP_RECORDED

    @property
    def error(self) -> ErrorInfo | None:
        return self.attempts[-1].error if self.attempts else None

    @property
    def seconds(self) -> float:
        """How long the attempt that gave the result took."""
        return self.attempts[-1].seconds if self.attempts else 0.0

    @property
    def usage(self) -> Usage:
        """What all its attempts used, those that crashed or failed included."""
        return sum((attempt.usage for attempt in self.attempts), Usage())

    @property
    def partial_text(self) -> str:
        """What the latest attempt that streamed anything has streamed."""
        return next(("".join(a.text) for a in reversed(self.attempts) if a.text), "")

    @property
    def progress(self) -> Payload | None:
        """What was saved last."""
        return next((a.progress for a in reversed(self.attempts) if a.progress is not None), None)
