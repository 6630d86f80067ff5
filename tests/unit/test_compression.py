"""Large values stand compressed where that pays, and come back byte for byte whichever way they stand."""

from __future__ import annotations

import asyncio
import random
import threading
import zlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import perdure
from perdure.errors import CorruptStore, PerdureError
from perdure.model import RunKey
from perdure.runtime.audit import Auditor
from perdure.runtime.rekey import rekey
from perdure.runtime.writer import Item, Writer
from perdure.stores import Encryption, open_store
from perdure.stores.base import Append, Capabilities, Store
from perdure.stores.compression import COMPRESSED, compressed, decompressed, ready
from perdure.stores.handle import sound_blob
from perdure.stores.memory import MemoryStore
from perdure.stores.sealed import SealedStore
from perdure.stores.sqlite import SqliteStore
from perdure.testing.samples import item

KEYS = Encryption({"2026": b"k" * 32})
NEXT = Encryption({"2027": b"n" * 32, "2026": b"k" * 32})
PAPER = "It was a dark and stormy night; the figures fell in torrents. " * 900
NOISE = random.Random(7).randbytes(300_000)
calls: list[str] = []


@perdure.step
def revise(paper: str) -> str:
    calls.append("revise")
    return f"{paper}{len(calls) % 10}"


@perdure.step
def scan(paper: str) -> bytes:
    return NOISE


@perdure.flow
def crew(paper: str) -> int:
    return len(revise(paper)) + len(scan(paper))


def name(content: bytes) -> str:
    return sha256(content).hexdigest()


def held(store: Store) -> list[bytes]:
    """The blobs of a store as they stand in it, the smallest first; without their encryption."""
    inner = store.inner if isinstance(store, SealedStore) else store
    if isinstance(inner, SqliteStore):
        found = dict(inner._select("SELECT digest, content FROM perdure_blobs"))
    elif isinstance(inner, MemoryStore):
        found = inner._backend.blobs
    else:
        blobs = Path(inner.url.partition(":")[2]) / "blobs"
        found = {path.name: path.read_bytes() for path in blobs.rglob("*") if len(path.name) == 64}
    return sorted(found.values(), key=len)


# -- the form ----------------------------------------------------------------------------------------------------------

parts = st.one_of(st.binary(max_size=40), st.sampled_from([COMPRESSED, compressed(bytes(999)), NOISE[:70_000]]))


