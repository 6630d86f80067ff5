"""Everything that is read from outside has a limit, which is told, and which is looked at before memory is spent."""

from __future__ import annotations

import importlib
import re
import resource
import zlib
from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec
import pytest

import perdure
from perdure import codec, inbox, life
from perdure import journal as j
from perdure.codec import Payload
from perdure.errors import CodecError, ConfigError, CorruptStore, LimitReached, PerdureError, StoreError
from perdure.fold import State, fold
from perdure.framing import FRAME, frame, scan, unframe
from perdure.limits import MAX_RECORD, MAX_ROW, MAX_VALUE, decoded
from perdure.model import Attribution, RunKey
from perdure.runtime.outputs import readable
from perdure.stores import Encryption, handle, open_store
from perdure.stores.compression import COMPRESSED, compressed, decompressed
from perdure.stores.handle import blobs_of
from perdure.testing.processes import Child
from perdure.testing.samples import item, snapshots

KEY = RunKey("paper")
PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
ROW = re.compile(r"^\| [^|]+ \| ([\d,]+)(?: bytes| characters)? \| `([\w.]+)` \| [^|]+ \|$", re.MULTILINE)


def test_the_page_of_limits_says_what_the_code_does() -> None:  # rel:B1 rel:B4
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    rows = ROW.findall(PAGE.read_text())
    assert len(rows) == len(table) > 15, "a row that cannot be read is not checked"
    for limit, constant in rows:
        module, _, name = constant.rpartition(".")
        assert getattr(importlib.import_module(module), name) == int(limit.replace(",", "")), constant


def test_every_limit_of_the_code_stands_on_the_page() -> None:
    told = PAGE.read_text()
    for path in (Path(perdure.__file__).parent).rglob("*.py"):
        for name in re.findall(r"^(MAX_[A-Z]+)\b", path.read_text(), re.MULTILINE):
            assert f".{name}`" in told or name == "MAX_BYTES", f"{name} of {path.name}"
    assert codec.MAX_BYTES == MAX_VALUE


# -- each is enforced --------------------------------------------------------------------------------------------------


def test_an_entry_that_is_too_large_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:  # rel:B1
    store = open_store("memory:")

    @perdure.step
    def talk() -> str:
        perdure.context().stream("x" * 300_000)
        return "never"

    monkeypatch.setattr("perdure.framing.MAX_RECORD", 200_000)
    with pytest.raises(CodecError, match="are too much for one entry"):
        perdure.run(lambda: talk(), goal="paper", store=store)


def test_the_head_of_a_record_has_room_for_the_largest() -> None:
    assert len(f"{MAX_RECORD:8d}") == 8
    body = b'{"a":1}'
    assert len(frame(KEY, body)) == len(body) + FRAME


def test_a_record_that_is_too_large_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:  # rel:B4
    line = frame(KEY, b'{"a":"%s"}' % (b"x" * 5000))
    monkeypatch.setattr("perdure.framing.MAX_RECORD", 1000)
    with pytest.raises(ValueError, match="the limit is 1,000"):
        unframe(KEY, line)
    assert scan(KEY, line).torn


def test_a_post_that_is_too_large_is_damage() -> None:  # rel:B4
    state = State(KEY)
    post = j.SignalReceived(name="x", value=msgspec.Raw(b'"%s"' % (b"x" * inbox.MAX_POST)))
    with pytest.raises(CorruptStore, match=r"post 1 of its inbox is damaged.*the limit is 1,048,576"):
        inbox.decode(state, j.encode(KEY, post), 1)


@pytest.mark.parametrize("url", ["file:{}/s", "sqlite:{}/s.db"])
def test_a_run_whose_journal_is_full_pauses_and_can_still_be_read(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "MAX_JOURNAL", 40_000)
    monkeypatch.setattr(life, "_SPARE", 5_000)
    done: list[int] = []

    @perdure.step
    def work(n: int) -> str:
        done.append(n)
        return "x" * 3000

    @perdure.flow
    def flow() -> int:
        return len([work(n) for n in range(100)])

    store = url.format(tmp_path)
    for _ in range(2):
        with pytest.raises(LimitReached, match=r"its journal has .* bytes, and 40,000 can be read"):
            perdure.run(flow, goal="paper", store=store)
    assert done == list(range(len(done))) and 8 < len(done) < 14
    client = perdure.Client(store)
    assert client.find("paper").status == "paused" and len(client.state("paper").steps) == len(done)
    client.close()


def test_blobs_that_a_value_names_are_counted_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:  # rel:B4
    store = open_store("memory:")
    store.append([item(store.claim(KEY), 0, one=b"1" * 6000, two=b"2" * 6000)])
    one, two = (digest for digest in store._backend.blobs)  # type: ignore[attr-defined]
    monkeypatch.setattr(handle, "MAX_VALUE", 10_000)
    assert list(blobs_of(store, [one] * 1_000_000)) == [one]
    with pytest.raises(CorruptStore, match="no value has so many"):
        blobs_of(store, [one, two])


