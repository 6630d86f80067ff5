"""The examples that kill themselves: the second run ends, and does again only what the first was killed in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

CASES = {
    "support": ({"did ask 2"}, "Ann was refunded and has a letter."),
    "planner": ({"did read waves 1"}, "missing: LookupError: there is nothing on salt"),
    "critic": ({"did criticise 13 words"}, "path: writer critic writer critic writer critic publish; reused: 3 steps"),
    "best": ({"did think of the in attempt 1"}, "because attempt 1 has the highest score, 4 (attempt 0: 2): 4 words"),
    "mapreduce": ({"did count c.md", "did count b.md", "did count d.md"}, "letters 4, figures 1"),
}
"""which lines the second life may say again, and what it ends with"""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("store", ["sqlite:runs.db", "file:store"])
def test_an_example_that_was_killed_ends_and_repeats_nothing_that_was_finished(
    tmp_path: Path, name: str, store: str
) -> None:
    # G4 K1 K2 K3 W4 W5 W7 X6 X15
    (tmp_path / "docs").mkdir()
    for letter in "abcd":
        (tmp_path / "docs" / f"{letter}.md").write_text(f"letters: {letter}" + (" figures" if letter == "d" else ""))
    words = [sys.executable, str(EXAMPLES / f"{name}.py"), *(["docs"] if name == "mapreduce" else [])]
    environment = {**os.environ, "PERDURE_STORE": store}
    environment.pop("PERDURE_MODEL_URL", None)
    first, second, third = (
        subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        for _ in range(3)
    )
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert (second.returncode, second.stderr) == (0, ""), second.stderr
    again, result = CASES[name]
    did = [{line for line in run.stdout.splitlines() if line.startswith("did ")} for run in (first, second, third)]
    assert did[0] and did[1] and did[0] & did[1] <= again
    assert did[2] == set(), "the third run returns the recorded result"
    assert second.stdout.splitlines()[-1].endswith(result)
    assert third.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]


@pytest.mark.parametrize("store", ["sqlite:runs.db", "file:store"])
def test_the_approval_example_waits_for_two_people_in_no_process(tmp_path: Path, store: str) -> None:  # W1
    def shell(*words: str) -> str:
        environment = {**os.environ, "PERDURE_STORE": store}
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    example, answer = str(EXAMPLES / "approval.py"), ("-m", "perdure", "answer", "release")
    first = shell(example)
    assert "did draft" in first and first.count("did mail") == 2 and "2 more" not in first
    assert "waits for an answer to question" in first
    assert "Is that true?" in shell("-m", "perdure", "questions")
    shell(*answer, "legal", "--value", "yes")
    assert "did" not in shell(example), "one answer is missing"
    shell(*answer, "headline", "--value", "2")
    last = shell(example)
    assert last == "did publish\nA good night: Today we present the pillow. It will change how you sleep.\n"
    assert shell(example) == last.partition("\n")[2]


def test_the_approval_example_is_withdrawn_when_it_is_cancelled(tmp_path: Path) -> None:  # B9
    def shell(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell(str(EXAMPLES / "approval.py"))
    assert "as soon as its clean-ups have run" in shell("-m", "perdure", "cancel", "release", "--by", "ann")
    assert shell(str(EXAMPLES / "approval.py")).startswith("did withdraw\nrun release#0 was cancelled by ann")


def test_every_example_is_short_and_on_the_page() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.name in page and len(path.read_text().splitlines()) < 80
