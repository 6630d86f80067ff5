"""What a stranger has after `pip install`: the demo with its paper, and the examples of the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

REPOSITORY = Path(__file__).parents[2]


def run(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=120
    )


def test_a_wheel_brings_the_paper_of_the_examples_and_the_demo_finds_it(tmp_path: Path) -> None:
    built = run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), folder=REPOSITORY)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        papers = [name for name in archive.namelist() if name.endswith("paper.md")]
        archive.extractall(tmp_path / "site")
    assert papers == ["perdure/demo/paper.md"]
    paper = (REPOSITORY / "examples" / "paper.md").read_text()
    assert (tmp_path / "site" / papers[0]).read_text() == paper
    done = run("-m", "perdure", "demo", "--pace", "0", "--json", folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "completed" and Path(told["files"]["paper"]).read_text() == paper


def test_the_examples_run_as_their_page_says(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    page = (REPOSITORY / "examples" / "README.md").read_text()
    commands = [line.strip() for line in page.splitlines() if line.strip().startswith("perdure run")]
    results: list[str] = []
    for command in commands:
        done = run("-m", *command.split(), "--json", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout)["result"])
    assert results[0].startswith("- 'always' occurs ") and results[0].count("\n") == 3
    assert results[1].startswith("Dear authors,") and results[2] == results[1]
    assert results[3].endswith(" headings") and "without" not in results[3]
    script = run("examples/review.py", "examples/paper.md", folder=tmp_path)
    assert script.returncode == 0 and script.stdout.strip() == results[0].strip()
