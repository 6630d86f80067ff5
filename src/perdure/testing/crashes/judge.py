"""What must be true of a run that was killed, told from its journals and from what its lives wrote down.

Of every run:
- each record that was durable at a kill is there in the end, unchanged, and so is each that was acknowledged;
- a body ran only after its start was durable, and never after its completion was;
- what had completed is used by the life that goes on, and no step is executed in its place.

Of the result: see the theory in ``__init__``. Two runs that are not killed come first; what differs between them though
all their steps returned the same is a finding that needs no crash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

from perdure import journal as j
from perdure import states
from perdure.model import ArgInfo, RunKey, head
from perdure.record import Identity, Step, enclosing
from perdure.testing.crashes.course import TOP, Course, Death
from perdure.testing.crashes.report import HINTS, Finding, Kind
from perdure.testing.crashes.said import Acknowledged, Called

_WORDS: Final = {
    "run_began": "the run's beginning",
    "run_resumed": "the beginning of a life",
    "run_completed": "the run's result",
    "step_started": "the start of",
    "step_completed": "the completion of",
    "post": "a post to its inbox",
}
_Place: TypeAlias = tuple[RunKey, Identity]


class Clue(msgspec.Struct, frozen=True):
    """One observation; equal ones are told as one finding."""

    kind: Kind
    key: tuple[str, ...]
    """what makes two observations the same"""
    what: str
    kill: str = ""


class Baseline:
    """What two runs that were not killed agree in."""

    def __init__(self, first: Course, second: Course) -> None:
        self.first, self.second = first, second
        one, two = steps_of(first), steps_of(second)
        common = first.outputs.keys() & second.outputs.keys()
        self.varying = sorted({_name(n) for n in common if first.outputs[n] != second.outputs[n]})
        """names of steps that returned something else for the same arguments"""
        self.expected = one.keys() & two.keys()
        """steps that both had"""
        self.same_steps = one.keys() == two.keys()
        self.same_result = first.digest == second.digest
        self.explained = bool(self.varying) or _taken(first) != _taken(second)
        """other outputs, or another order in which branches ended, may rightly lead to anything"""

    def clues(self) -> Iterator[Clue]:
        """What differs although every step that both had returned the same."""
        if self.explained:
            return
        if not self.same_steps:
            one, two = steps_of(self.first), steps_of(self.second)
            left = [one[step] for step in one if step not in two]
            new = [two[step] for step in two if step not in one]
            yield from _paired("nondeterminism", left, new, "", "in one run", "in another")
        elif not self.same_result:
            what = f"the run's result is {self.first.head} in one run and {self.second.head} in another"
            yield Clue("nondeterminism", ("result",), what + ", though every step returned the same")

    def comparable(self, course: Course) -> bool:
        """Whether the result of a run that was killed must be theirs."""
        agree = self.same_steps and self.same_result and not self.explained
        return agree and _taken(course) == _taken(self.first)


def judge(baseline: Baseline, course: Course) -> Iterator[Clue]:
    """What is wrong with a run that was killed."""
    for death in course.deaths:
        kill = told_kill(death, course)
        yield from _records(death, course, kill)
        yield from _bodies(death, course, kill)
    last = course.deaths[-1]
    kill = told_kill(last, course)
    if course.outcome == "completed":
        yield from _superseded(baseline, course, kill)
        yield from _result(baseline, course, last, kill)
    elif course.outcome == "failed":
        what = f"{course.error}: {head(course.message, 300)}" + (f" ({course.place})" if course.place else "")
        yield Clue("failed", (course.error, course.place), what, kill)
    elif not is_declared(course):
        what = head(course.message, 300) + (f" ({course.place})" if course.place else "")
        yield Clue("stuck", (course.outcome, course.place, *course.wants), what, kill)


def is_declared(course: Course) -> bool:
    """Whether the run stopped because a step in doubt is declared so."""
    return course.error == "InDoubt" or (course.outcome == "stuck" and set(course.wants) == {"in doubt"})


def undurable(course: Course) -> Iterator[Clue]:
    """Steps that were executed where no run was."""
    for line in course.lines:
        if isinstance(line, Called) and not line.run:
            what = f"{line.name} is called outside of the run, and executed again in every life"
            yield Clue("undurable", (line.name,), what)


def told_kill(death: Death, course: Course) -> str:
    """When it was, in words: "after the completion of step 3 (load) was durable"."""
    point = death.point
    words = _WORDS.get(point.entry, point.entry.replace("_", " "))
    if point.step:
        states_ = [course.journals.state(key) for key in course.journals.records if str(key) == point.run]
        found = states_[0].steps.get(point.step) if states_ else None
        words += f" step {point.step}" + (f" ({found.path})" if found is not None else "")
    inside = "" if point.run == str(TOP) else f" in run {point.run}"
    second = f" (life {death.life})" if len(course.deaths) > 1 else ""
    return f"{death.when} {words}{inside} was durable{second}"


def _records(death: Death, course: Course, kill: str) -> Iterator[Clue]:
    for key, before in death.journals.records.items():
        after = course.journals.records.get(key, [])
        if after[: len(before)] != before:
            kept = sum(one == two for one, two in zip(before, after, strict=False))
            yield Clue("lost", ("record", str(key)), f"{len(before) - kept} of {len(before)} records of {key}", kill)
    durable = {str(key): len(records) for key, records in death.journals.records.items()}
    for line in course.lines:
        if isinstance(line, Acknowledged) and line.life <= death.life and line.seq > durable.get(line.run, 0):
            yield Clue("lost", ("acknowledged", line.run), f"record {line.seq} of {line.run}, acknowledged", kill)


def _bodies(death: Death, course: Course, kill: str) -> Iterator[Clue]:
    """Bodies against records: what ran was started, what had completed does not run."""
    begun: dict[str, set[tuple[int, int]]] = {}
    states_ = {str(key): death.journals.state(key) for key in death.journals.records}
    for key in death.journals.records:
        entries = death.journals.entries(key)
        begun[str(key)] = {(e.step, e.attempt) for e in entries if isinstance(e, j.StepStarted)}
    strict = course.journals.state(TOP).durability in ("strict", "pipelined")
    known = {str(key) for key in course.journals.records}  # a flow may use another store by the way
    for line in course.lines:
        if not isinstance(line, Called) or line.run not in known:
            continue
        if line.life <= death.life and strict and (line.step, line.attempt) not in begun.get(line.run, ()):
            what = f"attempt {line.attempt} of step {line.step} ({line.name}) ran, and its start is not recorded"
            yield Clue("lost", ("start", line.name), what, kill)
        state = states_.get(line.run)
        step = state.steps.get(line.step) if state is not None else None
        if line.life > death.life and step is not None and step.recorded:
            what = f"{step.path}: attempt {line.attempt} ran after attempt {len(step.attempts)} had completed"
            yield Clue("repeated", ("body", step.name), what, kill)


def _superseded(baseline: Baseline, course: Course, kill: str) -> Iterator[Clue]:
    """Completed steps that the end did not use, and what was executed in their place."""
    for key in course.journals.records:
        state = course.journals.state(key)
        races = [scope for scope, fan in state.taken if fan.startswith("first")]
        left = [step for step in state.steps.values() if step.unused and not _is_inside(step, races)]
        there = course.deaths[0].journals.state(key).steps
        new = [
            step
            for number, step in state.steps.items()
            if number not in there and not step.unused and (key, step.identity) not in baseline.expected
        ]
        if left and new:
            yield from _paired("repeated", left, new, kill, "before the crash", "after it")


def _is_inside(step: Step, scopes: list[str]) -> bool:
    """Whether it may belong to a branch that has lost a race in one of these scopes: nobody needs it any more."""
    return any(scope in ("", *enclosing(step.identity.scope)) for scope in scopes)


def _paired(kind: Kind, left: list[Step], new: list[Step], kill: str, before: str, after: str) -> Iterator[Clue]:
    """Each step with the one that stands in its place: of the same name, and as like it as there is."""
    free = list(new)
    for old in left:
        like = [step for step in free if _is_like(old, step)] or [step for step in new if _is_like(old, step)]
        if not like:
            others = list(dict.fromkeys(step.path for step in new))
            instead = f"and {', '.join(others)} instead {after}" if others else f"and not {after}"
            names = tuple(sorted({old.path, *others}))
            yield Clue("way", names, f"{old.path} is executed {before}, {instead}", kill)
            continue
        likest = min(like, key=lambda step: _distance(old, step))
        free = [step for step in free if step is not likest]
        changes = _changes(old, likest)
        if changes:
            said = "; ".join(f"{a.name} was {a.head} {before} and {b.head} {after}" for a, b in changes)
            yield Clue(kind, ("argument", old.name, *(a.name for a, _ in changes)), f"{old.path}: {said}", kill)
        elif likest.identity.scope != old.identity.scope:
            around = _numberless(old.identity.scope)
            what = f"{old.path}, as {around} is called with other arguments {after} than {before}"
            yield Clue(kind, ("scope", around), what, kill)
        else:
            what = f"{old.path}: it is asked for under another key, or more often, {after} than {before}"
            yield Clue(kind, ("argument", old.name), what, kill)


def _is_like(old: Step, new: Step) -> bool:
    return new.name == old.name and _numberless(new.identity.scope) == _numberless(old.identity.scope)


def _numberless(scope: str) -> str:
    """A scope's path without the numbers that tell scopes of one name apart."""
    return re.sub(r"-[0-9]+(?=/|$)", "", scope)


