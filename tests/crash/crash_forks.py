"""A run, whoever forks it and dies in that, and whoever goes on after him; each in a process of its own."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import crash_crew as crew
import crash_spy as spy
import msgspec
from crash_lives import KillingStore, url

import perdure
from perdure import codec
from perdure.errors import LeaseHeld, RunSuspended
from perdure.model import RunKey
from perdure.runtime import sender
from perdure.runtime.audit import Auditor
from perdure.stores import open_store
from perdure.stores.base import Store
from perdure.stores.findings import Copies

LARGE = 6000
KEY = RunKey("letter")


@perdure.step
def text(name: str, tone: str = "") -> str:
    return crew.token(name) + tone + name * LARGE


@perdure.flow
def letter(tone: str) -> list[str]:
    parts = [text(name) for name in ("one", "two", "three")]
    said = perdure.ask("Send it?")
    return [part[-3:] for part in parts] + [text("end", tone)[-3:], tone, said]


def place(root: str, store: str) -> str:
    return store if "://" in store else str(url(root, store))


def prepare(root: str, store: str) -> int:
    """A run that has ended; returns how many entries it has."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", 0)
    with perdure.CheckpointManager(place(root, store)) as manager, perdure.Client(place(root, store)) as client:
        try:
            manager.run_sync(letter, "plain", goal=KEY.goal)
        except RunSuspended:
            client.answer(KEY.goal, None, "yes", by="ann")
        manager.run_sync(letter, "plain", goal=KEY.goal)
        return len(client.entries(KEY.goal))


def forked(root: str, store: str, at: int, when: str, verbs: bool = False, record: bool = False) -> int:
    """Somebody forks the run, and dies at change ``at`` of a file, or (``verbs``) of the store; or all changes are
    recorded. Returns how many there are."""
    crew.listen(f"{root}.witness", 1)
    spying: Any = KillingStore(open_store(place(root, store), create=False), at, when, posts=True) if verbs else None
    if spying is None:

        def plan(number: int, op: spy.Op) -> spy.Verdict:
            if number != at or (when == "torn" and op.kind != "write"):
                return None
            return when

        spying = spy.install(Path(root), plan)
        crew.timeline.note = spying.mark
    with perdure.Client(spying if verbs else place(root, store)) as client:
        _fork(client)
        crew.say("acknowledged", "fork")
    if record:
        Path(f"{root}.ops").write_bytes(msgspec.msgpack.encode(spying.ops))
    return int(spying.count)


def _fork(client: perdure.Client) -> str:
    sender._BLOBS_AT_ONCE = 2 * LARGE  # type: ignore[misc]  # so that they go ahead of the records
    changes: dict[str, Any] = {"inputs": {"tone": "kind"}, "outputs": {"2": "x" * LARGE + "new"}}
    return str(client.fork(f"{KEY}", answers={"ask": "no"}, by="bob", **changes).key)


def look(root: str, store: str) -> dict[str, Any]:
    """What there is, what is wrong with it, and what is left to say after a repair."""
    opened = open_store(place(root, store), create=False)
    try:
        if opened.capabilities.lease < inf:
            _wait_for_the_dead(opened)
        found = [(finding.level, finding.what) for finding in Auditor(opened).everything()]
        keep = Copies(Path(f"{root}.copies"))
        for _ in range(2):  # what is left of a claim, then the run that nobody has begun
            list(Auditor(opened, keep=keep).everything())
        return {
            "runs": [str(row.key) for row in opened.runs()],
            "records": [line.decode() for line in opened.read(KEY)],
            "found": found,
            "left": [finding.what for finding in Auditor(opened).everything() if finding.level != "note"],
        }
    finally:
        opened.close()


def _wait_for_the_dead(store: Store) -> None:
    """On a server nobody knows that he is dead before his lease has ended."""
    while True:
        with suppress(LeaseHeld):
            return store.release(store.claim(RunKey(KEY.goal, 1)))


def finish(root: str, store: str) -> dict[str, Any]:
    """The fork, made if need be, goes on to its end; and both are what they should be."""
    crew.listen(f"{root}.witness", 2)
    with perdure.Client(place(root, store)) as client:
        there = [str(row.key) for row in client.runs(KEY.goal)][1:]
        name = there[0] if there else _fork(client)
        with perdure.CheckpointManager(place(root, store)) as manager:
            done = {str(key): status for key, status in manager.recover(letter).items()}
        state = client.state(name)
        assert state.output is not None
        original = client.state(f"{KEY}").output
        assert original is not None
        wrong = [finding.what for finding in Auditor(client._store).everything() if finding.level == "damage"]
        return {
            "there": bool(there),
            "done": done,
            "name": name,
            "result": client.value(state.output),
            "original": codec.loads(original),
            "wrong": wrong,
        }
