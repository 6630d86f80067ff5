"""Fixtures: a stranger's shell, on both embedded stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forker import Forker
from stranger import Shell


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "file"])
def shell(request: pytest.FixtureRequest, tmp_path: Path, forker: Forker) -> Shell:
    return Shell(tmp_path, f"{request.param}:runs", forker)


@pytest.fixture
def make_shell(tmp_path: Path, forker: Forker) -> Callable[[str], Shell]:
    return lambda url: Shell(tmp_path, url, forker)
