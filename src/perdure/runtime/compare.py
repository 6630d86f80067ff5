"""Two runs side by side: which step of one is which of the other, and in what they differ.

Steps are found in each other as a life finds its records, and then more and more loosely: first by identity (scope,
name, inputs), then what is left by scope and name in the order in which they began, then by name and *family* of scopes
(``worker-2/review`` with ``worker-5/review``). So what was inserted, dropped or reordered is told as such, and all else
is compared with what it stands for. Steps that a run did without in the end (an edit superseded them) take no part.

Arguments are recorded as digests and first characters: more than these cannot be shown. Those that are or contain
secrets have digests that are keyed by run, and cannot be compared at all; that is said, and is no difference.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Final

import msgspec

from perdure import codec
from perdure.fold import State
from perdure.model import ErrorInfo, Usage, head
from perdure.record import Change, Step, changes, code_changed, family
from perdure.runtime.text_diff import diff, shown
from perdure.secret import MASK

Fetch = Callable[[codec.Payload], Mapping[str, bytes]]
"""the blobs that a payload needs"""


class StepFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A step as one of two runs has it."""

    number: int
    path: str
    state: str
    attempts: int
    seconds: float
    usage: Usage
    flagged: str = ""
    error: str = ""


class StepPair(msgspec.Struct, frozen=True, kw_only=True):
    """A step of the first run and what it is in the second; one of them is None for a step that only one has."""

    path: str
    a: StepFacts | None = None
    b: StepFacts | None = None
    found_by: str = ""
    """what told that they are the same: "identity", "name" or "family" """
    differs: tuple[str, ...] = ()
    """in what: of "inputs", "output", "state", "attempts", "usage". Time is told, and is no difference"""
    inputs: tuple[Change, ...] = ()
    hidden: tuple[str, ...] = ()
    """arguments that cannot be compared, as they are secret"""
    code_changed: bool = False
    diff: str = ""
    """of the outputs"""

    @property
    def same(self) -> bool:
        return self.a is not None and self.b is not None and not self.differs


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One of two runs."""

    run: str
    flow: str
    status: str
    lives: int
    usage: Usage
    error: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What ``Client.diff`` found."""

    a: RunFacts
    b: RunFacts
    inputs: tuple[Change, ...]
    """of the runs themselves"""
    hidden: tuple[str, ...]
    result_differs: bool
    result_diff: str
    steps: tuple[StepPair, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        facts = (self.a.flow, self.a.status, self.a.error) == (self.b.flow, self.b.status, self.b.error)
        return facts and not self.inputs and not self.result_differs and all(pair.same for pair in self.steps)


def compare(a: State, b: State, fetch: Fetch) -> Comparison:
    """What differs between two runs of one store. Nothing is executed, and no type of theirs is needed."""
    result = _diff(fetch, a.output, b.output, f"{a.key} result", f"{b.key} result")
    inputs, hidden = _changed(changes(a.args, b.args))
    return Comparison(
        a=_run(a),
        b=_run(b),
        inputs=inputs,
        hidden=hidden,
        result_differs=bool(result),
        result_diff=result,
        steps=tuple(_pair(a, b, one, other, by, fetch) for one, other, by in _paired(a, b)),
    )


_KEYS: Final[tuple[tuple[str, Callable[[Step], Hashable]], ...]] = (
    ("identity", lambda step: step.identity),
    ("name", lambda step: (step.identity.scope, step.name)),
    ("family", lambda step: (family(step.identity.scope), step.name)),
)


def _paired(a: State, b: State) -> Iterator[tuple[Step | None, Step | None, str]]:
    """Every step that counts, in the order of the first run; then those that only the second has."""
    ours, theirs = _counting(a), _counting(b)
    found: dict[int, tuple[Step, str]] = {}
    for by, key in _KEYS:
        waiting = defaultdict[Hashable, deque[Step]](deque)
        for step in theirs.values():
            waiting[key(step)].append(step)
        for step in ours.values():
            if step.number not in found and waiting[key(step)]:
                other = waiting[key(step)].popleft()
                found[step.number] = other, by
                del theirs[other.number]
    for step in ours.values():
        yield step, *found.get(step.number, (None, ""))
    for step in theirs.values():
        yield None, step, ""


def _counting(state: State) -> dict[int, Step]:
    return {number: state.steps[number] for number in sorted(state.steps) if not state.steps[number].unused}


def _pair(a: State, b: State, one: Step | None, other: Step | None, by: str, fetch: Fetch) -> StepPair:
    named = one or other
    assert named is not None
    facts_a, facts_b = _facts(one), _facts(other)
    if one is None or other is None:
        return StepPair(path=named.path, a=facts_a, b=facts_b)
    inputs, hidden = _changed(changes(one.args, other.args))
    names = (f"{state.key} step {step.number} ({step.path})" for state, step in ((a, one), (b, other)))
    output = _diff(fetch, one.output, other.output, *names)
    asked_otherwise = one.identity.fingerprint != other.identity.fingerprint and not hidden
    differs = {
        "inputs": bool(inputs) or asked_otherwise,
        "output": bool(output),
        "state": (one.status, one.flagged) != (other.status, other.flagged) or _error(one.error) != _error(other.error),
        "attempts": len(one.attempts) != len(other.attempts),
        "usage": one.usage != other.usage,
    }
    return StepPair(
        path=one.path,
        a=facts_a,
        b=facts_b,
        found_by=by,
        differs=tuple(what for what, is_so in differs.items() if is_so),
        inputs=inputs,
        hidden=hidden,
        code_changed=code_changed(one.digest, other.digest),
        diff=output,
    )


def _changed(found: tuple[Change, ...]) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """The arguments that differ, and those of which nobody can tell."""
    hidden = {change.argument for change in found if change.before == change.now and MASK in (change.now or "")}
    return tuple(change for change in found if change.argument not in hidden), tuple(sorted(hidden))


def _diff(fetch: Fetch, one: codec.Payload | None, other: codec.Payload | None, name: str, other_name: str) -> str:
    if one == other:
        return ""
    old, new = (shown(payload, fetch(payload) if payload is not None else {}) for payload in (one, other))
    return diff(old, new, name, other_name)


def _facts(step: Step | None) -> StepFacts | None:
    if step is None:
        return None
    return StepFacts(
        number=step.number,
        path=step.path,
        state=step.status,
        attempts=len(step.attempts),
        seconds=step.seconds,
        usage=step.usage,
        flagged=head(step.flagged, 400),
        error=_error(step.error),
    )


def _run(state: State) -> RunFacts:
    return RunFacts(
        run=str(state.key),
        flow=state.flow,
        status=state.status or "",
        lives=state.lives,
        usage=state.usage,
        error=_error(state.error),
    )


def _error(error: ErrorInfo | None) -> str:
    return head(str(error), 400) if error is not None else ""
