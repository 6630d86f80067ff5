"""What is told of a rehearsal: whether today's code follows the records of a run, and where it first does not.

The rules, in words:

- In a run that had **completed** the code asks for the same steps, and returns the same result. A request without a
  record is a divergence, unless nobody waits for it; so is a record that is not asked for.
- In a run that has **not ended**, or had failed, it asks for what is recorded too. What it asks for then, and has no
  record, is where it would *go on*. But records that are left over say that it came there on another way.
- Left over is a recorded result that was not asked for; not what the run did without when it completed, what stands
  inside of a step whose body is not executed, what belongs to a branch that the code itself dropped, or what is older
  than a change of code or inputs in the middle of the run. Behind a result that is to be made again, nothing is left
  over: what it will be is not known.
- Code that has changed is told, and is no divergence: another record is.
- A run is **undecided** beyond a point that cannot be gone through as it was: an error of a type that cannot be raised
  again, or a step that was cut off and done without.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import inf
from typing import Final, Literal

import msgspec

from perdure import journal as j
from perdure import states
from perdure.codec import describe_error
from perdure.difference import difference
from perdure.errors import RunPaused
from perdure.model import head
from perdure.record import Step, code_changed, enclosing
from perdure.redaction import discreet
from perdure.runtime.rehearsal import Asked, Found, Rehearsed

Verdict = Literal["follows", "diverges", "undecided", "refused"]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What came of replaying one run."""

    run: str
    flow: str
    verdict: Verdict
    """"follows" its records; "diverges" from them; "undecided": beyond some point nobody can tell; "refused": it cannot
    be replayed"""
    why: str = ""
    """the first divergence, or the reason"""
    step: int = 0
    """the recorded step at which it diverges, if there is one"""
    status: str = ""
    """of the run, as it is recorded"""
    steps: int = 0
    """recorded steps that the code asked for"""
    goes_on: tuple[str, ...] = ()
    """what a run that has not ended asks for next"""
    changed: tuple[str, ...] = ()
    """steps whose code has changed since they were executed"""

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against today's code."""
        return self.verdict in ("follows", "undecided")

    def __str__(self) -> str:
        told = f"{self.run} ({self.flow}) {_WORDS[self.verdict]}"
        if self.why:
            told += f": {self.why}"
        elif self.goes_on:
            told += f" as far as they go, and would go on with {', '.join(self.goes_on)}"
        if self.changed:
            told += f"\n  code has changed since it was executed: {', '.join(self.changed)}"
        return told


_WORDS = {
    "follows": "follows its records",
    "diverges": "DIVERGES",
    "undecided": "cannot be judged to its end",
    "refused": "cannot be replayed",
}
_SHOWN: Final = 10
_AT_THE_END: Final = -1
"""order of what is known only then"""


def verdict(seen: Rehearsed) -> Told:
    """What is told of a rehearsal."""
    judge = _Judge(seen)
    first = next(judge.divergences(), None)
    unclear = judge.unclear(first)
    kind: Verdict = "undecided" if unclear else "diverges" if first is not None else "follows"
    changed = [path for _, path in sorted(seen.rehearsal.changed.items())]
    return Told(
        run=str(seen.whole.key),
        flow=seen.whole.flow,
        verdict=kind,
        why=discreet(unclear or (first.what if first is not None else "")),
        step=first.step if first is not None else 0,
        status=seen.whole.status or "",
        steps=sum(step.recorded for number, step in seen.state.steps.items() if number in seen.asked),
        goes_on=tuple(judge.goes_on()) if kind == "follows" else (),
        changed=tuple(dict.fromkeys(changed)),
    )


