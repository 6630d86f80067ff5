"""What the children of the zygote do: live a life of the crew, or look at what one has left."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_crew as crew
import crash_spy as spy
import msgspec

import perdure
from perdure import codec, errors
from perdure.runtime.outputs import Outputs
from perdure.stores import disk, open_store

GOAL = "paper-17"


def url(root: str, store: str) -> str:
    return f"file:{root}/store" if store == "file" else f"sqlite:{root}/runs.db"


def _config(root: str, store: str) -> perdure.CheckpointConfig:
    return perdure.CheckpointConfig(outputs=f"{root}/outputs" if store == "sqlite" else None)


def _run(root: str, store: str, colour: str, opened: Any = None) -> str:
    return str(
        perdure.run(
            crew.CREWS[colour],
            path="paper.md",
            goal=GOAL,
            store=opened or url(root, store),
            config=_config(root, store),
        )
    )


def killed(root: str, store: str, colour: str, life: int, at: int, when: str) -> dict[str, Any]:
    """Run, and die at operation ``at`` (never, for 0). Returns what it did if it survived."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)

    def plan(number: int, op: spy.Op) -> spy.Verdict:
        if number != at or (when == "torn" and op.kind != "write"):
            return None
        return when

    spying = spy.install(Path(root), plan)
    result = _run(root, store, colour)
    return {"result": result, "points": spying.count, "kinds": Counter(op.kind for op in spying.ops)}


class KillingStore:
    """Dies before or after the n-th journal append; with ``posts`` also at posts and claims, which count as well."""

    def __init__(self, store: Any, at: int, when: str, posts: bool = False) -> None:
        self._store, self._at, self._when, self.count, self._posts = store, at, when, 0, posts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, batch: Any) -> Any:
        return self._counted(self._store.append, batch)

    def post(self, *args: Any) -> Any:
        return self._counted(self._store.post, *args) if self._posts else self._store.post(*args)

    def claim(self, *args: Any) -> Any:
        return self._counted(self._store.claim, *args) if self._posts else self._store.claim(*args)

    def release(self, *args: Any) -> Any:
        return self._counted(self._store.release, *args) if self._posts else self._store.release(*args)

    def _counted(self, verb: Callable[..., Any], *args: Any) -> Any:
        self.count += 1
        if self.count == self._at and self._when == "before":
            spy.die()
        results = verb(*args)
        if self.count == self._at and self._when == "after":
            spy.die()
        return results


def killed_at_append(root: str, store: str, colour: str, life: int, at: int, when: str) -> dict[str, Any]:
    """Run, and die at the journal append number ``at``."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    opened = KillingStore(open_store(url(root, store)), at, when)
    return {"result": _run(root, store, colour, opened), "points": opened.count}


def look(root: str, store: str) -> dict[str, Any]:
    """What a client sees: status, and every step's. Raises if anything is inconsistent."""
    try:
        client = perdure.Client(url(root, store))
    except errors.ConfigError:
        return {"status": "", "steps": {}, "lives": 0}
    with client:
        rows = client.runs()
        if not rows:
            return {"status": "", "steps": {}, "lives": 0}
        state = client.state(GOAL)
        assert [row.key for row in rows] == [state.key] and rows[0].status == state.status and rows[0].holder is None
        assert rows[0].seq == state.seq == len(client.entries(GOAL))
        folder = _outputs(root, store, state)
        steps = {}
        for step in state.steps.values():
            assert step.name not in steps, f"two steps {step.name}"
            value = client.value(step.output) if step.output is not None else None
            assert not step.recorded or _shown(folder, step) == value, f"the output file of {step.name}"
            steps[step.name] = {
                "status": step.status,
                "attempts": [attempt.outcome for attempt in step.attempts],
                "text": step.partial_text,
                "value": repr(value),
            }
        return {"status": state.status, "steps": steps, "lives": state.lives}


def _outputs(root: str, store: str, state: Any) -> Outputs:
    name = disk.run_folder_name(state.key)
    return Outputs(Path(root) / ("outputs" if store == "sqlite" else "store/runs") / name / _below(store))


def _below(store: str) -> str:
    return "" if store == "sqlite" else "outputs"


def _shown(folder: Outputs, step: Any) -> Any:
    """The value in a step's output file."""
    path = folder.find(step)
    assert path is not None, f"{step.name} has no output file"
    if path.suffix == ".md":
        return path.read_text()
    payload = codec.Payload(codec=codec.CODEC_VERSION, value=msgspec.Raw(path.read_bytes()))
    return codec.loads(payload, {})


def resume(root: str, store: str, colour: str, life: int) -> dict[str, Any]:
    """Look at a copy of what is left, then resume the run where it is, and look again."""
    copy = f"{root}.copy"
    before: dict[str, Any] = {"status": "", "steps": {}, "lives": 0}
    if os.path.isdir(root):
        shutil.copytree(root, copy)
        before = look(copy, store)
        shutil.rmtree(copy)
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    result = _run(root, store, colour)
    again = _run(root, store, colour)  # rel:R3
    return {"before": before, "result": result, "again": again, "after": look(root, store)}


def recorded(root: str, store: str, colour: str, life: int, drop: list[str]) -> int:
    """Run to the end, writing down every change in order and what was said. ``drop``: syncs that are forgotten."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)

    def plan(number: int, op: spy.Op) -> spy.Verdict:
        return "drop" if f"{op.kind} {os.path.relpath(op.path, root)}" in drop else None

    spying = spy.install(Path(root), plan)
    crew.mark = spying.mark
    _run(root, store, colour)
    Path(f"{root}.ops").write_bytes(msgspec.msgpack.encode(spying.ops))
    return spying.count


def faulted(root: str, store: str, colour: str, life: int, at: int, code: int, lasting: bool) -> dict[str, Any]:
    """Run while operation ``at`` (and, if ``lasting``, every later one) fails with the error ``code``."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)

    def plan(number: int, op: spy.Op) -> spy.Verdict:
        return code if number == at or (lasting and number > at) else None

    spying = spy.install(Path(root), plan)
    found: dict[str, Any] = {"result": None, "error": "", "broken": False}
    opened = None
    try:
        opened = open_store(url(root, store))
        found["result"] = _run(root, store, colour, opened)
    except Exception as error:
        found.update(error=type(error).__name__, message=str(error))
    if opened is not None:
        try:
            opened.runs()
        except errors.StoreError:
            found["broken"] = True
        except errors.ConfigError:  # closed in order
            pass
    failed = spying.failed
    found["failed"] = [failed.kind, os.path.relpath(failed.path, root)] if failed else None
    logs = ("journal.jsonl", "-wal")  # SQLite's own rollback writes and syncs the database file again, and rightly
    found["later"] = [
        str(op)
        for op in spying.ops[at - 1 :]
        if failed and op.kind in ("write", "sync") and op.path == found["failed"][1] and op.path.endswith(logs)
    ]
    return found
