"""Choosing a store by URL, and what stores of every kind do on a machine that is not as it should be."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.errors import ConfigError, CorruptStore, PerdureError
from perdure.model import RunKey
from perdure.stores import mounts, open_store
from perdure.stores.base import Store
from perdure.stores.disk import run_folder_name
from perdure.stores.file import FileStore
from perdure.stores.memory import MemoryStore
from perdure.stores.owners import Owner
from perdure.stores.sqlite import SqliteStore
from perdure.testing.processes import Child
from perdure.testing.samples import HOSTILE_GOALS, item

KINDS = ["file:{}", "sqlite:{}"]


def one_paragraph(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and 20 < len(text) < 700 and text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("url", "kind", "where"),
    [
        ("memory:", MemoryStore, None),
        ("file:{}/store", FileStore, "{}/store"),
        ("file://{}/store", FileStore, "{}/store"),
        ("FILE:{}/a b/store", FileStore, "{}/a b/store"),
        ("sqlite:{}/runs.db", SqliteStore, "{}/runs.db"),
        ("sqlite:///{}/runs.db", SqliteStore, "{}/runs.db"),
        ("sqlite:///runs.db", SqliteStore, "{}/runs.db"),
        ("sqlite:sub/runs.db", SqliteStore, "{}/sub/runs.db"),
    ],
)
def test_a_url_chooses_the_store(
    url: str, kind: type, where: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(url.format(tmp_path))
    assert type(store) is kind
    assert where is None or Path(where.format(tmp_path)).exists()
    assert where is None or store.url.endswith(where.format(tmp_path))
    assert open_store(store) is store
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "runs.db",
        "mysql://u:secret@db/x",
        "sqlite:",
        "sqlite:///",
        "sqlite://host/x",
        "sqlite::memory:",
        "file:",
        "file://host/x",
        "memory:name",
        "sqlite:a\0b",
        "x" * 10_000,
    ],
)
def test_a_url_that_names_no_store_is_told_what_there_is(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_store(url)
    text = one_paragraph(error.value)
    assert "memory:" in text
    assert "secret" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_without_create_a_missing_store_is_an_error_and_nothing_is_made(kind: str, tmp_path: Path) -> None:
    for place in (tmp_path / "no" / "store", tmp_path / "store"):
        with pytest.raises(ConfigError, match="no store at") as error:
            open_store(kind.format(place), create=False)
        assert str(place) in one_paragraph(error.value)
    assert list(tmp_path.iterdir()) == []
    open_store(kind.format(tmp_path / "store")).close()
    open_store(kind.format(tmp_path / "store"), create=False).close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_cannot_be_used_is_one_paragraph(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something else\n" * 100)
    for place in (tmp_path / "file" / "store", tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises((ConfigError, CorruptStore)) as error:
            open_store(kind.format(place))
        assert str(tmp_path) in one_paragraph(error.value)
    assert (tmp_path / "file").read_text() == "something else\n" * 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_permission_is_one_paragraph(kind: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    def work(say: Callable[[str], None], _hear: Callable[[], str]) -> None:
        if os.geteuid() == 0:  # root may write everywhere
            os.setgroups([])
            os.setuid(65534)
        for place in (closed / "store", closed / "deep" / "store"):
            try:
                open_store(kind.format(place))
            except ConfigError as error:
                say(f"{str(place) in one_paragraph(error) or str(closed) in str(error)}\n")

    child = Child(work)
    assert [child.hear(), child.hear()] == ["True", "True"]
    child.kill()


@pytest.fixture(params=[0o000, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("umask")
def test_nobody_else_can_read_what_is_stored(kind: str, tmp_path: Path) -> None:  # rel:S13
    store = open_store(kind.format(tmp_path / "deep" / "store"))
    store.append([item(store.claim(RunKey("paper")), 0, blob=b"large")])
    found = list(tmp_path.rglob("*"))
    assert len(found) > 4
    for path in found:
        mode = path.lstat().st_mode
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    store.close()


def test_any_goal_gives_a_safe_folder_name_of_its_own() -> None:  # rel:S5
    names = [run_folder_name(RunKey(goal, episode)) for goal in HOSTILE_GOALS for episode in (0, 1)]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isascii() and len(name) < 100 and not set(name) & set("/\\\0 ") for name in names)
    assert not any(name.startswith(".") for name in names)
    assert run_folder_name(RunKey("paper-17", 2)) == "paper-17.2"


def test_the_locks_of_dead_owners_are_removed_by_whoever_opens_next(tmp_path: Path) -> None:  # rel:C10
    living, dead = Owner(tmp_path), Owner(tmp_path)
    dead.abandon()
    (tmp_path / f".{'0' * 32}.lock").touch()  # a process died before its lock had a name
    assert len(list(tmp_path.iterdir())) == 3
    asking = Owner(tmp_path)
    assert asking.alive(living.id) and living.alive(asking.id) and asking.alive(asking.id)
    assert not asking.alive(dead.id) and not living.alive(dead.id)
    for nobody in ("", "x", "../../etc/passwd", "0" * 32):
        assert not asking.alive(nobody)
    asking.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {f"{living.id}.lock", f"{asking.id}.lock"}
    living.close()
    assert not asking.alive(living.id)
    asking.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_that_is_dropped_holds_nothing(kind: str, tmp_path: Path) -> None:
    open_store(kind.format(tmp_path / "store")).claim(RunKey("paper"))
    store = open_store(kind.format(tmp_path / "store"))
    store.claim(RunKey("paper"))
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_may_be_given_in_different_ways(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    stores: list[Store] = [
        open_store(kind.format(p)) for p in ("store", tmp_path / "store", tmp_path / "link" / "store")
    ]
    stores[0].claim(RunKey("paper"))
    for store in stores[1:]:
        with pytest.raises(PerdureError, match="being executed"):
            store.claim(RunKey("paper"))
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:s3cret@127.0.0.1:1/x?schema=a'b", "schema="),
        ("postgresql://u:s3cret@127.0.0.1:1/x?schema=pg_own", "schema="),
        ("postgresql://u:s3cret@127.0.0.1:1/x?lease=soon", "parameter lease"),
        ("postgresql://u:s3cret@127.0.0.1:1/x?nonsense=1", "nonsense"),
        ("postgres://u:s3cret@127.0.0.1:1/x?lease=0.1", "parameter lease"),
        ("redis://u:s3cret@127.0.0.1:1/0?lease=0", "lease"),
        ("valkey://u:s3cret@127.0.0.1:1/0?prefix=a b", "prefix"),
        ("redis://u:s3cret@127.0.0.1:1/0?waitaof=perhaps", "waitaof"),
    ],
)
def test_what_is_wrong_in_the_url_of_a_server_is_named_and_its_password_is_not(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        open_store(url)
    assert said in str(told.value) and "s3cret" not in str(told.value)


# -- file systems of other machines (rel:C8) -------------------------------------------------------------------------

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /my\\040home rw,relatime - nfs4 server:/home rw
31 30 8:2 / /my\\040home/local rw - ext4 /dev/sdb1 rw
32 21 0:41 / /data rw - ext4 /dev/sdc1 rw
33 21 0:42 / /data rw - cifs //server/data rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/my home/runs.db", "nfs4"),
        ("/my home/local/runs.db", ""),
        ("/my home and yours/runs.db", ""),
        ("/data/x/runs.db", "cifs"),
        ("/runs.db", ""),
    ],
)
def test_a_path_on_another_machine_is_warned_of(
    path: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    monkeypatch.setattr(mounts, "_TABLE", table)
    told = mounts.remote_warnings(Path(path))
    assert len(told) == bool(kind) and all(f"({kind})" in text for text in told)
    table.unlink()
    assert mounts.remote_warnings(Path(path)) == []


@pytest.mark.parametrize("url", KINDS)
def test_a_store_says_that_it_lies_on_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(mounts, "_TABLE", table)
    table.write_text("1 1 0:1 / / rw - nfs server:/ rw\n")
    store = open_store(url.format(tmp_path / "place"))
    assert [warning for warning in store.warnings() if "another machine (nfs)" in warning]
    store.close()
