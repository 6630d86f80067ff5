"""Power cuts, simulated: only what was synced survives, plus any subset of what was not.

A run is recorded, change by change. After any number of them the disk is reconstructed in a new folder as a power cut
there may have left it, and the run is resumed from that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from crash_cases import STORES, Case
from crash_crew import CREWS
from crash_image import Image
from crash_spy import Op
from crash_zygote import Zygote

Record = Callable[[str, object], None]


class Plug(Case):
    """Pulls the plug of one recorded run at chosen moments."""

    def __init__(self, zygote: Zygote, place: Path, store: str, job: str, drop: Iterable[str] = ()) -> None:
        super().__init__(zygote, place, store, job)
        self.ops = self.record(place / "recorded", 1, drop)
        assert len(self.ops) > 60, "the recording has gone blind"
        self.cuts = 0

    def record(self, root: Path, life: int, drop: Iterable[str] = ()) -> list[Op]:
        ended = self.run("recorded", root, life, drop=list(drop))
        assert ended.value, "the recording has gone blind"
        return msgspec.msgpack.decode(Path(f"{root}.ops").read_bytes(), type=list[Op])

    def pull(self, seeds: int, chosen: Callable[[int], bool] = lambda at: True) -> None:
        """A power cut after every chosen change, ``seeds`` different ones each; resume, judge."""
        image = Image()
        for at, op in enumerate(self.ops, 1):
            image.apply(op)
            for seed in range(seeds) if chosen(at) else ():
                self._pull(image, at, f"{self} {at} {seed}")

    def _pull(self, image: Image, at: int, seed: str) -> None:
        what = f"seed {seed!r}, power cut after {at} changes ({self.ops[at - 1]})"
        with self.folder("cut", what) as root:
            image.cut(root, seed)
            _witness(root, 1, self.ops[:at])
            self.judge(root, 1)
            self.cuts += 1

    def pull_twice(self, at: int, dice: random.Random) -> None:
        """A power cut after change ``at``, and another somewhere in the recovery."""
        seed = f"{self} {at} {dice.random()}"
        image = Image()
        for op in self.ops[:at]:
            image.apply(op)
        what = f"seed {seed!r}, second power cut"
        with self.folder("first", what) as first, self.folder("second", what) as second:
            image.cut(first, seed)
            _witness(first, 1, self.ops[:at])
            again = Image(first)
            ops = self.record(first, 2)
            stop = dice.randint(1, len(ops))
            for op in ops[:stop]:
                again.apply(op)
            again.cut(second, seed)
            _witness(second, 1, self.ops[:at])
            _witness(second, 2, ops[:stop])
            self.judge(second, 2)
            self.cuts += 1


def _witness(root: Path, life: int, ops: Iterable[Op]) -> None:
    """What the flow had been told by then."""
    with Path(f"{root}.witness").open("a") as file:
        file.writelines(f"{life} {op.path}\n" for op in ops if op.kind == "mark")


@pytest.mark.parametrize("colour", ["async", "pipeline-sync"])
@pytest.mark.parametrize("store", STORES)
def test_no_received_step_runs_again_after_a_power_cut_at_any_change(
    zygote: Zygote, place: Path, store: str, colour: str, record_property: Record
) -> None:
    # C1 rel:D1 rel:D2 rel:D3
    plug = Plug(zygote, place, store, colour)
    plug.pull(1, chosen=lambda at: colour == "async" or at % 4 == 0)
    record_property("power cuts", plug.cuts)
    assert plug.cuts >= (100 if colour == "async" else 30)


@pytest.mark.parametrize("store", STORES)
def test_no_received_step_runs_again_after_a_second_power_cut_in_the_recovery(
    zygote: Zygote, place: Path, store: str, record_property: Record
) -> None:
    # rel:R2
    plug = Plug(zygote, place, store, "async")
    dice = random.Random(store)
    for _ in range(25):
        plug.pull_twice(dice.randint(1, len(plug.ops) - 20), dice)
    record_property("power cuts", plug.cuts)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("colour", sorted(CREWS))
@pytest.mark.parametrize("store", STORES)
def test_no_received_step_runs_again_after_many_different_power_cuts_at_every_change(
    zygote: Zygote, place: Path, store: str, colour: str, part: int, record_property: Record
) -> None:
    # C1 rel:D1 rel:D2 rel:D3
    plug = Plug(zygote, place, store, colour)
    plug.pull(12, chosen=lambda at: at % 4 == part)
    record_property("power cuts", plug.cuts)
    assert plug.cuts >= 300


@pytest.mark.long
@pytest.mark.parametrize("job", ["graph", "agent"])
@pytest.mark.parametrize("store", STORES)
def test_no_reported_step_of_a_graph_or_an_agent_runs_again_after_power_cuts_at_every_change(
    zygote: Zygote, place: Path, store: str, job: str, record_property: Record
) -> None:
    # C1 G3 W4 rel:D1 rel:D2 rel:D3
    plug = Plug(zygote, place, store, job)
    plug.pull(2)
    record_property("power cuts", plug.cuts)
    assert plug.cuts >= 200


@pytest.mark.long
@pytest.mark.parametrize("job", ["graph", "agent"])
@pytest.mark.parametrize("store", STORES)
def test_no_reported_step_of_a_graph_or_an_agent_runs_again_after_a_second_power_cut_in_the_recovery(
    zygote: Zygote, place: Path, store: str, job: str, record_property: Record
) -> None:
    # rel:R2
    plug = Plug(zygote, place, store, job)
    dice = random.Random(str(plug))
    for _ in range(25):
        plug.pull_twice(dice.randint(1, len(plug.ops) - 20), dice)
    record_property("power cuts", plug.cuts)


@pytest.mark.parametrize(
    ("store", "forgotten", "seen"),
    [
        ("file", "sync store/runs/paper-17.0/journal.jsonl", "received but not durable"),
        # a rename between them is on disk with either
        ("file", "sync folder store/runs, sync folder store/tmp", "received but not durable"),
        ("file", "sync store/tmp/", "does not have the content it was stored with"),  # a rename without fsync
        ("sqlite", "sync runs.db-wal", "received but not durable"),
        ("sqlite", "sync folder .", "received but not durable"),
    ],
)
def test_a_store_that_forgets_to_sync_is_caught(
    zygote: Zygote, place: Path, store: str, forgotten: str, seen: str
) -> None:
    # the known-bad twins: this suite can fail
    plug = Plug(zygote, place, store, "async", drop=forgotten.split(", "))
    violations = []
    for at in range(len(plug.ops) // 2, len(plug.ops)):
        try:
            plug.pull(1, chosen=lambda cut, at=at: cut == at)
        except AssertionError as error:
            violations.append(str(error))
        if seen in "".join(violations):
            return
    raise AssertionError(f"not caught in {len(plug.ops)} power cuts: {violations[-2:]}")
