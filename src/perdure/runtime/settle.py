"""Moving the posts of a run that nobody executes: by whoever posted, or by the process that takes the run up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from perdure import inbox, states
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import LeaseHeld, RunNotFound
from perdure.fold import State, fold
from perdure.model import Lease, RunKey
from perdure.stores.base import Append, Store

Make: TypeAlias = Callable[[State], j.Posted]
_PATIENCE = 2.0
"""seconds to wait for somebody who holds the run only to move posts himself"""


def move(store: Store, lease: Lease, state: State, clock: Clock) -> None:
    """Append what is in the inbox to the journal of a run that we hold and do not execute, and what follows from it.

    Raises LeaseLost, StoreError; CorruptStore for a damaged post.
    """
    seq, entries = state.seq, []

    def add(entry: j.Entry) -> None:
        entry.seq, entry.at = state.seq + 1, clock.now()
        state.apply(entry)
        entries.append(j.encode(state.key, entry))

    for entry in inbox.moved(state, store.posts({state.key: state.posts}).get(state.key, ())):
        add(entry)
    for entry in inbox.consequences(state):
        add(entry)
    if entries:
        for error in store.append([Append(lease, seq, tuple(entries), state.meta())]):
            if error is not None:
                raise error


def settle(store: Store, clock: Clock, key: RunKey, number: int) -> State:
    """See to it that post ``number`` is moved into the journal: by its holder, or by us if nobody holds the run.

    Returns the run's state, in which it is missing only if the holder has not got round to it.
    """
    end = clock.monotonic() + _PATIENCE
    state = State(key)
    while True:
        try:
            lease = store.claim(key)
        except LeaseHeld:
            for line in store.read(key, state.seq):
                state.apply(j.decode(key, line, state.seq + 1))
            if state.posts >= number or clock.monotonic() >= end:
                return state
            clock.sleep(0.02)
            continue
        try:
            state = fold(key, store.read(key))
            move(store, lease, state, clock)
        finally:
            store.release(lease)
        return state


def send(store: Store, clock: Clock, key: RunKey, make: Make) -> State:
    """Post what ``make`` says, given the state with everything that was posted before, and settle it.

    Raises AnswerRefused when the run cannot take it; RunNotFound, StoreBusy, StoreError.
    """
    while True:
        state = seen(store, key)
        post = make(state)
        post.posted = clock.now()
        inbox.check(state, post)
        record = inbox.encode(state, post)
        number = state.posts + 1
        if store.post(key, number, record):
            state = settle(store, clock, key, number)
            _wake_parent(store, clock, state)
            return state


def seen(store: Store, key: RunKey) -> State:
    """The state of a run as it is going to be when everything that was posted is moved. Raises RunNotFound."""
    lines = store.read(key)
    if not lines:
        raise RunNotFound(f"There is no run {key} in {store.url}.", hint="List what there is: perdure ls")
    state = fold(key, lines)
    for entry in inbox.moved(state, store.posts({key: state.posts}).get(key, ())):
        entry.seq, entry.at = state.seq + 1, state.updated
        state.apply(entry)
    return state


def _wake_parent(store: Store, clock: Clock, state: State) -> None:
    """The run that began this one, and waits because this one did, can go on too."""
    goal, _, episode = state.attribution.parent.rpartition("#")
    if not goal or not episode.isdecimal() or state.status not in (states.READY, states.CANCELLED):
        return
    parent = RunKey(goal, int(episode))
    rows = [row for row in store.runs(goal) if row.key == parent]
    if rows and rows[0].status in (states.RUNNING, *states.RUN_SUSPENDED):
        send(store, clock, parent, lambda _: j.RunWoken(by=str(state.key), why=state.status or ""))
