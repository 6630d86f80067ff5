"""A store that fails when it is told to, for tests of programs that use one (rel:X2)::

    store = faulty(open_store("memory:"), Fault("append", nth=3, error=StoreError("The device is gone.")))
    perdure.run(flow, goal="g", store=store)

A fault is at the n-th call of a verb: it raises without doing it, or after having done it (``executed=True``: what a
lost reply looks like), or first calls something (``before``: wait, kill this process, change the world). ``lasting``
goes on for ever, as a full disk does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from perdure.stores.base import Store


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the ``nth`` call of ``verb``, counted from 1."""

    verb: str
    nth: int = 1
    error: Exception | None = None
    executed: bool = False
    """the error comes after the verb was executed"""
    before: Callable[[], object] | None = None
    lasting: bool = False
    """with all calls after it, too"""


def faulty(store: Store, *faults: Fault) -> Store:
    """``store`` with these faults. Raises ValueError for a verb that it does not have."""
    for fault in faults:
        if not callable(getattr(store, fault.verb, None)):
            raise ValueError(f"A store has no verb {fault.verb!r}.")
    return cast(Store, _Faulty(store, faults))


class _Faulty:
    def __init__(self, store: Store, faults: tuple[Fault, ...]) -> None:
        self._store, self._faults = store, faults
        self._calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not any(fault.verb == name for fault in self._faults):
            return found

        def call(*args: Any) -> Any:
            self._calls[name] += 1
            now = [fault for fault in self._faults if fault.verb == name and self._is_at(fault)]
            for fault in now:
                if fault.before is not None:
                    fault.before()
                if fault.error is not None and not fault.executed:
                    raise fault.error
            result = found(*args)
            for fault in now:
                if fault.error is not None:
                    raise fault.error
            return result

        return call

    def _is_at(self, fault: Fault) -> bool:
        count = self._calls[fault.verb]
        return count == fault.nth or (fault.lasting and count > fault.nth)
