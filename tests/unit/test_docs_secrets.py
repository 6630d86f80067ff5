"""docs/secrets.md is run from top to bottom, and what it keeps out of the store is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from perdure.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "secrets.md").read_text()


def test_the_page_on_secrets_runs_as_it_stands(tmp_path: Path) -> None:  # rel:S8
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    words = [sys.executable, "page.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for said in re.findall(r"print\(.*\)  # (.*)", PAGE):
        assert said in done.stdout, f"{said} is not in {done.stdout}"
    kept = b"".join(path.read_bytes() for path in (tmp_path / ".perdure").rglob("*") if path.is_file())
    for value in (b"in-production", b"another", b"revoked", b"the value", b"12-34", b"cust-4711"):
        assert value not in kept
    assert b"hunter2" in kept, "the page says that this one is there"


def test_every_command_and_option_on_the_page_is_one() -> None:
    lines = re.findall(r"^perdure ([a-z]+) (.*)$", PAGE, re.MULTILINE)
    assert lines
    for name, words in lines:
        options = {option for parameter in cli.commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", words)) <= options
