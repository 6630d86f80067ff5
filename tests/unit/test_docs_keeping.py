"""docs/encryption.md and docs/retention.md are run from top to bottom, and name commands that there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.cli import cli

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "least"), [("encryption", 4), ("retention", 2)])
def test_the_page_runs_as_it_stands(page: str, least: int, tmp_path: Path) -> None:
    text = (DOCS / f"{page}.md").read_text()
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    words = [sys.executable, "page.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"print\(.*\)  # (.*)", text)
    assert done.stdout.splitlines() == said and len(said) >= least


@pytest.mark.parametrize("page", ["encryption", "retention"])
def test_every_command_and_option_on_the_page_is_one(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    named = re.findall(r"\bperdure ([a-z]+)(?: [^\n`)]*)?", text)
    assert named and set(named) <= set(cli.commands)
    for command, rest in re.findall(r"\bperdure ([a-z]+)([^\n`)#]*)", text):
        options = {option for parameter in cli.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, (command, rest)
