"""Why each step of a run was executed or reused in its latest life, from what the journal says and nothing else (X1).

The journal is folded up to where that life begins. What comes after says which steps were executed
(``step_started``), whose results were reused (``steps_reused``), and what became invalid and why. A step that was
executed and had no record is compared with the recorded steps of its name that this life did not ask for: the one with
the most equal arguments is what it was before its inputs changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from perdure import journal as j
from perdure import states
from perdure.codec import Payload
from perdure.fold import State
from perdure.model import RunKey
from perdure.record import Change, Step, changes, family
from perdure.runtime.text_diff import NOTHING, Shown, diff

Decision: TypeAlias = Literal["executed", "reused", "copied", "not asked for"]
_WAS = {
    states.CRASHED: "it had started and crashed",
    states.RUNNING: "it had started and crashed",
    states.INTERRUPTED: "it was interrupted",
    states.FAILED: "it had failed",
    states.RETRYING: "it had failed, and another attempt was due",
    states.WAITING: "it was waiting",
    states.PENDING: "it was waiting",
    states.INVALIDATED: "it was under way where the run was forked",
}
_FORCED = {
    "code": "its code has changed",
    "flagged": "it was flagged",
    "forced": "it was asked for by name",
    "around": "something inside it was to be executed again",
}


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one step in the latest life of its run, and why."""

    number: int
    path: str
    decision: Decision
    why: str
    changes: tuple[Change, ...] = ()
    """arguments that made it another request than step ``before``"""
    before: int = 0
    """the recorded step that it takes the place of; 0: there is none"""
    code: str = ""
    """how its code has changed, as a unified diff, where both texts were kept"""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why each step of a run was executed or reused in its latest life."""

    run: str
    life: int
    """number of that life, from 1; 0: it was never executed"""
    status: str
    renewed: bool
    """steps whose code had changed were to be executed again"""
    steps: tuple[Reason, ...]

    def count(self, decision: Decision) -> int:
        """How many steps that became of."""
        return sum(reason.decision == decision for reason in self.steps)


def explain(key: RunKey, entries: Iterable[j.Entry], value: Callable[[Payload], object]) -> Explanation:
    """The explanation of a run with these entries; ``value`` decodes what is kept of code. Raises CorruptStore."""
    story = _Story(key, value)
    for entry in entries:
        story.take(entry)
    return story.told()


class _Story:
    """Goes through a journal; knows what there was when the latest life began, and what has happened since."""

    def __init__(self, key: RunKey, value: Callable[[Payload], object]) -> None:
        self._state = State(key)
        self._value = value
        self._renewed = False
        self._forced: dict[int, str] = {}
        """step -> why its result was not to be used any more, if it was not executed since"""
        self._begin()

    def _begin(self) -> None:
        """A life begins: what was recorded is that of the lives before."""
        self._before = {n: (step.status, step.digest, step.recorded) for n, step in self._state.steps.items()}
        self._executed: dict[int, str] = {}
        """step -> digest of the code that was executed"""
        self._copied: dict[int, int] = {}
        self._verified: set[int] = set()
        self._ended: set[int] = set()
        self._reused: dict[int, bool] = {}
        """step -> whether its code had changed"""

    def take(self, entry: j.Entry) -> None:
        if isinstance(entry, j.RunResumed | j.RunForked):
            self._begin()
            steps = self._state.steps
            self._forced = {n: why for n, why in self._forced.items() if steps[n].status == states.INVALIDATED}
            self._renewed = isinstance(entry, j.RunResumed) and entry.renew
        self._state.apply(entry)
        match entry:
            case j.StepStarted() | j.StepPending():
                self._executed[entry.step] = entry.digest
            case j.StepCopied():
                self._copied[entry.step] = entry.source
            case j.StepCompleted():
                (self._verified if entry.verified else self._ended).add(entry.step)
            case j.StepsReused():
                self._reused |= {n: n in entry.changed for n in entry.numbers}
            case j.StepsInvalidated():
                self._forced |= dict.fromkeys(entry.steps, entry.why)

    def told(self) -> Explanation:
        state = self._state
        self._pairs = self._paired()
        steps = tuple(self._reason(step) for _, step in sorted(state.steps.items()))
        return Explanation(
            run=str(state.key), life=state.lives, status=state.status or "", renewed=self._renewed, steps=steps
        )

    def _paired(self) -> dict[int, int]:
        """New step -> the recorded one that was not asked for in this life, and that it is in the place of: both ways.
        Those of a name are paired in order, each with the one that has the most equal arguments."""
        asked = self._executed.keys() | self._reused.keys() | self._copied.keys()
        left: dict[tuple[str, str], list[Step]] = {}
        for number, (_, _, recorded) in self._before.items():
            if recorded and number not in asked:
                step = self._state.steps[number]
                left.setdefault(_family(step), []).append(step)
        pairs: dict[int, int] = {}
        for number in sorted(self._executed.keys() - self._before.keys()):
            step = self._state.steps[number]
            found = left.get(_family(step))
            if found:
                mine = {arg.name: arg.digest for arg in step.args}
                best = max(found, key=lambda old: sum(mine.get(arg.name) == arg.digest for arg in old.args))
                found.remove(best)
                pairs |= {number: best.number, best.number: number}
        return pairs

    def _reason(self, step: Step) -> Reason:
        number = step.number

        def said(decision: Decision, why: str, **more: object) -> Reason:
            return Reason(number=number, path=step.path, decision=decision, why=why, **more)  # type: ignore[arg-type]

        if number in self._executed:
            return self._executed_because(step, said)
        if number in self._copied:
            source = self._state.steps[self._copied[number]]
            return said("copied", f"step {source.number} ({source.path}) had the same inputs, and its cache allows it")
        if number in self._verified:
            return said("reused", "it had started and crashed, and was found to have had its effect")
        if number in self._reused:
            why = f"{step.edited} gave it this result" if step.edited else "it is recorded, with the same inputs"
            if self._reused[number]:
                why = "it is recorded; its code has changed since, and --rerun changed was not given"
            return said("reused", why)
        if number in self._ended:
            return said("executed", "it was waiting, and what it waited for came")
        outer = [n for n in self._state.around(step) if n in self._reused]
        if outer:
            return said("reused", f"it is inside of step {outer[0]}, whose result was reused")
        if number in self._pairs:
            return said("not asked for", f"step {self._pairs[number]} is in its place")
        over = self._state.status == states.COMPLETED
        why = "nothing asked for it" if over else "nothing has asked for it yet"
        if self._state.status == states.RUNNING:
            why += ", as far as the journal tells"
        return said("not asked for", why)

    def _executed_because(self, step: Step, said: Callable[..., Reason]) -> Reason:
        number = step.number
        status, digest, _ = self._before.get(number, ("", "", False))
        if number in self._forced or status:
            cause = self._forced.get(number, "")
            why = _FORCED.get(cause, cause) or _WAS.get(status, f"it was {status}")
            return said("executed", why, code=self._code(digest, self._executed[number]))
        if number not in self._pairs:
            return said("executed", "it is new")
        earlier = self._state.steps[self._pairs[number]]
        differing = changes(earlier.args, step.args)
        why = "its inputs have changed" if differing else "it is asked for more often than before"
        return said("executed", why, changes=differing, before=earlier.number)

    def _code(self, before: str, now: str) -> str:
        if before == now or before not in self._state.code or now not in self._state.code:
            return ""
        texts = [self._value(self._state.code[digest]) for digest in (before, now)]
        if not all(isinstance(text, dict) for text in texts):
            return ""
        return code_diff(texts[0], texts[1])  # type: ignore[arg-type]


def _family(step: Step) -> tuple[str, str]:
    """Where a step stands, whatever its scopes are numbered, and its name."""
    return family(step.identity.scope), step.name


def code_diff(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """How the code of a step has changed: a unified diff of each of its parts."""
    told: list[str] = []
    for name in dict.fromkeys((*before, *now)):
        old, new = (Shown("text", str(code[name])) if name in code else NOTHING for code in (before, now))
        told.append(diff(old, new, f"{name} before", f"{name} now"))
    return "\n".join(filter(None, told))