class _Judge:
    """What follows from a rehearsal."""

    def __init__(self, seen: Rehearsed) -> None:
        self._whole, self._state = seen.whole, seen.state
        self._rehearsal, self._ending = seen.rehearsal, seen.ending
        self._past = _Past(seen)
        self._same_code = seen.same_code
        self.asked = seen.asked
        waited = seen.rehearsal.asked if seen.ending.parked else []  # else nobody needed it
        self.new = [asked for asked in waited if self._is_new(asked)]
        self.cut_off = [asked for asked in waited if not self._is_new(asked)]
        again = [asked.step for asked in seen.rehearsal.asked if asked.step is not None and asked.step.generation]
        self._again = min((step.number for step in again), default=inf)
        """the first step whose result is to be made again"""
        self.left = [step for _, step in sorted(self._state.steps.items()) if self._is_left(step)]
        self._meant: dict[tuple[str, str], Step] = {}
        """(scope, name) -> the first of those"""
        for step in self.left:
            self._meant.setdefault((step.identity.scope, step.name), step)

    @property
    def completed(self) -> bool:
        return self._whole.status == states.COMPLETED

    def _is_new(self, asked: Asked) -> bool:
        """Whether nothing is recorded of what is asked for; or it was to be made again, and the run did without."""
        return asked.step is None or (self.completed and asked.step.status == states.INVALIDATED)

    def goes_on(self) -> list[str]:
        """What a run that has not ended asks for next."""
        told = [_path(a) + (" again" if a.step.status != states.PENDING else "") for a in self.cut_off if a.step]
        told += map(_asked, self.new)
        if self._ending.error is not None and not self._ending.parked and not isinstance(self._ending.error, RunPaused):
            told += [f"{step.path} again" for _, step, _ in self._rehearsal.raised[-1:]]
        return list(dict.fromkeys(told))[:_SHOWN] if not self.completed else []

    def divergences(self) -> Iterator[Found]:
        """What is not as it was recorded, the first first."""
        if self._ending.late:
            return
        found = [*self._rehearsal.found, *filter(None, map(self._unrecorded, self.new))]
        yield from sorted(found, key=lambda one: one.order)
        ended = self._ended_otherwise()
        if ended and self._ending.error is not None:
            yield Found(_AT_THE_END, ended, self.left[0].number if self.left else 0)
        if self.left:
            step = self.left[0]
            more = f", and {len(self.left) - 1} more" if len(self.left) > 1 else ""
            instead = f"; instead it asks for {_asked(self.new[0])}, which no record has" if self.new else ""
            yield Found(_AT_THE_END, f"recorded step {_named(step)} is not asked for{more}{instead}", step.number)
        if ended:
            yield Found(_AT_THE_END, ended, 0)

    def unclear(self, first: Found | None) -> str:
        """Why nobody can tell whether the code follows to the end; "" if it can be told."""
        if self._ending.late:
            return "it does not come to an end, and waits for nothing that is recorded; what a body did, perhaps"
        unknown = self._rehearsal.unknown(strict=self._same_code and not self._rehearsal.changed)
        if first is not None and unknown is not None and _is_behind(first, *unknown):
            step = unknown[1]
            kind = head(step.error.type, 80) if step.error is not None else ""
            again = "which cannot be raised again as it was; behind that"
            return f"step {_named(step)} failed with {kind}, {again} {first.what}"
        without = [asked.step for asked in self.cut_off if asked.step is not None and self._did_without(asked.step)]
        if without and not self.new and not self._rehearsal.found:
            return f"step {_named(without[0])} was cut off, and the run did without it; here it is waited for"
        return ""

    def _did_without(self, step: Step) -> bool:
        """Whether the run went on although the step had been cut off: it reached a time limit of the flow's, say."""
        ended = step.attempts[-1].ended
        return self.completed or any(other.attempts[-1].started >= ended > 0 for other in self.left)

    # -- requests without a record -----------------------------------------------------------------------------------

    def _unrecorded(self, asked: Asked) -> Found | None:
        """What is wrong with a request that no record answers; None: it is where the run would go on."""
        scope, name = asked.identity.scope, asked.identity.name
        meant = self._meant.get((scope, name))
        if meant is not None:
            how = self._conversation(scope) or difference(meant.args, meant.identity, asked.request)
            told = f"{_path(asked)} is asked for with inputs that no record has: {how}"
            return Found(asked.order, f"{told}. Recorded step {meant.number} is not asked for", meant.number)
        if self.completed:
            return Found(asked.order, f"it asks for {_asked(asked)}, which no record has", 0)
        return None

    def _conversation(self, scope: str) -> str:
        """Where the conversation of an agent is another, if that is what differs."""
        for path in (*enclosing(scope), ""):
            old, new = self._whole.conversations.get(path, []), self._state.conversations.get(path, [])
            for place, (was, is_) in enumerate(zip(old, new, strict=False), 1):
                if was != is_:
                    return f"message {place} ({was.role}) of its conversation was {_said(was)}, now {_said(is_)}"
        return ""

    # -- records that are left over ----------------------------------------------------------------------------------

    def _is_left(self, step: Step) -> bool:
        if not step.recorded or step.number in self.asked or self._past.is_over(step):
            return False
        around = set(enclosing(step.identity.scope))
        if not around.isdisjoint(self._closed) or not around.isdisjoint(self._dropped):
            return False
        return step.identity not in self._rehearsal.open and step.number <= self._again

    @cached_property
    def _closed(self) -> set[str]:
        """Scopes of steps that were asked for, and whose bodies are not executed."""
        numbers = self.asked - self._rehearsal.through
        paths = (self._state.scopes.get(self._state.steps[n].identity) for n in numbers if n in self._state.steps)
        return {path for path in paths if path}

    @cached_property
    def _dropped(self) -> set[str]:
        """Scopes of branches that nobody needed in the end, or that were not begun yet."""
        scopes = self._state.scopes
        made = {place if isinstance(place, str) else scopes.get(place, "") for place in self._rehearsal.open}
        waits = {path for asked in self._rehearsal.asked for path in enclosing(asked.identity.scope)}
        return made - (waits if self._ending.parked else set()) - {""}

    # -- the end -------------------------------------------------------------------------------------------------------

    def _ended_otherwise(self) -> str:
        ending = self._ending
        if ending.error is None:
            return f"its result {ending.differs}" if self.completed and ending.differs else ""
        if ending.parked or self._is_recorded_end(ending.error):
            return ""
        told = f"it raises {head(str(describe_error(ending.error)), 400)}"
        if self.completed:
            return f"{told}, and had completed"
        return f"{told}, and had failed with {head(str(self._whole.error), 400)}" if self._whole.error else told

    def _is_recorded_end(self, error: BaseException) -> bool:
        """Whether a run that did not complete ended so, or is going to: by its code as it was, or because a step had
        failed, which is executed again."""
        told = describe_error(error)
        recorded = self._whole.error
        if self.completed:
            return False
        if isinstance(error, RunPaused) and self._whole.status == states.PAUSED:
            return self._whole.reason == discreet(str(error))
        if recorded is None:
            as_ever = self._same_code and not self._rehearsal.changed and not self.left
            return as_ever or self._rehearsal.is_recorded(error)
        same = told.type == recorded.type
        return same and (told.message == recorded.message or self._rehearsal.is_recorded(error))


