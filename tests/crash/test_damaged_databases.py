"""A small SQLite store, damaged in every way: an error of ours, or all that was there before the damage."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest
from crash_tides import KEY, RESULT, executed, tides

import perdure
from perdure.errors import CorruptStore, NewerFormat, PerdureError, RunNotFound
from perdure.framing import frame
from perdure.journal import Entry
from perdure.stores import open_store


class Database:
    """A SQLite store with one run, to be damaged. ``log``: its process died before the log was put into the file."""

    def __init__(self, root: Path, log: bool = False) -> None:
        self.path, self.url = root / "runs.db", f"sqlite:{root / 'runs.db'}"
        open_store(self.url).close()
        keep = apsw.Connection(str(self.path))
        if log:  # whoever closes the file last puts the log into it
            keep.execute("SELECT count(*) FROM perdure_runs").fetchall()
        perdure.run(tides, goal="tides", store=self.url)
        self.lines = self.read()
        self.sound = self.path.read_bytes()
        self.log = Path(f"{self.path}-wal").read_bytes() if log else b""
        keep.close()

    def read(self) -> list[Entry]:
        with perdure.Client(self.url) as client:
            try:
                return client.entries("tides")
            except RunNotFound:
                return []

    def put(self, data: bytes, log: bytes = b"") -> None:
        for suffix in ("-wal", "-shm", "-journal"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.path.write_bytes(data)
        if log:
            Path(f"{self.path}-wal").write_bytes(log)

    def check(self, what: str) -> str:
        """Read, and go on: what became of it."""
        whole = intact(self.path)
        executed.clear()
        try:
            lines = self.read()
            assert lines == self.lines[: len(lines)], f"{what}: something else was read"
            assert perdure.run(tides, goal="tides", store=self.url) == RESULT, what
        except PerdureError as error:
            assert str(self.path) in str(error) or "run tides#0" in str(error), f"{what}: {error}"
            assert not executed, what
            return "refused"
        assert len(executed) == len(set(executed)) and (not executed or len(lines) < len(self.lines)), what
        if len(lines) < len(self.lines) and whole:
            return "shorter"
        return "whole" if whole else "missed"


def intact(path: Path) -> bool:
    """Whether SQLite itself finds nothing wrong in a copy of the file (and its log)."""
    copy = path.with_name("copy.db")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
        if Path(f"{path}{suffix}").exists():
            Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    try:
        db = apsw.Connection(str(copy))
        try:
            return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        finally:
            db.close()
    except apsw.Error:
        return False


@pytest.fixture
def _snapshots() -> None:
    """None here: all that is damaged is to be read."""


@pytest.mark.parametrize("samples", [60, pytest.param(3000, marks=pytest.mark.long)])
def test_a_flipped_byte_in_a_database_is_refused_or_changes_nothing_that_counts(place: Path, samples: int) -> None:
    # rel:D9 rel:B3. SQLite's pages have no checksums: a flip in the index of names can hide a run, which SQLite's own
    # check finds, and a look at every run whenever one begins would not be worth
    database = Database(place)
    used = [at for at, byte in enumerate(database.sound) if byte]
    dice = random.Random(samples)
    became = {"refused": 0, "whole": 0, "missed": 0, "shorter": 0}
    for number in range(samples):
        at = dice.choice(used) if number % 3 else dice.randrange(len(database.sound))
        data = bytearray(database.sound)
        data[at] ^= 1 << dice.randrange(8)
        database.put(bytes(data))
        became[database.check(f"byte {at} changed from {database.sound[at]} to {data[at]}")] += 1
    assert became["refused"] > samples // 5 and became["shorter"] == 0, became


@pytest.mark.parametrize("samples", [40, pytest.param(1500, marks=pytest.mark.long)])
def test_whatever_becomes_of_the_log_of_a_dead_process_a_true_beginning_is_read(place: Path, samples: int) -> None:
    # rel:D9 rel:D12: torn, flipped, filled with zeros, or another file's
    database = Database(place, log=True)
    dice, log = random.Random(samples), database.log
    other = dice.randbytes(len(log))
    became = set()
    for number in range(samples):
        at = dice.randrange(len(log))
        flipped = bytearray(log)
        flipped[at] ^= 1 << dice.randrange(8)
        torn = (bytes(flipped), log[:at], log[:at] + bytes(len(log) - at), log[:at] + other[at:])[number % 4]
        database.put(database.sound, torn)
        became.add(database.check(f"log {number % 4} at byte {at}"))
    assert "shorter" in became and "missed" not in became


def test_a_database_cut_anywhere_is_refused_and_left_alone(place: Path) -> None:  # rel:B3
    database = Database(place)
    dice = random.Random(5)
    most = len(database.sound) - 8192  # the last page is of an empty index, which SQLite takes for whole
    sizes = [*range(8192, most, 8192), *(dice.randrange(1, most) for _ in range(20))]
    for size in sizes:
        database.put(database.sound[:size])
        assert database.check(f"cut to {size} bytes") == "refused"
        assert database.path.read_bytes() == database.sound[:size]


def test_random_files_are_no_databases(place: Path) -> None:  # rel:B3
    database = Database(place)
    dice = random.Random(7)
    for number in range(40):
        head = (b"", b"SQLite format 3\0", database.sound[:100], database.sound[:8192])[number % 4]
        database.put(head + dice.randbytes(dice.randint(200, 30_000)))
        assert database.check(f"random file {number}") == "refused"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("run = run + 2; UPDATE perdure_journal SET run = 5 - run", CorruptStore),  # each has the other's
        (
            "record = (SELECT record FROM perdure_journal WHERE (run, seq) = (2, 9)) WHERE (run, seq) = (1, 9)",
            CorruptStore,
        ),
        ("record = zeroblob(length(record)) WHERE (run, seq) = (1, 9)", CorruptStore),
        ("record = substr(record, 1, 50) WHERE (run, seq) = (1, 9)", CorruptStore),
        ("record = ?1 WHERE (run, seq) = (1, 9)", NewerFormat),
    ],
)
def test_records_of_others_or_of_a_newer_version_in_a_database_are_refused(
    place: Path, change: str, error: type[Exception]
) -> None:  # rel:D9 rel:R6
    database = Database(place)
    perdure.run(tides, goal="other", store=database.url)
    newer = frame(KEY, b'{"kind":"step_completed/9","seq":9,"at":1.0,"step":1}')
    db = apsw.Connection(str(database.path))
    db.execute(f"UPDATE perdure_journal SET {change}", (newer,) if "?1" in change else ())
    db.close()
    executed.clear()
    with pytest.raises(error, match="tides"):
        perdure.run(tides, goal="tides", store=database.url)
    assert not executed
