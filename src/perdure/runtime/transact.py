"""Transactional steps (X7): what a step does in the user's tables and the record of its completion commit together.

The body runs inside of a transaction of the store, on the thread that commits, and its completion is appended in the
same transaction, together with whatever else of the run is queued. If anything fails (the body, its check, a
constraint, the lease) all of it is rolled back. So the effect is there exactly if the record is: a step of this kind is
never in doubt, and is simply executed again.

While the body runs nothing else is committed, of any run of this process. So it may do nothing durable but through its
transaction, and should be short.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from perdure.commands import Commit, Outcome
from perdure.errors import ConfigError, LeaseLost, RetryError, StoreError
from perdure.runtime.live import LiveRun
from perdure.runtime.tickets import Item
from perdure.stores.base import Transaction

Body = Callable[[Any], Outcome]


_TRIES = 10
"""how often a transaction is tried that the store rolls back"""
log = logging.getLogger("perdure")


class _RolledBack(Exception):
    """There is nothing to commit."""


def transact(run: LiveRun, body: Body, commit: Commit) -> Outcome:
    """Execute ``body(connection)`` and commit it with the entry that ``commit`` makes of its outcome, or roll it back
    if that makes none. Done again when the store failed and rolled it back. Blocks. Raises LeaseLost, StoreError;
    ConfigError where the store has no transactions."""
    begin = run.writer.store.capabilities.transaction
    if begin is None:
        raise ConfigError(
            f"run {run.key}: a step takes a transaction, and {run.writer.store.url} has none to give.",
            hint="Keep the run in sqlite: or postgresql:, where the tables are that it changes.",
        )
    tries = _TRIES
    while True:
        tries -= 1
        try:
            return run.writer.call(lambda: _on_writer(run, begin(run.lease), body, commit)).result()
        except RetryError as rolled_back:
            if run.broken is not None or not tries:
                raise StoreError(rolled_back.args[0], hint="All of it was rolled back; run it again.") from rolled_back
            log.warning("run %s: a transactional step is executed again: %s", run.key, rolled_back)
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
            try:
                opened.check(outcome.error)
            except Exception as refused:
                if outcome.error is not None:
                    raise  # not the body has failed, but the store
                outcome = Outcome(None, refused, outcome.seconds)
            made = commit(outcome)
            if made is None:
                raise _RolledBack
            with run.lock:  # nothing of the run gets in between
                run.emit((made[0],), made[1], last=True)
                items = run.writer.queued(run.lease)
            run.writer.append(items)
    except _RolledBack:
        assert outcome is not None
        return outcome
    except Exception as error:
        if items:  # our state is ahead of the journal, or perhaps not: the journal tells the next life
            problem = error if isinstance(error, StoreError | LeaseLost) else StoreError(str(error))
            run.break_off(problem)
            run.writer.resolve(items, problem)
        raise
    run.writer.resolve(items, None)
    return Outcome(outcome.value, None, outcome.seconds, committed=True)
