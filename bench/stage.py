"""Where contenders are measured: folders, databases, servers, and the processes of the programs."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import psycopg
import redis

from bench.player import Player
from perdure.testing.servers import Postgres, Server, Valkey

S = TypeVar("S", bound=Server)
POSTGRES = 18
SETTINGS = {"shared_buffers": "128MB"}
"""what PostgreSQL has by default; the servers of the tests have less"""


class Place:
    """A fresh store for one contender: a folder, and where a server keeps the data a database of its own."""

    def __init__(self, folder: Path, server: str = "", size: Callable[[], int] | None = None) -> None:
        self.folder, self.server = folder, server
        self._server_size = size

    @property
    def job(self) -> dict[str, str]:
        """What a program is told of it."""
        return {"folder": str(self.folder), "server": self.server}

    def size(self) -> dict[str, int]:
        """Bytes that it has on the disk, logs included; of a server, those of the database, if it has any."""
        if self.server:
            return {"bytes": self._server_size()} if self._server_size is not None else {}
        return {"bytes": sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())}


class Stage:
    """``folder``: on the device to measure. ``peers``: the Python of the peers' environment, if they take part."""

    def __init__(self, folder: Path, peers: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder, prefix="perdure-bench-"))
        self.folder.chmod(0o755)
        self._peers = peers
        self._players: dict[str, Player] = {}
        self._count = 0
        self._servers: list[Server] = []

    # -- servers ---------------------------------------------------------------------------------------------------

    @cached_property
    def postgres(self) -> Postgres:
        return self.started(Postgres(POSTGRES, SETTINGS))

    @cached_property
    def valkey(self) -> Valkey:
        return self.started(Valkey())

    def started(self, server: S) -> S:
        """A server that is ended with the stage."""
        self._servers.append(server)
        return server

    # -- places ----------------------------------------------------------------------------------------------------

    @contextmanager
    def place(self, store: str, like: Place | None = None, server: Server | None = None) -> Iterator[Place]:
        """A fresh place for a store of that kind, or a copy of ``like``; gone after the block. ``server``: not the
        stage's own."""
        self._count += 1
        folder = self.folder / f"place-{self._count}"
        if like is not None:
            shutil.copytree(like.folder, folder)
        else:
            folder.mkdir()
        try:
            if store == "postgresql":
                with _database(server or self.postgres, f"b{self._count}", like) as (url, size):
                    yield Place(folder, url, size)
            elif store == "valkey":
                with _keys(server or self.valkey, f"b{self._count}") as url:
                    yield Place(folder, url)
            else:
                yield Place(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # -- programs --------------------------------------------------------------------------------------------------

    def words(self, program: str) -> Sequence[str]:
        """What starts a program: a module below ``bench.programs`` or ``bench.peers``."""
        python = self._peers if program.startswith("peers.") else Path(sys.executable)
        assert python is not None, program
        return [str(python), "-m", f"bench.{program}"]

    def player(self, program: str) -> Player:
        """The process of a program; a new one if it has died."""
        player = self._players.get(program)
        if player is None or not player.alive:
            player = self._players[program] = Player(self.words(program))
        return player

    def rest(self) -> None:
        """End the processes of all programs."""
        for player in self._players.values():
            player.close()
        self._players.clear()

    def close(self) -> None:
        self.rest()
        for server in self._servers:
            server.throw_away()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _database(server: Server, name: str, like: Place | None) -> Iterator[tuple[str, Callable[[], int]]]:
    base, _, _ = server.url.rpartition("/")
    template = f" TEMPLATE {like.server.rpartition('/')[2]}" if like is not None else ""

    with psycopg.connect(server.url, autocommit=True) as control:
        control.execute(f"CREATE DATABASE {name}{template}")

        def size() -> int:
            asked = "SELECT pg_database_size(%s) - pg_database_size('template1')"
            row = control.execute(asked, (name,)).fetchone()
            assert row is not None
            return int(row[0])

        try:
            yield f"{base}/{name}", size
        finally:
            control.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _keys(server: Server, prefix: str) -> Iterator[str]:
    with redis.Redis.from_url(server.url) as control:
        try:
            yield f"{server.url}?prefix={prefix}"
        finally:
            control.flushall()
