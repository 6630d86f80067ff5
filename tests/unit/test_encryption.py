"""Encryption at rest: nothing is to be read, moved, changed or slipped in without the key; keys can be changed."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure.cli import main
from perdure.errors import ConfigError, CorruptStore, PerdureError, RunSuspended, StoreError
from perdure.framing import frame, unframe
from perdure.model import Attribution, RunKey
from perdure.runtime.audit import Auditor
from perdure.runtime.rekey import Rekeyed, rekey
from perdure.stores import Encryption, open_store
from perdure.stores.base import Store, Which
from perdure.stores.compression import COMPRESSED
from perdure.stores.encryption import MARK, new_key
from perdure.stores.sealed import SealedStore
from perdure.stores.sealed_header import read_header
from perdure.stores.sqlite import SqliteStore
from perdure.testing.processes import Child
from perdure.testing.samples import snapshots

OLD = Encryption({"old": b"o" * 32})
BOTH = Encryption({"new": b"n" * 32, "old": b"o" * 32})
NEW = Encryption({"new": b"n" * 32})
CANARY = "c4n4ry"
calls: list[str] = []


@perdure.step
def look(where: str) -> str:
    calls.append(where)
    perdure.context().stream(f"streamed {CANARY}")
    perdure.context().save({"half": f"saved {CANARY}"})
    return f"found {CANARY} in {where} " * 2000


@perdure.step(name="step-with-a-name")
def stumble(where: str) -> str:
    raise ValueError(f"cannot look into {CANARY}")


@perdure.flow
def search(where: str) -> str:
    return look(where)[:20]


@perdure.flow
def fails(where: str) -> str:
    return stumble(where)


@perdure.flow
def asks(where: str) -> bool:
    return perdure.ask(f"Is it {CANARY}?", answer=bool, context=f"{CANARY} context", deadline=timedelta(days=9))


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:{tmp_path / 'store'}"


def fill(url: str, encryption: Encryption | None) -> None:
    with perdure.CheckpointManager(url, encryption=encryption) as manager:
        tags = Attribution(tags={"tag": CANARY}, prompt=CANARY)
        manager.run_sync(search, CANARY, goal="found", attribution=tags)
        with pytest.raises(ValueError, match="cannot look"):
            manager.run_sync(fails, CANARY, goal="failed")
        with pytest.raises(RunSuspended):
            manager.run_sync(asks, CANARY, goal="asking")
        manager.submit(search, CANARY, goal="queued", idempotency_key=CANARY)


def all_bytes(tmp_path: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())


def raw(url: str) -> Store:
    """The store as somebody sees it who has no key."""
    if url.startswith("sqlite:"):
        return SqliteStore(url.partition(":")[2])
    from perdure.stores.file import FileStore

    return FileStore(url.partition(":")[2], summarise=lambda key, lines: pytest.fail("it is cached"))


# -- what stands in the store ------------------------------------------------------------------------------------------


def test_nothing_of_a_run_can_be_read_without_the_key(url: str, tmp_path: Path) -> None:  # rel:S6
    fill(url, OLD)
    with perdure.Client(url, encryption=OLD) as client:
        client.answer("asking", None, True, by="somebody")
        assert CANARY in client.step("found", "look").partial_text and CANARY in str(client.runs())
        assert client.value(client.step("found", "look").output).startswith(f"found {CANARY}")  # type: ignore[arg-type]
    stored = all_bytes(tmp_path)
    assert COMPRESSED not in stored, "what is compressed is encrypted"
    assert CANARY.encode() not in stored and b"found" in stored, "names of runs stand in clear, and nothing else"
    assert b"somebody" not in stored and b"cannot look" not in stored
    if url.startswith("sqlite:"):
        assert b"step-with-a-name" in stored


def test_names_of_steps_can_be_hidden_too(url: str, tmp_path: Path) -> None:
    keys = Encryption({"old": b"o" * 32}, hide_names=True)
    fill(url, keys)
    assert b"step-with-a-name" not in all_bytes(tmp_path)
    with perdure.Client(url, encryption=OLD) as client:  # that is a fact of the store, whoever opens it
        assert client.find("failed").current == "step-with-a-name"
    fill(url.replace("store", "other"), OLD)
    assert url.startswith("file:") or b"step-with-a-name" in all_bytes(tmp_path)


def test_an_encrypted_run_goes_on_where_it_was(url: str) -> None:
    fill(url, OLD)
    before = len(calls)
    with perdure.CheckpointManager(url, encryption=OLD) as manager:
        assert manager.run_sync(search, CANARY, goal="found") == f"found {CANARY} in {CANARY} "[:20]
        assert manager.recover(search) == {RunKey("queued"): "completed"}
    assert len(calls) == before + 1


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_servers_are_encrypted_alike(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = request.getfixturevalue(server)()
    url = f"{place}?{'schema' if server == 'postgres' else 'prefix'}=enc_{os.getpid()}"
    fill(url, OLD)
    done = rekey(url, BOTH)
    assert (done.changed, done.left) == (done.runs, [])
    with perdure.CheckpointManager(url, encryption=NEW) as manager:
        assert manager.recover(search) == {RunKey("queued"): "completed"}
    with pytest.raises(ConfigError, match="encrypted"):
        open_store(url)


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (None, "is encrypted, and no key was given"),
        (Encryption({"old": b"x" * 32}), "is not the one"),
        (NEW, "'old' is needed"),
        (Encryption(lambda name: {"new": b"n" * 32}[name], write="new"), "could not be had"),
    ],
)
def test_a_wrong_or_missing_key_is_told_before_anything_is_written(
    url: str, tmp_path: Path, keys: Encryption | None, said: str
) -> None:  # rel:S6
    fill(url, OLD)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for opened in (perdure.CheckpointManager, perdure.Client, open_store):
        with pytest.raises(ConfigError, match=said) as refused:
            opened(url, encryption=keys)
        assert refused.value.hint
    assert {path: path.read_bytes() for path in before} == before


def test_a_store_in_clear_is_not_encrypted_by_surprise(url: str, tmp_path: Path) -> None:  # rel:S6
    fill(url, None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for opened in (perdure.CheckpointManager, perdure.Client, open_store):
        with pytest.raises(ConfigError, match="is not encrypted") as refused:
            opened(url, encryption=OLD)
        assert "rekey --encrypt" in refused.value.hint
    assert {path: path.read_bytes() for path in before} == before


def test_the_environment_gives_the_keys(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_KEY", f"{new_key('b')},{new_key('a')}")
    fill(url, None)
    assert CANARY.encode() not in all_bytes(tmp_path)
    path = tmp_path / "keys"
    path.write_text("# the key of this year\n" + os.environ["PERDURE_KEY"].replace(",", "\n"))
    monkeypatch.setenv("PERDURE_KEY_FILE", str(path))
    with pytest.raises(ConfigError, match="both set"):
        open_store(url)
    monkeypatch.delenv("PERDURE_KEY")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        open_store(url)
    path.chmod(0o600)
    with perdure.Client(url) as client:
        assert client.find("found").tags == {"tag": CANARY}
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match="does not hold a key") as refused:
        open_store(url)
    assert "nonsense" not in str(refused.value)
    monkeypatch.setenv("PERDURE_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="cannot be read"):
        open_store(url)


@given(st.text() | st.from_regex(r"[a-z]{1,3}=[A-Za-z0-9+/]{42,43}={0,2}(,[a-z]=.*)?"))
def test_any_text_is_keys_or_a_clear_error_that_does_not_show_it(text: str) -> None:
    try:
        keys = Encryption.parse(text)
    except ConfigError as error:
        assert len(text) < 20 or text not in str(error)
        return
    assert len(keys.key(keys.write)) == 32
    assert keys.key(keys.write).hex() not in repr(keys) and str(keys.key(keys.write)) not in repr(vars(keys)["write"])


def test_a_function_that_fetches_keys_is_asked_once_a_key(url: str) -> None:
    asked: list[str] = []

    def fetch(name: str) -> bytes:
        asked.append(name)
        return BOTH.key(name)

    fill(url, OLD)
    asked.clear()
    with perdure.Client(url, encryption=Encryption(fetch, write="old")) as client:
        assert client.state("found").status == "completed"
    assert asked == ["old"]
    for wrong in (b"short", "o" * 32, None):
        with pytest.raises(ConfigError, match="32 bytes"):
            open_store(url, encryption=Encryption(lambda name, wrong=wrong: wrong, write="old"))  # type: ignore[misc]


# -- somebody with the store, and without the key ----------------------------------------------------------------------


class Thief:
    """Writes to an encrypted SQLite store without the key."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:{path}"
        fill(self.url, OLD)
        self.db = apsw.Connection(str(path))

    def sql(self, text: str, *values: Any) -> list[Any]:
        return self.db.execute(text, values).fetchall()

    def line(self, goal: str, seq: int) -> bytes:
        (found,) = self.sql(
            "SELECT j.record FROM perdure_journal j JOIN perdure_runs r USING (run) WHERE r.goal = ? AND j.seq = ?",
            *(goal, seq),
        )
        return bytes(found[0])

    def put(self, goal: str, seq: int, entry: bytes) -> None:
        """As a record with a good checksum."""
        line = frame(RunKey(goal), entry)
        self.sql(
            "UPDATE perdure_journal SET record = ? WHERE seq = ? AND run = "
            "(SELECT run FROM perdure_runs WHERE goal = ?)",
            *(line, seq, goal),
        )


