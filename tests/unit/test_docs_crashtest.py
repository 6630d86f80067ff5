"""docs/crashtest.md shows what the command says, of the flows that it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from perdure.testing.crashes.report import TITLES

PAGE = (Path(__file__).parents[2] / "docs" / "crashtest.md").read_text()
PROGRAMS = re.findall(r"```python\n(# (\S+)\n.*?)```", PAGE, re.DOTALL)
SHOWN = re.findall(r"```\n\$ perdure (.*?)\n(.*?)```", PAGE, re.DOTALL)


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    unwanted = ("PERDURE_", "PYTHONHASHSEED")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def _alike(text: str) -> str:
    """Without what may be another in each run: ids, and with them where lines are broken; how many records the writer
    thread happened to commit together, and so how many points there were."""
    text = re.sub(r'"[0-9a-f]{8}"', '"ID"', text)
    text = re.sub(r"\d+ (durable points|runs killed|of them killed|more)", r"N \1", text)
    return " ".join(re.sub(r"Note: a run ended before .*", "", text).split())


def test_the_page_shows_three_bugs_being_found_and_then_none(tmp_path: Path) -> None:  # X5
    assert [name for _, name in PROGRAMS] == ["digest.py", "digest.py", "test_digest.py"] and len(SHOWN) == 2
    for (program, name), (command, output), code in zip(PROGRAMS, SHOWN, (7, 0), strict=False):
        (tmp_path / name).write_text(program)
        done = _run(tmp_path, "-m", "perdure", *shlex.split(command))
        assert done.returncode == code, done.stderr + done.stdout
        assert _alike(done.stdout) == _alike(output), textwrap.indent(done.stdout, "| ")


@pytest.mark.long
def test_the_pages_test_passes(tmp_path: Path) -> None:  # X5
    for program, name in PROGRAMS[1:]:
        (tmp_path / name).write_text(program)
    done = _run(tmp_path, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "test_digest.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_lists_every_kind_of_finding() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(TITLES)
