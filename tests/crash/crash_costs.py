"""What steps cost, counted and not timed: what is written, and what is waited for. In a child of the zygote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_spy
from crash_spy import Op

import perdure
from perdure import snapshot
from perdure.clock import Clock
from perdure.runtime import live, writer
from perdure.stores.sqlite import SqliteStore


class Still(Clock):
    """Every date has as many digits as any other."""

    def now(self) -> float:
        return 1800000000.123456

    def monotonic(self) -> float:
        return 0.0


@perdure.step
def work(n: int) -> str:
    return f"{n:04d}".ljust(1024, ".")


@perdure.step
async def work_async(n: int) -> str:
    return f"{n:04d}".ljust(1024, ".")


MARKS: list[dict[str, int]] = []
look: Callable[[], dict[str, int]] = dict


@perdure.flow
def sequence() -> int:
    return sum(len(work(marked(n))) for n in range(1000, 1040))


@perdure.flow
async def sequence_async() -> int:
    return sum([len(await work_async(marked(n))) for n in range(1000, 1040)])


def marked(n: int) -> int:
    """The same number; twenty steps lie between those at which is looked what there was."""
    if n in (1012, 1032):
        MARKS.append(look())
    return n


def costs(root: str, store: str, durability: str, colour: str) -> dict[str, float]:
    """Of a step: writes and syncs of the store's log or journal, their bytes, bytes of the records, statements."""
    global look
    snapshot._FEW = 1000  # as it is
    writer._LINGER = 60.0  # type: ignore[misc]  # however slow the machine is, nobody commits who need not
    folder = Path(root)
    folder.mkdir()
    spy = crash_spy.install(folder, lambda count, op: None)
    statements: list[dict[str, Any]] = []
    config = perdure.CheckpointConfig(durability=durability)  # type: ignore[arg-type]
    with perdure.CheckpointManager(store.format(folder), config, clock=Still()) as manager:
        opened = manager._lives.writer.store  # type: ignore[union-attr]
        if isinstance(opened, SqliteStore):
            opened._db.trace_v2(1, statements.append)  # SQLITE_TRACE_STMT

        def looked() -> dict[str, int]:
            done = [op for op in spy.ops if _is_log(op)]
            counts = Counter(op.kind for op in done)
            (run,) = live.running
            calls = sum(not statement["trigger"] for statement in statements)
            more = {"statements": calls, "bytes": sum(len(op.data) for op in done), "records": run.state.size}
            return {"write": counts["write"], "sync": counts["sync"], **more}

        look = looked
        manager.run_sync(sequence_async if colour == "async" else sequence, goal="g")
    before, after = MARKS
    return {name: (after[name] - before[name]) / 20 for name in after}


def _is_log(op: Op) -> bool:
    return op.path.endswith(("-wal", "journal.jsonl"))
