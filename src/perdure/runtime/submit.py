"""Submitting runs: written down for whichever worker takes them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from perdure import codec
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import ConfigError, InputMismatch, LeaseHeld
from perdure.fold import State, fold
from perdure.guard import Guard
from perdure.model import Lease, Limits, RunKey, check_name
from perdure.runtime.lives import Start
from perdure.runtime.recorded import attributed, refuse_other_inputs
from perdure.runtime.settle import write
from perdure.stores.base import Store, Which

DEFAULT_QUEUE = "default"
_PATIENCE = 5.0
"""seconds to wait for somebody who is about to submit the same run"""


class Terms(NamedTuple):
    """On what terms a run is to be executed."""

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    delay: float = 0.0
    limits: Limits = Limits()
    idempotency_key: str = ""


def check_terms(terms: Terms) -> Terms:
    """The same terms. Raises ConfigError naming what is wrong."""
    check_name("queue", terms.queue)
    if terms.idempotency_key:
        check_name("idempotency_key", terms.idempotency_key)
    whole = isinstance(terms.priority, int) and not isinstance(terms.priority, bool)
    if not whole or abs(terms.priority) >= 2**31:
        raise ConfigError(f"priority must be a whole number, not {terms.priority!r}.")
    if isinstance(terms.delay, bool) or not isinstance(terms.delay, int | float) or not 0 <= terms.delay < 1e10:
        raise ConfigError(f"delay must be a number of seconds from 0, not {terms.delay!r}.")
    return terms


def limits_of(concurrency: int, rate: tuple[int, float]) -> Limits:
    """The limits that ``concurrency=`` and ``rate=`` mean. Raises ConfigError."""
    try:
        runs, seconds = rate
    except (TypeError, ValueError):
        raise ConfigError(f"rate must be (runs, seconds), not {rate!r}.") from None
    return Limits(concurrency=concurrency, rate=runs, per=seconds)


def submit(store: Store, clock: Clock, start: Start, terms: Terms, guard: Callable[[State, str], Guard]) -> RunKey:
    """Write a run down as queued; if it is there already, with the same inputs, that is the one (rel:R8). ``guard``:
    that of a run, and of the id that it is to have if it has none.

    Raises InputMismatch for other inputs; ConfigError for inputs that no worker could have from the record;
    CodecError, StoreError. On the writer's thread.
    """
    end = clock.monotonic() + _PATIENCE
    while True:
        key, there = _place(store, start, terms)
        if there:
            state = fold(key, store.read(key))
            _refuse_other(state, start, guard(state, ""))
            return key
        try:
            lease = store.claim(key)
        except LeaseHeld:  # whoever has it is about to write it down, or has just died
            if clock.monotonic() > end:
                raise
            clock.sleep(0.02)
            continue
        try:
            if not store.read(key):
                state, run_id = State(key), clock.new_id()
                _write_down(store, clock, state, start, terms, lease, guard(state, run_id))
                return key
        finally:
            store.release(lease)


def _refuse_other(state: State, start: Start, guard: Guard) -> None:
    """Raises InputMismatch if the run that is there is another one than was to be submitted."""
    if state.flow != start.flow:
        raise InputMismatch(
            f"run {state.key} is one of the flow {state.flow!r}, not of {start.flow!r}. Nothing was written.",
            hint="Name the task differently, or pass new=True for another episode.",
        )
    refuse_other_inputs(state, start.seen(guard))


def _place(store: Store, start: Start, terms: Terms) -> tuple[RunKey, bool]:
    """Which run is meant, and whether it is there."""
    rows = store.runs(Which(goal=start.goal))
    for row in rows if terms.idempotency_key else ():
        if row.idempotency_key == terms.idempotency_key:
            return row.key, True
    latest = max((row.episode for row in rows), default=-1)
    episode = start.episode if start.episode is not None else latest + 1 if start.new else max(latest, 0)
    return RunKey.of(start.goal, episode), any(row.episode == episode for row in rows)


def _refuse_hidden(guard: Guard) -> None:
    """Raises ConfigError for inputs that were written and that nobody could read back."""
    if guard.nameless:
        raise ConfigError(
            "The run cannot be submitted: an input holds a Secret without a name, which a worker could not ask for. "
            "Nothing was written.",
            hint="Name it, Secret(value, name=...), and give workers a resolver, CheckpointConfig.secrets.",
        )
    if guard.hid:
        raise ConfigError(
            "The run cannot be submitted: rules of redaction hide a part of its inputs, so no worker would have it. "
            "Nothing was written.",
            hint="Pass perdure.Secret(value, name=...) there, and give workers a resolver, CheckpointConfig.secrets.",
        )


def _write_down(
    store: Store, clock: Clock, state: State, start: Start, terms: Terms, lease: Lease, guard: Guard
) -> None:
    guard.run = ""  # what is hidden is an error here, and needs no line in the log
    inputs, blobs = codec.dumps(start.recorded or start.inputs, "inputs", guard)
    _refuse_hidden(guard)
    queued = j.RunQueued(
        run_id=guard.key,
        flow=start.flow,
        digest=start.digest,
        version=start.version,
        inputs=inputs,
        args=start.seen(guard),
        attribution=attributed(start.attribution, guard),
        target=start.target,
        budget=start.budget,
        queue=terms.queue,
        priority=terms.priority,
        wake=clock.now() + terms.delay,
        limits=terms.limits,
        idempotency_key=terms.idempotency_key,
    )
    write(store, lease, state, [queued], clock, blobs)