@pytest.fixture
def _snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """None here: each record is to be read."""


@pytest.fixture
def thief(tmp_path: Path) -> Iterator[Thief]:
    thief = Thief(tmp_path / "runs.db")
    yield thief
    thief.db.close()


def refused(thief: Thief, said: str, goal: str = "found") -> None:
    with perdure.CheckpointManager(thief.url, encryption=OLD) as manager, pytest.raises(CorruptStore, match=said):
        manager.run_sync(search, CANARY, goal=goal)
    with perdure.Client(thief.url, encryption=OLD) as client, pytest.raises(CorruptStore, match=said):
        client.state(goal)


def test_a_record_counts_in_its_own_place_only(thief: Thief) -> None:  # rel:S6 rel:S16
    entries = {seq: unframe(RunKey("found"), thief.line("found", seq)) for seq in (1, 2, 3)}
    thief.put("found", 2, entries[3].replace(b'"seq":3', b'"seq":2'))
    refused(thief, "record 2 cannot be decrypted")
    thief.put("found", 2, entries[2])
    thief.put("found", 1, unframe(RunKey("queued"), thief.line("queued", 1)))
    refused(thief, "record 1 cannot be decrypted")


def test_a_record_of_another_store_does_not_count(thief: Thief, tmp_path: Path) -> None:
    other = Thief(tmp_path / "other.db")
    thief.put("found", 2, unframe(RunKey("found"), other.line("found", 2)))
    refused(thief, "record 2 cannot be decrypted")
    other.db.close()


