"""The examples that kill themselves: the second run ends, and does again only what the first was killed in."""

from __future__ import annotations

import os
import shutil
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


def test_the_regression_example_passes_until_its_code_leaves_what_was_recorded(tmp_path: Path) -> None:  # X11
    def tested() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "regression"]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    shutil.copytree(EXAMPLES / "regression", tmp_path / "regression", ignore=shutil.ignore_patterns("__pycache__"))
    done = tested()
    assert done.returncode == 0, done.stdout
    crew = tmp_path / "regression" / "crew.py"
    crew.write_text(crew.read_text().replace('"facts")', '"figures")'))
    failed = tested()
    assert failed.returncode == 1 and 'aspect was "facts", now "figures"' in failed.stdout, failed.stdout


def test_every_example_is_short_and_on_the_page() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.name in page and len(path.read_text().splitlines()) < 80


def test_the_prompt_of_step_six_is_edited_and_five_steps_are_reused(tmp_path: Path) -> None:  # X1
    def shell(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perdure", *words]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    for name in ("crew.py", "paper.md"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    run = ("run", "crew.py:crew", "--input", "path=paper.md", "--goal", "paper")
    assert "21 findings: revise" in shell(*run).stdout
    text = (tmp_path / "crew.py").read_text()
    (tmp_path / "crew.py").write_text(text.replace("Be strict: more than 3 ", "Be kind: more than 30 "))
    again = shell(*run)
    assert "21 findings: revise" in again.stdout and "--rerun changed" in again.stderr
    renewed = shell(*run, "--rerun", "changed")
    assert "21 findings: accept" in renewed.stdout and "5 steps reused" in renewed.stderr
    told = shell("explain", "paper").stdout
    assert "5 reused, 3 executed" in told.splitlines()[0]
    first = ("load", "outline", "claims", "numbers", "hedges")
    whys = [" ".join(line.split()[1:]) for line in told.splitlines() if line[:1].isdigit()]
    assert whys[:6] == [
        *(f"{name} reused it is recorded, with the same inputs" for name in first),
        "verdict executed its code has changed",
    ]
    assert 'advice executed its inputs have changed: verdict was "21 findings: revise", now' in whys[8]
    assert '+VERDICT = "Be kind: more than 30 findings are too many."' in told.splitlines()
