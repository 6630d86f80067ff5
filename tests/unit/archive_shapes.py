"""Runs of all shapes, and archives of them, for the tests of archives."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import perdure
from perdure import inbox
from perdure import journal as j
from perdure.errors import OutputRefused, PerdureError, RunSuspended
from perdure.fold import State, fold
from perdure.model import RunKey
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.restore import Imported
from perdure.stores.base import Append, Store
from perdure.stores.memory import MemoryBackend, MemoryStore

KEPT = Path(__file__).parents[1] / "journals"
KEPT_KEY = RunKey("paper", 1)
RAN: list[str] = []
"""bodies of steps that were executed"""
BROKEN: set[str] = set()
"""steps that fail"""


@perdure.step
def work(name: str, size: int = 3) -> str:
    RAN.append(name)
    if name in BROKEN:
        raise ValueError(f"{name} is broken")
    return (name * size)[:size]


@perdure.flow
def program(acts: Sequence[tuple[str, Any]]) -> list[Any]:
    """What a test wants to be done, one thing after the other."""
    done: list[Any] = []
    for number, (act, size) in enumerate(acts):
        if act == "work":
            done.append(work(f"{number}", size))
        elif act == "many":
            done.append(perdure.map(work, [f"{number}.{n}" for n in range(size)]))
        elif act == "ask":
            done.append(perdure.ask(f"Go on after {number}?", answer=bool))
        elif act == "signal":
            done.append(perdure.signal("paid", type=int))
        else:
            raise ValueError(act)
    return done


def memory() -> MemoryBackend:
    return MemoryBackend()


def run(store: Store, goal: str, *acts: tuple[str, Any], **options: Any) -> Any:
    """Run the program until it ends or waits; what it returned. The store is closed."""
    with suppress(RunSuspended, OutputRefused, ValueError):
        return perdure.run(program, list(acts), goal=goal, store=store, **options)


def put(store: Store, key: RunKey, lines: Sequence[bytes], posts: Sequence[bytes] = (), **blobs: bytes) -> None:
    """Write a run as it stands."""
    lease = store.claim(key)
    assert store.append([Append(lease, 0, tuple(lines), fold(key, lines).meta(), blobs)]) == [None]
    for number, post in enumerate(posts, 1):
        assert store.post(key, number, post)
    store.release(lease)


def journal(key: RunKey, *entries: j.Entry) -> list[bytes]:
    """Entries as the records of a run, numbered as they come."""
    state, lines = State(key), []
    for entry in entries:
        entry.seq = state.seq + 1
        entry.at = entry.at or 1.7e9 + entry.seq
        state.apply(entry)
        lines.append(j.encode(key, entry))
    return lines


def kept(name: str, key: RunKey = KEPT_KEY) -> tuple[list[bytes], list[bytes]]:
    """A journal that a released version wrote, under a name of its own, and the inbox that it tells of."""
    lines, posts = [], []
    for seq, line in enumerate((KEPT / name).read_bytes().splitlines(keepends=True), 1):
        entry = j.decode(KEPT_KEY, line, seq)
        lines.append(j.encode(key, entry))
        if isinstance(entry, j.RunForked):
            posts.clear()
        elif isinstance(entry, j.Posted) and entry.post:
            entry.seq, entry.at, entry.post = 0, 0.0, 0
            posts.append(j.encode(key, entry))
        elif isinstance(entry, j.PostDropped):
            posts.append(j.encode(key, j.SignalReceived(name="late")))
    return lines, posts


def fill(store: Store) -> None:
    """Runs of every shape: kept ones, and some that are made now. All are at rest."""
    for path in sorted(KEPT.glob("*.jsonl")):
        key = RunKey(f"kept {path.stem}", 1)
        put(store, key, *kept(path.name, key))
    manager = CheckpointManager(store)
    big = 20_000
    acts: dict[str, list[tuple[str, Any]]] = {
        "done": [("work", 5), ("work", big), ("many", 3), ("work", big + 1)],
        "../../etc/passwd".replace("..", "dots"): [("work", big)],
        "asks": [("work", big), ("ask", None), ("work", 4)],
        "Waits é": [("signal", None)],
        "failed": [("work", 2), ("break", None)],
        "stopped": [("ask", None)],
        "given up": [("work", 1), ("ask", None)],
    }
    for goal, program_ in acts.items():
        with suppress(RunSuspended, ValueError):
            manager.run_sync(program, program_, goal=goal)
    manager.submit(program, [("work", 3)], goal="queued", priority=-7, queue="night")
    manager.run_sync(program, [("work", 3)], goal="done", new=True)
    manager.run_sync(perdure.best_of(2, work.fn, judge=len), "tides", goal="best")
    client = perdure.Client(store)
    client.pause("stopped", by="ann", reason="lunch")
    client.cancel("given up", by="ann")
    client.answer("asks", None, True, by="ann")
    client.signal("Waits é", "other", {"any": [1.5, None]})


def contents(store: Store) -> dict[RunKey, tuple[list[bytes], list[bytes]]]:
    """Everything that is told of the runs of a store: journals and inboxes."""
    keys = [row.key for row in store.runs()]
    return {key: (store.read(key), store.posts({key: 0}).get(key, [])) for key in keys}


def states(store: Store) -> dict[RunKey, tuple[Any, ...]]:
    """What the journals say, and the values in them."""
    found = {}
    for key, (lines, _) in contents(store).items():
        state = fold(key, lines)
        blobs = [store.blob(ref) for seq, line in enumerate(lines, 1) for ref in j.refs(j.decode(key, line, seq))]
        found[key] = (state.meta(), blobs, state.steps.keys(), state.waits.questions(), state.output)
    return found


def exported(store: Store, *names: str) -> bytes:
    file = io.BytesIO()
    perdure.Client(store).export(file, *names)
    return file.getvalue()


def imported(store: Store, archive: bytes, **options: Any) -> Imported:
    return perdure.Client(store).import_archive(io.BytesIO(archive), **{"by": "eve", **options})


def refused(archive: bytes, **options: Any) -> str:
    """Why an archive is not taken. Nothing was written."""
    backend = memory()
    store = MemoryStore(backend)
    try:
        imported(store, archive, **options)
    except PerdureError as error:
        assert not backend.runs and not backend.blobs, "something was written"
        return str(error)
    raise AssertionError("it was taken")


def moved(lines: Sequence[bytes], key: RunKey, posts: Sequence[bytes]) -> State:
    """The state of a journal with its posts taken."""
    state = fold(key, lines)
    for entry in inbox.moved(state, posts[state.posts :]):
        entry.seq, entry.at = state.seq + 1, state.updated
        state.apply(entry)
    return state
