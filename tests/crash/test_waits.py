"""SIGKILL at every append, post, claim and release, of whoever runs and whoever answers: nothing is asked twice, no
answer is lost, and none is used for what another said."""

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

ASKED = {"asks": 4, "asks-sync": 4, "race": 2, "agent": 4, "cancelled": 1}
"""how many questions each flow asks"""
KILLS = {"asks": 50, "asks-sync": 50, "race": 30, "agent": 40, "cancelled": 20}
"""kills of one matrix, at least"""
ROUNDS = 14


_EVERY = [(shape, store, when) for shape in ASKED for store in STORES for when in ("before", "after")]
_USUAL = {(shape, *(("file", "after"), ("sqlite", "before"))[turn % 2]) for turn, shape in enumerate(ASKED)}


@pytest.mark.parametrize(
    ("shape", "store", "when", "step"),
    [(*case, 7) for case in _EVERY if case in _USUAL]
    + [pytest.param(*case, 1, marks=pytest.mark.long) for case in _EVERY],
)
def test_after_a_kill_at_any_operation_everything_is_asked_once_and_every_answer_used(
    zygote: Zygote,
    place: Path,
    store: str,
    shape: str,
    when: str,
    step: int,
    record_property: Callable[[str, object], None],
) -> None:
    # W1 H1 rel:R1 rel:H3 B9
    kills = 0
    lives = _whole(zygote, place / "whole", store, shape)
    for victim in range(1, lives + 1):
        for at in count(1, step):
            root = place / f"{victim}-{at}"
            try:
                deaths = {victim: at, victim + 1: at} if at % 3 == 0 else {victim: at}
                died = _history(zygote, root, store, shape, deaths, when)
                if not died:
                    break
                kills += died
                _check(Witness(root), zygote.run("crash_waits:look", root=str(root), store=store).value, shape, died)
            except AssertionError as error:
                raise AssertionError(f"{store}, {shape}: {victim} killed {when} operation {at}: {error}") from error
            finally:
                shutil.rmtree(root, ignore_errors=True)
    record_property("kills", kills)
    assert kills >= KILLS[shape] // step


def _whole(zygote: Zygote, root: Path, store: str, shape: str) -> int:
    """A history without a kill: how many lives it takes."""
    lives = 0

    def number(life: int) -> None:
        nonlocal lives
        lives = life

    assert not _history(zygote, root, store, shape, {}, "before", number)
    _check(Witness(root), zygote.run("crash_waits:look", root=str(root), store=store).value, shape, 0)
    return lives


def _history(
    zygote: Zygote,
    root: Path,
    store: str,
    shape: str,
    kills: dict[int, int],
    when: str,
    told: Callable[[int], None] = lambda life: None,
) -> int:
    """The run and people by turns until it is over; returns how many of them were killed."""
    died = 0
    for life in range(1, ROUNDS * 2, 2):
        places: dict[str, Any] = {"root": str(root), "store": store, "shape": shape, "when": when}
        run = zygote.run("crash_waits:live", life=life, at=kills.get(life, 0), **places)
        died += run.killed
        if not run.killed and run.value["status"] != "suspended":
            told(life)
            again = zygote.run("crash_waits:live", life=life + 1, at=0, **places).value
            assert (again["status"], again["result"]) == (run.value["status"], run.value["result"])
            assert run.value["status"] == ("cancelled" if shape == "cancelled" else "completed")
            return died
        died += zygote.run("crash_waits:people", life=life + 1, at=kills.get(life + 1, 0), **places).killed
    raise AssertionError(f"not over after {ROUNDS} rounds")


