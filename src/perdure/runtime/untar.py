"""The outer form of an archive: gzip and tar, read as a stream, in bounded memory, and only as we write them."""

from __future__ import annotations

import zlib
from hashlib import sha256
from typing import IO, Final

from perdure.runtime.archive import BLOCK, Bounds, header, padding

PIECE: Final = 1 << 16
"""bytes that are in memory at a time"""
_KINDS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"x": "an extended header",
    b"g": "an extended header",
    b"L": "an extended header",
    b"K": "an extended header",
}


class Refused(Exception):
    """What no sound archive is."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


def too_large(what: str) -> Refused:
    return Refused(
        f"it holds {what}, which is more than is taken without asking.",
        hint="If you know whom it is from, say how much it may unpack to: --max-size 20G",
    )


class Unpacked:
    """The tar file inside a gzip file: bytes that were asked for, and no more at a time."""

    def __init__(self, source: IO[bytes], bounds: Bounds) -> None:
        self._source, self._bounds = source, bounds
        self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._hash = sha256()
        self._input = b""
        self._ready = bytearray()
        self._packed = self._size = self._members = 0

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes: all of them."""
        while len(self._ready) < size:
            piece = self._next()
            if not piece:
                raise Refused("it ends in the middle: it was cut short, or has not arrived as a whole.")
            self._ready += piece
        found = bytes(self._ready[:size])
        del self._ready[:size]
        self._hash.update(found)
        return found

    def digest(self) -> str:
        """sha256 of what was read so far."""
        return self._hash.hexdigest()

    def end(self) -> None:
        """See that there is nothing more but the end of a tar file, and of a gzip file with a sound checksum."""
        if self.read(2 * BLOCK).strip(b"\0") or self._ready or self._next():
            raise Refused("something follows its last member.")
        if not self._gzip.eof:
            raise Refused("it ends in the middle: the last bytes of the gzip file are missing.")
        if self._gzip.unused_data or self._take():
            raise Refused("something follows the end of the gzip file.")

    def member(self) -> tuple[str, int]:
        """The next member's name and size: of a plain file, as we would have written its header."""
        self._members += 1
        if self._members > self._bounds.members:
            raise too_large(f"more than {self._bounds.members:,} members")
        block = self.read(BLOCK)
        if block == bytes(BLOCK):
            raise Refused("it ends in the middle: its last member is missing.")
        name = block[:100].rstrip(b"\0").decode("ascii", "replace")
        digits = block[124:135]
        size = int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else -1
        if size < 0 or not name.isascii() or block != header(name, size):
            kind = _KINDS.get(block[156:157]) if block[257:262] == b"ustar" else None
            raise Refused(
                f"its member {name[:80]!r} is {kind}, and there are only plain files in archives of Perdure."
                if kind
                else f"its member {name[:80]!r} has a header that no Perdure writes."
            )
        return name, size

    def pad(self, size: int) -> None:
        """Go past what fills the last block of a member of ``size`` bytes."""
        if self.read(padding(size)).strip(b"\0"):
            raise Refused("there is something between two of its members.")

    def _next(self) -> bytes:
        """Some more bytes; none at the end of what there is."""
        while not self._gzip.eof:
            if not self._input:
                self._input = self._take()
            last = not self._input
            try:
                piece = self._gzip.decompress(self._input, PIECE)
            except zlib.error as problem:
                said = "it is no gzip file" if not self._size else "it is damaged"
                raise Refused(f"{said} ({problem}).") from None
            self._input = self._gzip.unconsumed_tail
            self._size += len(piece)
            self._check_size()
            if piece or last:
                return piece
        return b""

    def _take(self) -> bytes:
        try:
            piece = self._source.read(PIECE)
        except (OSError, ValueError) as problem:
            raise Refused(f"it cannot be read ({getattr(problem, 'strerror', None) or problem}).") from None
        self._packed += len(piece)
        return piece

    def _check_size(self) -> None:
        bounds = self._bounds
        if self._size > bounds.total:
            raise too_large(f"more than {bounds.total:,} bytes")
        if self._size > max(bounds.slack, bounds.ratio * self._packed):
            raise too_large(f"more than {bounds.ratio} times its size")
