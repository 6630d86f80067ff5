"""The zygote, and a place for stores that are killed hundreds of times."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how often the suite killed, cut and failed: a fault suite goes blind easily."""
    done: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            done[name] += value
    if done:
        terminalreporter.write_line("crash suites: " + ", ".join(f"{n} {name}" for name, n in sorted(done.items())))
