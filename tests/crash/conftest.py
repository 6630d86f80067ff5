"""The zygote, and a place for stores that are killed hundreds of times."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_tools import Tools
from crash_zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    server = Zygote()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    found = Tools(tmp_path_factory.mktemp("tools"))
    yield found
    found.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is one: SIGKILL does not care for devices, and syncs are free there."""
    memory = "/dev/shm"
    path = Path(tempfile.mkdtemp(prefix="perdure-", dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    shutil.rmtree(path)
