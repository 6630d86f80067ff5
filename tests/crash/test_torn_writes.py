"""A write of several records of which a power cut kept any sectors: cut and reported, and never taken for damage, nor
damage for it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from perdure.errors import CorruptStore
from perdure.framing import joined, scan
from perdure.model import RunKey
from perdure.stores.file import FileStore
from perdure.testing.samples import item, records, summarise

KEY = RunKey("paper")


def test_any_hole_in_the_last_write_is_a_torn_tail(tmp_path: Path) -> None:
    # rel:D9 rel:D12
    store = FileStore(tmp_path, summarise=summarise)
    lease = store.claim(KEY)
    store.append([item(lease, 0, 2)])
    acknowledged = store.read(KEY)
    size = (tmp_path / "runs/paper.0/journal.jsonl").stat().st_size
    store.append([item(lease, 2, 3), item(lease, 5, 2)])  # two items for one run, one sync
    store.close()
    data = (tmp_path / "runs/paper.0/journal.jsonl").read_bytes()
    pieces = [(at, min(at + 64, len(data))) for at in range(size, len(data), 64)]
    for kept in itertools.product([True, False], repeat=len(pieces)):
        torn = bytearray(data)
        for (start, end), survives in zip(pieces, kept, strict=True):
            if not survives:
                torn[start:end] = bytes(end - start)
        found = scan(KEY, bytes(torn))
        assert found.lines[:2] == acknowledged, kept
        assert found.good == len(data) or found.torn, kept
        assert found.lines == list(records(KEY, 0, len(found.lines)))


@pytest.mark.parametrize("damage", [b"\0" * 40, b"x"])
def test_damage_before_the_last_write_is_damage(damage: bytes) -> None:
    # rel:D9: a hole in what was synced, or other bytes than zeros anywhere but in the last record
    lines = records(KEY, 0, 5)
    earlier, last = joined(lines[:2]), joined(lines[2:])
    for at in range(0, len(earlier) - len(damage), 7):
        data = bytearray(earlier + last)
        if data[at : at + len(damage)] != damage:
            data[at : at + len(damage)] = damage
            with pytest.raises(CorruptStore, match=r"record [12] at byte"):
                scan(KEY, bytes(data))
    data = bytearray(earlier + last)
    data[len(earlier) + 50] ^= 1
    with pytest.raises(CorruptStore, match="record 3 at byte"):
        scan(KEY, bytes(data))
