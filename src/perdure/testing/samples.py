"""Runs to try stores with: hostile names, and records framed as real ones are whose entries are plain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from perdure.framing import frame, unframe
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores.base import Append, Snapshots, Store

HOSTILE_GOALS: Sequence[str] = (
    "paper-17",
    "Paper-17",  # case twins and Unicode twins are different runs (rel:S5)
    "caf\u00e9",
    "cafe\u0301",
    "\u212a",  # the Kelvin sign, which lower-cases to k
    "k",
    "../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "%2e%2e%2f",
    "%252e%252e%252f",
    "a/b",
    "a.0",
    "a~0123456789abcdef",
    ".",
    "..",
    "~",
    "con",
    "aux.0",
    "'; DROP TABLE perdure_runs; --",
    '" OR 1=1 --',
    "goal\" WHERE '%' LIKE '%",
    "* [a-z] ? _ %",
    "x" * 300,
    "x" * 301,
    "x" * 512,
    "\u202egnp.exe",
    "\U0001f9ea" * 60,
    "\U0001f469\u200d\U0001f4bb" * 170,
    "\u00df",
    "ss",
    "\ufb01",  # a ligature, which some file systems take for two letters
    "fi",
    "\u65e5\u672c\u8a9e\u306e\u8ad6\u6587",
    "new\u2028line",
    "$(reboot) `reboot` ${HOME} {0} %s",
)
"""Names that have broken out of some store's quoting or folder, and pairs that some store has taken for one."""


def records(key: RunKey, after: int, count: int, status: str = "running", pad: str = "") -> tuple[bytes, ...]:
    """``count`` framed records that continue a run after ``after``."""
    entries = ({"seq": seq, "status": status, "pad": pad} for seq in range(after + 1, after + count + 1))
    return tuple(frame(key, msgspec.json.encode(entry)) for entry in entries)


def posts(key: RunKey, count: int, by: str = "somebody") -> tuple[bytes, ...]:
    """``count`` framed posts."""
    return tuple(frame(key, msgspec.json.encode({"by": by, "number": n})) for n in range(1, count + 1))


def meta(key: RunKey, seq: int, status: str = "running") -> RunMeta:
    """The listing row that goes with the records of this suite."""
    return RunMeta(goal=key.goal, episode=key.episode, status=status, seq=seq, tags={"seq": str(seq)})


def stored(row: RunMeta) -> RunMeta:
    """A row without what the store fills in."""
    return msgspec.structs.replace(row, holder=None, unread=0, size=0)


def summarise(key: RunKey, lines: list[bytes]) -> RunMeta:
    """The row of a journal made of ``records``."""
    entry = msgspec.json.decode(unframe(key, lines[-1]), type=dict[str, str | int])
    return meta(key, len(lines), str(entry["status"]))


def snapshots(store: Store) -> Snapshots:
    """Where a store keeps snapshots: all of ours do."""
    found = store.capabilities.snapshots
    assert found is not None
    return found


def item(lease: Lease, seq: int, count: int = 1, status: str = "running", **blobs: bytes) -> Append:
    """Append ``count`` records and the blobs given as any_name=content."""
    named = {hashlib.sha256(content).hexdigest(): content for content in blobs.values()}
    return Append(lease, seq, records(lease.key, seq, count, status), meta(lease.key, seq + count, status), blobs=named)
