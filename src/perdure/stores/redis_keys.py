"""Names of keys in Redis, and what a run's row says.

All keys of one run share a hash tag, so that a script may change them together in a cluster too; so do the keys of the
index. Everything begins with the store's prefix.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final
from zlib import crc32

import msgspec

from perdure import states
from perdure.errors import CorruptStore
from perdure.limits import MAX_EPOCH
from perdure.model import Lease, RunKey, RunMeta

FIELDS: Final = ("epoch", "owner", "pid", "host", "since", "seq", "posts", "size", "meta")
"""of a run's hash; ``Row`` reads them in this order"""
LANE: Final = 16
"""characters at the end of an entry of the index that say queue and flow"""
_DIGITS: Final = 10
"""of an episode"""
_URGENT: Final = 2**31
"""more than any priority"""
_TAG = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})

_INDEX = ("runs", "places", "ready", "running", "dates", "unsure", "posted", "begun", "epochs")


class Keys:
    """The names that one store uses."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.format = f"{prefix}:format"
        self.news = f"{prefix}:news"
        """the channel on which handles tell each other that there may be something to do"""
        self.index = tuple(f"{prefix}:{{index}}:{name}" for name in _INDEX)
        """as ``lua/index.lua`` takes them"""
        self.runs, self.places, self.ready, self.running, self.dates, self.unsure, *others = self.index
        self.posted, self.begun, _ = others

    def run(self, key: RunKey) -> str:
        return self._of(key, "run")

    def journal(self, key: RunKey) -> str:
        return self._of(key, "journal")

    def inbox(self, key: RunKey) -> str:
        return self._of(key, "inbox")

    def snapshot(self, key: RunKey) -> str:
        return self._of(key, "snapshot")

    def all_of_run(self, key: RunKey) -> list[str]:
        """What goes when a run does, as the scripts take it. The blobs that it was given are counted elsewhere."""
        return [self.run(key), self.journal(key), self.inbox(key), self.snapshot(key)]

    def given(self, key: RunKey) -> str:
        """The set of the blobs that a run was given, each with the epoch of the lease."""
        return self._of(key, "given")

    def blob(self, digest: str) -> str:
        return f"{self._prefix}:blob:{digest}"

    def marks(self, digest: str) -> str:
        """The set of the runs that were given a blob, in the blob's own slot."""
        return f"{{{self.blob(digest)}}}:marks"

    def owner(self, owner: str) -> str:
        return f"{self._prefix}:owner:{owner}"

    def all_of(self, what: str) -> str:
        """The pattern of the names that ``run``, ``journal`` ..., or ``blob`` gives for whatever it is given."""
        prefix = re.sub(r"([*?\[\]\\^])", r"\\\1", self._prefix)
        return f"{prefix}:blob:*" if what == "blob" else f"{prefix}:{{*}}:{what}"

    def whose(self, name: bytes) -> RunKey | None:
        """The run that a key is of; None if it is of none."""
        tag, brace, _ = name.decode(errors="replace").removeprefix(f"{self._prefix}:{{").rpartition("}:")
        goal, number, episode = tag.rpartition("#")
        if not (brace and number and episode.isdecimal()):
            return None
        return RunKey(goal.replace("%7B", "{").replace("%7D", "}").replace("%25", "%"), int(episode))

    def _of(self, key: RunKey, what: str) -> str:
        return f"{self._prefix}:{{{key.goal.translate(_TAG)}#{key.episode}}}:{what}"


def member(key: RunKey) -> bytes:
    """A run in the index. Their order is that of (goal, episode), and no goal's are the beginning of another's."""
    return f"{key.goal}\0{key.episode:0{_DIGITS}}".encode()


def mark_of(key: RunKey, epoch: int) -> bytes:
    """A run among those that were given a blob; another one if it was deleted and made again."""
    return b"%b\0%d" % (member(key), epoch)


def key_of(member: bytes) -> RunKey | None:
    """The run that an entry of the index names; None if it names none."""
    try:
        goal, _, episode = member.decode().rpartition("\0")
        return RunKey(goal, int(episode[:_DIGITS]))
    except ValueError:
        return None


def place_of(row: RunMeta) -> str:
    """Where the index has a run: see ``lua/index.lua``."""
    if not row.wake > 0:
        return ""
    kind = "r" if row.status == states.RUNNING else "q"
    rank = min(max(_URGENT - row.priority, 0), 2**32 - 1)
    return f"{kind}{rank:08x}{date(row.wake)}{brief(row.queue)}{brief(row.flow)}"


def date(seconds: float) -> str:
    """A time, not before 1970, as 16 characters that sort."""
    return struct.pack(">d", seconds if seconds > 0 else 0.0).hex()


def brief(name: str) -> str:
    """A queue or flow as 8 characters. Two may have the same: whoever finds a run looks at its row."""
    return f"{crc32(name.encode()):08x}"


def briefs(names: Iterable[str]) -> set[str]:
    return set(map(brief, names))


class Row(msgspec.Struct, frozen=True):
    """What a run's hash says. All is empty for a run that was never claimed."""

    lease: Lease
    """the latest one; ``owner`` is empty if it was released"""
    seq: int
    posts: int
    size: int
    meta: bytes

    @classmethod
    def of(cls, key: RunKey, values: Sequence[bytes | None], where: str) -> Row:
        """From the values of ``FIELDS``. Raises CorruptStore."""
        epoch, owner, pid, host, since, seq, posts, size, meta = (value or b"" for value in values)
        try:
            lease = Lease(key, int(epoch or 0), owner.decode(), int(pid or 0), host.decode(), float(since or 0))
            row = cls(lease, int(seq or 0), int(posts or 0), int(size or 0), meta)
            if not (0 <= lease.epoch < MAX_EPOCH and 0 <= row.seq < MAX_EPOCH and 0 <= row.posts < MAX_EPOCH):
                raise ValueError("a number that cannot be")
            return row
        except ValueError as error:
            raise damaged(where, f"the row of run {key}: {error}") from None


def damaged(where: str, what: Any) -> CorruptStore:
    return CorruptStore(
        f"{where} is damaged: {what}. Nothing was changed.",
        hint="Restore it from a copy, or choose another prefix.",
    )
