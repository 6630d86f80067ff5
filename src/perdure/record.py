"""What is known of one step: its identity, its attempts, what became of it. The fold makes these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from perdure import states
from perdure.codec import Payload
from perdure.model import ArgInfo, ErrorInfo, Usage, head

CODE_FORM: Final = "2."
"""with this begin digests of code; those of different forms say nothing of one another"""


def is_called(word: str, number: int, path: str) -> bool:
    """Whether people mean a step by a word: by its number, its path, or its name, which is the end of that."""
    return word in (str(number), path, path.rpartition("/")[2])


def code_changed(old: str, new: str) -> bool:
    """Whether these are digests of different code, as far as they can be compared."""
    return bool(old and new) and old != new and old.startswith(CODE_FORM) == new.startswith(CODE_FORM)


class Unread(Payload, frozen=True, gc=False):
    """A result that stands in the journal's entry of that sequence, and was not read yet. Only in memory."""

    entry: int = 0


class Attempt(msgspec.Struct, gc=False):
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


class Change(msgspec.Struct, frozen=True):
    """An argument that differs: the beginnings of its value before and now; None: it was not there."""

    argument: str
    before: str | None
    now: str | None

    def told(self, width: int) -> str:
        """For people: both values cut to so many characters, from shortly before they differ."""
        if self.before == self.now:
            return f"{self.argument} differs behind its beginning, {head(self.now or '', width)}"
        pairs = zip(self.before or "", self.now or "", strict=False)
        same = next((place for place, (a, b) in enumerate(pairs) if a != b), 0)
        begin = same - _SAME if same > 2 * _SAME else 0
        was, now = (_cut(text, begin, width) for text in (self.before, self.now))
        return f"{self.argument} was {was}, now {now}"


_SAME: Final = 15
"""characters that are shown of what two values have in common, before they differ"""


def _cut(text: str | None, begin: int, width: int) -> str:
    return "absent" if text is None else ("..." if begin else "") + head(text[begin:], width)


def changes(before: Iterable[ArgInfo], now: Iterable[ArgInfo]) -> tuple[Change, ...]:
    """Arguments in which two requests differ."""
    old, new = ({arg.name: arg for arg in args} for args in (before, now))
    return tuple(
        Change(name, old[name].head if name in old else None, new[name].head if name in new else None)
        for name in (*new, *(name for name in old if name not in new))
        if name not in old or name not in new or old[name].digest != new[name].digest
    )


def family(scope: str) -> str:
    """A scope's path without the numbers: ``worker-2/reviewer-0`` is a ``worker/reviewer``."""
    return _NUMBER.sub("", scope)


_NUMBER: Final = re.compile(r"-\d+(?=/|$)")


def enclosing(scope: str) -> Iterator[str]:
    """A scope's path and those of all scopes around it, but for the top."""
    while scope:
        yield scope
        scope = scope.rpartition("/")[0]


class Step(msgspec.Struct, gc=False):
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
    """how often its result became invalid"""
    superseded: int = 0
    """how many of its attempts belong to results that became invalid"""
    spoken: bool = False
    """its output is a message of a conversation"""
    edited: str = ""
    """who gave it another result than it had, if somebody did"""
    unused: bool = False
    """the last completed life of the run did not ask for it"""
    begun: int = 0
    """sequence of the entry with which it first started"""
    at: int = 0
    """sequence of the entry that has its result; 0: there is none"""

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def path(self) -> str:
        """Scope and name, as shown to people."""
        return f"{self.identity.scope}/{self.name}" if self.identity.scope else self.name

    def is_called(self, word: str) -> bool:
        """Whether that is its number, name or path: how people name a step."""
        return is_called(word, self.number, self.path)

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
        return next(("".join(a.text) for a in reversed(self.attempts[self.superseded :]) if a.text), "")

    @property
    def progress(self) -> Payload | None:
        """What was saved last."""
        return next((a.progress for a in reversed(self.attempts[self.superseded :]) if a.progress is not None), None)
