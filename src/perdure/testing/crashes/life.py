"""In a child process: one life of the run, on a store that dies at a point, by a clock that does not wait.

The life is what ``perdure.run`` does, with these two put under it; nothing of the user's program is replaced.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from perdure import codec, states
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import CodecError, RunCancelled, RunPaused, RunStopped, RunSuspended
from perdure.fold import State
from perdure.guard import Guard
from perdure.hooks import Observer
from perdure.model import RunKey
from perdure.redaction import discreet, discreet_part
from perdure.runtime import live
from perdure.runtime.client import Client
from perdure.runtime.config import CheckpointConfig
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.steps import Function
from perdure.stores import open_store
from perdure.stores.base import Append, Store
from perdure.testing.crashes.effects import raised, watch
from perdure.testing.crashes.said import GOAL, Acknowledged, Died, Ended, Order, Point, Witness

_GLANCE: Final = 0.005
"""seconds between two looks at whether anything but the clock can move a run"""


class DyingStore:
    """A store in whose hands the process dies, before or after change number ``at`` is durable (0: never)."""

    def __init__(self, store: Store, at: int, when: str, witness: Witness) -> None:
        self._store, self._at, self._when, self._witness = store, at, when, witness
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, batch: Sequence[Append]) -> Any:
        last = batch[-1]
        seq = last.seq + len(last.records)
        entry = j.decode(last.lease.key, last.records[-1], seq)
        point = Point(
            number=self._count + 1, run=str(last.lease.key), entry=j.kind_of(entry), step=getattr(entry, "step", 0)
        )
        return self._change(point, lambda: self._store.append(batch), lambda: _intended(batch))

    def post(self, key: RunKey, number: int, record: bytes) -> Any:
        point = Point(number=self._count + 1, run=str(key), entry="post")
        return self._change(point, lambda: self._store.post(key, number, record), lambda: ("", ""))

    def _change(self, point: Point, verb: Callable[[], Any], intended: Callable[[], tuple[str, str]]) -> Any:
        self._count += 1
        self._witness.say(point)
        dies = self._count == self._at
        if dies and self._when == "before":
            self._die(*intended())
        result = verb()
        if dies:
            self._die("", "")
        return result

    def _die(self, digest: str, head: str) -> None:
        self._witness.say(Died(when=self._when, digest=digest, head=head))
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()


def _intended(batch: Sequence[Append]) -> tuple[str, str]:
    """Digest and head of the result of the tested run, if it is about to be recorded and all that it was made of is
    durable; else ""."""
    for item in batch:
        *before, last = (j.decode(item.lease.key, record, item.seq + n) for n, record in enumerate(item.records, 1))
        if item.lease.key.goal == GOAL and isinstance(last, j.RunCompleted):
            weak = any(isinstance(entry, j.StepCompleted) for entry in before)
            return ("", "") if weak else told(codec.loads(last.output, item.blobs))
    return "", ""


class SkippingClock(Clock):
    """Goes as the system's does, but when nothing of any run can move before a date, it is that date at once.

    A run that waits for people as well is suspended instead, so that the parent can answer.
    """

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead
        self._lock = threading.Lock()

    def now(self) -> float:
        return round(super().now() + self.ahead, 6)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead

    def wait(self, bell: threading.Event, seconds: float) -> None:
        end = self.monotonic() + seconds
        while not bell.is_set() and (left := end - self.monotonic()) > 0:
            if not self._skip():
                super().wait(bell, min(left, _GLANCE))

    async def wait_async(self, bell: asyncio.Event, seconds: float) -> None:
        end = self.monotonic() + seconds
        while not bell.is_set() and (left := end - self.monotonic()) > 0:
            if not self._skip():
                await super().wait_async(bell, min(left, _GLANCE))

    def _skip(self) -> bool:
        """Move to the next date, if that is all that anything waits for."""
        with self._lock:
            dates = []
            for run in list(live.running):
                with run.lock:
                    strands = run.strands
                    if strands.root.movable() or not strands.parked:
                        return False
                    if any(parked.come is not None for parked in strands.parked):
                        run.suspend()
                        return False
                    dates += [parked.left() for parked in strands.parked if parked.until]
            self.ahead += max(min(dates, default=0.0), 0.0)
            return bool(dates)


class _Acknowledging(Observer):
    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def notify(self, key: RunKey, entry: j.Entry) -> None:
        self._witness.say(Acknowledged(run=str(key), seq=entry.seq))


def told(value: object) -> tuple[str, str]:
    """(digest, first characters) of a value. What has no digest is taken to be equal to all its kind."""
    try:
        return codec.digest(value, "result")
    except CodecError:
        return f"a {type(value).__qualname__}", discreet_part(repr(value), 120)


def live_once(function: Function[..., Any], inputs: Mapping[str, Any], order: Order) -> None:
    """Live the life that ``order`` describes, in this process, which must end after it."""
    log = os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(order.timeout, exit=True)  # where it hangs is the last thing in its log
    os.environ["PERDURE_STORE"] = order.store  # what else the flow opens is not the user's own store either
    witness = Witness(order.witness, order.life)
    watch(witness)
    ended = _live(function, inputs, order, witness)
    if order.look:
        ended = _with_outputs(ended, order.store)
    witness.say(ended)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _live(function: Function[..., Any], inputs: Mapping[str, Any], order: Order, witness: Witness) -> Ended:
    store: Any = DyingStore(open_store(order.store), order.at, order.when, witness)
    config = CheckpointConfig(durability=order.durability)  # type: ignore[arg-type]
    clock = SkippingClock(order.ahead)
    try:
        with CheckpointManager(store, config, observers=(_Acknowledging(witness),), clock=clock) as manager:
            manager._lives.guard = _guard  # type: ignore[method-assign]
            value = manager.run_sync(function, goal=GOAL, **inputs)
        digest, head = told(value)
        return Ended(outcome="completed", digest=digest, head=head)
    except RunSuspended as waits:
        return Ended(outcome="suspended", message=str(waits.args[0]), until=waits.until)
    except (RunPaused, RunStopped, RunCancelled) as stop:
        return Ended(outcome="stopped", error=type(stop).__name__, message=discreet(str(stop)))
    except BaseException as error:  # SystemExit too: it is the flow's
        place = raised(error)
        said = discreet("".join(traceback.format_exception_only(error)).strip())
        print(f"{said}\n  {place}" if place is not None else said, file=sys.stderr)
        return Ended(outcome="failed", error=type(error).__name__, message=discreet(str(error)), place=str(place or ""))


def _guard(state: State, run_id: str = "") -> Guard:
    """Digests under the run's name, not its random id: one secret is the same input in all runs that are compared."""
    return Guard(str(state.key), run=str(state.key))


def _with_outputs(ended: Ended, store: str) -> Ended:
    outputs = {}
    with Client(store) as client:
        for row in client.runs():
            state = client.state(str(row.key))
            for step in state.steps.values():
                if step.output is not None and step.status in states.STEP_RECORDED:
                    name = "\x1f".join((str(row.key), *map(str, step.identity)))
                    outputs[name] = told(client.value(step.output))[0]
    return msgspec.structs.replace(ended, outputs=outputs)
