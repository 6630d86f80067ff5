"""Fixtures: a stranger's shell, on both embedded stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stranger import Shell


@pytest.fixture(params=["sqlite", "file"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return Shell(tmp_path, f"{request.param}:runs")


@pytest.fixture
def make_shell(tmp_path: Path) -> Callable[[str], Shell]:
    return lambda url: Shell(tmp_path, url)
