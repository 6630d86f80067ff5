"""Which finished runs stay, and removing the others.

A run may be removed when it has completed, failed or been cancelled, nobody executes it, nothing in its inbox waits for
it, nobody has pinned it, and the run that began it (if one did) will not go on. All this is looked at again under the
run's lease, in the moment in which it is removed. Its blobs go with it as far as no other run was given them.

One run is removed at a time, each in a transaction of its own, so that those who execute runs wait for none of it for
long. What is looked at is read in pages: memory does not grow with the number of runs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from perdure import states
from perdure.clock import Clock
from perdure.errors import ConfigError, CorruptStore, FencedError, LeaseHeld
from perdure.model import OWN, RunKey, RunMeta, key_named
from perdure.runtime.look import row_of
from perdure.stores.base import Store, Which

_PAGE = 200
_OLDEST = 500
"""runs that are picked in one look through the store when it has become too large"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What stays of runs of one status. Raises ConfigError naming the field.

    - ``age``: those about which something was heard not longer ago than this.
    - ``count``: the newest so many episodes of each goal, whatever their age, and however large they are.
    - ``size``: bytes of all that stay, together; the oldest go first. (A blob that runs
      share counts for each, and each time that a run records it.)

    Of runs that ``count`` does not keep, those go that are too old, and those that are too much; all of them, if
    neither is said.
    """

    age: timedelta | None = None
    count: int = 0
    size: int | None = None

    def __post_init__(self) -> None:
        if self.age is not None and (not isinstance(self.age, timedelta) or self.age < timedelta(0)):
            raise ConfigError(f"retention: age must be a timedelta from 0, not {self.age!r}.")
        for field in ("count", "size"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ConfigError(f"retention: {field} must be a whole number from 0, not {value!r}.")
        if self.age is None and not self.count and self.size is None:
            raise ConfigError("retention: nothing says what stays.", hint="Give age=, count= or size=.")


class Retention:
    """What stays, by status: completed, failed, cancelled. ``Retention(Keep(...))`` is for each of the three;
    ``failed=`` and so on for one. Statuses about which nothing is said stay. Raises ConfigError."""

    def __init__(
        self,
        keep: Keep | None = None,
        *,
        completed: Keep | None = None,
        failed: Keep | None = None,
        cancelled: Keep | None = None,
    ) -> None:
        given = {states.COMPLETED: completed, states.FAILED: failed, states.CANCELLED: cancelled}
        self.rules: Mapping[str, Keep] = {
            status: rule for status, own in given.items() if (rule := own or keep) is not None
        }
        if not self.rules:
            raise ConfigError("retention: nothing says what stays.", hint="Retention(Keep(age=timedelta(days=30)))")
        if not all(isinstance(rule, Keep) for rule in self.rules.values()):
            raise ConfigError("retention: give Keep(...) for each status.")

    def __repr__(self) -> str:
        return f"Retention({', '.join(f'{status}={rule}' for status, rule in self.rules.items())})"


def prune(store: Store, retention: Retention, clock: Clock, *, dry: bool = False) -> Iterator[RunMeta | None]:
    """Remove what does not stay; see ``Client.prune``."""
    now, left = clock.now(), dict.fromkeys(retention.rules, 0)
    would: set[RunKey] | None = set() if dry else None
    for row, spare in _candidates(store, retention):
        if row is None:
            yield None
            continue
        rule = retention.rules[row.status]
        old = rule.age is not None and row.updated < now - rule.age.total_seconds()
        if spare and (old or (rule.age is None and rule.size is None)) and _gone(store, row, would):
            yield row
        else:
            left[row.status] += row.size
    for status, rule in retention.rules.items():
        if rule.size is not None and left[status] > rule.size:
            yield from _shrink(store, retention, status, left[status] - rule.size, would, now)


def _shrink(
    store: Store, retention: Retention, status: str, much: int, would: set[RunKey] | None, now: float
) -> Iterator[RunMeta | None]:
    """Remove the oldest runs of a status until they are so many bytes less."""
    rule, begin = retention.rules[status], (0.0, RunKey(""))
    while much > 0:
        oldest: list[tuple[float, RunKey, int]] = []
        for row, spare in _candidates(store, retention):
            if row is None:
                yield None
                continue
            old = rule.age is not None and row.updated < now - rule.age.total_seconds()
            if row.status == status and spare and not old and (row.updated, row.key) > begin:
                oldest.append((row.updated, row.key, row.size))
                if len(oldest) >= 2 * _OLDEST:
                    oldest = heapq.nsmallest(_OLDEST, oldest)
        if not oldest:
            return
        for updated, key, size in heapq.nsmallest(_OLDEST, oldest):
            if much <= 0:
                return
            begin = (updated, key)
            found = row_of(store, key)
            if found is not None and found.status == status and _gone(store, found, would):
                much -= size
                yield found


def _candidates(store: Store, retention: Retention) -> Iterator[tuple[RunMeta | None, bool]]:
    """Runs of the statuses that have a rule, and whether ``count`` does not keep them; None now and then."""
    newest: dict[str, deque[RunMeta]] = {}
    goal = None
    page = store.runs(Which(limit=_PAGE))
    while page:
        for row in page:
            if row.goal.startswith(OWN):
                continue
            if row.goal != goal:
                yield from ((kept, False) for some in newest.values() for kept in some)
                goal, newest = row.goal, {status: deque() for status in retention.rules}
            if row.status in newest:
                some = newest[row.status]
                some.append(row)
                if len(some) > retention.rules[row.status].count:
                    yield some.popleft(), True
        yield None, False
        page = store.runs(Which(after=page[-1].key, limit=_PAGE))
    yield from ((kept, False) for some in newest.values() for kept in some)


def _gone(store: Store, row: RunMeta, would: set[RunKey] | None) -> bool:
    """Whether a run could be removed. ``would``: it is not, but looked at, and these would have been before."""
    try:
        stays = remove(store, row, dry=False) if would is None else _protected(store, row, gone=would)
    except CorruptStore:  # it stays, and keeps no other; who looks at it, or checks the store, is told
        return False
    if would is not None and not stays:
        would.add(row.key)
    return not stays


def remove(store: Store, row: RunMeta, *, dry: bool) -> str:
    """Remove a run as it was seen. Returns why it was not, "" if it is gone, or with ``dry`` would be."""
    why = _protected(store, row)
    if why or dry:
        return why
    try:
        lease = store.claim(row.key)
    except LeaseHeld:
        return "somebody executes it"
    try:
        now = row_of(store, row.key)
        why = "it was removed" if now is None else _protected(store, now, ours=True)
        if not why and now is not None and (now.seq, now.status) != (row.seq, row.status):
            why = "something has happened to it"
        if not why or not store.read(row.key):  # somebody else was faster, and our claim has made it anew, empty
            store.delete(lease)
        return why
    finally:
        with suppress(FencedError):
            store.release(lease)


def _protected(store: Store, row: RunMeta, ours: bool = False, gone: Collection[RunKey] = ()) -> str:
    """Why a run has to stay; "" if it has not. ``ours``: it is we who hold it. ``gone``: as if these were not there."""
    if row.status not in states.RUN_REMOVABLE:
        return f"it is {row.status}"
    if row.holder is not None and not ours:
        return "somebody executes it"
    if row.pinned:
        return "somebody wants it to be kept (perdure unpin lets it go)"
    if row.unread:
        return "something was posted to it that it has not taken yet"
    parent = key_named(row.parent)
    began = row_of(store, parent) if parent is not None and parent not in gone else None
    if began is not None and began.status not in states.RUN_OVER:
        return f"run {began.key}, which began it, may need it"
    return ""
