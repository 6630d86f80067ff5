"""Observers: one method each, told of every journal entry after it is durable.

An observer sees facts, not intentions: when it hears of ``step_completed`` the record is on stable storage. It runs on
the thread that commits, one at a time: the flow's, an event loop's, or one of ours. So it must be quick; what it raises
is logged and never reaches the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perdure.journal import Entry
    from perdure.model import RunKey


class Observer(Protocol):
    """Anything that wants to know what happens in runs: a live table, metrics, tracing."""

    def notify(self, key: RunKey, entry: Entry) -> None:
        """Called once per durable entry, in the order of the run's journal."""
