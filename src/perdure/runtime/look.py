"""One look at one run, through the verbs of its store: whether all that it says is sound and fits together.

Others may write while we look. So the row is read first, then the journal, then the inbox: each may be ahead of what
was read before it, and is compared with it as of then. What still differs may be because the run was deleted, or is
written anew under another key, at this moment: whoever looks does so again before he tells of it (audit.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from perdure import inbox
from perdure import journal as j
from perdure.codec import CODEC_VERSION, Payload
from perdure.errors import ConfigError, CorruptStore, NewerFormat, PerdureError
from perdure.fold import State
from perdure.model import RunKey, RunMeta
from perdure.stores.base import Store, Which
from perdure.stores.findings import Finding

_FILLED_IN = ("holder", "unread", "size", "sealed")
"""what a store adds to a row"""


_PAGE: Final = 500
"""rows that are asked for together"""


def row_of(store: Store, key: RunKey) -> RunMeta | None:
    """The row of one run, without looking at others. None if it has no records."""
    for row in store.runs(Which(goal=key.goal, after=RunKey(key.goal, key.episode - 1), limit=1)):
        return row if row.key == key else None
    return None


def each(store: Store, goal: str | None = None) -> Iterator[RunMeta]:
    """The rows of all runs, in their order, without having all of them in memory."""
    page = store.runs(Which(goal=goal, limit=_PAGE))
    while page:
        yield from page
        full = len(page) == _PAGE
        page = store.runs(Which(goal=goal, after=page[-1].key, limit=_PAGE)) if full else []


class Look:
    """What is wrong with the run of ``row``. ``needs`` is told of each blob that its records need."""

    def __init__(self, store: Store, row: RunMeta, needs: Callable[[str], None] = lambda digest: None) -> None:
        self._store, self._row, self._needs = store, row, needs
        self._key = row.key
        self._state = State(row.key)
        self._listed: RunMeta | None = None
        """the row as it should have been when it was listed"""
        self._taken: dict[int, j.Entry] = {}
        """by their numbers, the posts that the journal has taken"""
        self._blobs: set[str] = set()
        self.records = 0

    @property
    def blobs(self) -> int:
        """How many blobs it needs."""
        return len(self._blobs)

    def findings(self) -> Iterator[Finding]:
        """Raises StoreError if the store itself fails."""
        try:
            lines = self._store.read(self._key)
        except (CorruptStore, ConfigError) as problem:
            yield self._unread("damaged", problem)
            return
        for line in lines:
            try:
                entry = j.decode(self._key, line, self.records + 1)
                self._state.apply(entry)
            except (CorruptStore, NewerFormat, ConfigError) as problem:
                yield self._unread("damaged", problem, f"record {self.records + 1}")
                return
            self.records += 1
            yield from self._values(entry)
            if isinstance(entry, j.Posted | j.PostDropped):  # the last of a number: a fork begins to count anew
                self._taken[entry.post] = entry
            if self.records == self._row.seq:
                self._listed = self._state.meta()
        del lines
        yield from self._compare_row()
        yield from self._compare_inbox()

    # -- values and blobs ------------------------------------------------------------------------------------------

    def _values(self, entry: j.Entry) -> Iterator[Finding]:
        for payload in j.payloads(entry):
            whole = b""
            for digest in payload.refs:
                if digest in self._blobs:
                    continue
                self._blobs.add(digest)
                self._needs(digest)
                try:
                    content = self._store.blob(digest)
                except (CorruptStore, ConfigError) as problem:
                    yield self._unread("blob", problem, digest)
                    continue
                if payload.whole and digest == payload.refs[0]:
                    whole = content
            yield from self._value(payload, whole, entry.seq)

    def _value(self, payload: Payload, whole: bytes, seq: int) -> Iterator[Finding]:
        """What can be told of a value without the types of the program that made it."""
        place = f"record {seq}"
        if payload.codec != CODEC_VERSION:
            what = f"run {self._key}: record {seq} has a value of codec version {payload.codec}."
            yield self._found("newer" if payload.codec > CODEC_VERSION else "value", what, place)
            return
        if payload.whole and not whole:  # seen before, or missing, which was told
            return
        problem = _misfit(payload, whole)
        if problem:
            yield self._found("value", f"run {self._key}: a value in record {seq} {problem}.", place)

    # -- the row ---------------------------------------------------------------------------------------------------

    def _compare_row(self) -> Iterator[Finding]:
        row = self._row
        if row.seq < self.records:  # it is being written, and a row that is read now is up to date; or it is not
            again = row_of(self._store, self._key)
            if again is not None and again.seq < self.records:
                yield self._differs(f"is that of record {again.seq}, and there are {self.records}")
                return
        if row.seq > self.records:
            what = f"run {self._key}: it had {row.seq} records when its row was written, and has {self.records}."
            yield self._found("damaged", what, "row")
        elif self._listed is None:
            yield self._differs("cannot be read")
        if self._listed is None:
            return
        names = [name for name in RunMeta.__struct_fields__ if name not in _FILLED_IN]
        differing = [name for name in names if getattr(row, name) != getattr(self._listed, name)]
        if differing:
            yield self._differs(f"says otherwise than its journal of: {', '.join(differing)}")

    def _differs(self, how: str) -> Finding:
        return self._found("row_differs", f"run {self._key}: its row in listings {how}.", "row")

    # -- the inbox -------------------------------------------------------------------------------------------------

    def _compare_inbox(self) -> Iterator[Finding]:
        state, row = self._state, self._row
        try:
            posts = self._store.posts({self._key: 0}).get(self._key, [])
        except (CorruptStore, ConfigError) as problem:
            yield self._unread("inbox", problem)
            return
        expected = max(state.posts, row.posts + row.unread)
        if len(posts) < expected:
            what = f"run {self._key}: its inbox has {len(posts)} posts, and should have {expected}."
            yield self._found("inbox", what)
        for number, record in enumerate(posts[: state.posts], 1):
            try:
                post = inbox.decode(state, record, number)
            except (CorruptStore, NewerFormat) as problem:
                yield self._unread("inbox", problem, f"post {number}")
                continue
            if not _same(post, self._taken.get(number)):
                what = f"run {self._key}: post {number} of its inbox is not the one that its journal has taken."
                yield self._found("inbox", what, f"post {number}")
        try:
            _take(state, posts[state.posts :])
        except (CorruptStore, NewerFormat) as problem:
            yield self._unread("inbox", problem, f"post {state.posts + 1}")

    # -- telling -----------------------------------------------------------------------------------------------------

    def _unread(self, kind: str, problem: PerdureError, place: str = "") -> Finding:
        """A FixError is no damage: a newer Perdure wrote it, or it takes a key that was not given."""
        damage = isinstance(problem, CorruptStore)
        return self._found(kind if damage else "newer", str(problem), place)

    def _found(self, kind: str, what: str, place: str = "") -> Finding:
        return Finding(kind=kind, what=what, run=self._key, place=place)


def _misfit(payload: Payload, whole: bytes) -> str:
    """What is wrong with a value as it is stored; "" if nothing is."""
    raw = bytes(payload.value)
    if payload.whole:
        if raw or not payload.refs:
            return "is said to be a blob, and none or more than one form of it is stored"
        raw = whole
    try:
        tree = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        return f"is no JSON ({problem})"
    unnamed = next((name for name in blobs_in(tree) if name not in payload.refs), None)
    return "" if unnamed is None else f"needs a blob that it does not name: {str(unnamed)[:64]}"


def blobs_in(tree: object) -> Iterator[object]:
    """The names of the blobs that stand for parts of a value: see codec.py."""
    left = [tree]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            if part.get("~") == "blob":
                yield part.get("sha256")
            left += part.values()


def _same(post: j.Posted, entry: j.Entry | None) -> bool:
    """Whether an entry is what the journal has to say of a post: the post itself, or that it came too late."""
    if isinstance(entry, j.PostDropped):
        return True
    return entry is not None and replace(entry, seq=0, at=0.0) == replace(post, seq=0, at=0.0)


def _take(state: State, posts: Iterable[bytes]) -> None:
    for entry in inbox.moved(state, posts):
        entry.seq, entry.at = state.seq + 1, state.updated
        state.apply(entry)
