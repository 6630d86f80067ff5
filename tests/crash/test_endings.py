"""Every way to end but SIGKILL is recorded as what it is, leaves the run resumable, and gives its lease back."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from crash_judge import Witness
from crash_zygote import Zygote

STORES = ("file", "sqlite")
ENDINGS = {
    "SIGTERM": ("SystemExit", 143, "interrupted"),
    "SIGINT": ("KeyboardInterrupt", None, "interrupted"),
    "exit": ("SystemExit", 7, "interrupted"),
    "flow-exit": ("SystemExit", 7, "interrupted"),
    "cancel": ("CancelledError", None, "interrupted"),
    "error": ("RuntimeError", None, "failed"),
}
"""what the caller sees, and what is recorded"""


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("colour", ["async", "sync"])
@pytest.mark.parametrize("store", STORES)
def test_a_run_is_finalised_on_every_exit_and_resumes(
    zygote: Zygote, place: Path, store: str, colour: str, ending: str
) -> None:
    # B2 B3 G7
    raised, code, status = ENDINGS[ending]
    root = place / "run"
    crew = {"root": str(root), "store": store, "colour": colour}
    told = zygote.run("crash_endings:life", life=1, ending=ending, **crew).value
    assert (told["raised"], told["code"], told["status"], told["holder"]) == (raised, code, status, False), told
    assert told["listed"] == (["ends"] if status == "interrupted" else [])
    assert told["steps"][0] == "completed" and told["steps"][1] == ("completed" if ending == "flow-exit" else status)
    again = zygote.run("crash_endings:life", life=2, ending="", **crew).value
    assert (again["result"], again["status"]) == ("one two", "completed")
    assert Witness(root).names(2, "began") == (set() if ending == "flow-exit" else {"second"})


@pytest.mark.parametrize("store", STORES)
def test_two_processes_cannot_run_one_run_and_a_dead_process_holds_nothing(
    zygote: Zygote, place: Path, store: str
) -> None:
    # X3 X14 rel:C10
    told = zygote.run("crash_endings:contend", root=str(place / "run"), store=store).value
    assert f"process {told['pid']} on {socket.gethostname()} since 2" in told["refused"]
    assert told["shown"] == ["running", told["pid"]]
    assert told["result"] == "one two"
    assert told["attempts"] == [["completed"], ["crashed", "completed"]]
