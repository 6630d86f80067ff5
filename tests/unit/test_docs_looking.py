"""docs/looking.md and docs/replay.md show what the commands say, of the programs that they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def _session(page: str) -> list[tuple[str, str, str]]:
    """What happens on a page, in order: ("file", its name, its content) and ("$", a command, what it says)."""
    found: list[tuple[str, str, str]] = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE):
        if language == "python" and block.startswith("# "):
            found.append(("file", block[2 : block.index("\n")], block))
        elif block.startswith("$ "):
            for said in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = said.partition("\n")
                found.append(("$", command, output))
    return found


def _alike(text: str) -> str:
    """Without what is another at each time."""
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\+\d\d:\d\d| UTC)", "MOMENT", text)
    return re.sub(r" +", " ", re.sub(r"\d+\.\d s\b", "0.0 s", text)).strip()


@pytest.mark.parametrize("page", ["looking.md", "replay.md"])
def test_the_page_shows_what_the_commands_say(page: str, tmp_path: Path) -> None:  # X11
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = 0
    for kind, what, text in _session(page):
        if kind == "file":
            (tmp_path / what).write_text(text)
            continue
        command = f"{sys.executable} -m {what}" if what.startswith("perdure ") else what
        said = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert _alike(said.stdout + said.stderr) == _alike(text), what
        done += 1
    assert done >= 4


@pytest.mark.long
def test_the_pages_test_fails_as_the_command_does(tmp_path: Path) -> None:
    [(_, name, program), *_] = [one for one in _session("replay.md") if one[1] == "test_replay.py"]
    (tmp_path / name).write_text(program)
    (tmp_path / "review.py").write_text(next(text for _, what, text in _session("replay.md") if what == "review.py"))
    words = (
        "import perdure, review; perdure.run(review.review, 'tides', goal='tides', store='file:runs');"
        "perdure.Client('file:runs').export('recorded.perdure', 'tides')"
    )
    subprocess.run([sys.executable, "-c", words], cwd=tmp_path, check=True)
    for old, new, code in (("good", "fine", 0), ('"facts"', '"maths"', 1)):
        changed = (tmp_path / "review.py").read_text().replace(old, new)
        (tmp_path / "review.py").write_text(changed)
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", name]
        done = subprocess.run(tests, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stdout
        assert code == 0 or 'aspect was "facts", now "maths"' in done.stdout