@pytest.mark.parametrize("wrong", ["x", "", "../../../etc/passwd", "AB" * 32, "\0", "*", "a" * 10_000])
@pytest.mark.parametrize("url", ["memory:", "file:{}/s", "sqlite:{}/s.db"])
def test_a_blob_that_stored_data_names_wrongly_is_damage(url: str, wrong: str, tmp_path: Path) -> None:  # rel:S4 S5
    store = open_store(url.format(tmp_path))
    with pytest.raises(CorruptStore, match="is no sha256") as told:
        store.blob(wrong)
    assert len(str(told.value)) < 400
    store.close()


@pytest.mark.parametrize("value", [2**25, pytest.param(MAX_VALUE, marks=pytest.mark.long)])
def test_a_large_blob_record_or_row_in_sqlite_is_not_even_loaded(
    value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # rel:B4
    record = min(value, MAX_RECORD)
    monkeypatch.setattr("perdure.stores.sqlite.MAX_BLOB", value)
    monkeypatch.setattr("perdure.stores.sqlite_sql.MAX_RECORD", record)
    url = f"sqlite:{tmp_path}/runs.db"
    store = open_store(url)
    store.append([item(store.claim(KEY), 0, 2, blob=b"large")])
    digest = "e0f3e0f3" * 8
    store.close()
    db = apsw.Connection(str(tmp_path / "runs.db"))
    db.execute(f"INSERT INTO perdure_blobs VALUES (?, zeroblob({value + 1}))", (digest,))
    db.execute(f"INSERT INTO perdure_snapshots VALUES (1, 2, zeroblob({value + 1}))")
    db.execute(f"UPDATE perdure_journal SET record = zeroblob({record + FRAME + 1}) WHERE seq = 2")
    db.execute(f"UPDATE perdure_runs SET meta = printf('%.*c', {MAX_ROW + 1}, 'x')")
    db.close()

    def work(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        store = open_store(url)
        limit_memory(24 * 2**20)
        for call in (lambda: store.blob(digest), lambda: store.read(KEY)):
            try:
                call()
            except CorruptStore as error:
                say(f"{error}\n")
        (row,) = store.runs()
        say(f"{row.reason}\n")
        say(f"{snapshots(store).load(KEY)}\n")

    child = Child(work)
    for said in (
        "does not have the content",
        "record 2 has more than",
        "the row of run paper#0 is damaged",
        "None",
    ):
        assert said in child.hear()
    child.kill()


@pytest.mark.parametrize("kind", ["file", "sqlite", "postgres", "redis"])
def test_a_snapshot_that_is_too_large_is_neither_saved_nor_loaded(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # rel:B4
    url = f"{kind}:{tmp_path}/store"
    if kind in ("postgres", "redis"):
        server = request.getfixturevalue("postgres")(18) if kind == "postgres" else request.getfixturevalue("valkey")()
        url = f"{server}?{'schema' if kind == 'postgres' else 'prefix'}=too_large"
    store = open_store(url)
    lease = store.claim(KEY)
    assert store.append([item(lease, 0)]) == [None]
    snapshots(store).save(lease, 1, b"x" * 5000)
    for limit, found in ((4999, None), (5000, (1, b"x" * 5000))):
        for module in ("snapshots", "folder" if kind == "file" else kind):
            monkeypatch.setattr(f"perdure.stores.{module}.MAX_BLOB", limit)
        with pytest.raises(ValueError, match="and the limit is"):
            snapshots(store).save(lease, 1, b"x" * (limit + 1))
        other = open_store(url)
        assert snapshots(other).load(KEY) == found
        other.close()
    store.close()


def limit_memory(more: int) -> None:
    """From now on this process gets so many bytes and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)


BOMBS: dict[str, Callable[[], object]] = {
    "deep json": lambda: decoded(b"[" * 10_000_000, msgspec.json.decode),
    "deep entry": lambda: fold(KEY, [frame(KEY, b'{"kind":"run_began/1","x":%s}' % (b'{"a":' * 3_000_000))]),
    "deep value": lambda: codec.loads(raw(b"[" * 10_000_000)),
    "wide value": lambda: codec.loads(raw(b"[" + b"[]," * 100_000 + b"[]]")),
    "array of nothing": lambda: codec.loads(
        raw(b'{"~":"ndarray","dtype":"<f8","shape":[1000000000,1000],"data":{"~":"bytes","b64":""}}')
    ),
    "strings of nothing": lambda: codec.loads(
        raw(b'{"~":"ndarray","dtype":"<U0","shape":[1000000000000],"data":{"~":"bytes","b64":""}}')
    ),
    "long range": lambda: len(codec.loads(raw(b'{"~":"range","v":[0,9000000000000000000,1]}'))),
    "decimal": lambda: codec.loads(raw(b'{"~":"decimal","v":"1E+999999999999"}')),
    "deque": lambda: codec.loads(raw(b'{"~":"deque","v":[1],"maxlen":9000000000000000000}')),
    "indented": lambda: readable(raw(b"[" * 400 + b"1," * 300_000 + b"1" + b"]" * 400), {}),
}


def raw(text: bytes) -> Payload:
    return Payload(1, msgspec.Raw(text))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_gives_a_value_or_our_error_in_bounded_memory(name: str) -> None:  # rel:B4 B5
    def work(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        import numpy  # noqa: F401 - loaded before memory is counted

        limit_memory(600 * 2**20)
        try:
            BOMBS[name]()
            say("a value\n")
        except (PerdureError, ValueError) as error:
            say(f"{type(error).__name__}\n")
        except BaseException as error:
            say(f"{error!r:.200}\n")

    child = Child(work)
    assert child.hear() in ("a value", "CodecError", "CorruptStore", "ValueError")
    child.kill()


def bomb(size: int) -> bytes:
    """The compressed form of so many MiB of nothing: a piece of deflate, again and again."""
    stream = zlib.compressobj(9)
    first = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)
    again = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return COMPRESSED + first + again * (size - 1)


@pytest.mark.parametrize("encryption", [None, Encryption({"2026": b"k" * 32})], ids=["clear", "sealed"])
@pytest.mark.parametrize("url", ["memory:", "file:{}/s", "sqlite:{}/s.db"])
def test_a_blob_of_a_thousand_times_its_size_is_refused_in_bounded_memory(
    url: str, encryption: Encryption | None, tmp_path: Path
) -> None:  # rel:B5
    huge, digest = bomb(4096), "b0" * 32
    assert 2**32 / 1200 < len(huge) < 2**32 / 1000

    def work(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        store = open_store(url.format(tmp_path), encryption=encryption)
        given = item(store.claim(KEY), 0)
        store.append([msgspec.structs.replace(given, blobs={digest: huge})])
        limit_memory(600 * 2**20)
        try:
            say(f"{len(store.blob(digest))}\n")
        except (PerdureError, MemoryError) as error:
            say(f"{type(error).__name__} {error}\n")

    child = Child(work)
    said = child.hear()
    assert said.startswith("CorruptStore ") and digest in said
    child.kill()


def test_a_compressed_blob_is_never_called_damaged_for_want_of_memory() -> None:  # rel:R7 rel:B5
    plain = b"".join(b"%d, " % n for n in range(20_000))
    form = compressed(plain)
    assert form.startswith(COMPRESSED)

    def work(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        hoard: list[bytes] = []
        found: list[str] = []
        limit_memory(0)
        for size in (2**16, 2**13, 2**12, 2**11, 2**10, 600):  # what is free within the process too
            try:
                while True:
                    hoard.append(bytes(size))
            except MemoryError:
                continue
        while hoard:
            hoard.pop()
            try:
                found.append("whole" if decompressed(form, len(plain)) == plain else "damaged")
            except MemoryError:
                found.append("no memory")
        say(f"{sorted(set(found))}\n")

    child = Child(work)
    assert child.hear() == "['no memory', 'whole']"
    child.kill()


def test_a_journal_that_is_too_large_for_the_memory_of_a_process_is_told(tmp_path: Path) -> None:
    store = open_store(f"file:{tmp_path}/s")
    store.append([item(store.claim(KEY), 0)])
    store.close()
    with open(tmp_path / "s" / "runs" / "paper.0" / "journal.jsonl", "ab") as file:
        file.truncate(3 * 2**30)

    def work(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        store = open_store(f"file:{tmp_path}/s")
        limit_memory(200 * 2**20)
        try:
            store.read(KEY)
        except StoreError as error:
            say(f"{error}\n")

    child = Child(work)
    assert "are too much for the memory of this process" in child.hear()
    child.kill()


# -- what ordinary users do is far from any limit ----------------------------------------------------------------------


@pytest.mark.long
def test_a_blob_of_a_hundred_megabytes_and_a_hundred_thousand_steps_are_fine(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path}/runs.db"
    big = b"x" * 100_000_000

    @perdure.step
    def one(n: int) -> int:
        return n

    @perdure.step
    def large() -> bytes:
        return big

    @perdure.flow
    def flow() -> int:
        return sum(one(n) for n in range(100_000)) + len(large())

    config = perdure.CheckpointConfig(durability="async")
    assert perdure.run(flow, goal="paper", store=store, config=config) == 4_999_950_000 + len(big)
    client = perdure.Client(store)
    assert len(client.state("paper").steps) == 100_001
    client.close()


# -- who and what a run is for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        Attribution(tags={"": "x"}),
        Attribution(tags={"a\nb": "x"}),
        Attribution(tags={"x" * 513: "x"}),
        Attribution(tags={"a": 5}),  # type: ignore[dict-item]
        Attribution(tags={"a": "\ud800"}),
        Attribution(prompt="\udcff"),
        Attribution(prompt="x" * 70_000),
        Attribution(tags={f"tag {n}": "x" * 60 for n in range(1000)}),
        {"tags": {}},
    ],
)
def test_attributions_that_cannot_be_kept_are_refused(said: Attribution, tmp_path: Path) -> None:  # rel:B6
    with pytest.raises(ConfigError, match=r"tag|attribution"):
        perdure.run(lambda: 1, goal="paper", store=f"file:{tmp_path}/s", attribution=said)
    with perdure.CheckpointManager("memory:") as manager, pytest.raises(ConfigError):
        manager.begin(goal="paper", attribution=said)
