"""Archives between real stores: each kind to each, from a process that was killed, and while others write."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from archive_shapes import contents, exported, fill, imported, memory, states

import perdure
from perdure.fold import fold
from perdure.model import RunKey
from perdure.runtime.manager import CheckpointManager
from perdure.stores import disk
from perdure.stores.base import Store
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.testing.processes import Child

KINDS = ("memory", "file", "sqlite", "postgresql", "redis")
Open = Callable[..., Store]


@pytest.fixture
def open_(tmp_path: Path, postgres: Callable[[int], str], valkey: Callable[[], str]) -> Iterator[Open]:
    """Opens a store of a kind and name, made if need be. All are closed when the test has ended."""
    backends: dict[str, MemoryBackend] = {}
    opened: list[Store] = []

    def url(kind: str, name: str) -> str:
        unique = "t_" + sha256(f"{tmp_path}/{name}".encode()).hexdigest()[:20]
        if kind == "postgresql":
            return f"{postgres(18)}?schema={unique}&lease=60"
        if kind == "redis":
            return f"{valkey()}?prefix={unique}&lease=60"
        return f"{kind}:{tmp_path / (kind + name)}"

    def open_one(kind: str, name: str = "a") -> Store:
        if kind == "memory":
            return MemoryStore(backends.setdefault(name, memory()))
        opened.append(perdure.open_store(url(kind, name)))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def _move(one: Store, two: Store, **options: Any) -> None:
    imported(two, exported(one), **options)


def test_runs_go_round_all_kinds_of_stores_and_come_back_the_same(open_: Open) -> None:  # W2 issue 6.5
    first = open_("memory")
    fill(first)
    ring = [first, *(open_(kind) for kind in (*KINDS[1:], "memory")[:-1]), open_("memory", "b")]
    told = contents(first), states(first)
    assert len(told[0]) > 14
    for one, two in itertools.pairwise(ring):
        _move(one, two, trust=True)
        assert (contents(two), states(two)) == told, f"from {one.url} to {two.url}"


@pytest.mark.long
@pytest.mark.parametrize("two", KINDS)
@pytest.mark.parametrize("one", KINDS)
def test_runs_go_from_each_kind_of_store_to_each(open_: Open, one: str, two: str) -> None:  # W2 issue 6.5
    here, there = open_(one, "here"), open_(two, "there")
    origin = MemoryStore(memory())
    fill(origin)
    _move(origin, here, trust=True)
    _move(here, there, trust=True)
    assert (contents(there), states(there)) == (contents(origin), states(origin))
    assert imported(there, exported(here)).count("there") == len(contents(origin))


# -- killed ------------------------------------------------------------------------------------------------------------

_said: Callable[[str], None] = lambda text: None  # noqa: E731
_stop_in = ""


@perdure.step
def piece(name: str) -> str:
    _said(name)
    if name == _stop_in:
        _said("stuck")
        signal.pause()
    return name * 9_000


@perdure.flow
def chain(count: int) -> int:
    return sum(len(piece(f"p{number}")) for number in range(count))


def _killed_in(open_store: Callable[[], Store], name: str, count: int) -> list[str]:
    """Execute the chain in a process that is killed in the middle of a step; the steps that began."""

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        global _said, _stop_in
        _said, _stop_in = lambda text: say(text + "\n"), name
        perdure.run(chain, count, goal="g", store=open_store())

    child, began = Child(work), []
    while (heard := child.hear()) != "stuck":
        began.append(heard)
    assert child.kill() == []
    return began


def _rest(store: Store, count: int) -> tuple[int, list[str]]:
    """Go on here: the result, and which steps were executed."""
    global _said
    ran: list[str] = []
    _said = ran.append
    try:
        return perdure.run(chain, count, goal="g", store=store), ran
    finally:
        _said = lambda text: None  # noqa: E731


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("file", "sqlite"),
        ("sqlite", "postgresql"),
        ("postgresql", "redis"),
        ("redis", "file"),
        pytest.param("sqlite", "redis", marks=pytest.mark.long),
        pytest.param("redis", "postgresql", marks=pytest.mark.long),
    ],
)
def test_a_run_that_was_killed_goes_on_in_another_store_and_nothing_is_done_twice(
    open_: Open, one: str, two: str
) -> None:  # R1 rel:S15
    here = open_(one, "x")  # the child finds a store that is made already
    assert _killed_in(lambda: open_(one, "x"), "p3", 6) == ["p0", "p1", "p2", "p3"]
    archive = exported(here)
    there = open_(two, "y")
    assert imported(there, archive).paused == ["g#0"]
    with CheckpointManager(open_(two, "y")) as manager:
        assert manager.recover(chain) == {}, "not before a person says so"
    perdure.Client(there).unpause("g", by="ann")
    assert _rest(there, 6) == (6 * 18_000, ["p3", "p4", "p5"])


@pytest.mark.parametrize(
    "kind", ["sqlite", "file", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("postgresql", "redis"))]
)
def test_a_run_is_exported_again_and_again_while_another_process_executes_it(open_: Open, kind: str) -> None:
    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        global _said
        _said = lambda text: say(text + "\n")  # noqa: E731
        perdure.run(chain, 40, goal="g", store=open_(kind, "x"))

    store = open_(kind, "x")
    child = Child(work)
    child.hear()
    archives, lengths = [], set()
    for _ in range(6):
        archives.append(exported(store))
        for _ in range(5):
            child.hear()
    child.kill()
    for archive in archives:
        there = MemoryStore(memory())
        imported(there, archive, trust=True)
        lines = there.read(RunKey("g"))
        done = sum(step.recorded for step in fold(RunKey("g"), lines).steps.values())
        assert lines == store.read(RunKey("g"))[: len(lines)]
        lengths.add(done)
        assert _rest(there, 40) == (sum(len(f"p{n}") * 9_000 for n in range(40)), [f"p{n}" for n in range(done, 40)])
    assert len(lengths) > 1, "it was not executed meanwhile"


def _import_killed(root: Path, archive: bytes, at: int) -> bool:
    """Import into a file store in a process that kills itself before its ``at``-th change; whether it did."""

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        left = at

        def hook(what: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        store = perdure.open_store(f"file:{root}")
        disk.hook = hook
        imported(store, archive)
        disk.hook = None
        say("done\n")

    child = Child(work)
    try:
        child.hear()
        return False
    except EOFError:
        return True
    finally:
        child.kill()


def _every(step: int, tmp_path: Path) -> int:
    """Kill an import everywhere (every ``step``-th place) and do it again. Returns how often it was killed."""
    origin = memory()
    with perdure.CheckpointManager(MemoryStore(origin)) as manager:
        manager.run_sync(chain, 3, goal="done")
        manager.submit(chain, 3, goal="queued")
    perdure.Client(MemoryStore(origin)).signal("queued", "paid", 1)
    archive = exported(MemoryStore(origin))
    for killed in itertools.count():
        root = tmp_path / f"{killed}"
        dead = _import_killed(root, archive, killed * step)
        with CheckpointManager(f"file:{root}") as manager:
            assert manager.recover(chain) == {}, "what is there is whole, and at rest"
        with closing(perdure.open_store(f"file:{root}")) as store:
            imported(store, archive)
            found = contents(store)
            assert [row.status for row in perdure.Client(store).runs()] == ["completed", "paused"]
            assert found[RunKey("done")] == contents(MemoryStore(origin))[RunKey("done")]
            assert len(found[RunKey("queued")][1]) == 1
        if not dead:
            return killed
    raise AssertionError


def test_an_import_that_was_killed_leaves_whole_runs_at_rest_and_is_done_again(tmp_path: Path) -> None:  # rel:R1
    assert _every(7, tmp_path) > 5


@pytest.mark.long
def test_an_import_that_was_killed_at_any_change_is_done_again(tmp_path: Path) -> None:  # rel:R1
    assert _every(1, tmp_path) > 40


def test_a_full_disk_leaves_no_half_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # rel:D10
    origin = memory()
    with perdure.CheckpointManager(MemoryStore(origin)) as manager:
        manager.run_sync(chain, 3, goal="g")
    archive = exported(MemoryStore(origin))
    left = 0
    for full in range(0, 100, 4):
        left = full

        def hook(what: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left < 0 and what in ("write", "sync", "create"):
                raise OSError(28, "No space left on device")

        store = perdure.open_store(f"file:{tmp_path / str(full)}")
        monkeypatch.setattr(disk, "hook", hook)
        try:
            imported(store, archive)
        except perdure.PerdureError as error:
            assert "ENOSPC" in str(error) and "Free some space" in str(error)
        monkeypatch.setattr(disk, "hook", None)
        again = perdure.open_store(f"file:{tmp_path / str(full)}")
        lines = again.read(RunKey("g"))
        assert lines in ([], MemoryStore(origin).read(RunKey("g")))
        again.close()
        store.close()
        last = perdure.open_store(f"file:{tmp_path / str(full)}")
        imported(last, archive)
        assert contents(last) == contents(MemoryStore(origin))
        last.close()
    assert left > 0, "the last one had room"


def test_an_archive_goes_through_a_pipe(open_: Open) -> None:
    one, two = open_("file"), open_("sqlite")
    origin = MemoryStore(memory())
    fill(origin)
    _move(origin, one, trust=True)
    out, into = os.pipe()
    child = Child(lambda say, hear: _export_to(into, one.url))
    os.close(into)
    with open(out, "rb") as stream:
        perdure.Client(two).import_archive(stream, by="eve", trust=True)
    child.kill()
    assert contents(two) == contents(origin)


def _export_to(fd: int, url: str) -> None:
    with perdure.Client(url) as client, open(fd, "wb") as stream:
        client.export(stream)
