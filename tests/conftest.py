"""What every test may count on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from perdure.testing.servers import Postgres, Valkey

# A shell that starts the suite in the background has it ignore Ctrl-C, and with it every process that the suite starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[int], str]]:
    """The URL of a PostgreSQL server of a major version, started by the first test that asks for it.

    TEST_POSTGRES_URL names another, for every version.
    """
    started: dict[int, Postgres] = {}

    def url(version: int = 18) -> str:
        given = os.environ.get("TEST_POSTGRES_URL")
        if given:
            return given
        if version not in started:
            started[version] = Postgres(version)
        return started[version].url

    yield url
    for server in started.values():
        server.throw_away()


@pytest.fixture(scope="session")
def valkey() -> Iterator[Callable[[], str]]:
    """The URL of a Valkey server, started by the first test that asks for it. TEST_REDIS_URL names another."""
    started: list[Valkey] = []

    def url() -> str:
        given = os.environ.get("TEST_REDIS_URL")
        if given:
            return given
        if not started:
            started.append(Valkey())
        return started[0].url

    yield url
    for server in started:
        server.throw_away()
