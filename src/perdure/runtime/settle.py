"""Moving the posts of a run that nobody executes: by whoever posted, or by the process that takes the run up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import TypeAlias

from perdure import inbox, states
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import CorruptStore, LeaseHeld
from perdure.fold import State
from perdure.model import Lease, RunKey, key_named
from perdure.runtime.past import present
from perdure.stores.base import Append, Store, Which
from perdure.stores.compression import ready
from perdure.stores.handle import not_found

Make: TypeAlias = Callable[[State], j.Posted]
_PATIENCE = 2.0
"""seconds to wait for somebody who holds the run only to move posts himself"""


def move(store: Store, lease: Lease, state: State, clock: Clock) -> None:
    """Append what is in the inbox to the journal of a run that we hold and do not execute, and what follows from it.

    Raises LeaseLost, StoreError; CorruptStore for a damaged post.
    """
    posts = store.posts({state.key: state.posts}).get(state.key, ())
    write(store, lease, state, chain(inbox.moved(state, posts), inbox.consequences(state)), clock)


def write(
    store: Store,
    lease: Lease,
    state: State,
    entries: Iterable[j.Entry],
    clock: Clock,
    blobs: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Append entries to a run that we hold and do not execute; each is applied before the next is asked for.

    Raises LeaseLost, StoreError.
    """
    seq, records = state.seq, []
    for entry in entries:
        entry.seq, entry.at = state.seq + 1, clock.now()
        state.apply(entry)
        records.append(j.encode(state.key, entry))
    if records:
        for error in store.append(ready([Append(lease, seq, tuple(records), state.meta(), dict(blobs))], store)):
            if error is not None:
                raise error


def settle(store: Store, clock: Clock, state: State, number: int, patience: float) -> None:
    """See to it that post ``number`` is moved into the journal: by its holder, or by us if nobody holds the run.

    ``state``, which its journal tells, is brought up to date: the post is missing only if the holder has not got round
    to it in ``patience`` seconds.
    """
    end = clock.monotonic() + patience
    while True:
        try:
            lease = store.claim(state.key)
        except LeaseHeld:
            _catch_up(store, state)
            if state.posts >= number or clock.monotonic() >= end:
                return
            clock.sleep(0.02)
            continue
        try:
            _refuse_removed(store, lease, state)
            _catch_up(store, state)
            move(store, lease, state, clock)
        finally:
            store.release(lease)
        return


def _refuse_removed(store: Store, lease: Lease, state: State) -> None:
    """Raises RunNotFound if the run was removed since, and the post with it; our claim may have made it anew, empty."""
    if not store.read(state.key, state.seq - 1):
        if not store.read(state.key):
            store.delete(lease)
        raise not_found(state.key, store.url)


def _catch_up(store: Store, state: State) -> None:
    for line in store.read(state.key, state.seq):
        state.apply(j.decode(state.key, line, state.seq + 1))


def send(store: Store, clock: Clock, key: RunKey, make: Make, patience: float = _PATIENCE) -> State:
    """Post what ``make`` says, given the state with everything that was posted before, and settle it. On the writer's
    thread without ``patience``: the holder that is waited for could be ourselves.

    Returns the state then. Raises AnswerRefused when the run cannot take it; RunNotFound, StoreBusy, StoreError;
    CorruptStore when the inbox has fewer posts than the journal has taken.
    """
    while True:
        state = _journaled(store, key)
        unread = store.posts({key: state.posts}).get(key)
        shown = with_posts(_journaled(store, key), unread) if unread else state
        post = make(shown)
        post.posted = clock.now()
        inbox.check(shown, post)
        record = inbox.encode(shown, post)
        number = shown.posts + 1
        if store.post(key, number, record):
            settle(store, clock, state, number, patience)
            _wake_parent(store, clock, state, patience)
            return state
        there = len(store.posts({key: 0}).get(key, ()))
        if there < state.posts and store.read(key, state.seq - 1):  # it would be refused for ever
            raise posts_missing(key, there, state.posts)


def posts_missing(key: RunKey, found: int, expected: int) -> CorruptStore:
    return CorruptStore(
        f"run {key}: its inbox has {found} posts, and its journal tells of {expected}. Nothing was changed.",
        hint="If it was being imported, import it again; else restore the store from a copy.",
    )


def seen(store: Store, key: RunKey) -> State:
    """The state of a run as it is going to be when everything that was posted is moved. Raises RunNotFound."""
    state = _journaled(store, key)
    return with_posts(state, store.posts({key: state.posts}).get(key, ()))


def _journaled(store: Store, key: RunKey) -> State:
    state = present(store, key)
    if state.status is None:
        raise not_found(key, store.url)
    return state


def with_posts(state: State, posts: Iterable[bytes]) -> State:
    """The state as it is going to be when these posts, which follow those that it has taken, are moved."""
    for entry in inbox.moved(state, posts):
        entry.seq, entry.at = state.seq + 1, state.updated
        state.apply(entry)
    return state


def _wake_parent(store: Store, clock: Clock, state: State, patience: float) -> None:
    """The run that began this one, and waits because this one did, can go on too."""
    parent = key_named(state.attribution.parent)
    if parent is None or state.status not in (states.READY, states.CANCELLED):
        return
    rows = [row for row in store.runs(Which(goal=parent.goal)) if row.key == parent]
    if rows and rows[0].status in (states.RUNNING, *states.RUN_SUSPENDED):
        send(store, clock, parent, lambda _: j.RunWoken(by=str(state.key), why=state.status or ""), patience)
