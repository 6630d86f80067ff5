"""Forks in every store: what is removed in whatever order, archives, encryption, and listings."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

import perdure
from perdure.cli import main
from perdure.errors import ConfigError
from perdure.model import RunKey
from perdure.runtime.audit import Auditor
from perdure.runtime.look import row_of
from perdure.runtime.retention import Keep, Retention
from perdure.stores import open_store
from perdure.stores.base import Store
from perdure.stores.encryption import Encryption
from perdure.stores.memory import MemoryBackend, MemoryStore

KINDS = ("memory", "file", "sqlite", "postgresql", "redis", "sealed")
KEYS = Encryption({"one": b"k" * 32})
SIZE = 9000
Open = Callable[[], Store]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_(kind: str, tmp_path: Path, postgres: Callable[[int], str], valkey: Callable[[], str]) -> Iterator[Open]:
    """Opens one store, as often as it is asked to."""
    backend, opened = MemoryBackend(), list[Store]()
    unique = "t_" + sha256(str(tmp_path).encode()).hexdigest()[:20]

    def url() -> str:
        if kind == "postgresql":
            return f"{postgres(18)}?schema={unique}"
        if kind == "redis":
            return f"{valkey()}?prefix={unique}"
        return f"{'file' if kind == 'sealed' else kind}:{tmp_path / 'store'}"

    def open_one() -> Store:
        store = MemoryStore(backend) if kind == "memory" else None
        opened.append(store or open_store(url(), encryption=KEYS if kind == "sealed" else None))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@perdure.step
def text(name: str, size: int) -> str:
    return (name * size)[:size]


@perdure.flow
def flow(topic: str, tone: str) -> list[str]:
    return [text("shared", SIZE), text(topic, SIZE), text(tone, SIZE)]


def family(open_: Open) -> Store:
    """A run, a fork of it, and a fork of that: all completed. Of their blobs some are shared by three, some by two."""
    with perdure.CheckpointManager(open_()) as manager, perdure.Client(open_()) as client:
        manager.run_sync(flow, "a", "x", goal="g")
        client.fork("g#0", after="2", inputs={"tone": "y"}, by="ann")
        manager.run_sync(flow, "a", "y", goal="g", episode=1)
        client.fork("g#1", after="1", inputs={"topic": "b"}, by="ann")
        manager.run_sync(flow, "b", "y", goal="g", episode=2)
    return open_()


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        pytest.param(kind, order, marks=() if usual else pytest.mark.long, id=f"{kind}-{''.join(map(str, order))}")
        for turn, kind in enumerate(KINDS)
        for at, order in enumerate(itertools.permutations(range(3)))
        for usual in [kind == "memory" or (turn + at) % 3 == 0]
    ],
    indirect=["kind"],
)
def test_runs_and_their_forks_are_removed_in_any_order_and_what_is_left_is_whole(
    open_: Open, order: tuple[int, ...]
) -> None:  # X2 K5 W3
    store, left = family(open_), {0, 1, 2}
    with perdure.Client(open_()) as client:
        for episode in order:
            client.remove(f"g#{episode}")
            left.discard(episode)
            for other in left:
                topic, tone = ("a", "a", "b")[other], ("x", "y", "y")[other]
                output = client.state(f"g#{other}").output
                assert output is not None
                assert client.value(output) == [text.fn("shared", SIZE), text.fn(topic, SIZE), text.fn(tone, SIZE)]
                for step in client.state(f"g#{other}").steps.values():
                    assert step.output is not None and len(client.value(step.output)) == SIZE
            found = [finding for finding in Auditor(store).everything() if finding.kind != "settings"]
            assert found == []
        assert client.runs() == []


def test_a_fork_goes_on_when_its_original_is_gone(open_: Open) -> None:  # X2
    with perdure.CheckpointManager(open_()) as manager, perdure.Client(open_()) as client:
        manager.run_sync(flow, "a", "x", goal="g")
        client.fork("g", after="2", inputs={"tone": "y"}, by="ann")
        gone = [row for row in client.prune(Retention(Keep(size=0))) if row is not None]
        assert [str(row.key) for row in gone] == ["g#0"]
        again = client.fork("g#1", after="1", by="ann")
        assert manager.run_sync(flow, "a", "y", goal="g", episode=1)[2] == text.fn("y", SIZE)
        assert manager.run_sync(flow, "a", "y", goal="g", episode=again.key.episode)[1] == text.fn("a", SIZE)
    row = row_of(open_(), RunKey("g", 2))
    assert row is not None and str(row.forked) == "g#1 after step 1 (text)"


def test_a_fork_is_exported_and_imported_without_its_original(open_: Open) -> None:  # X2
    family(open_)
    archive, backend = io.BytesIO(), MemoryBackend()
    with perdure.Client(open_()) as client:
        assert client.export(archive, "g#2").runs == 1
        state = client.state("g#2")
    archive.seek(0)
    with perdure.Client(MemoryStore(backend)) as client:
        assert client.import_archive(archive, by="ann").count("imported") == 1
        there = client.state("g#2")
        assert (there.forked, there.run_id, there.keyed_by) == (state.forked, state.run_id, state.keyed_by)
        assert client.value(there.output) == client.value(state.output)  # type: ignore[arg-type]
        with perdure.CheckpointManager(MemoryStore(backend)) as manager:
            client.fork("g#2", inputs={"tone": "z"}, by="ann")
            assert manager.run_sync(flow, "b", "z", goal="g", episode=3)[2] == text.fn("z", SIZE)
    assert list(Auditor(MemoryStore(backend)).everything()) == []


# -- listings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}"


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """The first two columns of a table."""
    assert main(["ls", *words]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    at, end = head.index("from"), head.index("status")
    return [[line[:at].rstrip(), line[at:end].strip()] for line in lines]


def test_a_tree_shows_which_run_was_forked_from_which(url: str, capsys: pytest.CaptureFixture[str]) -> None:  # X2
    family(lambda: open_store(url))
    with perdure.Client(url) as client:
        client.fork("g#0", goal="h", by="ann")
        client.fork("g#1", at=3, by="ann")
    assert listed(capsys, "--tree", "--store", url) == [
        ["g#0", ""],
        ["  g#1", "after step 2 (text)"],
        ["    g#2", "after step 1 (text)"],
        ["    g#3", "after step 1 (text)"],
        ["  h#0", "after entry 8"],
    ]
    assert listed(capsys, "--tree", "--status", "interrupted", "--store", url) == [
        ["g#3", "forked from g#1 after step 1 (text)"],
        ["h#0", "forked from g#0 after entry 8"],
    ]
    assert listed(capsys, "--tree", "--goal", "h", "--store", url) == [["h#0", "forked from g#0 after entry 8"]]
    with perdure.Client(url) as client:
        client.remove("g#1")
    assert listed(capsys, "--tree", "--store", url) == [
        ["g#0", ""],
        ["  h#0", "after entry 8"],
        ["g#2", "forked from g#1 after step 1 (text), which is gone"],
        ["g#3", "forked from g#1 after step 1 (text), which is gone"],
    ]
    assert main(["ls", "--tree", "--json", "--store", url]) == 2


def test_a_run_that_has_only_the_name_of_an_original_is_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    family(lambda: open_store(url))
    with perdure.Client(url) as client:
        client.fork("g#0", goal="h", by="ann")
        for name in ("g#0", "g#1", "g#2"):
            client.remove(name)
        client.fork("h#0", goal="g", by="ann")
    assert listed(capsys, "--tree", "--store", url) == [
        ["h#0", "forked from g#0 after entry 8, which is gone"],
        ["  g#0", "after entry 9"],
    ]


def test_listings_say_where_a_run_comes_from(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    family(lambda: open_store(url))
    assert main(["ls", "--json", "--store", url]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["forked"] for row in rows] == [
        None,
        {"run": "g#0", "seq": 5, "step": 2, "path": "text", "by": "ann"},
        {"run": "g#1", "seq": 3, "step": 1, "path": "text", "by": "ann"},
    ]
    assert main(["show", "g#2", "--store", url]) == 0
    assert "forked from g#1 after step 1 (text) by ann\n" in capsys.readouterr().out
    assert main(["tail", "g#2", "--no-follow", "--store", url]) == 0
    assert "run g#2 is forked from g#1 after step 1 (text), by ann\n" in capsys.readouterr().out


def test_without_the_key_nothing_is_forked(tmp_path: Path) -> None:  # rel:S6
    url = f"file:{tmp_path / 'store'}"
    family(lambda: open_store(url, encryption=KEYS))
    with pytest.raises(ConfigError, match="encrypted"), perdure.Client(url) as client:
        client.fork("g#0", by="ann")
    with perdure.Client(url, encryption=KEYS) as client:
        client.fork("g#0", by="ann")
    text_of = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b'"forked":{' not in text_of and b"run_forked" not in text_of and b"after entry" not in text_of
