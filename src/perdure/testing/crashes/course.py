"""In the parent: one run, from its beginning to its end, over as many lives as that takes.

It is killed as planned, goes on in another process, is answered what it asks, and its clock is moved to the date that
it waits for.
"""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from perdure import journal as j
from perdure import states
from perdure.clock import SYSTEM
from perdure.errors import AnswerRefused, ConfigError
from perdure.fold import State, fold
from perdure.model import RunKey
from perdure.runtime.client import Client
from perdure.stores import open_store
from perdure.testing.crashes.effects import hanging
from perdure.testing.crashes.nursery import Nursery
from perdure.testing.crashes.said import GOAL, Died, Ended, Line, Order, Point, read_lines

TOP: Final = RunKey(GOAL)
"""the run that is tested; it may begin others"""
LIVES: Final = 500
"""most lives of one run: one that goes on waiting for ever ends there"""
OWN_DEATHS: Final = 3
"""how often in one run the flow may end its own process, before it is given up"""
_TICK: Final = 0.001
"""seconds behind a date at which the clock is put"""


class Kill(NamedTuple):
    """Where to die: at which durable point of a life (since the kill before it), "before" or "after" it is durable."""

    at: int
    when: str


class Terms(NamedTuple):
    """What all runs of a crash test have in common."""

    kind: str
    durability: str
    timeout: float
    answers: Mapping[str, Any]
    signals: Mapping[str, Any]


class Journals:
    """What a store holds at a moment: the journal of the tested run, and of those that it began."""

    def __init__(self, url: str) -> None:
        store = open_store(url)
        try:
            self.records = {row.key: store.read(row.key) for row in store.runs()}
        finally:
            store.close()
        self._states: dict[RunKey, State] = {}

    def state(self, key: RunKey) -> State:
        if key not in self._states:
            self._states[key] = fold(key, self.records.get(key, ()))
        return self._states[key]

    def entries(self, key: RunKey) -> list[j.Entry]:
        return [j.decode(key, record, 1 + place) for place, record in enumerate(self.records.get(key, ()))]


class Death(NamedTuple):
    """A kill as it happened."""

    life: int
    when: str
    point: Point
    digest: str
    """of the result that was about to be recorded; "" if none was"""
    head: str
    journals: Journals
    """what was durable then"""


class Course(NamedTuple):
    """How a run went."""

    outcome: str
    """as of ``Ended``, or "late" (a life took longer than its limit), "stuck" (it waits for what nobody gives), "dies"
    (the flow ends its own process again and again)
    """
    deaths: tuple[Death, ...]
    own_deaths: int
    points: int
    """changes of the store in all its lives that were not killed"""
    journals: Journals
    lines: tuple[Line, ...]
    digest: str = ""
    head: str = ""
    error: str = ""
    message: str = ""
    place: str = ""
    """the line of the user's code where it failed, or hangs"""
    outputs: Mapping[str, str] = {}
    wants: tuple[str, ...] = ()
    """what it waits for and nobody gives: names of questions and of "signal NAME"s"""
    log: str = ""
    """the end of what it printed last"""