def test_a_changed_record_is_found_and_so_is_one_that_is_missing(thief: Thief) -> None:  # rel:S16
    entry = bytearray(unframe(RunKey("found"), thief.line("found", 2)))
    entry[-9] = ord("A") if entry[-9] != ord("A") else ord("B")
    thief.put("found", 2, bytes(entry))
    refused(thief, "record 2")
    thief.sql(
        "DELETE FROM perdure_journal WHERE seq = 2 AND run IN (SELECT run FROM perdure_runs WHERE goal = 'found')"
    )
    refused(thief, "should have record 2")


def test_what_stands_in_clear_is_no_data(thief: Thief) -> None:  # rel:S6
    thief.put("found", 2, b'{"kind":"run_cancelled/1","seq":2,"reason":"slipped in"}')
    refused(thief, "record 2 stands in clear")


def test_a_key_that_nobody_knows_is_damage(thief: Thief) -> None:
    entry = unframe(RunKey("found"), thief.line("found", 2)).replace(b'"key":"old"', b'"key":"evil"')
    thief.put("found", 2, entry)
    refused(thief, "names a key 'evil'")


def test_rows_cannot_be_changed_or_replaced_by_others(thief: Thief) -> None:  # rel:S6
    meta = dict(thief.sql("SELECT goal, meta FROM perdure_runs"))
    for changed in (
        meta["found"].replace('"completed"', '"failed"', 1),
        meta["found"].replace('"seq":', '"seq":1'),
        meta["found"].split('"sealed"')[0].rstrip(",") + "}",
        meta["found"].split('"sealed"')[0] + '"sealed":' + meta["failed"].split('"sealed":')[1],
    ):
        assert changed != meta["found"]
        thief.sql("UPDATE perdure_runs SET meta = ? WHERE goal = 'found'", changed)
        with perdure.Client(thief.url, encryption=OLD) as client:
            rows = {row.goal: row for row in client.runs()}
            assert "damaged" in rows["found"].reason and "damaged" not in rows["queued"].reason
            assert any("damaged" in said for said in client.warnings())


