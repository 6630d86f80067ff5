"""The client: looks at runs and steers them from outside. It executes nothing; the command line uses only it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace

from perdure import codec, states
from perdure import journal as j
from perdure.clock import SYSTEM, Clock
from perdure.errors import FixError, RunNotFound
from perdure.fold import State, Step, fold
from perdure.journal import decode
from perdure.model import RunMeta
from perdure.runtime.config import default_store
from perdure.runtime.lives import pause
from perdure.runtime.outputs import Outputs, outputs_folder, readable
from perdure.stores import open_store
from perdure.stores.base import Store


class Client:
    """Lists, shows and stops runs of a store. Raises a FixError when there is no such store."""

    def __init__(self, store: str | Store | None = None, *, clock: Clock = SYSTEM) -> None:
        self._store = open_store(store if store is not None else default_store(), create=False)
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._store.close()

    @property
    def url(self) -> str:
        return self._store.url

    def runs(self, goal: str | None = None) -> list[RunMeta]:
        """A row for every run; one that nobody runs any more, and that did not end, has status "crashed" (B2)."""
        return [self._seen(row) for row in self._store.runs(goal)]

    def interrupted(self) -> list[RunMeta]:
        """Runs that were in flight and did not finish cleanly, and that nobody is running now."""
        return [row for row in self.runs() if row.holder is None and row.status in states.RUN_UNFINISHED]

    def find(self, name: str) -> RunMeta:
        """The run called ``name``: ``goal`` (its latest episode) or ``goal#episode``. Raises RunNotFound."""
        rows = self.runs(name)
        if rows:
            return rows[-1]
        goal, _, episode = name.rpartition("#")
        for row in self.runs(goal) if goal and episode.isdecimal() else ():
            if row.episode == int(episode):
                return row
        raise RunNotFound(f"There is no run {name!r} in {self.url}.", hint="List what there is: perdure ls")

    def state(self, name: str) -> State:
        """Everything the journal tells of a run. Steps of a dead process have status "crashed"."""
        row = self.find(name)
        state = fold(row.key, self._store.read(row.key))
        if row.status == states.CRASHED:
            state.status = states.CRASHED
            for step in state.steps.values():
                if step.status == states.RUNNING:
                    step.status = step.attempts[-1].outcome = states.CRASHED
        return state

    def entries(self, name: str, after: int = 0) -> list[j.Entry]:
        """Journal entries with sequence above ``after``, in order."""
        key = self.find(name).key
        return [decode(key, line, after + 1 + i) for i, line in enumerate(self._store.read(key, after))]

    def step(self, name: str, step: str) -> Step:
        """The step of a run with that number, name or path; the latest of several. Raises RunNotFound."""
        state = self.state(name)
        found = [s for s in state.steps.values() if step in (str(s.number), s.name, s.path)]
        if not found:
            names = ", ".join(dict.fromkeys(s.path for s in state.steps.values())) or "none yet"
            raise RunNotFound(f"run {state.key} has no step {step!r}.", hint=f"Its steps: {names}.")
        return max(found, key=lambda s: (not s.unused, s.number))

    def value(self, payload: codec.Payload) -> Any:
        """The decoded value of an output, input or progress."""
        return codec.loads(payload, self.blobs(payload))

    def blobs(self, payload: codec.Payload) -> dict[str, bytes]:
        """The blobs that a payload refers to."""
        return {digest: self._store.blob(digest) for digest in payload.refs}

    def readable(self, payload: codec.Payload) -> tuple[str, bytes]:
        """A value as people read it, and the suffix of its file: text (".md"), bytes (".bin"), else JSON (".json").

        Needs no type of the program that made the value.
        """
        return readable(payload, self.blobs(payload))

    def output_file(self, state: State, step: Step) -> Path | None:
        """The file in which the step's output stands, if there is one."""
        folder = outputs_folder(self._store, state)
        return Outputs(folder).find(step) if folder else None

    def pause(self, name: str, *, by: str, reason: str = "") -> None:
        """Stop a run that nobody is running, until a person lets it go on (B9). Raises LeaseHeld, FixError."""
        key = self.find(name).key
        if self.find(name).status == states.COMPLETED:
            raise FixError(f"run {key} has completed; there is nothing to stop.")
        pause(self._store, self._clock, key, by, reason or "no reason given")

    def _seen(self, row: RunMeta) -> RunMeta:
        if row.status == states.RUNNING and row.holder is None:
            return replace(row, status=states.CRASHED)
        return row
