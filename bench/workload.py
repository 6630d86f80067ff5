"""What a workload is: who does what in which size, in rounds that are interleaved, and what is told of it."""

from __future__ import annotations

import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from bench.cast import Contender
from bench.player import Failed
from bench.stage import Place, Stage
from bench.talk import Sample

Row = tuple[str, int]
"""name of a contender, size"""


class Entry(NamedTuple):
    """A contender in one size. ``rounds``: at most so many, for those that take very long."""

    contender: Contender
    size: int
    rounds: int = 10**6
    job: Mapping[str, Any] = {}

    @property
    def row(self) -> Row:
        return self.contender.name, self.size


class Figure(NamedTuple):
    """A column: a figure of the samples, what it is called, and how it is written."""

    key: str
    heading: str
    form: str = "{:,.0f}"
    scale: float = 1.0
    spread: bool = True


class Ratio(NamedTuple):
    """A column: the figure ``key`` over that of another row of the same round, or over another figure of the sample."""

    heading: str
    key: str
    base: Callable[[Contender, int], Row | None] | None = None
    to: str = ""


class Table:
    """What was measured: for each row a sample a round, None where there is none, in the order of the rows."""

    def __init__(self) -> None:
        self.samples: dict[Row, list[Sample | None]] = {}
        self.problems: dict[Row, str] = {}

    def values(self, row: Row, key: str) -> list[float | None]:
        """One figure, round by round."""
        return [None if s is None or key not in s else float(s[key]) for s in self.samples.get(row, [])]

    def ratios(self, row: Row, other: Row, key: str) -> list[float]:
        """``row`` over ``other``, of the rounds that have both; else of their medians."""
        return over(self.values(row, key), self.values(other, key))


def over(top: Sequence[float | None], bottom: Sequence[float | None]) -> list[float]:
    """The ratios of neighbours in time; where there are none, that of the medians."""
    pairs = zip(top, bottom, strict=False)
    ratios = [a / b for a, b in pairs if a is not None and b]
    if ratios:
        return ratios
    tops, bottoms = ([x for x in values if x is not None] for values in (top, bottom))
    return [statistics.median(tops) / statistics.median(bottoms)] if tops and any(bottoms) else []


class Workload:
    """One of the bench's workloads. Subclasses say what is done with an entry before, and in, each round."""

    id = ""
    title = ""
    about = ""
    figures: Sequence[Figure] = ()
    ratios: Sequence[Ratio] = ()

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.contenders = {entry.contender.name: entry.contender for entry in entries}

    def run(self, stage: Stage, rounds: int) -> Table:
        """Measure: one round of each, then the next of each. An entry that fails once is left out from then on."""
        table = Table()
        for entry in self.entries:
            table.samples.setdefault(entry.row, [])
        with ExitStack() as stack:
            places = {entry.row: self._prepared(stage, entry, stack, table) for entry in self.entries}
            for number in range(rounds):
                self._round(stage, table, places, number, rounds)
        self.finish(table)
        stage.rest()
        return table

    def _prepared(self, stage: Stage, entry: Entry, stack: ExitStack, table: Table) -> Place | None:
        if entry.row in table.problems:
            return None
        tell(f"{self.id} prepares {entry.contender.name}, {entry.size:,}")
        try:
            return self.prepare(stage, entry, stack)
        except Failed as problem:
            self._left_out(table, entry, problem)
            return None

    def _round(self, stage: Stage, table: Table, places: Mapping[Row, Place | None], number: int, rounds: int) -> None:
        said: dict[Row, list[Sample]] = defaultdict(list)
        os.sync()  # nobody is to wait for what others have left to be written
        for entry in self.entries:
            if number >= entry.rounds or entry.row in table.problems:
                continue
            tell(f"{self.id} round {number + 1}/{rounds}: {entry.contender.name}, {entry.size:,}")
            try:
                sample = self.play(stage, entry, places[entry.row])
            except Failed as problem:
                self._left_out(table, entry, problem)
            else:
                said[entry.row].append(sample)
            if entry.rounds == 1:
                os.sync()
        for row, samples in table.samples.items():
            samples.append(_mean(said[row]) if row in said else None)

    def _left_out(self, table: Table, entry: Entry, problem: Failed) -> None:
        table.problems[entry.row] = str(problem)
        tell(f"{self.id} {entry.contender.name}, {entry.size:,}: LEFT OUT: {problem}")

    def job(self, entry: Entry, place: Place, name: str = "") -> dict[str, Any]:
        """What the program is told."""
        common = {"workload": name or self.id, "size": entry.size}
        return {**common, **entry.contender.options, **entry.job, **place.job}

    def told(self) -> str:
        """What is measured, with the sizes of this run."""
        size, runs = (max(found) for found in zip(*((e.size, e.job.get("runs", 0)) for e in self.entries), strict=True))
        return self.about.format(size=f"{size:,}", runs=runs)

    # -- what subclasses may say -----------------------------------------------------------------------------------

    def prepare(self, stage: Stage, entry: Entry, stack: ExitStack) -> Place | None:
        """Something that all rounds of an entry share, kept until the end of the ``stack``. Raises Failed."""
        return None

    def play(self, stage: Stage, entry: Entry, prepared: Place | None) -> Sample:
        """One round of an entry, in a fresh place. Raises Failed."""
        with stage.place(entry.contender.store) as place:
            sample = stage.player(entry.contender.program).ask(self.job(entry, place))
            return {**sample, **place.size()}

    def finish(self, table: Table) -> None:
        """Figures that follow from all rounds together."""


def _mean(samples: Sequence[Sample]) -> Sample:
    """A contender that had several turns in a round."""
    return {key: statistics.fmean(sample[key] for sample in samples) for key in samples[0]}


def tell(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)
