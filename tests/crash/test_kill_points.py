"""SIGKILL at every change of a file and at every append to the journal of an 8-step crew, one life each.

The points are not guessed: life after life dies at point 1, 2, 3 ... until lives survive because there are no more.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import STORES, Case, by_turns
from crash_crew import CREWS
from crash_zygote import Ended, Zygote

LEAST = {("file", job): 70 for job in CREWS} | {("sqlite", job): 110 for job in CREWS}
LEAST |= {("file", "graph"): 120, ("file", "agent"): 90, ("sqlite", "graph"): 210, ("sqlite", "agent"): 250}
"""changes of files in a run that is not killed; a suite that sees fewer has gone blind"""

Record = Callable[[str, object], None]


class Killer(Case):
    """Kills lives of one job on one store."""

    def __init__(self, zygote: Zygote, place: Path, store: str, job: str, how: str = "killed") -> None:
        super().__init__(zygote, place, store, job)
        self.how, self.kills = how, 0

    def life(self, root: Path, life: int, at: int, when: str) -> Ended:
        ended = self.run(self.how, root, life, at=at, when=when)
        self.kills += ended.killed
        return ended

    def everywhere(self, when: str, step: int = 1) -> int:
        """Die at every point (or each ``step``-th), resume, judge. Returns the number of points tried."""
        at, tried, survived = 1, 0, 0
        while survived < 3:  # how many changes there are differs a little between lives: threads batch differently
            with self.folder(at, f"killed {when} point {at}") as root:
                ended = self.life(root, 1, at, when)
                if ended.killed:
                    self.judge(root, 1)
                else:
                    survived += at > ended.value["points"]  # else it was a point that cannot be torn
            at, tried = at + step, tried + 1
        return tried - 3


def _points(killer: Killer, when: str, record: Record, step: int = 1) -> None:
    points = killer.everywhere(when, step)
    record("points", points)
    record("kills", killer.kills)
    least = LEAST[killer.store, killer.job] // step
    assert points >= least and killer.kills >= (least if when != "torn" else least // 8)


_SAMPLE = {("file", "before"): 3, ("file", "torn"): 8, ("sqlite", "torn"): 16, ("sqlite", "after"): 6}
"""of stores and moments: each how many-th point; all of them are for the long run"""


@pytest.mark.parametrize(
    ("store", "when", "step"),
    [(store, when, step) for (store, when), step in _SAMPLE.items()]
    + [
        pytest.param(store, when, 1, marks=pytest.mark.long) for store in STORES for when in ("before", "torn", "after")
    ],
)
def test_killed_at_changes_of_a_file_an_async_crew_ends_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, when: str, step: int, record_property: Record
) -> None:
    # C1 C2 C3 C4 C5 X15 rel:D1 rel:R1 rel:R3
    _points(Killer(zygote, place, store, "async"), when, record_property, step)


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("colour", sorted(CREWS.keys() - {"async"}))
@pytest.mark.parametrize("store", STORES)
def test_killed_at_every_change_of_a_file_every_crew_ends_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, colour: str, when: str, record_property: Record
) -> None:
    # C1 C2 C3 C4 C5 X15 rel:D1 rel:R1 rel:R3
    _points(Killer(zygote, place, store, colour), when, record_property)


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("job", ["graph", "agent"])
@pytest.mark.parametrize("store", STORES)
def test_killed_at_every_change_of_a_file_a_graph_and_an_agent_end_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, job: str, when: str, record_property: Record
) -> None:
    # G3 B7 W4 W5 W6 W7 rel:D1 rel:R1 rel:R3
    _points(Killer(zygote, place, store, job), when, record_property)


@pytest.mark.parametrize(
    ("store", "job", "when", "step"), [("file", "graph", "after", 11), ("sqlite", "agent", "before", 31)]
)
def test_killed_at_some_changes_of_a_file_a_graph_and_an_agent_end_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, job: str, when: str, step: int, record_property: Record
) -> None:
    # G3 B7 W4 rel:D1 rel:R1 rel:R3
    _points(Killer(zygote, place, store, job), when, record_property, step)


@pytest.mark.parametrize(("colour", "store", "when"), by_turns(sorted(CREWS), STORES, ("before", "after")))
def test_killed_at_every_append_to_the_journal_a_crew_ends_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, colour: str, when: str, record_property: Record
) -> None:
    # C1 C2 X15 rel:D1 rel:R1
    killer = Killer(zygote, place, store, colour, how="killed_at_append")
    record_property("points", killer.everywhere(when))
    record_property("kills", killer.kills)
    assert killer.kills >= 10


@pytest.mark.parametrize(("colour", "store"), by_turns(sorted(CREWS), STORES))
def test_killed_anywhere_and_killed_again_anywhere_in_the_recovery_a_crew_ends_the_same(
    zygote: Zygote, place: Path, store: str, colour: str, record_property: Record
) -> None:
    # rel:R2
    dice = random.Random(f"{store} {colour}")
    killer = Killer(zygote, place, store, colour)
    last = 1.3 * LEAST[store, colour]
    twice = 0
    for _ in range(30):
        first, second = dice.randint(1, int(last)), dice.randint(1, int(last))
        when = dice.choice(["before", "torn", "after"])
        twice += _twice(killer, first, second, when)
    record_property("killed twice", twice)
    assert twice >= 5


def _twice(killer: Killer, first: int, second: int, when: str) -> bool:
    with killer.folder(f"{first}-{second}", f"killed {when} point {first}, then {second}") as root:
        if not killer.life(root, 1, first, when).killed:
            return False
        second_died = killer.life(root, 2, second, when).killed
        if second_died:
            killer.judge(root, 2)
        return second_died


@pytest.mark.long
@pytest.mark.parametrize("chunk", range(8))
@pytest.mark.parametrize("store", STORES)
def test_a_recovery_from_every_kill_killed_all_over_again_ends_the_same(
    zygote: Zygote, place: Path, store: str, chunk: int, record_property: Record
) -> None:
    # rel:R2: all first points, an eighth in each chunk; with each a fourth of the second ones, with the next others
    killer = Killer(zygote, place, store, "async")
    twice = 0
    for first in range(1 + chunk, LEAST[store, "async"], 8):
        second, survived = first // 8 % 4 - 3, 0
        while survived < 2:
            second += 4
            died = _twice(killer, first, second, "before")
            survived += not died
            twice += died
    record_property("killed twice", twice)
    assert twice >= LEAST[store, "async"] // 8 * 5
