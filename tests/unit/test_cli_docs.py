"""docs/cli.md says what the command does."""

from __future__ import annotations

import re
from pathlib import Path

from perdure.cli import cli
from perdure.cli.outcome import MEANING
from perdure.runners.toml import load_pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_the_page_has_every_command_and_exit_code() -> None:
    assert set(re.findall(r"^\| `perdure (\w+)", PAGE, re.MULTILINE)) == set(cli.commands)
    told = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {int(code): meaning for code, meaning in told} == MEANING


def test_the_pages_pipeline_is_one(tmp_path: Path) -> None:
    text = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL).group(1)  # type: ignore[union-attr]
    (tmp_path / "review.toml").write_text(text)

    def load(name: str, folder: Path) -> object:
        def stage(value: str, aspect: str = "", missing: object = None) -> str:
            return value

        stage.__name__ = name.rpartition(":")[2]
        return stage

    pipeline = load_pipeline(tmp_path / "review.toml", load)
    assert pipeline.name == "review" and pipeline.inputs == ["value"]
