"""What a contender's durability really is: how often it asks the device to keep what it wrote, and what a kill costs.

Syncs are counted with strace, of the contender's process or of the server that it talks to, in two short runs of W1:
their difference over that of their lengths is what a step costs, however many an opening needs. The kill is that of the
process, right after its n-th step was reported done to the code that called it: whatever is executed again then was
lost. A kill is not a power cut: what was written and not synced survives it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.cast import OURS, RAW, Contender
from bench.player import ROOT, Failed, Player, once
from bench.stage import POSTGRES, SETTINGS, Stage
from bench.workload import Entry, Workload, tell
from perdure.testing.servers import Postgres, Server, Valkey

SHORT, LONG = 20, 60
"""steps of the two runs"""
KILLS = (3, 5, 7)
"""after which step, each in a run of its own"""
_TRACE = ("-f", "-e", "trace=fsync,fdatasync")
_SYNC = re.compile(r"\b(?:fsync|fdatasync)\(")


def strace() -> str | None:
    """The command, if there is one that works here: the system's, or what `make test-long` has unpacked."""
    for found in (shutil.which("strace"), ROOT / ".venv" / "faults" / "strace"):
        if found and os.access(found, os.X_OK):
            tried = subprocess.run([found, "-o", os.devnull, "true"], capture_output=True)
            if tried.returncode == 0:
                return str(found)
    return None


class _Traced(Server):
    """A server whose syncs are written down in its folder."""

    tracer = ""

    def command(self) -> Sequence[str | Path]:
        return [self.tracer, *_TRACE, "-o", self.folder / "trace", *super().command()]


class TracedPostgres(_Traced, Postgres):
    pass


class TracedValkey(_Traced, Valkey):
    pass


def _syncs(trace: Path) -> int:
    return len(_SYNC.findall(trace.read_text(errors="replace"))) if trace.exists() else 0


class Syncs:
    """Counts syncs a step, with the strace at ``tracer``."""

    def __init__(self, stage: Stage, tracer: str) -> None:
        self._stage, self._tracer = stage, tracer
        self._servers: dict[str, Server] = {}

    def a_step(self, contender: Contender, workload: Workload) -> float:
        """Raises Failed."""
        short, long = (self._counted(workload, Entry(contender, size)) for size in (SHORT, LONG))
        return (long - short) / (LONG - SHORT)

    def _counted(self, workload: Workload, entry: Entry) -> int:
        store, trace = entry.contender.store, self._stage.folder / "trace"
        trace.unlink(missing_ok=True)
        server = self._server(store)
        before = [self._tracer, *_TRACE, "-o", str(trace)] if server is None else []
        with self._stage.place(store, server=server) as place:
            player = Player(self._stage.words(entry.contender.program), before)
            first = _settled(server.folder / "trace") if server is not None else 0
            try:
                player.ask(workload.job(entry, place))
            finally:
                player.close()
            return _settled(server.folder / "trace") - first if server is not None else _syncs(trace)

    def _server(self, store: str) -> Server | None:
        made = {"postgresql": self._postgres, "valkey": self._valkey}.get(store)
        if made is None:
            return None
        if store not in self._servers:
            self._servers[store] = self._stage.started(made())
        return self._servers[store]

    def _postgres(self) -> Server:
        """One that does nothing of its own accord while we count."""
        TracedPostgres.tracer = self._tracer
        quiet = {"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "4GB"}
        return TracedPostgres(POSTGRES, {**SETTINGS, **quiet})

    def _valkey(self) -> Server:
        TracedValkey.tracer = self._tracer
        return TracedValkey()


def _settled(trace: Path) -> int:
    """The number of syncs, when it does not grow any more: what is under way is written down a little later."""
    seen = -1
    while seen != (now := _syncs(trace)):
        seen = now
        time.sleep(0.05)
    return seen


def repeated(stage: Stage, contender: Contender, kills: Sequence[int] = KILLS) -> int:
    """In how many of the kills a step that had been reported done was executed again. Raises Failed."""
    words, count = stage.words(contender.program), 0
    for steps in kills:
        with stage.place(contender.store) as place:
            job = {"workload": "W4 kill", **contender.options, **place.job, "size": steps, "shape": "flow"}
            if contender.role == OURS:
                job["more"] = {"postgresql": "?lease=1", "valkey": "&lease=1"}.get(contender.store, "")
            once(words, job)
            told, _ = once(words, {**job, "workload": "W4 resume"})
            count += told["first"] < steps
    return count


Seen = Mapping[str, Mapping[str, float]]
"""name of a contender -> "syncs" a step, and kills after which a step was "repeated"; what was not seen is left out"""


def look(stage: Stage, one_run: Workload, quick: bool) -> Seen:
    """What is seen of every contender of W1; the two colours are one machine, so that one is looked at. ``quick``: of
    one."""
    tracer = strace()
    syncs = Syncs(stage, tracer) if tracer is not None else None
    seen: dict[str, dict[str, float]] = {}
    cast = [c for c in one_run.contenders.values() if c.options.get("colour") != "async"]
    for contender in cast[1:2] if quick else cast:
        tell(f"durability: {contender.name}")
        found = seen.setdefault(contender.name, {})
        with _told(contender):
            if syncs is not None:
                found["syncs"] = syncs.a_step(contender, one_run)
        with _told(contender):
            if contender.role != RAW:
                found["repeated"] = float(repeated(stage, contender, KILLS[:1] if quick else KILLS))
    return seen


@contextmanager
def _told(contender: Contender) -> Iterator[None]:
    try:
        yield
    except Failed as problem:
        tell(f"durability: {contender.name}: not seen: {problem}")
