"""Edit and go on: which steps an edit has executed again (X1)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edits import EDITS

STEPS = "load outline claims numbers language judge advise soften translate letter sign archive".split()


def _told(folder: Path, points: str) -> dict[str, Any]:
    words = [sys.executable, str(Path(__file__).with_name("edits.py")), str(folder), points]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was executed after each edit, killed once in the middle."""
    return _told(tmp_path_factory.mktemp("edits"), "middle")


def _check(name: str, found: dict[str, Any]) -> None:
    expected = sorted(EDITS[name].executed.split())
    assert sorted(found["alone"]) == expected
    assert found["again"] == []
    for before, after in found["crashes"]:
        killed = before[-1]  # its attempt is not recorded: it is the one step that is executed twice
        assert sorted(before + after) == sorted([*expected, killed])


@pytest.mark.xdist_group("edits")
def test_the_first_run_executes_every_step_once(told: dict[str, Any]) -> None:  # C3
    assert told[""] == STEPS


@pytest.mark.xdist_group("edits")
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_has_exactly_those_steps_executed_that_depend_on_it(told: dict[str, Any], name: str) -> None:  # X1
    _check(name, told[name])


@pytest.mark.xdist_group("edits")
@pytest.mark.parametrize("name", EDITS)
def test_a_finished_run_executes_nothing_for_an_edit_unless_it_is_asked_to(told: dict[str, Any], name: str) -> None:
    assert told[name]["plain"] == []  # rel:R3 X1


@pytest.mark.long
def test_an_edit_and_a_kill_in_the_body_of_each_step_that_is_executed_again(tmp_path: Path) -> None:  # X1 C3
    for name, found in _told(tmp_path, "all").items():
        if name:
            _check(name, found)
            assert len(found["crashes"]) == 2 * len(found["alone"])
