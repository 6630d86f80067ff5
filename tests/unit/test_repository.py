"""What the repository promises about itself: public names, lock files, the README's own code."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import perdure

ROOT = Path(__file__).parents[2]

PUBLIC = [
    "Attribution",
    "Budget",
    "CheckpointConfig",
    "CheckpointManager",
    "Client",
    "GraphExecutor",
    "PerdureError",
    "RateLimited",
    "RetryPolicy",
    "RunKey",
    "Secret",
    "as_completed",
    "ask",
    "best_of",
    "child",
    "context",
    "first",
    "flow",
    "gather",
    "map",
    "register",
    "run",
    "signal",
    "sleep",
    "step",
]


def test_the_public_names_are_these_and_at_most_25() -> None:
    assert sorted(perdure.__all__) == sorted(PUBLIC)
    assert len(PUBLIC) <= 25
    assert all(getattr(perdure, name).__doc__ for name in PUBLIC)


def test_every_name_of_the_runners_is_there_and_says_what_it_is() -> None:
    import perdure.runners as runners

    assert sorted(runners.__all__) == sorted(set(runners.__all__))
    assert all(getattr(runners, name).__doc__ for name in runners.__all__)


@pytest.mark.parametrize("name", ["run", "dev", "peers"])
def test_lock_files_have_a_hash_for_every_package_and_name_no_host(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    packages = re.split(r"\n(?=\S)", text.strip())
    assert len(packages) > 5
    assert all(re.match(r"[a-z0-9._-]+==\S+", package) and "--hash=sha256:" in package for package in packages)
    assert not re.search(r"https?:|//|--index|--find-links|\.(org|com|io|net)\b", text)


def test_every_dependency_is_locked_and_told_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[a-z0-9-]+", wish).group() for wish in project["dependencies"]]  # type: ignore[union-attr]
    locked = (ROOT / "requirements" / "run.txt").read_text()
    told = (ROOT / "ARCHITECTURE.md").read_text()
    for name in names:
        assert re.search(rf"^{name}==", locked, re.MULTILINE), f"{name} is not in requirements/run.txt; make lock"
        assert f"| {name} |" in told, f"ARCHITECTURE.md does not say why {name}"


def test_the_version_has_an_entry_in_the_changelog() -> None:
    assert f"## {perdure.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_make_target_has_a_line_of_help() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split())  # type: ignore[union-attr]
    assert targets == set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))


def test_the_readmes_example_runs_as_it_stands(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)  # type: ignore[union-attr]
    script = tmp_path / "example.py"
    script.write_text('EXPERTS = ["a", "b"]\npaper = "text"\n' + _bodies(code) + "\nprint(CALLS)\n")
    for expected in (["review", "review", "meta_review"], []):
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout.strip()) == (0, str(expected)), done.stderr


def _bodies(code: str) -> str:
    """The example with bodies in the place of its dots, which say that they ran."""
    return "CALLS = []\n" + re.sub(
        r"(async def (\w+)\(.*?\) -> str:) \.\.\.", r"\1\n    CALLS.append('\2')\n    return '\2'", code
    )


def test_nothing_imports_pickle_or_modules_by_name() -> None:
    # rel: security; the command line imports what its user typed, and nothing else does
    allowed = {"cli/target.py", "runners/toml.py"}
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|marshal|shelve|dill|cloudpickle)", text, re.MULTILINE), path
        if path.relative_to(ROOT / "src" / "perdure").as_posix() not in allowed:
            assert "import_module" not in text and "__import__" not in text, path
