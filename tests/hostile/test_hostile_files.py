"""Stores whose files somebody has damaged, or replaced: what is there, or an error of ours, and nothing is touched
outside (rel:B3 S5). 10,000 of them in ``make test-long``."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from hostile_journals import Judge

import perdure
from perdure import journal as j
from perdure.errors import ConfigError, CorruptStore, PerdureError, RunSuspended, StoreError
from perdure.fold import fold
from perdure.limits import MAX_JOURNAL, MAX_NOTE
from perdure.model import RunKey
from perdure.runtime.client import Client
from perdure.stores import disk, open_store
from perdure.stores.base import Append, Store
from perdure.stores.file import FileStore
from perdure.testing.samples import item, snapshots, summarise

LONG = pytest.mark.long
EACH = 100
CHUNKS = [0, *(pytest.param(chunk, marks=LONG) for chunk in range(1, 51))]
BYTES = (b"", b"\0" * 64, b"{", b"[]", b"null", b'{"goal":"x","episode":0}', b"[" * 5000, b"\xff\xfe", b"1e999")
"""what a file may be replaced by"""


@perdure.flow
def flow(text: str) -> object:
    return [work(text), work("x" * 9000), perdure.ask("Go?", answer=bool)]


@perdure.step
def work(text: str) -> str:
    return text * 3


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file store and an SQLite store, each with two runs that wait, one of them answered."""
    root = tmp_path_factory.mktemp("templates")
    for url in (f"file:{root}/file", f"sqlite:{root}/sqlite/runs.db"):
        for goal in ("paper", "Other Paper"):
            with pytest.raises(RunSuspended):
                perdure.run(flow, "abc", goal=goal, store=url)
        client = Client(url)
        client.answer("paper", None, True, by="ann")
        client.close()
        store = open_store(url)
        lease = store.claim(RunKey("paper"))
        snapshots(store).save(lease, 2, b"a snapshot")
        store.release(lease)
        store.close()
    return root


def damage(rand: random.Random, root: Path) -> str:
    """Do something to a file of a store, and say what."""
    path = rand.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    way = rand.choice(("flip", "flip", "flip", "cut", "zero", "insert", "replace", "swap", "repeat", "gone", "odd"))
    at = rand.randrange(len(data) + 1)
    if way == "flip":
        for _ in range(rand.choice((1, 2, 8, 64)) if data else 0):
            data[rand.randrange(len(data))] = rand.randrange(256)
    elif way == "cut":
        del data[at:]
    elif way == "zero":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif way == "insert":
        data[at:at] = rand.choice(BYTES)
    elif way == "replace":
        data = bytearray(rand.choice(BYTES))
    elif way == "swap":
        data = bytearray(rand.choice([p for p in root.rglob("*") if p.is_file()]).read_bytes())
    elif way == "repeat":
        data += data[at:]
    path.unlink()
    if way == "odd":
        rand.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), lambda: None))()
    elif way != "gone":
        path.write_bytes(data)
    return f"{way} {path.relative_to(root)}"


def use(judge: Judge, what: object, store: Store) -> None:
    """Every verb of a store."""
    keys = [RunKey("paper"), RunKey("Other Paper"), *(row.key for row in judge("runs", what, store.runs) or ())]
    for key in dict.fromkeys(keys):
        judge("read", what, lambda key=key: store.read(key))
        judge("posts", what, lambda key=key: store.posts({key: 0}))
        judge("load", what, lambda key=key: snapshots(store).load(key))
        judge("claim", what, lambda key=key: store.release(store.claim(key)))
        judge("post", what, lambda key=key: store.post(key, 2, b"{}\n"))
    for digest in ("ab" * 32, "x", "../../x"):
        judge("blob", what, lambda digest=digest: store.blob(digest))
    judge("append", what, lambda: store.append([item(store.claim(RunKey("new")), 0, blob=b"large")]))
    judge("save", what, lambda: snapshots(store).save(store.claim(RunKey("Other Paper")), 1, b"another"))
    judge("delete", what, lambda: store.delete(store.claim(RunKey("paper"))))
    judge("warnings", what, store.warnings)
    client = judge("client", what, lambda: Client(store))
    if client is not None:
        judge("state", what, lambda: client.state("Other Paper"))


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_store_on_damaged_files_gives_a_value_or_our_error(
    kind: str, chunk: int, templates: Path, tmp_path: Path
) -> None:
    judge = Judge(patience=10.0)
    outside = tmp_path / "outside"
    outside.mkdir()
    for seed in range(chunk * EACH, (chunk + 1) * EACH if chunk else EACH // 10):
        place = tmp_path / "store"
        shutil.copytree(templates / kind, place)
        what = f"{seed}: {damage(random.Random(seed), place)}"
        url = f"file:{place}" if kind == "file" else f"sqlite:{place}/runs.db"
        for _ in range(2):  # whoever comes next finds what the first has done
            store = judge("open", what, lambda url=url: open_store(url))
            if store is not None:
                use(judge, what, store)
                judge("close", what, store.close)
        shutil.rmtree(place)
    judge.verdict()
    assert judge.values > 20, "many files are of no importance to most verbs"
    assert list(tmp_path.iterdir()) == [outside] and list(outside.iterdir()) == []


# -- what is too large is not read -------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file store with a run of one record and a blob."""
    store = FileStore(tmp_path / "store")
    store.append([item(store.claim(RunKey("paper")), 0, blob=b"large")])
    store.close()
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("runs/paper.0/journal.jsonl", MAX_JOURNAL),
        ("runs/paper.0/inbox.jsonl", MAX_JOURNAL),
        ("runs/paper.0/run.json", MAX_NOTE),
        ("format.json", MAX_NOTE),
    ],
)
def test_a_file_that_is_too_large_is_told_and_not_read(root: Path, name: str, size: int) -> None:  # rel:B4
    with open(root / name, "ab") as file:
        file.truncate(size + 1)  # a hole: it takes no place on the disk, and would take it all in memory
    with pytest.raises(CorruptStore, match=rf"{name.rpartition('/')[2]} has .* bytes, and the limit is {size:,}"):
        store = FileStore(root)
        store.posts({RunKey("paper"): 0})
        store.read(RunKey("paper"))


