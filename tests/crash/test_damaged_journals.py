"""A small journal, damaged in every way and at every byte: an error of ours, a torn tail that is told, or all that was
there before the damage; never another exception, and never that nothing has happened yet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_tides import KEY, PLACES, RESULT, executed, tides

import perdure
from perdure.errors import CorruptStore, NewerFormat
from perdure.framing import frame, joined, scan
from perdure.stores import open_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a run that was interrupted before its end: nine records or so, some of them written together."""
    return _journal(tmp_path_factory.mktemp("whole"), "tides")


def _journal(folder: Path, goal: str) -> bytes:
    assert perdure.run(tides, goal=goal, store=f"file:{folder}") == RESULT
    data = (folder / "runs" / f"{goal}.0" / "journal.jsonl").read_bytes()
    return data[: data[:-1].rindex(b"\n") + 1]  # all but the record of its end


def _cut(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for size in range(len(whole)):
        yield f"cut to {size} bytes", whole[:size]


def _flipped(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for at in range(len(whole)):
        for bits in (0x01, 0x20, 0x80, 0xFF):
            data = bytearray(whole)
            data[at] ^= bits
            yield f"byte {at} changed by {bits:#x}", bytes(data)


def _zeroed(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for size in range(len(whole)):
        yield f"zeros from byte {size} on", whole[:size] + bytes(len(whole) - size)
    yield "zeros after the end", whole + bytes(4096)


def _foreign(whole: bytes) -> Iterator[tuple[str, bytes]]:
    dice = random.Random(17)
    for number in range(300):
        yield f"random bytes {number}", dice.randbytes(dice.randint(1, 3000))
        at = dice.randint(0, len(whole))
        yield f"random bytes {number} after {at}", whole[:at] + dice.randbytes(dice.randint(1, 600))
    yield "a database", b"SQLite format 3\0" + bytes(4080)
    yield "a list", b"[" * 100_000
    yield "lines", b"{}\n" * 100


DAMAGE: list[Callable[[bytes], Iterator[tuple[str, bytes]]]] = [_cut, _flipped, _zeroed, _foreign]


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_is_damaged_reading_gives_what_was_there_before_it_and_says_so(
    whole: bytes, damage: Callable[[bytes], Iterator[tuple[str, bytes]]]
) -> None:  # rel:D9 rel:B3
    lines = scan(KEY, whole).lines
    assert len(lines) >= 9
    refused = torn = 0
    for what, data in damage(whole):
        try:
            found = scan(KEY, data)
        except CorruptStore as error:
            refused += 1
            assert "at byte" in str(error) and "Nothing was changed" in str(error), what
            continue
        assert found.lines == lines[: len(found.lines)], f"{what}: something else was read"
        assert (found.good < len(data)) == bool(found.torn), f"{what}: the rest was left out and is not told"
        assert found.good == len(data) or data[: found.good] == whole[: found.good], what
        torn += bool(found.torn)
    assert torn > 100 and (refused > 100 or damage is not _flipped)


def test_a_flip_in_what_was_acknowledged_before_the_last_write_is_never_taken_for_a_tail(
    whole: bytes,
) -> None:  # rel:D9
    last = max(at for at in range(len(whole) - 1) if whole[at : at + 2] == b"\n{")  # where the last write begins
    for what, data in _flipped(whole):
        at = int(what.split()[1])
        if at < last - 1:  # the line feed before it makes one line of two
            with pytest.raises(CorruptStore):
                scan(KEY, data)


class Folder:
    """A file store whose one run has a journal of our choice."""

    def __init__(self, root: Path, whole: bytes) -> None:
        self.root, self.whole = root, whole
        self.url = f"file:{root}"
        _journal(root, "tides")
        self.run = root / "runs" / "tides.0"
        self.journal = self.run / "journal.jsonl"

    def put(self, data: bytes) -> None:
        self.journal.write_bytes(data)
        for path in (*self.run.glob("journal.torn-*"), self.run / "meta.json"):
            path.unlink(missing_ok=True)

    def check(self, what: str, data: bytes) -> str:
        """Read and claim: what became of it. Both must agree, and what is cut is told and kept."""
        self.put(data)
        store = open_store(self.url)
        try:
            lines = store.read(KEY)
            rows = store.runs()
            assert bool(rows) == bool(lines), what
            store.release(store.claim(KEY))
        except CorruptStore as error:
            assert str(self.journal) in str(error) and self.journal.read_bytes() == data, what
            with pytest.raises(CorruptStore):
                store.claim(KEY)
            (row,) = store.runs()
            assert "damaged" in row.reason and store.warnings(), what
            return "refused"
        finally:
            store.close()
        good = self.journal.read_bytes()
        assert self.whole.startswith(good) and len(lines) == good.count(b"\n"), what
        if good == data:
            return "whole"
        (told,) = store.warnings()
        (kept,) = self.run.glob("journal.torn-*")
        assert "tides#0" in told and kept.name in told and good + kept.read_bytes() == data, what
        return "torn"


@pytest.mark.parametrize("step", [67, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_is_refused_or_its_tail_kept_aside_and_told(
    place: Path, whole: bytes, damage: Callable[[bytes], Iterator[tuple[str, bytes]]], step: int
) -> None:  # rel:D9 rel:B3
    folder = Folder(place / "store", whole)
    became = [folder.check(what, data) for what, data in list(damage(whole))[::step]]
    assert "torn" in became and ("refused" in became or damage is not _flipped)
    assert "whole" not in became or damage is _cut, "only what ends with a record may be taken for whole"


@pytest.mark.parametrize("step", [211, pytest.param(7, marks=pytest.mark.long)])
def test_a_run_with_a_damaged_journal_goes_on_from_what_is_true_or_is_refused(
    place: Path, whole: bytes, step: int
) -> None:  # rel:D9 rel:R1
    folder = Folder(place / "store", whole)
    for what, data in [case for damage in DAMAGE for case in damage(whole)][::step]:
        folder.put(data)
        executed.clear()
        try:
            assert perdure.run(tides, goal="tides", store=folder.url) == RESULT, what
        except CorruptStore:
            assert not executed and folder.journal.read_bytes() == data, what
            continue
        assert len(executed) == len(set(executed)) and set(executed) <= PLACES, what
        assert not executed or len(data) < len(whole) or list(folder.run.glob("journal.torn-*")), what


def test_the_journal_of_another_run_is_damage_and_not_a_run_that_has_not_begun(place: Path, whole: bytes) -> None:
    # rel:D9 rel:B3
    folder = Folder(place / "store", whole)
    other = _journal(place / "other", "other")
    assert folder.check("the journal of another run", other) == "refused"
    assert folder.check("the rest of another run", whole[: whole.index(b"\n") + 1] + other) == "refused"


def test_records_of_a_newer_version_are_refused_and_not_touched(place: Path, whole: bytes) -> None:  # rel:R6 X13
    folder = Folder(place / "store", whole)
    newer = [
        frame(KEY, b'{"kind":"run_dreamt/1","seq":%d,"at":1.0}' % (whole.count(b"\n") + 1)),
        frame(KEY, b'{"kind":"step_completed/9","seq":%d,"at":1.0,"step":1}' % (whole.count(b"\n") + 1)),
    ]
    for record in newer:
        for data in (whole + record, whole + record + joined([record]), record):
            folder.put(data)
            with pytest.raises((NewerFormat, CorruptStore)) as error:
                perdure.run(tides, goal="tides", store=folder.url)
            assert error.type is NewerFormat or not data.startswith(whole), "a gap is damage"
            assert "tides" in str(error.value) and folder.journal.read_bytes() == data
