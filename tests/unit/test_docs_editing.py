"""docs/editing.md is run from top to bottom, and says what the command line has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from perdure.cli import cli
from perdure.runtime import explain

PAGE = (Path(__file__).parents[2] / "docs" / "editing.md").read_text()


def test_the_page_on_editing_runs_as_it_stands(tmp_path: Path) -> None:  # X1
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    words = [sys.executable, "page.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"print\(.*\)  # (.*)", PAGE) + re.findall(r"^    # (\d .*)", PAGE, re.MULTILINE)
    assert len(told) == 8
    for said in told:
        assert said in done.stdout, f"{said} is not in {done.stdout}"
    assert "had completed with other code" in done.stderr


def test_every_command_on_the_page_is_one() -> None:
    named = set(re.findall(r"perdure ([a-z]+)(?: |`|$)", PAGE)) - {"run"}
    assert named <= set(cli.commands), named - set(cli.commands)


def test_the_page_has_every_reason() -> None:
    for why in ("it is new", "its inputs have changed", "it is recorded, with the same inputs", "it was flagged"):
        assert why in PAGE
        assert why in Path(explain.__file__).read_text()
