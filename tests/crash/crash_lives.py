"""A life of the crew, in a child of the zygote, and what can be seen of what one has left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_crew as crew
import crash_spy as spy
import crash_twins as twins
import msgspec

import perdure
from perdure import codec, errors
from perdure.runtime.outputs import Outputs
from perdure.stores import disk

GOAL = "paper-17"
_NOTHING: dict[str, Any] = {"status": "", "steps": {}, "lives": 0, "statuses": [""]}


def url(root: str, store: str) -> Any:
    """Where a store is; of a known-bad twin, the twin itself."""
    if store in twins.STORES:
        return twins.STORES[store](Path(root))
    return f"file:{root}/store" if store == "file" else f"sqlite:{root}/runs.db"


def _config(root: str, store: str) -> perdure.CheckpointConfig:
    return perdure.CheckpointConfig(outputs=None if store == "file" else f"{root}/outputs")


def run(root: str, store: str, colour: str, opened: Any = None) -> str:
    return str(
        perdure.run(
            crew.CREWS[colour],
            path="paper.md",
            goal=GOAL,
            store=opened or url(root, store),
            config=_config(root, store),
        )
    )


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


def look(root: str, store: str) -> dict[str, Any]:
    """What a client sees: status, and every step's. Raises if anything is inconsistent."""
    try:
        client = perdure.Client(url(root, store))
    except errors.ConfigError:
        return dict(_NOTHING)
    with client:
        rows = client.runs()
        if not rows:
            return dict(_NOTHING)
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
        return {"status": state.status, "steps": steps, "lives": state.lives, "statuses": [state.status]}


def _outputs(root: str, store: str, state: Any) -> Outputs:
    name = disk.run_folder_name(state.key)
    return Outputs(Path(root) / ("store/runs" if store == "file" else "outputs") / name / _below(store))


def _below(store: str) -> str:
    return "outputs" if store == "file" else ""


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
    before = dict(_NOTHING)
    if os.path.isdir(root):
        shutil.copytree(root, copy)
        before = look(copy, store)
        shutil.rmtree(copy)
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    result = run(root, store, colour)
    again = run(root, store, colour)  # rel:R3
    return {"before": before, "result": result, "again": again, "after": look(root, store)}