def test_blobs_cannot_be_exchanged(thief: Thief) -> None:
    with perdure.Client(thief.url, encryption=OLD) as client:
        client.value(client.step("found", "look").output)  # type: ignore[arg-type]
        with perdure.CheckpointManager(thief.url, encryption=OLD) as manager:
            manager.run_sync(search, "elsewhere", goal="other")
        names = [name for (name,) in thief.sql("SELECT digest FROM perdure_blobs")]
        assert len(names) == 2
        thief.sql(
            "UPDATE perdure_blobs SET content = (SELECT content FROM perdure_blobs WHERE digest = ?) WHERE digest = ?",
            *names,
        )
        for goal in ("found", "other"):
            try:
                client.value(client.step(goal, "look").output)  # type: ignore[arg-type]
            except CorruptStore as error:
                assert "cannot be decrypted" in str(error)
                return
    raise AssertionError("an exchanged blob was taken")


def test_nobody_can_say_that_the_store_is_being_encrypted_or_was_never(thief: Thief) -> None:  # rel:S6
    key = RunKey(MARK.goal)
    (line,) = thief.sql(
        "SELECT record FROM perdure_journal JOIN perdure_runs USING (run) WHERE goal = ? LIMIT 1", key.goal
    )
    entry = unframe(key, bytes(line[0]))
    thief.put(key.goal, 1, entry.replace(rb"\"migrating\":false", rb"\"migrating\":true"))
    with pytest.raises(CorruptStore, match="signature"):
        open_store(thief.url, encryption=OLD)
    thief.sql("DELETE FROM perdure_journal WHERE run = (SELECT run FROM perdure_runs WHERE goal = ?)", key.goal)
    with pytest.raises(StoreError):
        open_store(thief.url, encryption=OLD)
    thief.sql("DELETE FROM perdure_runs WHERE goal = ?", key.goal)
    with pytest.raises(ConfigError, match="is not encrypted, and an encryption key is set"):
        open_store(thief.url, encryption=OLD)