def test_a_row_or_lease_that_is_too_large_is_as_good_as_damaged(root: Path) -> None:  # rel:B4
    for name in ("meta.json", "lease.json"):
        with open(root / "runs" / "paper.0" / name, "ab") as file:
            file.truncate(2**40)
    store = FileStore(root, summarise=summarise)
    (row,) = store.runs()
    assert (row.key, row.reason) == (RunKey("paper"), ""), "the journal is read instead"
    assert store.claim(RunKey("paper")).epoch == 2, "the lock has a copy of the lease"
    store.close()


# -- links and pipes where the store writes (rel:S5) -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["runs", "blobs", "tmp", "owners"])
def test_a_folder_of_the_store_that_is_a_link_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    shutil.move(root / name, outside)
    (root / name).symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises((CorruptStore, ConfigError), match="is a link"):
        FileStore(root)
    assert sorted(outside.rglob("*")) == before


def test_blobs_and_outputs_do_not_go_through_a_link(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store = FileStore(root)
    (root / "blobs" / "4e").symlink_to(outside)  # where the blob b"3" would go
    problem = store.append([item(store.claim(RunKey("other")), 0, blob=b"3")])[0]
    assert isinstance(problem, CorruptStore) and "is a link" in str(problem)
    store.close()
    folder = root / "runs" / disk.run_folder_name(RunKey("out"))
    store = FileStore(root)
    store.release(store.claim(RunKey("out")))
    store.close()
    (folder / "outputs").symlink_to(outside)
    with pytest.raises(StoreError, match="is a link"):
        perdure.run(flow, "abc", goal="out", store=f"file:{root}")
    assert list(outside.iterdir()) == []


def test_a_folder_that_a_journal_names_is_not_written_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # rel:S5
    """A journal says in which folder its outputs were kept. That is shown; whoever goes on with it names it anew."""
    url, key, elsewhere = f"sqlite:{tmp_path}/runs.db", RunKey("paper"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    began = j.RunBegan(seq=1, run_id="r", flow="flow", epoch=1, pid=1, host="h", outputs=str(elsewhere))
    line = j.encode(key, began)
    store = open_store(url)
    store.append([Append(store.claim(key), 0, (line,), fold(key, [line]).meta())])
    store.close()
    for config, rerun in ((None, ()), (perdure.CheckpointConfig(outputs=tmp_path / "mine"), ("work",))):
        with pytest.raises(RunSuspended):
            perdure.run(flow, "abc", goal="paper", store=url, adopt_input=True, rerun=rerun, config=config)
    assert list(elsewhere.iterdir()) == [] and "name that folder again" in caplog.text
    assert len(list((tmp_path / "mine" / "paper.0").iterdir())) == 2


@pytest.mark.parametrize("name", ["journal.jsonl", "run.json", "lease.json", "lock", "meta.json", "inbox.jsonl"])
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(root: Path, name: str) -> None:
    path = root / "runs" / "paper.0" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    store = FileStore(root)
    for verb in (store.runs, lambda: store.read(RunKey("paper")), lambda: store.posts({RunKey("paper"): 0})):
        with_error(verb)
    with_error(lambda: store.append([item(store.claim(RunKey("paper")), 1)]))
    with_error(store.close)


def with_error(call: Callable[[], object]) -> None:
    try:
        call()
    except PerdureError:
        pass


# -- an SQLite file that executes SQL of its own -------------------------------------------------------------------


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i, x'00' FROM n"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER perdure_x AFTER INSERT ON perdure_journal BEGIN DELETE FROM users; END",
        "CREATE TRIGGER harmless AFTER UPDATE ON perdure_runs BEGIN DELETE FROM users; END",
        f"DROP TABLE perdure_inbox; CREATE VIEW perdure_inbox (run, number, record) AS {ENDLESS}",
    ],
)
def test_views_and_triggers_in_the_place_of_our_tables_are_refused(tmp_path: Path, statement: str) -> None:
    url = f"sqlite:{tmp_path}/runs.db"
    open_store(url).close()
    db = apsw.Connection(str(tmp_path / "runs.db"))
    db.execute("CREATE TABLE users (name TEXT); INSERT INTO users VALUES ('ann')")
    db.execute(statement)
    db.close()
    for create in (True, False):
        with pytest.raises(CorruptStore, match="where Perdure has tables of its own"):
            open_store(url, create=create)
    db = apsw.Connection(str(tmp_path / "runs.db"))
    assert db.execute("SELECT name FROM users").fetchall() == [("ann",)]
    db.close()
