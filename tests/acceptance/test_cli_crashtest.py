"""``perdure crashtest`` as a stranger uses it, right and wrong."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stranger import Shell

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOWS = '''
import os, pathlib, signal, subprocess
import perdure
from review import load


@perdure.flow
def breaks(path: str) -> str:
    raise ValueError(load(path))


@perdure.flow
def stepless(path: str) -> str:
    return path


@perdure.flow
def logs(path: str) -> str:
    with open("log.txt", "a") as log:
        log.write(path)
    return load(path)


@perdure.step
def holds(path: str) -> str:
    """Until it is killed, and with it what it has started: both hold the pipe open."""
    pipe = open(path, "w")
    subprocess.Popen(["sleep", "1000"], stdout=pipe)
    pipe.write("it runs\\n")
    pipe.flush()
    signal.pause()
    return path


@perdure.flow
def stays(path: str) -> str:
    return holds(path)


if "THREADS" in os.environ:
    perdure.CheckpointManager()  # so that lives are not forked
'''


@pytest.fixture
def shell(make_shell: Callable[[str], Shell], tmp_path: Path) -> Shell:
    """In whose folder for temporary files nothing may be left."""
    made = make_shell("sqlite:runs.db")
    (tmp_path / "flows.py").write_text(FLOWS)
    (tmp_path / "temporary").mkdir()
    made.environment["TMPDIR"] = str(tmp_path / "temporary")
    made.environment.pop("PYTHONHASHSEED", None)
    return made


def _left(shell: Shell) -> list[Path]:
    """What a crash test has left in its temporary folder and where the stranger's own store would be."""
    return [
        *(shell.folder / "temporary").iterdir(),
        *shell.folder.glob("runs.db*"),
        *shell.folder.glob(".perdure/*.db"),
    ]


def test_a_sound_flow_passes_and_leaves_nothing(shell: Shell) -> None:  # X5
    words = ("crashtest", "review.py:review", "-i", "path=paper", "-i", "scale=3", "--points", "2", "--again", "1")
    said = shell(*words, "--seed", "11").stdout
    assert "review: 4 steps, " in said and said.endswith("Nothing was found.\n") and "(seed 11)" in said
    assert not _left(shell)
    assert shell.ran().count("load") > 2


def test_what_is_found_has_an_exit_code_and_stands_in_the_json(shell: Shell) -> None:  # X5
    words = ("crashtest", "flows:logs", "-i", "path=paper", "--points", "1", "--again", "0")
    told = shell.json(*words, code=7)
    assert not told["ok"] and told["kills"] == 1
    (finding,) = told["findings"]
    assert finding["kind"] == "effect" and finding["what"].startswith("open log.txt (flows.py:")
    assert "in a step" in finding["hint"]
    assert not _left(shell)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("review.py:nothing",), 2, "review.py has no 'nothing'. It has: "),
        (("review.py:review",), 2, "review needs path. It takes: --input path=TEXT"),
        (("review.py:review", "-i", "path=x", "--points", "some"), 2, "--points 'some' is neither 'all' nor a number"),
        (("review.py:review", "-i", "path=x", "--answer", "yes"), 2, "--answer 'yes' has no '='"),
        (("flows.py:breaks", "-i", "path=x"), 1, "breaks failed without any crash of ours: ValueError: text of x"),
        (("flows.py:stepless", "-i", "path=x"), 2, "stepless has no steps"),
    ],
)
def test_wrong_use_is_told_in_a_sentence(shell: Shell, words: tuple[str, ...], code: int, said: str) -> None:  # X5
    assert said in shell("crashtest", *words, code=code).stderr
    assert not _left(shell)


@pytest.mark.parametrize(
    ("number", "code", "threads"),
    [
        (signal.SIGINT, 130, False),
        pytest.param(signal.SIGTERM, 143, False, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 130, True, marks=pytest.mark.long),
    ],
)
def test_stopped_it_ends_every_child_and_leaves_nothing(
    shell: Shell, number: signal.Signals, code: int, threads: bool
) -> None:  # X5
    shell.environment |= {"THREADS": "yes"} if threads else {}
    pipe = shell.folder / "pipe"
    os.mkfifo(pipe)
    child = shell.start("crashtest", "flows.py:stays", "-i", f"path={pipe}")
    with pipe.open() as reading:
        assert reading.readline() == "it runs\n"
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
        assert child.returncode == code and "Traceback" not in said, said
        assert select.select([reading], [], [], 60)[0], "somebody who had it open has not ended"
        assert reading.read() == ""
    assert not _left(shell)


# -- the examples ------------------------------------------------------------------------------------------------------

SAMPLE = ("--points", "2", "--again", "1", "--seed", "1")
CASES: dict[str, tuple[str, ...]] = {
    "support.py:support": ("-i", "task=My lamp never came. Ann"),
    "planner.py:survey": ("-i", 'topics=["tides","waves","salt"]'),
    "critic.py:article": ("-i", "topic=tides"),
    "best.py:best": ("-i", "topic=sea"),
    "mapreduce.py:frequent": ("-i", "folder=docs"),
    "approval.py:release": ("-i", "topic=tides", "--answer", "legal=true", "--answer", "headline=A good night"),
    "review.toml": ("-i", "path=paper.md"),
    "review.py:review": ("-i", "path=paper.md"),
}
QUICK = {"critic.py:article"}


def _example(folder: Path, target: str, *words: str) -> Any:
    shutil.copytree(EXAMPLES, folder / "examples")
    place = folder / "examples"
    (place / "docs").mkdir()
    for letter in "abc":
        (place / "docs" / f"{letter}.md").write_text(f"letters: {letter} figures")
    done = subprocess.run(
        [sys.executable, "-m", "perdure", "crashtest", target, *CASES[target], *words, "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=[] if target in QUICK else pytest.mark.long) for target in CASES]
)
def test_an_example_passes_a_sample_of_kills(tmp_path: Path, target: str) -> None:  # X5
    found = _example(tmp_path, target, *SAMPLE)
    assert found["ok"] and found["kills"] >= 2
    assert bool(found["notes"]) or target.startswith(("review", "approval")), "the others end themselves once"


@pytest.mark.long
@pytest.mark.parametrize("store", ["sqlite", "file"])
@pytest.mark.parametrize("target", CASES)
def test_an_example_passes_every_kill(tmp_path: Path, target: str, store: str) -> None:  # X5
    found = _example(tmp_path, target, "--store", store, "--jobs", "2")
    assert found["ok"] and found["kills"] >= found["points"] and found["kills_again"] >= 3