def test_a_snapshot_is_unreadable_and_counts_in_its_own_place_only(thief: Thief, tmp_path: Path) -> None:  # rel:S6
    store = open_store(thief.url, encryption=OLD)
    for goal in ("found", "failed"):
        lease = store.claim(RunKey(goal))
        snapshots(store).save(lease, 2, f"{CANARY} of {goal}".encode())
        store.release(lease)
    load = snapshots(store).load
    assert CANARY.encode() not in all_bytes(tmp_path)
    run = "(SELECT run FROM perdure_runs WHERE goal = 'found')"
    ((sealed,),) = thief.sql(f"SELECT content FROM perdure_snapshots WHERE run = {run}")
    for seq, content in (
        (3, sealed),
        (2, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (2, sealed.replace(b"old\n", b"evil\n", 1)),
        (2, sealed[:9]),
        (2, b"old"),
        (2, b"\xff\n"),
        (2, b"slipped in, in clear"),
        (2, thief.sql(f"SELECT content FROM perdure_snapshots WHERE run <> {run}")[0][0]),
    ):
        thief.sql(f"UPDATE perdure_snapshots SET seq = ?, content = ? WHERE run = {run}", seq, content)
        assert load(RunKey("found")) is None, content[:20]
        assert load(RunKey("failed")) == (2, f"{CANARY} of failed".encode())
    thief.sql(f"UPDATE perdure_snapshots SET seq = 2, content = ? WHERE run = {run}", sealed)
    assert load(RunKey("found")) == (2, f"{CANARY} of found".encode())
    store.close()


# -- changing keys -----------------------------------------------------------------------------------------------------


def test_a_key_is_changed_and_the_old_one_is_not_needed_any_more(url: str) -> None:  # rel:S7
    fill(url, OLD)
    told: list[tuple[int, int]] = []
    store = open_store(url, encryption=OLD)
    lease = store.claim(RunKey("found"))
    snapshots(store).save(lease, 1, b"under the old key")
    store.release(lease)
    store.close()
    assert rekey(url, BOTH, dry=True).changed == 4
    done = rekey(url, BOTH, progress=lambda done: told.append((done.runs, done.changed)))
    assert done == Rekeyed(4, 4, []) and told[-1] == (4, 4)
    store = open_store(url, encryption=BOTH)
    assert snapshots(store).load(RunKey("found")) is None
    store.close()
    assert rekey(url, BOTH) == Rekeyed(4, 0, [])
    with perdure.CheckpointManager(url, encryption=NEW) as manager:
        before = len(calls)
        assert manager.run_sync(search, CANARY, goal="found") == f"found {CANARY} in {CANARY} "[:20]
        assert len(calls) == before
    with pytest.raises(ConfigError, match="'new' is needed"):
        open_store(url, encryption=OLD)


def test_while_both_keys_are_in_use_both_are_read_and_the_first_is_written(url: str) -> None:  # rel:S7
    fill(url, OLD)
    with perdure.Client(url, encryption=BOTH) as client:
        assert client.state("found").status == "completed"
        client.answer("asking", None, True, by="somebody")
        assert client.state("asking").status == "ready"
    with perdure.CheckpointManager(url, encryption=BOTH) as manager:
        assert manager.run_sync(asks, CANARY, goal="asking") is True
    store = open_store(url, encryption=BOTH)
    assert isinstance(store, SealedStore)
    row = next(row for row in store.inner.runs() if row.goal == "asking")
    assert store.keys_of(row) == {"new", "old"}
    store.close()


def test_a_process_that_runs_meets_a_key_that_was_added(url: str) -> None:
    fill(url, OLD)
    knowing, ignorant = open_store(url, encryption=Encryption(BOTH.key, write="old")), open_store(url, encryption=OLD)
    with perdure.CheckpointManager(url, encryption=BOTH) as manager:
        manager.run_sync(search, "there", goal="later")
    assert len(knowing.read(RunKey("later"))) > 2
    with pytest.raises(ConfigError, match="'new' is needed"):
        ignorant.read(RunKey("later"))
    knowing.close()
    ignorant.close()


def test_whoever_only_looks_adds_no_key(url: str) -> None:  # rel:S7
    """Else a key that nobody keeps would be needed by everybody from then on."""
    fill(url, OLD)
    lost = Encryption({"lost": b"l" * 32, "old": b"o" * 32})
    with perdure.Client(url, encryption=lost) as client:
        assert len(client.runs()) == 4 and client.state("found").status == "completed"
    assert rekey(url, lost, dry=True).changed == 4
    with perdure.CheckpointManager(url, encryption=OLD) as manager:
        assert manager.run_sync(search, CANARY, goal="found").startswith("found")


def test_nothing_is_odd_about_a_store_whose_keys_were_changed(url: str) -> None:  # rel:S7
    fill(url, None)
    rekey(url, OLD, encrypt=True)
    rekey(url, BOTH)
    store = open_store(url, encryption=NEW)
    assert [finding for finding in Auditor(store).everything() if finding.kind != "stray_file"] == []
    store.close()


def test_a_key_that_nothing_stands_under_replaces_the_others(url: str) -> None:  # rel:S7
    fill(url, OLD)
    with perdure.Client(url, encryption=OLD) as client:
        client.answer("asking", None, True, by="somebody")
    with perdure.CheckpointManager(url, encryption=OLD) as manager:
        manager.run_sync(asks, CANARY, goal="asking")
    store = open_store(url, encryption=OLD)
    for row in store.runs():
        store.delete(store.claim(row.key))
    store.close()
    assert rekey(url, BOTH) == Rekeyed(0, 0, [])
    open_store(url, encryption=NEW).close()


def test_what_was_written_in_clear_by_a_process_from_before_is_encrypted_by_the_next_time(url: str) -> None:  # rel:S6
    with perdure.CheckpointManager(url) as unaware:
        unaware.run_sync(search, CANARY, goal="before")
        assert rekey(url, OLD, encrypt=True).left == []
        unaware.run_sync(search, CANARY, goal="after")
    with pytest.raises(CorruptStore, match="stands in clear") as caught:
        rekey(url, OLD)
    assert "rekey --encrypt" in caught.value.hint
    assert rekey(url, OLD, encrypt=True) == Rekeyed(2, 1, [])
    with perdure.Client(url, encryption=OLD) as client:
        assert client.value(client.step("after", "look").output).startswith("found")  # type: ignore[arg-type]
    store = open_store(url, encryption=OLD)
    assert isinstance(store, SealedStore) and not store.header.migrating
    store.close()


def test_a_run_that_is_being_executed_is_left_and_told(url: str) -> None:  # rel:S7
    fill(url, OLD)
    store = open_store(url, encryption=OLD)
    lease = store.claim(RunKey("queued"))
    done = rekey(url, BOTH)
    assert (done.changed, done.left) == (3, ["run queued#0"])
    with pytest.raises(ConfigError, match="'old' is needed"):
        open_store(url, encryption=NEW)
    store.release(lease)
    store.close()
    assert rekey(url, BOTH) == Rekeyed(4, 1, [])
    open_store(url, encryption=NEW).close()


@pytest.mark.parametrize("encrypt", [False, True])
def test_killed_at_any_run_a_change_of_keys_goes_on_where_it_was(url: str, encrypt: bool) -> None:  # rel:S7 rel:R2
    fill(url, None if encrypt else OLD)

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        dies = int(hear())

        def progress(done: Rekeyed) -> None:
            if done.runs == dies:
                os.kill(os.getpid(), signal.SIGKILL)

        rekey(url, BOTH, encrypt=encrypt, progress=progress)
        say("survived\n")

    for dies in (1, 2, 3):
        child = Child(work)
        child.say(f"{dies}\n")
        with pytest.raises(EOFError):
            child.hear()
        child.kill()
        store = open_store(url, encryption=BOTH)
        assert isinstance(store, SealedStore) and {row.goal for row in store.runs()} == {
            *("asking", "failed", "found", "queued")
        }
        assert all(len(store.read(row.key)) == row.seq for row in store.runs())
        assert store.header.migrating is encrypt
        store.close()
    done = rekey(url, BOTH, encrypt=encrypt)
    assert (done.runs, done.changed, done.left) == (4, 1, [])
    with perdure.Client(url, encryption=NEW) as client:
        assert client.value(client.step("found", "look").output).startswith("found")  # type: ignore[arg-type]
    store = open_store(url, encryption=NEW)
    assert isinstance(store, SealedStore) and not store.header.migrating and read_header(store.inner) == store.header
    store.close()


def test_killed_in_the_middle_of_a_run_the_encryption_leaves_nothing_of_it_in_clear(tmp_path: Path) -> None:
    # rel:S6 rel:S14
    url, whole, count = f"file:{tmp_path / 'store'}", tmp_path / "whole", 0
    with perdure.CheckpointManager(f"file:{whole}") as manager:
        manager.run_sync(search, CANARY, goal="found")
    shutil.rmtree(next(whole.glob("runs/*/outputs")))  # which are for other programs to read
    store = open_store(f"file:{whole}")
    lease = store.claim(RunKey("found"))
    snapshots(store).save(lease, 1, CANARY.encode())
    store.release(lease)
    store.close()

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        left = int(hear())

        def changes(event: str, _: object) -> None:
            nonlocal left
            if event in ("os.rename", "os.remove"):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(changes)
        rekey(url, OLD, encrypt=True)
        say("survived\n")

    survived = False
    while not survived:
        count += 1
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "store")
        child = Child(work)
        child.say(f"{count}\n")
        with suppress(EOFError):
            survived = child.hear() == "survived"
        child.kill()
        assert rekey(url, OLD, encrypt=True).left == []
        assert CANARY.encode() not in all_bytes(tmp_path / "store"), f"killed at change {count}"
        with perdure.Client(url, encryption=OLD) as client:
            assert client.value(client.step("found", "look").output).startswith("found")  # type: ignore[arg-type]
    assert count > 8, "it was killed nowhere"


