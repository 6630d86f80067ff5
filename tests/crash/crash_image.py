"""What a disk holds after a power cut, from the sequence of changes that was made to it.

The rules, as pessimistic as POSIX allows without contradicting what journaling file systems do:

- the content of a file survives up to its last sync; of what was written since, any subset of 512-byte sectors, and the
  file's new length may or may not have survived with them (what is missing then reads as zeros);
- a name in a folder (creation, rename, removal) survives from the folder's next sync on; of the changes since, any
  subset. A rename is whole or not at all, between two folders as well. Syncing a file does not make its name durable.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from crash_spy import Op

SECTOR = 512


class File:
    def __init__(self, content: bytes = b"") -> None:
        self.durable = content
        self.pending: list[Op] = []

    def sync(self) -> None:
        content = bytearray(self.durable)
        for op in self.pending:
            _write(content, op.offset, op.data) if op.kind == "write" else _truncate(content, op.offset)
        self.durable, self.pending = bytes(content), []

    def cut(self, dice: random.Random, chance: float) -> bytes:
        """The content after a power cut in which each unsynced piece survives with this chance."""
        content = bytearray(self.durable)
        for op in self.pending:
            if op.kind != "write":
                if dice.random() < chance:
                    _truncate(content, op.offset)
                continue
            for start, piece in _sectors(op):
                if dice.random() < chance:
                    _write(content, start, piece)
            if dice.random() < chance:
                _write(content, op.offset + len(op.data), b"")
        return bytes(content)


class Change:
    """Names that change together: (folder, name, what it names from now on)."""

    def __init__(self, *names: tuple[Folder, str, File | Folder | None]) -> None:
        self.names = names
        for folder, _, _ in names:
            folder.pending.append(self)

    def settle(self) -> None:
        for folder, name, node in self.names:
            folder.put(folder.durable, name, node)
            if self in folder.pending:
                folder.pending.remove(self)


class Folder:
    def __init__(self) -> None:
        self.durable: dict[str, File | Folder] = {}
        self.now: dict[str, File | Folder] = {}
        self.pending: list[Change] = []

    @staticmethod
    def put(names: dict[str, File | Folder], name: str, node: File | Folder | None) -> None:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node

    def sync(self) -> None:
        for change in list(self.pending):
            change.settle()


class Image:
    """A folder on a disk, as changes are made to it."""

    def __init__(self, base: Path | None = None) -> None:
        self.root = _load(base) if base is not None else Folder()

    def apply(self, op: Op) -> None:
        if op.kind == "mark":
            return
        folder, name = self._place(op.path)
        if op.kind in ("create", "create folder"):
            self._name(folder, name, File() if op.kind == "create" else Folder())
        elif op.kind == "remove":
            self._name(folder, name, None)
        elif op.kind == "rename":
            self._rename(folder, name, op)
        elif op.kind == "sync folder":
            node = folder.now[name] if name else folder
            assert isinstance(node, Folder)
            node.sync()
        else:
            node = folder.now[name]
            assert isinstance(node, File), op
            if op.kind == "sync":
                node.sync()
            else:
                node.pending.append(op)

    def _rename(self, folder: Folder, name: str, op: Op) -> None:
        target, new = self._place(op.target)
        node = folder.now.pop(name)
        target.now[new] = node
        Change((folder, name, None), (target, new, node))

    def _name(self, folder: Folder, name: str, node: File | Folder | None) -> None:
        folder.put(folder.now, name, node)
        Change((folder, name, node))

    def _place(self, path: str) -> tuple[Folder, str]:
        parts = PurePosixPath(path).parts
        folder = self.root
        for part in parts[:-1]:
            node = folder.now[part]
            assert isinstance(node, Folder)
            folder = node
        return folder, parts[-1] if parts else ""

    def cut(self, target: Path, seed: str) -> None:
        """Write to ``target`` what one power cut leaves."""
        dice = random.Random(seed)
        chance = dice.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        target.mkdir()
        lucky: dict[int, bool] = {}
        _cut(self.root, target, dice, chance, lucky)


def _cut(folder: Folder, target: Path, dice: random.Random, chance: float, lucky: dict[int, bool]) -> None:
    names = dict(folder.durable)
    for change in folder.pending:
        if lucky.setdefault(id(change), dice.random() < chance):
            for where, name, node in change.names:
                if where is folder:
                    folder.put(names, name, node)
    for name, node in names.items():
        if isinstance(node, File):
            (target / name).write_bytes(node.cut(dice, chance))
        else:
            (target / name).mkdir()
            _cut(node, target / name, dice, chance, lucky)


def _load(path: Path) -> Folder:
    folder = Folder()
    for child in sorted(path.iterdir()):
        if not child.name.endswith("-shm"):  # an index in shared memory, which SQLite makes anew
            folder.durable[child.name] = _load(child) if child.is_dir() else File(child.read_bytes())
    folder.now = dict(folder.durable)
    return folder


def _write(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _truncate(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _sectors(op: Op) -> Sequence[tuple[int, bytes]]:
    """(offset, bytes) of the pieces of a write that become durable independently."""
    first = SECTOR - op.offset % SECTOR
    cuts = [0, *range(first, len(op.data), SECTOR), len(op.data)]
    return [(op.offset + a, op.data[a:b]) for a, b in itertools.pairwise(cuts)]
