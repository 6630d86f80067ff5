"""A crash test as a whole: which runs of a flow are killed where, and what comes of it."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from perdure.errors import ConfigError, RunFailed
from perdure.model import head
from perdure.runtime.config import Durability
from perdure.testing.crashes import judge
from perdure.testing.crashes.course import Course, Kill, Runner, Terms
from perdure.testing.crashes.effects import Place
from perdure.testing.crashes.judge import Baseline, Clue
from perdure.testing.crashes.nursery import Nursery
from perdure.testing.crashes.report import Report
from perdure.testing.crashes.said import Effect

_SERVERS: Final = 3
"""least number of processes that lives are forked from: two orders of a small set may agree by chance"""
Progress = Callable[[int, int], None]
"""told how many runs have been killed and judged, of how many"""


class Options(NamedTuple):
    """How a flow is tested; see ``crashtest``."""

    answers: Mapping[str, Any] = {}
    signals: Mapping[str, Any] = {}
    points: int | None = None
    again: int = 10
    seed: int | None = None
    jobs: int = 1
    timeout: float = 60.0
    store: str = "sqlite"
    durability: str = "strict"
    allow: Sequence[str] = ()

    def check(self) -> None:
        """Raises ConfigError for what means nothing."""
        for name, number, least in (
            ("points", self.points, 1),
            ("again", self.again, 0),
            ("seed", self.seed, 0),
            ("jobs", self.jobs, 1),
        ):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
                raise ConfigError(f"{name} must be a whole number from {least}, not {number!r}.")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float) or not 0 < self.timeout < 1e6:
            raise ConfigError(f"timeout must be a number of seconds above 0, and finite, not {self.timeout!r}.")
        if self.store not in ("sqlite", "file"):
            raise ConfigError(
                f"store must be 'sqlite' or 'file', not {self.store!r}: a crash test makes its own stores."
            )
        if self.durability not in get_args(Durability):
            raise ConfigError(f"durability must be one of {', '.join(get_args(Durability))}, not {self.durability!r}.")


def crash_flow(program: Sequence[str], options: Options, progress: Progress = lambda done, total: None) -> Report:
    """Test the flow that ``program`` serves (arguments for Python; see server.py)."""
    options.check()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="perdure-crashtest-"))
    try:
        with Nursery(program, max(_SERVERS, options.jobs + 1), seed, folder) as nursery:
            flow = nursery.load().flow
            terms = Terms(options.store, options.durability, options.timeout, options.answers, options.signals)
            return _Trial(flow, Runner(nursery, folder, terms), nursery, options, seed).run(progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Trial:
    def __init__(self, flow: str, runner: Runner, nursery: Nursery, options: Options, seed: int) -> None:
        self.flow, self.runner, self.nursery, self.options, self.seed = flow, runner, nursery, options, seed
        self.dice = random.Random(seed)
        self.clues: list[Clue] = []
        self.kills = self.again = self.declared = self.own_deaths = 0

    def run(self, progress: Progress) -> Report:
        first = self.uncrashed(0, "")
        second = self.uncrashed(1, "once, and when executed again from its beginning, in another store, it ")
        baseline = Baseline(first, second)
        for course in (first, second):
            self.note(course)
        self.clues += baseline.clues()
        plans = self.plan(min(first.points, second.points))
        for done, course in enumerate(self.courses(plans), 1):
            self.note(course)
            if course.deaths:
                self.kills += 1
                self.again += len(course.deaths) > 1
                self.declared += judge.is_declared(course)
                self.clues += judge.judge(baseline, course)
            progress(done, len(plans))
        if not self.kills:
            raise ConfigError(
                f"{self.flow}: none of {len(plans)} kills happened, so nothing was tested.",
                hint="Does it end in another way each time, or run in another process?",
            )
        return Report(
            flow=self.flow,
            steps=len(judge.steps_of(first)),
            points=first.points,
            kills=self.kills,
            kills_again=self.again,
            seed=self.seed,
            findings=judge.findings(self.clues),
            notes=tuple(self.notes(baseline, len(plans))),
        )

    def uncrashed(self, number: int, when: str) -> Course:
        """A run that is not killed. Raises what stands against a crash test of this flow."""
        course = self.runner.run(number, number)
        if course.outcome == "completed":
            if not judge.steps_of(course):
                raise ConfigError(
                    f"{self.flow} has no steps: nothing of it is kept, and all of it is executed again after a crash.",
                    hint="Decorate what it calls with @perdure.step.",
                )
            return course
        again = f"completed {when}" if when else ""
        place = f" ({course.place})" if course.place else ""
        printed = f" It printed last: {head(course.log, 600)}" if course.log.strip() else ""
        if course.outcome == "stuck" and course.wants:
            options = ", ".join(_option(name) for name in course.wants)
            raise ConfigError(f"{self.flow} {again}waits: {course.message}", hint=f"Give {options}.")
        if course.outcome == "late":
            raise ConfigError(
                f"{self.flow} {again}did not end within the time limit of {self.options.timeout:g} s{place}.",
                hint="Give a larger one with --timeout, or inputs that take less.",
            )
        what = {"failed": "failed", "stopped": "stopped", "dies": "ended its own process again and again"}
        raise RunFailed(
            f"{self.flow} {again}{what.get(course.outcome, 'did not end')} without any crash of ours: "
            f"{course.error}{': ' if course.error else ''}{head(course.message, 500)}{place}."
            + (printed if course.outcome == "dies" else ""),
            hint="It depends on what an earlier run has left behind." if when else "Nothing was killed.",
        )

    def plan(self, points: int) -> list[list[Kill]]:
        """Which runs are killed where: a sample always has the last point, at which everything else is recorded."""
        every = [Kill(at, when) for at in range(1, points + 1) for when in ("before", "after")]
        wanted = self.options.points
        if wanted is not None and wanted < len(every):
            last = every[-2]
            others = [kill for kill in every if kill != last]
            every = sorted([last, *self.dice.sample(others, wanted - 1)])
        twice = [
            [
                self.dice.choice(every),
                Kill(self.dice.randint(1, max(points // 2, 1)), self.dice.choice(("before", "after"))),
            ]
            for _ in range(self.options.again)
        ]
        return [[kill] for kill in every] + twice

    def courses(self, plans: Sequence[Sequence[Kill]]) -> Iterator[Course]:
        """The runs, as they end; at most ``jobs`` side by side."""
        with ThreadPoolExecutor(self.options.jobs, thread_name_prefix="crashtest") as pool:
            try:
                yield from _as_they_end({pool.submit(self.runner.run, 2 + n, n, plan) for n, plan in enumerate(plans)})
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.nursery.halt()
                raise

    def note(self, course: Course) -> None:
        """What any run may show, killed or not."""
        self.own_deaths += course.own_deaths
        self.clues += judge.undurable(course)
        for line in course.lines:
            if isinstance(line, Effect):
                what = f"{line.event} {line.target}"
                if not any(fnmatchcase(what, pattern) for pattern in self.options.allow):
                    place = Place(line.file, line.line, line.function)
                    self.clues.append(Clue("effect", (line.event, line.file, str(line.line)), f"{what} ({place})"))

    def notes(self, baseline: Baseline, planned: int) -> Iterator[str]:
        if baseline.varying:
            names = ", ".join(baseline.varying[:5]) + (" ..." if len(baseline.varying) > 5 else "")
            yield (
                f"{names} returned something else in each execution, so results are compared only where all steps "
                "were recorded."
            )
        if self.own_deaths:
            yield f"the flow ended its own process ({_times(self.own_deaths)}), and was run again."
        if self.declared:
            yield f"a step in doubt had the run stop for a person, as it is declared ({_times(self.declared)})."
        if planned > self.kills:
            yield f"a run ended before the point at which it was to be killed ({_times(planned - self.kills)})."


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _as_they_end(left: set[Future[Course]]) -> Iterator[Course]:
    while left:
        ended, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)  # a signal is heard in between
        for future in ended:
            yield future.result()


def _option(name: str) -> str:
    if name.startswith("signal "):
        return f"--signal {name.removeprefix('signal ')}=JSON"
    return f"--answer {name!r}=JSON" if " " in name else f"--answer {name}=JSON"
