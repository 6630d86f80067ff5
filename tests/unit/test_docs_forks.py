"""docs/forks.md is run from top to bottom, and its commands, options and limits are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from perdure.cli import cli
from perdure.runtime.fork import MAX_SHARED

PAGE = (Path(__file__).parents[2] / "docs" / "forks.md").read_text()


def test_the_page_on_forks_runs_as_it_stands(tmp_path: Path) -> None:  # X2 X12
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    words = [sys.executable, "page.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", PAGE)


def test_every_command_option_and_limit_on_the_page_is_one() -> None:
    assert set(re.findall(r"perdure ([a-z]+)(?: |`|$)", PAGE)) <= set(cli.commands)
    options = {name for command in ("fork", "ls") for p in cli.commands[command].params for name in p.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", PAGE)) <= options | {"--json"}
    assert f"{MAX_SHARED >> 20} MiB of" in " ".join(PAGE.split())
