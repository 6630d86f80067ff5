"""What every test may count on."""

from __future__ import annotations

import os
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from perdure import snapshot
from perdure.testing.servers import Postgres, Valkey

# A shell that starts the suite in the background has it ignore Ctrl-C, and with it every process that the suite starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes depends on the machine.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _snapshots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half of the tests short runs have snapshots, as otherwise only long ones do."""
    if zlib.crc32(request.node.nodeid.encode()) % 2:
        monkeypatch.setattr(snapshot, "_FEW", 5)


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


# -- what the crash suites did: a fault suite goes blind easily (rel:X3) ----------------------------------------------

FAULT_POINTS = {"long": 2000, "not long": 200}
"""at least so many in a whole run"""
_POINTS = ("points", "power cuts", "real power cuts", "times out of memory")


def _done(config: pytest.Config) -> Counter[str]:
    """How often the crash suites killed, cut and failed: the sums of what the tests recorded."""
    done: Counter[str] = Counter()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.getreports("passed") if reporter is not None else ():
        for name, value in report.user_properties if report.when == "call" else ():
            done[name] += value
    return done


def _missing(config: pytest.Config) -> str:
    """What is wrong if a whole run had too few fault points; "" otherwise, and of a run that was not a whole one."""
    least = FAULT_POINTS.get(config.option.markexpr)
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    whole = whole and not getattr(config.option, "lf", False)
    if least is None or not whole or config.option.collectonly or hasattr(config, "workerinput"):
        return ""
    done = _done(config)
    points = sum(done[name] for name in _POINTS)
    return "" if points >= least else f"only {points} fault points where {least} are the least"


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _missing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    done = _done(config)
    if done:
        terminalreporter.write_line("crash suites: " + ", ".join(f"{n} {name}" for name, n in sorted(done.items())))
    if _missing(config):
        terminalreporter.write_line(f"crash suites: {_missing(config)}", red=True)
