"""Finding runs in Redis by what the index says of them, and no more of them than a listing shows.

The index may show too much and never too little (``lua/index.lua``), so each candidate's row is looked at. A listing in
the order of urgency or of dates goes through the entries in that order and ends when it has enough of those whose rows
stand where their entries do. What need not stand where it should, or is due for another reason, it looks at whole: runs
whose places are unsure, that have posts, and those that are being executed, whose processes may have died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Any, Final, TypeAlias

from perdure.model import RunKey, RunMeta
from perdure.stores.base import Which
from perdure.stores.redis_keys import LANE, Keys, briefs, date, key_of, member, place_of
from perdure.stores.redis_link import Command, Link

_CHUNK: Final = 500
"""rows that are asked for together"""
_MORE: Final = 10
"""candidates that are looked at beyond those that are wanted: some are just being taken by others"""

Ask: TypeAlias = Callable[[Sequence[Command]], list[Any]]
Rows: TypeAlias = Callable[[Sequence[RunKey]], Iterable[RunMeta]]
"""the rows of these runs, as listings show them"""


class Look:
    """One listing. ``rows`` is called with so many runs as may be asked for together."""

    def __init__(self, link: Link, keys: Keys, which: Which, ask: Ask, rows: Rows) -> None:
        self._link = link
        self._keys = keys
        self._which = which
        self._ask = ask
        self._rows = rows
        self._queues, self._flows = briefs(which.queues), briefs(which.flows)

    def found(self) -> list[RunMeta]:
        dated = self._which.due is not None or self._which.later is not None
        return self._which.cut(self._in_order() if dated and self._which.goal is None else self._by_name())

    def _by_name(self) -> list[RunMeta]:
        which = self._which
        limit = which.limit if which.due is None and which.later is None else 0  # else they are shown in another order
        found: list[RunMeta] = []
        for some in self._names(_sizes(limit)):
            found += self._those(some)
            if 0 < limit <= len(found):
                break
        return found

    def _names(self, sizes: Iterator[int]) -> Iterator[Sequence[bytes]]:
        """Candidates in the order of their names, so many at a time."""
        keys, which = self._keys, self._which
        if which.active is not None and which.goal is None:  # infinite while held: one entry for both ways to be active
            least = "+inf" if which.active == inf else f"({which.active!r}"
            yield from _chunks(sorted(self._ask([("ZRANGEBYSCORE", keys.begun, least, "+inf")])[0]), sizes)
            return
        begin, end = b"-", b"+"
        if which.goal is not None:
            begin, end = b"[" + which.goal.encode() + b"\0", b"[" + which.goal.encode() + b"\0\xff"
        if which.after is not None and b"(" + member(which.after) > b"(" + begin[1:]:
            begin = b"(" + member(which.after)
        for size in sizes:
            names = self._ask([("ZRANGEBYLEX", keys.runs, begin, end, "LIMIT", 0, size)])[0]
            if names:
                yield names
            if len(names) < size:
                return
            begin = b"(" + names[-1]

    def _in_order(self) -> list[RunMeta]:
        keys, which = self._keys, self._which
        beside: list[Command] = [("SMEMBERS", keys.unsure)]
        if which.due is None:
            entries, start, till = keys.dates, LANE, ""
            begin = b"(" + date(which.later or 0.0).encode() + b"\xff"
        else:
            entries, start, till, begin = keys.ready, LANE + 8, date(which.due), b"-"
            beside += [
                ("ZRANGE", keys.posted, 0, -1),
                ("ZRANGEBYLEX", keys.running, "-", b"(" + till.encode() + b"\xff"),
            ]
        limit = which.limit if which.due is None or which.later is None else 0
        sizes, seen, found, settled = _sizes(limit), set[bytes](), list[RunMeta](), 0
        while begin and not 0 < limit <= settled:
            *others, (begin, names) = self._ask([*beside, self._scan(entries, begin, till, next(sizes))])
            stand = {name[start:-LANE]: (name[:start] + name[-LANE:]).decode() for name in names}
            runs = {*stand, *(run for some in others[:2] for run in some)}
            runs |= {name[LANE:-LANE] for some in others[2:] for name in some if self._wants(name)}
            for some in _chunks(sorted(runs - seen), _sizes(0)):
                for row in self._those(some):
                    found.append(row)
                    settled += place_of(row).endswith(stand.get(member(row.key), "none"))
            seen |= runs
            beside = []
        return found

    def _those(self, names: Sequence[bytes]) -> Iterator[RunMeta]:
        keys = [key for key in map(key_of, names) if key is not None]
        return filter(self._which.includes, self._rows(keys))

    def _scan(self, entries: str, begin: bytes, till: str, most: int) -> Command:
        return self._link.call("scan", [entries], begin, till, most, len(self._queues), *self._queues, *self._flows)

    def _wants(self, entry: bytes) -> bool:
        queue, flow = entry[-LANE:-8].decode(), entry[-8:].decode()
        return (not self._queues or queue in self._queues) and (not self._flows or flow in self._flows)


def _sizes(limit: int) -> Iterator[int]:
    """How many candidates to look at, one time after the other, until there are ``limit`` (0: all)."""
    size = limit + _MORE if limit else _CHUNK
    while True:
        yield min(size, _CHUNK)
        size *= 2


def _chunks(names: Sequence[bytes], sizes: Iterator[int]) -> Iterator[Sequence[bytes]]:
    start = 0
    while start < len(names):
        size = next(sizes)
        yield names[start : start + size]
        start += size
