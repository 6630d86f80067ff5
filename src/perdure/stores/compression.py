"""Large values made smaller: a blob stands compressed in a store where that saves at least an eighth of it.

    perdure zlib blob 1\\n<zlib stream>

Its name stays the sha256 of the plain content, and which of the two forms a blob has is told by its name and not by how
it begins: what is there is the content if it has that sha256, and else what it unpacks to, if that has. So a value that
looks like the compressed form of another is safe in either form, and blobs of before there were two are read as ever.

Only zlib, at its quickest: it is in the standard library, so that every Perdure reads every store, and so does whoever
has none. Compressing is done before a store is given a blob: what is encrypted does not shrink any more, and a
transaction would be kept open by it. Who reads unpacks piece after piece, up to a limit (rel:B5).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Final, TypeVar

from msgspec.structs import replace

from perdure.stores.base import Append, Rewrite, Store

_T = TypeVar("_T", Append, Rewrite)
COMPRESSED: Final = b"perdure zlib blob 1\n"
"""with this begins a blob that is compressed"""
_LEVEL: Final = 1
"""level 6 takes three times as long, to save a fifth of what is left"""
_PROBE: Final = 2**13
"""bytes at the beginning that tell whether the rest is worth trying: what does not shrink costs 0.1 ms then"""
_PIECE: Final = 2**12
"""bytes that are unpacked at a time. They are 4 MiB then at most: deflate has no more than 1,032 for one"""


def ready(batch: Sequence[_T], store: Store) -> list[_T]:
    """``batch`` with its blobs in the form in which they are to stand in ``store``: each compressed once, if at all."""
    if not any(item.blobs for item in batch) or not store.capabilities.compress:
        return list(batch)
    content = {digest: content for item in batch for digest, content in item.blobs.items()}
    form = {digest: compressed(plain) for digest, plain in content.items()}
    return [replace(item, blobs={digest: form[digest] for digest in item.blobs}) for item in batch]


def compressed(content: bytes) -> bytes:
    """The compressed form of ``content``, or ``content`` itself if that is not much smaller."""
    stream, probe = zlib.compressobj(_LEVEL), content[:_PROBE]
    packed = COMPRESSED + stream.compress(probe) + stream.flush(zlib.Z_SYNC_FLUSH)
    if _pays(packed, probe):
        packed += stream.compress(memoryview(content)[_PROBE:]) + stream.flush()
        if _pays(packed, content):
            return packed
    return content


def _pays(packed: bytes, plain: bytes) -> bool:
    return 8 * len(packed) <= 7 * len(plain)


def decompressed(packed: bytes, most: int) -> bytes | None:
    """What was compressed; None for what is no compressed form, is damaged, or unpacks to more than ``most`` bytes: of
    those hardly more than as many are made."""
    if not packed.startswith(COMPRESSED):
        return None
    stream, plain = zlib.decompressobj(), BytesIO()
    try:
        for start in range(len(COMPRESSED), len(packed), _PIECE):
            if stream.eof or plain.tell() > most:
                return None
            plain.write(stream.decompress(packed[start : start + _PIECE]))
    except zlib.error as problem:
        if str(problem).startswith("Error -4 "):  # zlib's for want of memory: the blob may be sound
            raise MemoryError from problem
        return None
    whole = stream.eof and not stream.unused_data and plain.tell() <= most
    return plain.getvalue() if whole else None