def test_a_store_that_was_in_clear_is_encrypted_with_all_that_it_holds(url: str, tmp_path: Path) -> None:  # rel:S6
    fill(url, None)
    assert CANARY.encode() in all_bytes(tmp_path)
    assert rekey(url, OLD, encrypt=True, dry=True) == Rekeyed(4, 4, [])
    open_store(url).close()  # without a key: it is not encrypted
    done = rekey(url, OLD, encrypt=True)
    assert done == Rekeyed(4, 4, [])
    with perdure.Client(url, encryption=OLD) as client:
        assert client.value(client.step("found", "look").output).startswith(f"found {CANARY}")  # type: ignore[arg-type]
        assert client.find("found").tags == {"tag": CANARY}
    store = open_store(url, encryption=OLD)
    assert isinstance(store, SealedStore)
    for row in store.inner.runs(Which(after=MARK)):
        assert store.keys_of(row) == {"old"}
    store.close()
    journals = b"".join(bytes(line) for row in raw(url).runs() if row.key != MARK for line in raw(url).read(row.key))
    assert CANARY.encode() not in journals


def test_a_store_that_cannot_be_rekeyed_says_why(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no store"):
        rekey(url, OLD)
    fill(url, None)
    with pytest.raises(ConfigError, match="rekey --encrypt"):
        rekey(url, OLD)
    with pytest.raises(ConfigError, match="no encryption key"):
        rekey(url)
    empty = open_store(f"file:{tmp_path / 'empty'}")
    empty.close()
    with pytest.raises(ConfigError, match="no runs yet"):
        rekey(empty.url, OLD)
    with pytest.raises(PerdureError):
        perdure.CheckpointManager(open_store("memory:"), encryption=OLD)


def test_an_archive_of_an_encrypted_store_says_that_it_is_in_clear(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(url, OLD)
    monkeypatch.setenv("PERDURE_KEY", f"old={base64.b64encode(b'o' * 32).decode()}")
    assert main(["export", "found", "-o", str(tmp_path / "found.perdure"), "--store", url]) == 0
    assert "the store is encrypted, and the archive is not" in capsys.readouterr().err
