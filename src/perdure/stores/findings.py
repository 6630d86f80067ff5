"""What an audit of a store finds: data, the same for every store; and how what is repaired is kept first.

A finding is of a *kind*, and the kind says what it means for the user:

- ``damage``: something is lost or cannot be trusted, and nothing but a copy mends it;
- ``newer``: it was left out, because a newer Perdure wrote it;
- ``repair``: what a crash left behind. It can be mended without losing anything that was acknowledged;
- ``note``: to be known, and to be changed by nobody but the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from perdure.limits import MAX_JOURNAL
from perdure.model import RunKey
from perdure.stores import disk

Level: TypeAlias = Literal["damage", "newer", "repair", "note"]

KINDS: Final[dict[str, tuple[Level, str]]] = {
    "damaged": ("damage", "records, a file or a table cannot be read, contradict one another, or are nobody's"),
    "blob": ("damage", "a blob that a record needs is missing, or has other content"),
    "value": ("damage", "a recorded value is not what the codec writes"),
    "inbox": ("damage", "posts are damaged or missing, or others than the journal has taken"),
    "lease": ("damage", "what keeps epochs growing is damaged: a stale process could write"),
    "newer": ("newer", "a newer Perdure wrote it; it was not audited"),
    "torn_tail": ("repair", "bytes of a write that a crash interrupted, after the last record or post"),
    "orphan_blob": ("repair", "a blob that no run was given, or only runs that are deleted, and that no record needs"),
    "row_differs": ("repair", "the row by which a run is listed and taken up is not what its journal says"),
    "index": ("repair", "the index of a Redis store overlooks a run"),
    "empty_run": ("repair", "a run without records: whoever claimed it died, or gave it up, before he wrote any"),
    "leftover": (
        "repair",
        "a file that was being written when its process died; a snapshot whose run is gone",
    ),
    "unmarked_blob": ("note", "a blob that records need, and of which the store does not know who was given it"),
    "parent": ("note", "runs whose parents are not there any more"),
    "stray_file": ("note", "a file in the store that is not Perdure's"),
    "mode": ("note", "files of the store that other users can read or write"),
    "settings": ("note", "what the server or the file system would lose"),
    "clock": ("note", "the store's clock and this machine's differ"),
}


_ODD: Final = re.compile(r"[^A-Za-z0-9._~-]|^\.+$|^$")
"""in a part of a path: a store that somebody has changed may call a blob anything"""


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that an audit found."""

    kind: str
    """of KINDS"""
    what: str
    """a sentence for people"""
    run: RunKey | None = None
    place: str = ""
    """where in the store, as the store names it: a file, a record, a blob"""
    repaired: bool = False
    left: str = ""
    """why it was not repaired, although it was to be"""

    @property
    def level(self) -> Level:
        return KINDS[self.kind][0]


class Copies:
    """The folder for copies of what a repair changes; made when there is the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: str, content: bytes) -> None:
        """Keep a copy, durably, under this name (a path below the folder, and never one that leads out of it), or the
        next that is free. Returns when it is on the device. Raises StoreError."""
        wanted = path = self.folder.joinpath(*(_ODD.sub("_", part) for part in name.split("/")))
        disk.make_dir(path.parent)
        number = 1
        while (old := disk.read_file(path, MAX_JOURNAL)) is not None and old != content:
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        if old is None:
            disk.replace_file(path, content)

    def save_blob(self, name: str, content: bytes) -> None:
        """The same for a blob."""
        self.save(f"blobs/{name.replace('/', '_')}", content)


class Audit(NamedTuple):
    """What a store alone can tell of itself. Used like its verbs: by one thread at a time, and while others use it."""

    look: Callable[[RunKey | None], Iterator[Finding | None]]
    """what is wrong with the places in which a run is kept, or with all of them and what is no run's; None now and
    then, as a sign of life. Never tells of what is just being written, and changes nothing. Raises StoreError"""
    mend: Callable[[Finding, Copies], None]
    """mends a torn tail, a leftover or an entry of the index, or removes an orphan blob; first it keeps a copy of what
    goes. Does nothing if there is nothing to mend any more. Raises LeaseHeld where somebody has the run; StoreError"""
    row: Callable[[RunKey], bytes]
    """what the store keeps of a run besides its records, posts and blobs, as it stands: for a copy"""
    folder: Path
    """a path that may be lengthened to that of a folder for copies"""
    names: Callable[[str], Collection[str]] = lambda digest: (digest,)
    """what a blob may be called in the store"""


def empty_run(key: RunKey) -> Finding:
    """Nobody who lives has claimed it, and it has no records."""
    what = f"run {key} has no records: whoever claimed it died, or gave it up, before he wrote any."
    return Finding(kind="empty_run", what=what, run=key, place="row")


def blob_of(finding: Finding) -> str:
    """The name of the blob that an orphan is of: its place begins with it."""
    return finding.place[:64]
