"""What the children of the zygote do with a *job*, a crew or a shape of crash_runner_lives: live a life of it in which
something happens at the n-th change of a file, or resume what such a life has left."""

from __future__ import annotations

import os
import resource
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_crew as crew
import crash_lives as lives
import crash_runner_lives as runners
import crash_runners
import crash_spy as spy
import crash_twins as twins
import msgspec

from perdure import errors
from perdure.stores import open_store


def run(root: str, store: str, job: str, opened: Any = None) -> str:
    """The job's result, from whatever is there."""
    return (lives if job in crew.CREWS else runners).run(root, store, job, opened)


def resume(root: str, store: str, job: str, life: int) -> dict[str, Any]:
    """Look at what is left, resume, and look again."""
    return (lives if job in crew.CREWS else runners).resume(root, store, job, life)


def _begin(root: str, life: int, plan: spy.Plan) -> spy.Spy:
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    return spy.install(Path(root), plan)


def killed(root: str, store: str, job: str, life: int, at: int, when: str, twin: str = "") -> dict[str, Any]:
    """Run, and die at operation ``at`` (never, for 0). Returns what it did if it survived."""
    twins.become(twin)

    def plan(number: int, op: spy.Op) -> spy.Verdict:
        if number != at or (when == "torn" and op.kind != "write"):
            return None
        return when

    spying = _begin(root, life, plan)
    result = run(root, store, job)
    return {"result": result, "points": spying.count, "kinds": Counter(op.kind for op in spying.ops)}


def killed_at_append(root: str, store: str, job: str, life: int, at: int, when: str) -> dict[str, Any]:
    """Run, and die at the journal append number ``at``."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    opened = lives.KillingStore(open_store(lives.url(root, store)), at, when)
    return {"result": run(root, store, job, opened), "points": opened.count}


def recorded(root: str, store: str, job: str, life: int, drop: list[str]) -> int:
    """Run to the end, writing down every change in order and what was said. ``drop``: beginnings of syncs, as "sync
    store/tmp/", that are forgotten."""

    def plan(number: int, op: spy.Op) -> spy.Verdict:
        return "drop" if any(_matches(op, root, pattern) for pattern in drop) else None

    spying = _begin(root, life, plan)
    crew.timeline.note = spying.mark
    run(root, store, job)
    Path(f"{root}.ops").write_bytes(msgspec.msgpack.encode(spying.ops))
    return spying.count


def _matches(op: spy.Op, root: str, pattern: str) -> bool:
    said = f"{op.kind} {os.path.relpath(op.path, root)}"
    return said == pattern or (pattern.endswith("/") and said.startswith(pattern))


def faulted(root: str, store: str, job: str, life: int, at: int, code: int, lasting: bool) -> dict[str, Any]:
    """Run while operation ``at`` (and, if ``lasting``, every later one) fails with the error ``code``."""

    def plan(number: int, op: spy.Op) -> spy.Verdict:
        return code if number == at or (lasting and number > at) else None

    spying = _begin(root, life, plan)
    found = told(root, lambda opened: run(root, store, job, opened), lives.url(root, store))
    failed = spying.failed
    found["failed"] = [failed.kind, os.path.relpath(failed.path, root)] if failed else None
    logs = ("journal.jsonl", "-wal")  # SQLite's own rollback writes and syncs the database file again, and rightly
    found["later"] = [
        str(op)
        for op in spying.ops[at - 1 :]
        if failed and op.kind in ("write", "sync") and op.path == found["failed"][1] and op.path.endswith(logs)
    ]
    return found


def told(root: str, work: Callable[[Any], str], url: Any) -> dict[str, Any]:
    """What somebody is told whose run meets a failing disk, and whether the store's handle was of use after that."""
    found: dict[str, Any] = {"result": None, "error": "", "message": "", "broken": False}
    opened = None
    try:
        opened = open_store(url)
        found["result"] = work(opened)
    except Exception as error:
        found.update(error=type(error).__name__, message=str(error))
    if opened is not None:
        try:
            opened.runs()
        except errors.StoreError:
            found["broken"] = True
        except errors.ConfigError:  # closed in order
            pass
    return found


def squeezed(root: str, store: str, job: str, life: int, room: int) -> dict[str, Any]:
    """Run with no more memory than there is now and ``room`` KiB."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    _ = crash_runners.heavy.digest  # a worker has read its code by then; Python's parser may die where memory ends
    threading.stack_size(256 << 10)  # else nothing is found but that there is no room for a thread's stack
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (room << 10), before[1]))
    try:
        return told(root, lambda opened: run(root, store, job, opened), lives.url(root, store))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
