"""SIGKILL of whoever forks a run, at every change that he makes: there is all of the fork or nothing of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from crash_cases import STORES, sampled
from crash_image import Image
from crash_judge import Witness
from crash_spy import Op
from crash_zygote import Zygote

PLAIN = ["one", "two", "ree", "end", "plain", "yes"]
CHANGED = ["one", "new", "ree", "end", "kind", "no"]


class Forks:
    """A run that has ended, copied for each way to die while it is forked."""

    def __init__(self, zygote: Zygote, place: Path, store: str) -> None:
        self.zygote, self.place, self.store, self.deaths = zygote, place, store, 0
        self.base = place / "base"
        shutil.rmtree(self.base, ignore_errors=True)
        zygote.run("crash_forks:prepare", root=str(self.base), store=store)
        self.original = self.look(self.base)["records"]

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.base, self.place / name))

    def look(self, root: Path) -> Any:
        return self.zygote.run("crash_forks:look", root=str(root), store=self.store).value

    def judge(self, root: Path, acknowledged: bool, what: str) -> None:
        """The original is as it was, the fork is there or not, and goes on; nothing is damaged."""
        self.deaths += 1
        try:
            seen = self.look(root)
            assert seen["records"] == self.original, "the original was changed"
            assert [found for found in seen["found"] if found[0] not in ("repair", "note")] == []
            assert seen["left"] == [], "what a crash left was not mended"
            assert seen["runs"] in (["letter#0"], ["letter#0", "letter#1"])
            assert not acknowledged or len(seen["runs"]) == 2, "the fork was acknowledged and lost"
            found = self.zygote.run("crash_forks:finish", root=str(root), store=self.store).value
            assert found["there"] == (len(seen["runs"]) == 2) and found["done"] == {found["name"]: "completed"}
            assert (found["result"], found["original"], found["wrong"]) == (CHANGED, PLAIN, [])
            executed = [name.partition(".")[0] for name in Witness(root).names(2, "began")]
            assert executed == ["end"], "what was recorded was executed again"
        except AssertionError as error:
            raise AssertionError(f"{self.store}, {what}: {error}") from error
        finally:
            shutil.rmtree(root)
            shutil.rmtree(f"{root}.copies", ignore_errors=True)
            Path(f"{root}.witness").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("store", "when", "step"), sampled(*((store, when, 19) for store in STORES for when in ("before", "torn", "after")))
)
def test_a_fork_is_there_or_not_after_a_kill_at_every_change_of_a_file(
    zygote: Zygote, place: Path, store: str, when: str, step: int, record_property: Callable[[str, object], None]
) -> None:
    # X2 rel:D11 rel:R1
    forks = Forks(zygote, place, store)
    survived, points = 0, count(1, step)
    while survived < 2:
        at = next(points)
        root = forks.copy(str(at))
        ended = zygote.run("crash_forks:forked", root=str(root), store=store, at=at, when=when)
        if not ended.killed:
            survived += 1 if at > ended.value else 0  # not every change can be torn
            shutil.rmtree(root)
            continue
        forks.judge(root, bool(Witness(root).names(1, "acknowledged")), f"killed {when} change {at}")
    record_property("kills", forks.deaths)
    assert forks.deaths >= (8 if step == 1 else 1)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [3])
@pytest.mark.parametrize("store", STORES)
def test_a_fork_that_was_acknowledged_survives_a_power_cut(
    zygote: Zygote, place: Path, store: str, seeds: int, record_property: Callable[[str, object], None]
) -> None:
    # X2 rel:D2
    forks = Forks(zygote, place, store)
    recorded = forks.copy("recorded")
    zygote.run("crash_forks:forked", root=str(recorded), store=store, at=0, when="", record=True)
    ops = msgspec.msgpack.decode(Path(f"{recorded}.ops").read_bytes(), type=list[Op])
    image, told = Image(forks.base), False
    for at, op in enumerate(ops, 1):
        image.apply(op)
        told = told or op.kind == "mark"
        for seed in range(seeds):
            image.cut(forks.place / "cut", f"{store} {at} {seed}")
            forks.judge(forks.place / "cut", told, f"power cut after change {at} ({op}), seed {seed}")
    record_property("power cuts", forks.deaths)
    assert told and forks.deaths >= 10 * seeds


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["postgresql", "redis"])
def test_on_a_server_a_fork_is_there_or_not_after_a_kill_at_every_verb(
    zygote: Zygote,
    place: Path,
    kind: str,
    when: str,
    postgres: Callable[[int], str],
    valkey: Callable[[], str],
    record_property: Callable[[str, object], None],
) -> None:
    # X2 rel:D12
    server = postgres(18) if kind == "postgresql" else valkey()
    killed = 0
    for at in count(1):
        own = f"schema=forks_{when}_{at}" if kind == "postgresql" else f"prefix=forks_{when}_{at}"
        forks = Forks(zygote, place, f"{server}?{own}&lease=1")
        root = forks.copy(f"{when}-{at}")
        ended = zygote.run("crash_forks:forked", root=str(root), store=forks.store, at=at, when=when, verbs=True)
        if not ended.killed:
            break
        killed += 1
        forks.judge(root, bool(Witness(root).names(1, "acknowledged")), f"killed {when} verb {at}")
    record_property("kills", killed)
    assert killed >= 4
