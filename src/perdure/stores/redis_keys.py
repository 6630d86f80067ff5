"""Names of keys in Redis, and what a run's row says.

All keys of one run share a hash tag, so that a script may change them together in a cluster too; so do the keys of the
index. Everything begins with the store's prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from perdure.errors import CorruptStore
from perdure.model import Lease, RunKey, RunMeta

FIELDS: Final = ("epoch", "owner", "pid", "host", "since", "seq", "posts", "meta")
"""of a run's hash; ``Row`` reads them in this order"""
_TAG = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


class Keys:
    """The names that one store uses."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.format = f"{prefix}:format"
        self.news = f"{prefix}:news"
        """the channel on which handles tell each other that there may be something to do"""
        self.runs, self.due, self.posted, self.begun, self.guards = self.index = tuple(
            f"{prefix}:{{index}}:{name}" for name in ("runs", "due", "posted", "begun", "epochs")
        )

    def run(self, key: RunKey) -> str:
        return self._of(key, "run")

    def journal(self, key: RunKey) -> str:
        return self._of(key, "journal")

    def inbox(self, key: RunKey) -> str:
        return self._of(key, "inbox")

    def blob(self, digest: str) -> str:
        return f"{self._prefix}:blob:{digest}"

    def owner(self, owner: str) -> str:
        return f"{self._prefix}:owner:{owner}"

    def _of(self, key: RunKey, what: str) -> str:
        return f"{self._prefix}:{{{key.goal.translate(_TAG)}#{key.episode}}}:{what}"


def member(key: RunKey) -> bytes:
    """A run in the index. Their order is that of (goal, episode), and no goal's are the beginning of another's."""
    return f"{key.goal}\0{key.episode:010}".encode()


def key_of(member: bytes) -> RunKey:
    goal, _, episode = member.decode().rpartition("\0")
    return RunKey(goal, int(episode))


class Row(msgspec.Struct, frozen=True):
    """What a run's hash says. All is empty for a run that was never claimed."""

    lease: Lease
    """the latest one; ``owner`` is empty if it was released"""
    seq: int
    posts: int
    meta: bytes

    @classmethod
    def of(cls, key: RunKey, values: Sequence[bytes | None], where: str) -> Row:
        """From the values of ``FIELDS``. Raises CorruptStore."""
        epoch, owner, pid, host, since, seq, posts, meta = (value or b"" for value in values)
        try:
            lease = Lease(key, int(epoch or 0), owner.decode(), int(pid or 0), host.decode(), float(since or 0))
            return cls(lease, int(seq or 0), int(posts or 0), meta)
        except ValueError as error:
            raise damaged(where, f"the row of run {key}: {error}") from None

    def shown(self, alive: bool, where: str) -> RunMeta:
        """The run as a listing shows it. Raises CorruptStore."""
        try:
            meta = msgspec.json.decode(self.meta, type=RunMeta)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise damaged(where, f"the row of run {self.lease.key}: {error}") from None
        holder, unread = self.lease if alive else None, max(self.posts - meta.posts, 0)
        return msgspec.structs.replace(meta, holder=holder, unread=unread)


def damaged(where: str, what: Any) -> CorruptStore:
    return CorruptStore(
        f"{where} is damaged: {what}. Nothing was changed.",
        hint="Restore it from a copy, or choose another prefix.",
    )
