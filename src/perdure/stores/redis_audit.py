"""What a Redis store tells of itself besides its journals: the index, blobs that are nobody's, and keys that are.

All keys under the store's prefix are gone through with SCAN, some hundreds at a time. The index lies in other slots
than the runs, so what is read of both is not of one moment: what looks wrong is looked at again, and told if it stays
so. A blob goes by the script of a deletion (``lua/drop.lua``), which removes it only if no run was given it by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from perdure.clock import Clock
from perdure.errors import CorruptStore
from perdure.model import OWN, Lease, RunKey, RunMeta
from perdure.stores.disk import run_folder_name
from perdure.stores.findings import Audit, Copies, Finding, empty_run
from perdure.stores.redis_keys import FIELDS, LANE, Keys, Row, mark_of, member, place_of
from perdure.stores.redis_link import Command, Link

_SCAN: Final = 500
_LOOKS: Final = 3
_PAUSE: Final = 0.1
"""seconds between them: a run and the index are changed one after the other, by a process that may have to wait"""


class _Facts(NamedTuple):
    """What the store says of a run."""

    row: Row
    alive: bool
    deleted: int
    """epoch of the last one of this name that was deleted"""
    given: bool
    listed: bytes | None
    place: str
    unsure: bool
    posted: float
    begun: float


class RedisAudit(NamedTuple):
    link: Link
    keys: Keys
    ask: Callable[[Sequence[Command]], list[Any]]
    claim: Callable[[RunKey], Lease]
    release: Callable[[Lease], None]
    clock: Clock

    def audit(self) -> Audit:
        return Audit(self.look, self.mend, self.row, Path("perdure"))

    def look(self, key: RunKey | None) -> Iterator[Finding | None]:
        if key is not None:
            yield from self._confirmed(self._runs, [key])
            return
        for kind, look in (
            ("run", self._runs),
            ("journal", self._nobodys),
            ("given", self._given),
            ("snapshot", self._snapshots),
        ):
            for names in self._scan(kind):
                keys = [key for name in names if (key := self.keys.whose(name)) is not None]
                yield from self._confirmed(look, keys)
                yield None
        yield from self._strangers()
        for names in self._scan("blob"):
            digests = self._bare([name.decode()[-64:] for name in names])
            if digests:
                self.clock.sleep(_PAUSE)
            for digest in self._bare(digests):
                yield Finding(kind="orphan_blob", what=f"blob {digest} was given to no run.", place=digest)

    def mend(self, finding: Finding, keep: Copies) -> None:
        if finding.kind == "orphan_blob":
            self._drop(finding, keep)
        elif finding.kind == "leftover":
            self._drop_snapshot(finding, keep)
        elif finding.run is not None:
            self._enter(finding.run, keep)

    def row(self, key: RunKey) -> bytes:
        found = self.ask([("HGETALL", self.keys.run(key))])[0]
        return msgspec.json.encode({_text(name): _text(value) for name, value in found.items()})

    # -- looking -----------------------------------------------------------------------------------------------------

    def _scan(self, kind: str) -> Iterator[Sequence[bytes]]:
        cursor = 0
        while True:
            cursor, names = self.ask([("SCAN", cursor, "MATCH", self.keys.all_of(kind), "COUNT", _SCAN)])[0]
            if names:
                yield names
            if not cursor:
                return

    def _confirmed(
        self, look: Callable[[Sequence[RunKey]], list[Finding]], keys: Sequence[RunKey]
    ) -> Iterator[Finding]:
        found = look(keys)
        for _ in range(_LOOKS - 1):
            if found:
                self.clock.sleep(_PAUSE)
                seen = set(look(sorted({finding.run for finding in found if finding.run is not None})))
                found = [finding for finding in found if finding in seen]
        yield from found

    def _runs(self, keys: Sequence[RunKey]) -> list[Finding]:
        facts = dict(zip(keys, self._facts(keys), strict=True))
        found = [finding for key, fact in facts.items() if fact for finding in self._odd(key, fact)]
        placed = {key: fact for key, fact in facts.items() if fact and fact.row.seq and fact.place and not fact.unsure}
        entries = [entry for key, fact in placed.items() for entry in self._entries(key, fact.place)]
        there = self.ask([("ZSCORE", *entry) for entry in entries]) if entries else []
        for (key, _), scores in zip(placed.items(), zip(there[::2], there[1::2], strict=True), strict=True):
            if None in scores and not any(finding.run == key for finding in found):
                found.append(self._overlooked(key, ["dates"]))
        return found

    def _facts(self, keys: Sequence[RunKey]) -> list[_Facts | None]:
        commands: list[Command] = []
        names = self.keys
        for key in keys:
            run = member(key)
            commands += [("HMGET", names.run(key), *FIELDS, "deleted"), ("EXISTS", names.given(key))]
            commands += [("ZSCORE", names.runs, run), ("HGET", names.places, run), ("SISMEMBER", names.unsure, run)]
            commands += [("ZSCORE", names.posted, run), ("ZSCORE", names.begun, run)]
        told = iter(self.ask(commands)) if commands else iter(())
        rows = [(key, [next(told) for _ in range(7)]) for key in keys]
        owners = sorted({_text(values[0][1]) for _, values in rows} - {""})
        lives = self.ask([("EXISTS", names.owner(owner)) for owner in owners]) if owners else []
        alive = dict(zip(owners, lives, strict=True))
        return [self._fact(key, values, alive) for key, values in rows]

    def _fact(self, key: RunKey, values: Sequence[Any], alive: dict[str, Any]) -> _Facts | None:
        """None for a row that cannot be read: whoever lists it says so."""
        (*row, deleted), given, listed, place, unsure, posted, begun = values
        try:
            found = Row.of(key, row, self.link.url)
        except CorruptStore:
            return None
        lives = bool(alive.get(found.lease.owner))
        scores = (-1.0 if posted is None else float(posted), -1.0 if begun is None else float(begun))
        return _Facts(found, lives, int(deleted or 0), bool(given), listed, _text(place), bool(unsure), *scores)

    def _odd(self, key: RunKey, fact: _Facts) -> Iterator[Finding]:
        row = fact.row
        if not row.seq:
            empty = row.lease.epoch > fact.deleted or fact.listed is not None
            if empty and not (fact.alive or fact.given or key.goal.startswith(OWN)):
                yield empty_run(key)
            return
        try:
            meta = msgspec.json.decode(row.meta, type=RunMeta)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        place = place_of(meta)
        without = [
            name
            for name, lacks in (
                ("runs", fact.listed is None),
                ("places", bool(place) and not fact.unsure and fact.place != place),
                ("posted", row.posts > meta.posts and fact.posted < row.posts),
                ("begun", fact.begun < (inf if fact.alive else meta.begun)),
            )
            if lacks
        ]
        if without:
            yield self._overlooked(key, without)

    def _overlooked(self, key: RunKey, without: Sequence[str]) -> Finding:
        what = f"run {key}: the index of {self.link.url} overlooks it ({', '.join(without)})."
        return Finding(kind="index", what=what, run=key, place="index")

    def _entries(self, key: RunKey, place: str) -> list[tuple[str, bytes]]:
        """Where ``lua/index.lua`` has a run that is at this place."""
        run, lane = member(key), place[-LANE:].encode()
        wake, urgent = place[9:25].encode(), place[1:25].encode()
        first = (self.keys.running, wake) if place[0] == "r" else (self.keys.ready, urgent)
        return [(self.keys.dates, wake + run + lane), (first[0], first[1] + run + lane)]

    def _nobodys(self, keys: Sequence[RunKey]) -> list[Finding]:
        commands = [command for key in keys for command in self._sizes(key)]
        told = self.ask(commands) if commands else []
        found = []
        for key, seq, there in zip(keys, told[::2], told[1::2], strict=True):
            if there and not int(seq or 0):
                what = f"{self.link.url}: {there} records are of run {key}, which has no row."
                found.append(Finding(kind="damaged", what=what, run=key, place=self.keys.journal(key)))
        return found

    def _sizes(self, key: RunKey) -> list[Command]:
        return [("HGET", self.keys.run(key), "seq"), ("LLEN", self.keys.journal(key))]

    def _strangers(self) -> Iterator[Finding]:
        """Names in the index of runs that have nothing else."""
        begin = b"-"
        while names := self.ask([("ZRANGEBYLEX", self.keys.runs, begin, "+", "LIMIT", 0, _SCAN)])[0]:
            begin = b"(" + names[-1]
            keys = [key for name in names if not (key := _key(name)).goal.startswith(OWN)]
            there = self.ask([("EXISTS", self.keys.run(key)) for key in keys]) if keys else []
            gone = [key for key, is_there in zip(keys, there, strict=True) if not is_there]
            yield from self._confirmed(self._runs, gone)

    # -- blobs -------------------------------------------------------------------------------------------------------

    def _bare(self, digests: Sequence[str]) -> list[str]:
        """Those of the blobs that no run was given. Some may just be going, or be given again."""
        commands: list[Command] = []
        for digest in digests:
            marks: Command = ("SCARD", self.keys.marks(digest))
            commands += [marks, ("EXISTS", self.keys.blob(digest)), marks]
        told = self.ask(commands) if commands else []
        facts = zip(digests, told[::3], told[1::3], told[2::3], strict=True)
        return [digest for digest, before, there, after in facts if there and not before and not after]

    def _given(self, keys: Sequence[RunKey]) -> list[Finding]:
        """What runs were given that are deleted, by processes that died while they deleted them."""
        found = []
        for key in keys:
            deleted, marks = self.ask([("HGET", self.keys.run(key), "deleted"), ("SMEMBERS", self.keys.given(key))])
            for mark in sorted(map(_text, marks)):
                digest, _, epoch = mark.partition(":")
                if int(epoch) <= int(deleted or 0):
                    what = f"blob {digest} was given to run {key}, which is deleted."
                    found.append(Finding(kind="orphan_blob", what=what, run=key, place=mark))
        return found

    def _drop(self, finding: Finding, keep: Copies) -> None:
        digest, _, epoch = finding.place.partition(":")
        blob, marks = self.keys.blob(digest), self.keys.marks(digest)
        mark = mark_of(finding.run, int(epoch)) if finding.run is not None else b""
        content, others = self.ask([("GET", blob), ("SMEMBERS", marks)])
        if content is not None and not set(others) - {mark}:
            keep.save_blob(digest, content)
        self.ask([self.link.call("drop", [blob, marks], mark)])
        if finding.run is not None:
            self.ask([("SREM", self.keys.given(finding.run), finding.place)])

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _snapshots(self, keys: Sequence[RunKey]) -> list[Finding]:
        """Those of runs that are not there, or not there any more. If there are records, the run is damaged."""
        commands: list[Command] = []
        for key in keys:
            commands += [("HMGET", self.keys.run(key), "epoch", "deleted"), ("EXISTS", self.keys.snapshot(key))]
            commands.append(("EXISTS", self.keys.journal(key)))
        told = self.ask(commands) if commands else []
        found = []
        for key, (epoch, deleted), there, records in zip(keys, told[::3], told[1::3], told[2::3], strict=True):
            if there and not records and int(epoch or 0) <= int(deleted or 0):
                what = f"{self.link.url}: a snapshot is of run {key}, which is not there."
                found.append(Finding(kind="leftover", what=what, run=key, place=self.keys.snapshot(key)))
        return found

    def _drop_snapshot(self, finding: Finding, keep: Copies) -> None:
        """If the run is made again at this moment, it may lose its snapshot, as it may at any other."""
        assert finding.run is not None
        if self._snapshots([finding.run]):
            keep.save(f"{run_folder_name(finding.run)}/snapshot", self.ask([("GET", finding.place)])[0] or b"")
            self.ask([("DEL", finding.place)])

    # -- the index ---------------------------------------------------------------------------------------------------

    def _enter(self, key: RunKey, keep: Copies) -> None:
        """Put a run into the index anew. Taken out of it first, because what is there already is not looked at."""
        lease = self.claim(key)
        try:
            (fact,) = self._facts([key])
            if fact is None or not fact.row.seq:
                return
            keep.save(f"{run_folder_name(key)}/row", self.row(key))
            meta = msgspec.json.decode(fact.row.meta, type=RunMeta)
            run, at = member(key), (lease.epoch, fact.row.seq)
            commands = [self.link.index("post", run, fact.row.posts)] if fact.row.posts else []
            commands += [self.link.index("settle", run, *at, place, meta.posts) for place in ("", place_of(meta))]
            self.ask(commands)
        finally:
            self.release(lease)


def _key(name: bytes) -> RunKey:
    goal, _, episode = name.decode(errors="replace").rpartition("\0")
    return RunKey(goal, int(episode) if episode.isdecimal() else 0)


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