class Runner:
    """Runs courses, each with a store of its own below ``folder``."""

    def __init__(self, nursery: Nursery, folder: Path, terms: Terms) -> None:
        self._nursery, self._folder, self._terms = nursery, folder, terms

    def run(self, number: int, place: int, kills: Sequence[Kill] = ()) -> Course:
        """One run, from the beginning to its end. ``number`` is its own; its first life is of server ``place``."""
        folder = self._folder / str(number)
        try:
            return _Course(self._nursery, folder, self._terms, place, kills).run()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _Course:
    def __init__(self, nursery: Nursery, folder: Path, terms: Terms, place: int, kills: Sequence[Kill]) -> None:
        folder.mkdir()
        self.nursery, self.terms, self.place = nursery, terms, place
        self.url = f"file:{folder / 'store'}" if terms.kind == "file" else f"sqlite:{folder / 'runs.db'}"
        self.witness, self.log = folder / "witness", folder / "log"
        self.kills = list(kills)
        self.deaths: list[Death] = []
        self.own_deaths = self.points = 0
        self.since = 0
        """points since the last kill"""
        self.ahead = 0.0

    def run(self) -> Course:
        for life in itertools.count(1):
            status = self.live(life)
            said = [line for line in read_lines(self.witness) if line.life == life]
            points = [line for line in said if isinstance(line, Point)]
            died = next((line for line in said if isinstance(line, Died)), None)
            if died is not None and status == -signal.SIGKILL:
                self.deaths.append(Death(life, died.when, points[-1], died.digest, died.head, Journals(self.url)))
                self.kills.pop(0)
                self.since = 0
                continue
            self.points += len(points)
            self.since += len(points)
            ended = next((line for line in said if isinstance(line, Ended)), None)
            if ended is None and "Timeout (" in self.last_words():
                place = hanging(self.last_words())
                return self.course(Ended(outcome="late", message=f"it took over {self.terms.timeout:g} s", place=place))
            if ended is None:
                self.own_deaths += 1
                if self.own_deaths > OWN_DEATHS:
                    return self.course(Ended(outcome="dies", message=f"its process ended {_ending(status)}"))
                continue
            if ended.outcome != "suspended":
                return self.course(ended)
            if life >= LIVES:
                return self.course(Ended(outcome="stuck", message=f"After {LIVES} lives: {ended.message}"))
            if not self.give() and not self.move_clock(ended.until):
                return self.course(Ended(outcome="stuck", message=ended.message), self.wants())
        raise AssertionError

    def live(self, life: int) -> int:
        at, when = (self.kills[0].at - self.since, self.kills[0].when) if self.kills else (0, "")
        order = Order(
            store=self.url,
            witness=str(self.witness),
            log=str(self.log),
            life=life,
            at=max(at, 0),
            when=when,
            ahead=self.ahead,
            durability=self.terms.durability,
            timeout=self.terms.timeout,
            look=not self.deaths and not self.kills,
        )
        return self.nursery.live(self.place + life - 1, order)

    def give(self) -> bool:
        """Answer what the run asks, and send the signals that it waits for, as far as they were given. Whether anything
        was. Raises ConfigError for an answer that does not fit."""
        given = False
        with Client(self.url) as client:
            for question in client.questions():
                name = next((n for n in _names(question.path, question.step) if n in self.terms.answers), None)
                if name is not None:
                    value = self.terms.answers[name]
                    try:
                        client.answer(question.run, question.step, value, by=GOAL)
                    except AnswerRefused as refused:
                        raise ConfigError(
                            f"The answer given for {name!r} cannot be taken: {refused.args[0]}", hint=refused.hint
                        ) from None
                    given = True
            for row in client.runs():
                if row.status not in states.RUN_OVER:
                    for name in _awaited(client.state(str(row.key))) & self.terms.signals.keys():
                        client.signal(str(row.key), name, self.terms.signals[name], by=GOAL)
                        given = True
        return given

    def move_clock(self, until: float) -> bool:
        """To the date that the run waits for; False if there is none."""
        self.ahead = max(self.ahead, until - SYSTEM.now() + _TICK) if until else self.ahead
        return until > 0

    def wants(self) -> tuple[str, ...]:
        with Client(self.url) as client:
            asked = [question.path.rpartition("/")[2] for question in client.questions()]
            awaited = [name for row in client.runs() for name in sorted(_awaited(client.state(str(row.key))))]
        return (*asked, *(f"signal {name}" for name in awaited))

    def course(self, ended: Ended, wants: tuple[str, ...] = ()) -> Course:
        return Course(
            outcome=ended.outcome,
            deaths=tuple(self.deaths),
            own_deaths=self.own_deaths,
            points=self.points,
            journals=Journals(self.url),
            lines=tuple(read_lines(self.witness)),
            digest=ended.digest,
            head=ended.head,
            error=ended.error,
            message=ended.message,
            place=ended.place,
            outputs=ended.outputs,
            wants=wants,
            log=self.last_words(),
        )

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


def _names(path: str, step: int) -> tuple[str, ...]:
    """What a question may be called."""
    return path, path.rpartition("/")[2], str(step)


def _awaited(state: State) -> set[str]:
    """Signals that the run waits for."""
    return {w.signal for n, w in state.waits.steps.items() if w.signal and n not in state.waits.arrived}


def _ending(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with exit code {status}"
