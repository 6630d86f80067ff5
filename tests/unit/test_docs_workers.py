"""docs/workers.md is run from top to bottom, and says what the command line has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from perdure.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "workers.md").read_text()


def test_the_page_on_workers_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    words = [sys.executable, "page.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"print\(.*\)  # (.*)", PAGE)
    assert len(said) > 6
    for text in said:
        for part in text.split(" ... "):
            assert part in done.stdout, f"{part} is not in {done.stdout}"


def test_every_command_on_the_page_is_one() -> None:
    named = set(re.findall(r"perdure ([a-z]+)(?: |`|$)", PAGE))
    assert named <= set(cli.commands), named - set(cli.commands)