def _distance(old: Step, new: Step) -> tuple[bool, int]:
    return new.identity.scope != old.identity.scope, len(_changes(old, new))


def _changes(old: Step, new: Step) -> list[tuple[ArgInfo, ArgInfo]]:
    """Arguments that differ, as they were and as they are."""
    was, now = {a.name: a for a in old.args}, {a.name: a for a in new.args}
    return [(was[n], now[n]) for n in was.keys() & now.keys() if was[n].digest != now[n].digest]


def _result(baseline: Baseline, course: Course, last: Death, kill: str) -> Iterator[Clue]:
    meant = last.digest or next((death.digest for death in course.deaths if death.digest), "")
    if baseline.comparable(course) and course.digest != baseline.first.digest:
        what = f"{course.head} after a crash, {baseline.first.head} without one"
        yield Clue("result", (), what, kill)
    elif meant and course.digest != meant:
        said = next(death.head for death in course.deaths if death.digest == meant)
        what = f"{course.head} after a crash, and {said} was about to be recorded before it"
        yield Clue("result", (), what, kill)


def findings(clues: list[Clue]) -> tuple[Finding, ...]:
    """Clues, equal ones as one; what a crash shows more clearly is not told twice."""
    grouped: dict[tuple[str, tuple[str, ...]], list[Clue]] = {}
    for clue in clues:
        grouped.setdefault((clue.kind, clue.key), []).append(clue)
    crashes = {key for kind, key in grouped if kind == "repeated"}
    made = []
    for (_, key), group in grouped.items():
        first = group[0]
        if first.kind == "nondeterminism" and key in crashes:
            continue
        if first.kind == "result" and ("nondeterminism", ("result",)) in grouped:
            continue
        kills = tuple(dict.fromkeys(clue.kill for clue in group if clue.kill))
        made.append(Finding(kind=first.kind, what=first.what, kills=kills, hint=HINTS[first.kind]))
    order = list(HINTS)
    return tuple(sorted(made, key=lambda finding: order.index(finding.kind)))


def steps_of(course: Course) -> dict[_Place, Step]:
    """Steps of a run and of those that it began, by what identifies them."""
    found: dict[_Place, Step] = {}
    for key in course.journals.records:
        state = course.journals.state(key)
        found |= {(key, step.identity): step for step in state.steps.values() if step.status in states.STEP_RECORDED}
    return found


def _taken(course: Course) -> dict[tuple[RunKey, str, str], list[str]]:
    """In which order branches ended, where the flow looks at that."""
    journals = course.journals
    return {(key, *fan): order for key in journals.records for fan, order in journals.state(key).taken.items()}


def _name(told: str) -> str:
    """Scope and name of a step, from what stands for its identity."""
    _, scope, name, *_ = told.split("\x1f")
    return f"{scope}/{name}" if scope else name
