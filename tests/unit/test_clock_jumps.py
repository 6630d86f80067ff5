"""C9: a laptop sleeps, a wall clock jumps; nothing is lost and nobody is taken for dead."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import perdure
from perdure.clock import Clock
from perdure.errors import LeaseHeld
from perdure.runtime.manager import CheckpointManager
from perdure.stores.file import FileStore
from perdure.stores.sqlite import SqliteStore

YEARS = 10 * 365 * 86400.0


class Jumping(Clock):
    """Sleeping takes no time; the first sleep makes the wall clock jump by ``jump`` instead of what was asked for."""

    def __init__(self, jump: float) -> None:
        self.jump = jump
        self.wall, self.steady, self.slept = 1_700_000_000.0, 50.0, 0.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def wait(self, bell: threading.Event, seconds: float) -> None:
        self.slept += seconds
        self.steady += seconds
        self.wall += self.jump or seconds
        self.jump = 0.0


@pytest.mark.parametrize(("jump", "most"), [(0.0, 3600.0), (YEARS, 60.0), (-YEARS, 3600.0), (-30.0, 3600.0)])
def test_a_durable_wait_ends_in_time_whatever_the_wall_clock_does(tmp_path: Path, jump: float, most: float) -> None:
    @perdure.step
    def limited() -> str:
        if perdure.context().attempt == 1:
            raise perdure.RateLimited(retry_after=3600)
        return "done"

    clock = Jumping(jump)
    with CheckpointManager(f"sqlite:{tmp_path / 'runs.db'}", clock=clock) as manager:
        assert manager.run_sync(perdure.flow(lambda: limited()), goal="g") == "done"
    assert 0 < clock.slept <= most


@pytest.mark.parametrize("kind", [SqliteStore, FileStore])
@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_a_live_run_is_not_taken_for_dead_because_a_clock_jumped(
    kind: type[SqliteStore] | type[FileStore], jump: float, tmp_path: Path
) -> None:
    clock, other = Jumping(0.0), Jumping(0.0)
    other.wall += jump
    ours, theirs = kind(tmp_path / "runs", clock=clock), kind(tmp_path / "runs", clock=other)
    lease = ours.claim(perdure.RunKey("g"))
    with pytest.raises(LeaseHeld):
        theirs.claim(perdure.RunKey("g"))
    ours.release(lease)
    assert theirs.claim(perdure.RunKey("g")).epoch > lease.epoch
    theirs.close()
    ours.close()
