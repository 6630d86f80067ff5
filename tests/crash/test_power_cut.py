"""Power cuts, simulated: only what was synced survives, plus any subset of what was not.

A run is recorded, change by change. After any number of them the disk is reconstructed in a new folder as a power cut
there may have left it, and the run is resumed from that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import STORES
from crash_crew import CREWS
from crash_plug import Plug
from crash_zygote import Zygote

Record = Callable[[str, object], None]


@pytest.mark.parametrize("colour", ["async", "pipeline-sync"])
@pytest.mark.parametrize("store", STORES)
def test_no_received_step_runs_again_after_a_power_cut_at_any_change(
    zygote: Zygote, place: Path, store: str, colour: str, record_property: Record
) -> None:
    # C1 rel:D1 rel:D2 rel:D3
    plug = Plug(zygote, place, store, colour)
    step = 4 if colour == "async" else 8
    plug.pull(1, chosen=lambda at: at % step == 0)
    record_property("power cuts", plug.cuts)
    assert plug.cuts >= 100 // step


@pytest.mark.parametrize("store", STORES)
def test_no_received_step_runs_again_after_a_second_power_cut_in_the_recovery(
    zygote: Zygote, place: Path, store: str, record_property: Record
) -> None:
    # rel:R2
    plug = Plug(zygote, place, store, "async")
    dice = random.Random(store)
    for _ in range(12):
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
