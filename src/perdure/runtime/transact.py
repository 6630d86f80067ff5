"""Transactional steps (X7): what a step does in the user's tables and the record of its completion commit together.

The body runs inside of a transaction of the store, on the thread that commits, and its completion is appended in the
same transaction, together with whatever else of the run is queued. If anything fails (the body, its check, a
constraint, the lease) all of it is rolled back. So the effect is there exactly if the record is: a step of this kind is
never in doubt, and is simply executed again.

While the body runs nothing else is committed, of any run of this process. So it may do nothing durable but through its
transaction, and should be short.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from perdure.errors import ConfigError, LeaseLost, PerdureError, StoreError
from perdure.replay import Commit, Outcome
from perdure.runtime.live import LiveRun
from perdure.runtime.writer import Item
from perdure.stores.base import Transaction

Body = Callable[[Any], Outcome]


class _RolledBack(Exception):
    """There is nothing to commit."""


def transact(run: LiveRun, body: Body, commit: Commit) -> Outcome:
    """Execute ``body(connection)`` and commit it with the entry that ``commit`` makes of its outcome, or roll it back
    if that makes none. Blocks. Raises LeaseLost, StoreError; ConfigError where the store has no transactions."""
    begin = run.writer.store.capabilities.transaction
    if begin is None:
        raise ConfigError(
            f"run {run.key}: a step takes a transaction, and {run.writer.store.url} has none to give.",
            hint="Keep the run in sqlite: or postgresql:, where the tables are that it changes.",
        )
    try:
        return run.writer.call(lambda: _on_writer(run, begin(), body, commit)).result()
    except (StoreError, LeaseLost) as error:
        run.lost(error)
        raise


def _on_writer(run: LiveRun, transaction: AbstractContextManager[Transaction], body: Body, commit: Commit) -> Outcome:
    outcome: Outcome | None = None
    items: list[Item] = []
    try:
        with transaction as opened:
            with run.writer.occupied():
                outcome = body(opened.connection)
            made = commit(outcome)
            if made is None:
                raise _RolledBack
            try:
                opened.check()
            except Exception as refused:  # a constraint of the user's tables that is only checked at the end
                outcome = Outcome(None, refused, outcome.seconds)
                raise _RolledBack from None
            with run.lock:  # nothing of the run gets in between
                run.emit((made[0],), made[1], last=True)
                items = run.writer.queued(run.lease)
            run.writer.append(items)
    except _RolledBack:
        assert outcome is not None
        return outcome
    except PerdureError as error:  # perhaps it is committed, perhaps not: the journal tells the next life
        run.writer.resolve(items, error)
        raise
    run.writer.resolve(items, None)
    return Outcome(outcome.value, None, outcome.seconds, committed=True)
