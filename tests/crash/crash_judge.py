"""What must be true of a run of the crew after any number of crashes; the same for every way of dying."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import crash_crew as crew

WRITES = ("write", "pwrite64", "sync", "fsync", "fdatasync")


class Witness:
    """What was said in every life, from the file that bodies and flow append to."""

    def __init__(self, root: Path) -> None:
        path = Path(f"{root}.witness")
        self.said: dict[int, list[tuple[str, str]]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            life, event, name = line.split(" ", 2)
            self.said.setdefault(int(life), []).append((event, name))

    def names(self, life: int, event: str) -> set[str]:
        return {name for said, name in self.said.get(life, ()) if said == event}

    def received(self, life: int) -> list[tuple[str, str]]:
        """(place, what it received), in order, of flows that say ``place=token``."""
        pairs = [name.partition("=") for event, name in self.said.get(life, ()) if event == "received"]
        return [(place, token) for place, _, token in pairs]


def judge(root: Path, found: dict[str, Any], life: int) -> None:
    """``found`` is what ``crash_lives.resume`` returned after life number ``life`` had died."""
    before, after = found["before"], found["after"]
    witness = Witness(root)
    began, again = witness.names(life, "began"), witness.names(life + 1, "began")
    earlier = {name for past in range(1, life + 1) for name in witness.names(past, "received")}
    durable = {name for name, step in before["steps"].items() if step["status"] == "completed"}
    started = set(before["steps"])

    assert found["result"] == found["again"] == crew.expected(), "another result"
    assert earlier <= durable, f"received but not durable: {sorted(earlier - durable)}"
    assert began <= started, f"ran before their start was durable: {sorted(began - started)}"
    assert not durable & again, f"completed steps ran again: {sorted(durable & again)}"
    assert not earlier & again, f"received steps ran again: {sorted(earlier & again)}"
    ran = Counter(name for event, name in witness.said.get(life + 1, ()) if event == "began")
    assert set(ran.values()) <= {1}, f"ran twice in one life: {ran}"
    assert again == set(crew.STEPS) - durable, "not exactly the unfinished steps ran"
    assert "running" not in {step["status"] for step in before["steps"].values()}

    _check_end(before, after, witness, life)


def _check_end(before: dict[str, Any], after: dict[str, Any], witness: Witness, life: int) -> None:
    assert after["status"] == "completed" and set(after["steps"]) == set(crew.STEPS)
    assert after["lives"] == before["lives"] + (before["status"] != "completed")
    for name, step in after["steps"].items():
        assert step["status"] == "completed" and step["attempts"].count("completed") == 1, f"{name}: {step}"
        assert set(step["attempts"][:-1]) <= {"crashed"}, f"{name}: {step}"
        assert len(step["attempts"]) <= life + 1, f"{name} ran more than once a crash: {step}"
        assert step["value"] == repr(crew.outputs()[name]), f"output of {name}"
    if "meta" in witness.names(life + 1, "began"):
        (handed,) = witness.names(life + 1, "partial")
        kept = before["steps"].get("meta", {"text": ""})["text"]
        assert crew.expected().startswith(kept) and int(handed) == len(kept.split()), "partial text"


def judge_shape(root: Path, found: dict[str, Any], whole: dict[str, Any], life: int) -> None:
    """The same of a shape of crash_runners: ``found`` is what its ``resume`` returned after life number ``life`` had
    died, and ``whole`` what it returns of a run to which nothing happened."""
    before = found["before"]
    witness = Witness(root)
    began, again = witness.names(life, "began"), witness.names(life + 1, "began")
    earlier = {name for past in range(1, life + 1) for name in witness.names(past, "reported")}
    durable, begun = set(before["durable"]), set(before["begun"])

    assert earlier <= durable, f"reported but not durable: {sorted(earlier - durable)}"
    assert began <= begun, f"ran before their start was durable: {sorted(began - begun)}"
    assert not durable & again, f"completed steps ran again: {sorted(durable & again)}"
    for past in range(1, life + 2):
        ran = Counter(name for event, name in witness.said.get(past, ()) if event == "began")
        assert set(ran.values()) <= {1}, f"ran twice in life {past}: {ran}"
    assert not witness.names(life + 2, "began"), "a finished run executed something"  # rel:R3
    assert not before["failed"], f"recorded as failed: {before['failed']}"
    assert found["result"] == found["again"], "a finished run gave another result"
    for what in ("result", "steps", "said"):
        assert found[what] == whole[what], f"another {what}: {found[what]} instead of {whole[what]}"
    told = [warning for warning in found["warnings"] if "were a record that a crash cut short" not in warning]
    assert not told, f"a warning: {told}"


def told_well(told: dict[str, Any], *statuses: str, result: str) -> bool:
    """Whether somebody whose disk failed was told an error, which must be a good one; without one the run must have
    ended durably. ``told`` is what ``crash_jobs.told`` returned, with "failed" (what, and which file) and "later" (what
    was written to that file after it had failed)."""
    assert not told["later"], f"after {told['failed']} had failed: {told['later']}"
    if not told["error"]:
        assert told["result"] == result and statuses == ("completed",), (told, statuses)
        return False
    message = str(told["message"])
    if told["error"] == "ConfigError":  # the place does not even let us make the files: somebody has to choose another
        assert told["failed"][0] == "create" and "Choose another place" in message, told
        return True
    assert told["error"] == "StoreError", told
    kind, path = told["failed"]
    if path.endswith(("journal.jsonl", "-wal")) and kind in WRITES:
        assert told["broken"], f"the handle is still of use after {told['failed']}"
    helped = "Nothing that was acknowledged is lost" in message and "run again" in message
    assert helped or "Open it again; what was acknowledged is kept" in message, (
        told
    )  # what came after the first failure
    return True