class _Past:
    """Which of the recorded results today's code may do without: what a completed life did without, and what was used
    last before the run's code or inputs were changed."""

    def __init__(self, seen: Rehearsed) -> None:
        found = ((seen.state.steps.find(step), path) for step, path in seen.state.scopes.items())
        self._inside = {path: step.number for step, path in found if step is not None}
        """path of a scope -> the step inside which it is"""
        self._used: dict[int, int] = {}
        """number of a step -> sequence of the entry that last told that it was executed or reused"""
        self._unused: set[int] = set()
        self._changed = 0
        """sequence of the entry with which the latest change began"""
        digest = ""
        for entry in seen.entries:
            for number in _uses(entry):
                self._used[number] = entry.seq
                self._unused.discard(number)
            if isinstance(entry, j.RunCompleted):
                self._unused |= set(entry.unused)
            if isinstance(entry, j.First | j.RunResumed):
                if code_changed(digest, entry.digest) or (isinstance(entry, j.RunResumed) and entry.inputs is not None):
                    self._changed = entry.seq
                digest = entry.digest or digest
            elif isinstance(entry, j.StepEdited) or (isinstance(entry, j.RunForked) and entry.inputs is not None):
                self._changed = entry.seq

    def is_over(self, step: Step) -> bool:
        around = (self._inside.get(path, 0) for path in enclosing(step.identity.scope))
        used = max(self._used.get(number, 0) for number in (step.number, *around))
        return step.number in self._unused or used < self._changed


def _uses(entry: j.Entry) -> tuple[int, ...]:
    if isinstance(entry, j.StepsReused):
        return tuple(entry.numbers)
    started = isinstance(entry, j.StepStarted | j.StepPending | j.StepCopied | j.StepCompleted | j.StepEdited)
    return (entry.step,) if started else ()  # type: ignore[attr-defined]


def _is_behind(found: Found, order: int, step: Step) -> bool:
    """Whether something was found after a step had raised its error, or may come of it."""
    return found.order > order if found.order != _AT_THE_END else found.step == 0 or found.step > step.number


def _named(step: Step) -> str:
    return f"{step.number} ({step.path})"


def _path(asked: Asked) -> str:
    scope, name = asked.identity.scope, asked.identity.name
    return f"{scope}/{name}" if scope else name


def _asked(asked: Asked) -> str:
    """A request as people read it."""
    return f"{_path(asked)}({head(', '.join(arg.head for arg in asked.request.args), 80)})"


def _said(message: j.SpokenMessage) -> str:
    if message.content is None:
        return f"that of step {message.step}"
    return "another text" if message.content.refs else head(bytes(message.content.value).decode("utf-8", "replace"), 80)