@given(st.lists(parts, max_size=3), st.sampled_from([1, 2, 50]))
@example([COMPRESSED], 1)
@example([compressed(bytes(999))], 1)
@example([NOISE], 1)
def test_whatever_is_compressed_comes_back(found: list[bytes], times: int) -> None:  # rel:B5
    content = b"".join(found) * times
    form = compressed(content)
    assert form is content or (form.startswith(COMPRESSED) and 8 * len(form) <= 7 * len(content))
    assert sound_blob(name(content), form, "here") == content
    assert sound_blob(name(content), content, "here") == content, "as it was stored before"


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_a_damaged_form_is_the_value_or_damage_and_nothing_else(content: bytes, data: st.DataObject) -> None:  # rel:B3
    content *= 9
    form = bytearray(COMPRESSED + zlib.compress(content, 1))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(form)))
        form[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        assert sound_blob(name(content), bytes(form), "the place") == content
    except CorruptStore as error:
        assert name(content) in str(error) and "the place" in str(error)


def test_what_does_not_shrink_by_an_eighth_stays_as_it_is_and_is_not_tried_to_the_end() -> None:
    noise = NOISE[:6000]
    assert compressed(noise) is noise
    for zeros, shrinks in ((700, False), (1000, True), (2000, True)):
        assert (compressed(noise + bytes(zeros)) != noise + bytes(zeros)) == shrinks
    late = NOISE[:9000] + bytes(10_000_000)
    assert compressed(late) is late, "its beginning tells"
    early = bytes(9000) + NOISE
    assert compressed(early) is early, "and is not all"
    assert len(compressed(bytes(9000) + noise)) < 7000


@pytest.mark.parametrize("size", [10, 2**13 - 1, 2**13, 2**13 + 1, 3_000_000])
def test_a_form_has_one_stream_and_nothing_behind_it(size: int) -> None:
    content = (b"%d " % size * size)[:size]
    form = COMPRESSED + zlib.compress(content, 1)
    assert decompressed(form, size) == content and zlib.decompress(form[len(COMPRESSED) :]) == content
    for wrong in (form + b"\0", form[:-1], form[: len(COMPRESSED)], form + form, b" " + form):
        assert decompressed(wrong, size) is None
    assert decompressed(form, size - 1) is None, "more than the limit"
    if size == 3_000_000:
        assert zlib.decompress(compressed(content)[len(COMPRESSED) :]) == content, "any zlib reads it"


def test_a_blob_that_is_larger_than_any_is_damage_also_if_it_has_its_sha256(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(5000)
    monkeypatch.setattr("perdure.stores.handle.MAX_BLOB", 4999)
    with pytest.raises(CorruptStore, match=name(content)):
        sound_blob(name(content), compressed(content), "here")


# -- in stores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encryption", [None, KEYS], ids=["clear", "sealed"])
@pytest.mark.parametrize("url", ["memory:", "file:{}/s", "sqlite:{}/s.db"])
def test_values_of_a_run_come_back_and_stand_in_a_store_as_it_has_them(
    url: str, encryption: Encryption | None, tmp_path: Path
) -> None:  # C1 rel:B5
    store = open_store(url.format(tmp_path), encryption=encryption)
    with perdure.CheckpointManager(store) as manager:
        assert manager.run_sync(crew, PAPER, goal="paper") == len(PAPER) + 1 + len(NOISE)
        (row,) = store.runs()
        small, found = store.capabilities.compress, held(store)
        assert small == (url.startswith("sqlite:") or encryption is not None)
        assert len(NOISE) + 1000 < row.size and (row.size < len(NOISE) + 20_000) == small, "what is stored is counted"
        assert len(found) == 3 and all((len(text) < len(PAPER) // 20) == small for text in found[:2])
        if encryption is None:
            assert found[2] == NOISE
            assert all(text.startswith(COMPRESSED if small else PAPER[:30].encode()) for text in found[:2])
        assert [finding for finding in Auditor(store).everything() if finding is not None] == []
        with perdure.Client(store) as client:
            steps = client.state("paper").steps
            assert str(client.value(steps[1].output)).startswith(PAPER)  # type: ignore[arg-type]
            assert client.value(steps[2].output) == NOISE  # type: ignore[arg-type]


def test_blobs_of_before_are_read_and_new_ones_stand_beside_them(tmp_path: Path) -> None:  # X13
    url = f"sqlite:{tmp_path}/s.db"
    perdure.run(crew, PAPER, goal="paper", store=url)
    store = open_store(url)
    assert isinstance(store, SqliteStore)
    for digest, content in store._select("SELECT digest, content FROM perdure_blobs"):
        plain = (sound_blob(digest, content, ""), digest)
        store._db.execute("UPDATE perdure_blobs SET content = ? WHERE digest = ?", plain)
    assert not any(content.startswith(COMPRESSED) for content in held(store))
    perdure.run(crew, PAPER + "!", goal="other", store=url)
    assert [content.startswith(COMPRESSED) for content in held(store)] == [True, True, False, False, False]
    before = len(calls)
    assert perdure.run(crew, PAPER, goal="paper", store=url) == len(PAPER) + 1 + len(NOISE)
    assert len(calls) == before
    store.close()


def submits(url: str, folder: Path) -> None:
    with perdure.CheckpointManager(url) as manager:
        manager.submit(crew, PAPER, goal="queued")


def imports(url: str, folder: Path) -> None:
    perdure.run(crew, PAPER, goal="paper", store=f"file:{folder}/there")
    with perdure.Client(f"file:{folder}/there") as client:
        client.export(folder / "a.tgz")
    open_store(url).close()
    with perdure.Client(url) as client:
        client.import_archive(folder / "a.tgz", by="ann")


def forks(url: str, folder: Path) -> None:
    perdure.run(crew, PAPER, goal="paper", store=url)
    with perdure.Client(url) as client:
        client.fork("paper", by="ann", after=1, inputs={"paper": PAPER + "another"})


def commits_with_the_users(url: str, folder: Path) -> None:
    @perdure.step(transaction=True)
    def file(paper: str) -> str:
        return paper

    perdure.run(perdure.flow(name="filing")(lambda: file(PAPER)), goal="paper", store=url)


@pytest.mark.parametrize("way", [submits, imports, forks, commits_with_the_users])
def test_every_way_into_a_store_compresses(way: Callable[[str, Path], None], tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/s.db"
    way(url, tmp_path)
    store = open_store(url)
    found = held(store)
    store.close()
    assert found and all(content.startswith(COMPRESSED) or content == NOISE for content in found)


def small(url: str, encryption: Encryption) -> bool:
    store = open_store(url, encryption=encryption)
    sizes = [len(content) for content in held(store)]
    store.close()
    return len(sizes) == 3 and max(sizes[:2]) < len(PAPER) // 20


def test_another_key_leaves_them_compressed(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/s.db"
    perdure.run(crew, PAPER, goal="paper", store=open_store(url, encryption=KEYS))
    assert rekey(url, NEXT).changed == 1
    with perdure.Client(url, encryption=NEXT) as client:
        assert str(client.value(client.state("paper").steps[1].output)).startswith(PAPER)  # type: ignore[arg-type]
    assert small(url, NEXT)
    plain = f"sqlite:{tmp_path}/plain.db"
    perdure.run(crew, PAPER, goal="paper", store=plain)
    assert rekey(plain, KEYS, encrypt=True).changed == 1
    assert small(plain, KEYS)


# -- when it is done ---------------------------------------------------------------------------------------------------


def test_a_blob_that_many_runs_are_given_at_once_is_compressed_once() -> None:
    store, text = Compressing(), b"all work and no play " * 999
    batch = [item(store.claim(RunKey("paper", number)), 0, text=text, noise=NOISE) for number in range(3)]
    forms = [given.blobs for given in ready(batch, store)]
    assert all(form[name(text)] is forms[0][name(text)] and form[name(NOISE)] is NOISE for form in forms)
    assert len(forms[0][name(text)]) < 500 and [given.blobs[name(text)] for given in batch] == [text] * 3
    plain = MemoryStore()
    assert ready(batch, plain) == batch, "a store that does not want them gets none"


class Compressing(MemoryStore):
    """Has blobs compressed, like a database, and notes what came by which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()
        self.forms: list[bytes] = []

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, compress=True)

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        self.forms += [content for given in batch for content in given.blobs.values()]
        self.threads.add(threading.current_thread().name)
        return super().append(batch)


def test_an_event_loop_is_not_held_up_by_compressing() -> None:  # X8
    store = Compressing()
    writer, lease = Writer(store), store.claim(RunKey("paper"))

    async def main() -> None:
        for seq in range(20):
            writer._pace = 0.0  # commits are quick, so the loop would do them itself
            given = item(lease, seq, text=f"{seq} {PAPER}".encode())
            await writer.submit(Item(lease=lease, seq=seq, records=given.records, meta=given.meta, blobs=given.blobs))

    asyncio.run(main())
    writer.close()
    assert store.threads == {"perdure-writer"}
    assert len(store.forms) == 20 and all(form.startswith(COMPRESSED) for form in store.forms)
