"""Archives that are made to burst, written as they are read: for a process that has little memory."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from hashlib import sha256

import msgspec

from perdure.framing import frame
from perdure.model import RunKey
from perdure.runtime.archive import Head, header, padding

HEAD = ("perdure.json", msgspec.json.encode(Head("perdure", 1, "x", 1.0)))
BEGAN = b'{"kind":"run_began/1","run_id":"r","flow":"f","epoch":1,"pid":1,"host":"h","seq":1,"at":1.0}'


class Bomb(io.RawIOBase):
    """A gzip file as it is made: members that are given as (name, size) are zeros, and there may be any number."""

    def __init__(self, members: Iterator[tuple[str, int | bytes]]) -> None:
        self._members, self._gzip, self._ready = members, zlib.compressobj(6, zlib.DEFLATED, 31), bytearray()
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        while len(self._ready) < size:
            member = next(self._members, None)
            if member is None:
                self._ready += self._gzip.flush() if not self._ended else b""
                self._ended = True
                break
            name, body = member
            whole = len(body) if isinstance(body, bytes) else body
            self._ready += self._gzip.compress(header(name, whole))
            for at in range(0, whole, 1 << 16):
                piece = body[at : at + (1 << 16)] if isinstance(body, bytes) else bytes(min(1 << 16, whole - at))
                self._ready += self._gzip.compress(piece)
            self._ready += self._gzip.compress(bytes(padding(whole)))
        found = bytes(self._ready[:size])
        del self._ready[:size]
        return found


def one_blob() -> Iterator[tuple[str, int | bytes]]:
    yield HEAD
    for number in range(100):
        yield f"blobs/{number:064x}", 200 << 20


def one_journal() -> Iterator[tuple[str, int | bytes]]:
    yield HEAD
    yield "runs/1/run.json", b'{"goal":"a","episode":0}'
    yield "runs/1/journal.jsonl", 60 << 20
    yield "runs/1/inbox.jsonl", 0


def one_line() -> Iterator[tuple[str, int | bytes]]:
    yield HEAD
    yield "runs/1/run.json", b'{"goal":"a","episode":0}'
    yield "runs/1/journal.jsonl", os.urandom(1 << 20).replace(b"\n", b"") * 20
    yield "runs/1/inbox.jsonl", 0


def tiny_members() -> Iterator[tuple[str, int | bytes]]:
    yield HEAD
    for number in range(1_000_000):
        body = b"%d" % number
        yield f"blobs/{sha256(body).hexdigest()}", body


def tiny_runs() -> Iterator[tuple[str, int | bytes]]:
    yield HEAD
    for number in range(1, 1_000_000):
        key = RunKey(f"g{number}")
        yield f"runs/{number}/run.json", msgspec.json.encode(key)
        yield f"runs/{number}/journal.jsonl", frame(key, BEGAN)
        yield f"runs/{number}/inbox.jsonl", b""


def forever() -> Iterator[tuple[str, int | bytes]]:
    yield HEAD
    while True:
        yield "runs/1/run.json", 60_000
