"""One batch of appends to Redis: what is sent, what the replies mean, and what the index is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from perdure.errors import PerdureError
from perdure.model import Lease, RunKey
from perdure.stores.base import Append
from perdure.stores.handle import checked_digest, lost, missing_records, wrong_seq
from perdure.stores.redis_keys import Keys, Row, member, place_of
from perdure.stores.redis_link import Command, Link

Results = list[PerdureError | None]
Note = tuple[str, int]


class Batch:
    """Items that are sent together. ``noted``: what the index says of their runs, as (place, posts taken)."""

    def __init__(self, link: Link, keys: Keys, items: Sequence[Append], noted: Mapping[RunKey, Note]) -> None:
        self._link = link
        self._keys = keys
        self._items = items
        self._new = {item.lease.key for item in items} - noted.keys()
        """runs that nothing was appended to under their leases: the first time is news"""
        self._changing = [item for item in items if noted.get(item.lease.key) != note(item)]
        self.noted: dict[RunKey, Note] = {}
        """what the index is to say of runs that were appended to"""
        self.refused: list[RunKey] = []
        """runs of whose entries nothing is known now: they may have been widened for nothing"""
        self.narrow: list[Command] = []
        """what brings the index up to date, after ``send``"""

    def send(self, again: bool) -> Results:
        """Append the items: one round trip. Entries of the index that change are widened before, in the same trip."""
        widen = [self._index("expect", item) for item in self._changing]
        replies = self._link.ask([*widen, *(self._write(item, again) for item in self._items)], synced=True)
        results = [self._result(item, reply) for item, reply in zip(self._items, replies[len(widen) :], strict=True)]
        last = {item.lease.key: item for item, problem in zip(self._items, results, strict=True) if problem is None}
        inexact = {item.lease.key for item, reply in zip(self._changing, replies, strict=False) if reply}
        self.narrow = [self._index("settle", item) for key, item in last.items() if key in inexact]
        self.noted = {key: note(item) for key, item in last.items()}
        self.refused = [item.lease.key for item, problem in zip(self._items, results, strict=True) if problem]
        return results

    def _write(self, item: Append, again: bool) -> Command:
        meta, lease = item.meta, item.lease
        return self._link.call(
            "append",
            [self._keys.run(lease.key), self._keys.journal(lease.key)],
            *(lease.epoch, lease.owner, item.seq, int(again)),
            *(msgspec.json.encode(meta), float(meta.begun)),
            self._keys.news if lease.key in self._new else "",
            item.size,
            *item.records,
        )

    def _index(self, verb: str, item: Append) -> Command:
        last = item.seq + len(item.records)
        return self._link.index(verb, member(item.lease.key), item.lease.epoch, last, *note(item))

    def _result(self, item: Append, reply: list[Any]) -> PerdureError | None:
        kind, *numbers = reply
        if kind == b"lost":
            return lost(item.lease)
        if kind == b"seq":
            return wrong_seq(item, numbers[0])
        if kind == b"short":
            return missing_records(self._link.url, item.lease.key, *numbers)
        return None


def note(item: Append) -> Note:
    """What the index is to say of an item's run."""
    return place_of(item.meta), item.meta.posts


def blobs_to_store(
    batch: Sequence[Append], results: Results, rows: Mapping[RunKey, Row]
) -> list[tuple[Lease, str, bytes]]:
    """Blobs of the items that will be appended, as far as the runs' rows tell. What is wrong with the others that have
    some is put into ``results``, so that nothing of them is kept."""
    seqs = {key: row.seq for key, row in rows.items()}
    found: list[tuple[Lease, str, bytes]] = []
    for place, item in enumerate(batch):
        key, lease = item.lease.key, item.lease
        if results[place] is not None or key not in rows:
            continue
        current = rows[key].lease
        if (current.epoch, current.owner) != (lease.epoch, lease.owner):
            results[place] = lost(lease)
        elif item.seq != seqs[key]:
            results[place] = wrong_seq(item, seqs[key])
        else:
            seqs[key] += len(item.records)
            found += [(lease, checked_digest(digest), content) for digest, content in item.blobs.items()]
    return found