def _check(witness: Witness, found: dict[str, Any], shape: str, died: int) -> None:
    received: dict[str, str] = {}
    for life in witness.said:
        for place, value in witness.received(life):
            assert received.setdefault(place, value) == value, f"{place} received {received[place]}, then {value}"
    assert len(found["asked"]) == ASKED[shape], f"asked: {found['asked']}"
    notified: dict[str, set[str]] = {}
    for life in witness.said:
        for name in witness.names(life, "notified"):
            path, _, question = name.partition("=")
            notified.setdefault(path, set()).add(question)
    assert len(notified) <= ASKED[shape] and all(len(ids) == 1 for ids in notified.values()), notified
    unknown = set(found["answered"]) - {question for ids in notified.values() for question in ids}
    assert not unknown or died, "nobody was told of a question, and nobody had died who was about to"
    acknowledged = [name.partition("=")[::2] for life in witness.said for name in witness.names(life, "acknowledged")]
    for question, value in acknowledged:
        if question in found["answered"] and shape != "agent":
            assert found["answered"][question] == value, f"{value} was acknowledged, {found['answered'][question]} used"
    kept = {question for question, _ in acknowledged} - {"news", "cancel"}
    assert kept <= set(found["answered"]), "an answer was acknowledged and lost"
    assert found["answers"] == len(found["answered"]) and found["open"] == 0
    began = [name for life in witness.said for name in witness.names(life, "began")]
    useless = [token for token in began if token.partition(".")[0] in received and token not in received.values()]
    assert len(useless) <= 2, f"more than what was in flight ran again: {useless}"
    if shape == "cancelled":
        assert sorted(found["undos"]) == ["half-0/on_cancel-0/work", "on_cancel-0/work"], found["undos"]
    if shape == "agent":
        acts = [token for token in began if token.startswith(("act-", "model"))]
        names = [token.partition(".")[0] for token in acts]
        assert len(names) - len(set(names)) <= 1 + 2, f"more than what was in flight ran again: {acts}"


class Answers:
    """One suspended run, copied for each way to die while it is answered."""

    def __init__(self, zygote: Zygote, place: Path, store: str) -> None:
        self.zygote, self.place, self.store, self.deaths = zygote, place, store, 0
        self.base = place / "base"
        zygote.run("crash_waits:prepare", root=str(self.base), store=store)

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.base, self.place / name))

    def finish(self, root: Path, acknowledged: set[str], what: str) -> None:
        """Others go on; what was acknowledged must be what is used."""
        self.deaths += 1
        try:
            found = self.zygote.run("crash_waits:finish", root=str(root), store=self.store).value
            _, said, news = found["result"]
            assert said in (("first",) if "first" in acknowledged else ("first", "second"))
            assert news in (("tides",) if "signal" in acknowledged else ("tides", "ebb"))
            assert found["answers"] == 1 and found["signals"] in (1, 2)
        except AssertionError as error:
            raise AssertionError(f"{self.store}, {what}: {error}") from error
        finally:
            shutil.rmtree(root)
            Path(f"{root}.witness").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("store", "when", "step"), sampled(*((store, when, 3) for store in STORES for when in ("before", "torn", "after")))
)
def test_an_answer_survives_a_kill_at_every_change_of_a_file(
    zygote: Zygote, place: Path, store: str, when: str, step: int, record_property: Callable[[str, object], None]
) -> None:
    # H1 rel:D11 rel:H3
    answers = Answers(zygote, place, store)
    survived, points = 0, count(1, step)
    while survived < 2:
        at = next(points)
        root = answers.copy(str(at))
        ended = zygote.run("crash_waits:answered", root=str(root), store=store, at=at, when=when)
        if not ended.killed:
            survived += 1 if at > ended.value else 0  # not every change can be torn
            shutil.rmtree(root)
            continue
        answers.finish(root, Witness(root).names(1, "acknowledged"), f"killed {when} change {at}")
    record_property("kills", answers.deaths)
    assert answers.deaths >= 6 // step


@pytest.mark.parametrize("seeds", [1, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("store", STORES)
def test_an_answer_that_was_acknowledged_survives_a_power_cut(
    zygote: Zygote, place: Path, store: str, seeds: int, record_property: Callable[[str, object], None]
) -> None:
    # H1 rel:D2
    answers = Answers(zygote, place, store)
    recorded = answers.copy("recorded")
    zygote.run("crash_waits:answered", root=str(recorded), store=store, at=0, when="", record=True)
    ops = msgspec.msgpack.decode(Path(f"{recorded}.ops").read_bytes(), type=list[Op])
    image, told = Image(answers.base), set[str]()
    for at, op in enumerate(ops, 1):
        image.apply(op)
        told |= {op.path.partition(" ")[2]} if op.kind == "mark" else set()
        for seed in range(seeds):
            image.cut(answers.place / "cut", f"{store} {at} {seed}")
            answers.finish(answers.place / "cut", told, f"power cut after change {at} ({op}), seed {seed}")
    record_property("power cuts", answers.deaths)
    assert told == {"first", "signal"} and answers.deaths >= 10 * seeds
