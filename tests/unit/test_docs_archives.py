"""docs/archives.md is run from top to bottom, and its limits and options are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from perdure.cli import cli
from perdure.codec import MAX_BYTES
from perdure.runtime.archive import MOST_OF_RECORD, Bounds

PAGE = (Path(__file__).parents[2] / "docs" / "archives.md").read_text()


def test_the_page_on_archives_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    words = [sys.executable, "page.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for said in re.findall(r"print\(.*\)  # (.*)", PAGE):
        for part in said.split(" ... "):
            assert part in done.stdout, f"{part} is not in {done.stdout}"
    assert done.stdout.count("drafting") == 1


def test_every_command_and_option_on_the_page_is_one() -> None:
    named = set(re.findall(r"perdure ([a-z]+)(?: |`|$)", PAGE))
    assert named - {"import"} <= set(cli.commands) and "import" in cli.commands
    options = {name for command in ("export", "import") for p in cli.commands[command].params for name in p.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", PAGE)) <= options


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    usual = Bounds()
    told = [
        f"{usual.slack >> 20} MiB, or {usual.ratio} times its size up to {usual.total >> 30} GiB",
        f"| one run's journal, or inbox | {usual.journal >> 20} MiB | SIZE |",
        f"| one record | {usual.record >> 20} MiB | {MOST_OF_RECORD >> 20} MiB |",
        f"| members | {usual.members:,} | by SIZE |",
        f"| one blob | {MAX_BYTES >> 20} MiB | {MAX_BYTES >> 20} MiB |",
    ]
    assert [line for line in told if line not in PAGE] == []
