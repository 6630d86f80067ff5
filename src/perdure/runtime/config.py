"""Settings of a manager, checked when they are made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from perdure.errors import ConfigError
from perdure.model import Question
from perdure.redaction import Redaction
from perdure.secret import Resolver

DEFAULT_STORE: Final = "sqlite:.perdure/runs.db"
Durability = Literal["strict", "pipelined", "async", "exit"]
StoreFailure = Literal["stop", "degrade"]
Nondeterminism = Literal["warn", "raise"]


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """How runs of a manager are kept. Raises ConfigError naming the field (G2).

    - ``durability``: "strict" waits for the device when a step starts and when it completes; "pipelined" lets
      ``completed`` share the wait of the next thing that could observe it (a crash in between repeats one step);
      "async" waits for nothing until the run ends; "exit" writes when the run stops.
    - ``store_failure``: "stop" (nothing runs without its record) or "degrade" (go on without durability, with a
      warning).
    - ``nondeterminism``: "warn" and execute, or "raise", when a step is asked for with inputs that no record has.
    - ``on_question``: functions, sync or async, that tell people of a question (by mail, chat, a webhook). Each is
      called at least once when the question is durable; repeats have the same ``Question.id``. One that fails is
      called again some times, and never stops the run.
    - ``crash_limit``: how often in a row one step, or a run that completes nothing in between, may take its process
      down before the run is paused, with the step named, instead of being executed once more.
    - ``secrets``: a function from the name of a ``Secret`` to its value, where a record has no more than the name: a
      worker asks it before it goes on with a run. It decides which names there are; stored data chooses among these.
    - ``redact``: what is kept out of recorded values, besides Secrets. Texts for people need no rule.
    - ``keep_code``: the text of the code of steps is kept with each run, without what looks like a secret, so that
      ``explain`` can show how it has changed. (Its digest always is.)
    - ``outputs``: a folder in which every completed step's output is kept as a file of its own, with any store.
    """

    durability: Durability = "strict"
    store_failure: StoreFailure = "stop"
    nondeterminism: Nondeterminism = "warn"
    crash_limit: int = 5
    outputs: str | Path | None = None
    on_question: tuple[Callable[[Question], object], ...] = ()
    secrets: Resolver | None = None
    redact: Redaction | None = None
    keep_code: bool = True

    def __post_init__(self) -> None:
        for field, allowed in (
            ("durability", get_args(Durability)),
            ("store_failure", get_args(StoreFailure)),
            ("nondeterminism", get_args(Nondeterminism)),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ConfigError(f"{field} must be one of {', '.join(map(repr, allowed))}, not {value!r}.")
        if not isinstance(self.crash_limit, int) or isinstance(self.crash_limit, bool) or self.crash_limit < 1:
            raise ConfigError(f"crash_limit must be a whole number from 1, not {self.crash_limit!r}.")
        if not isinstance(self.on_question, tuple) or not all(callable(hook) for hook in self.on_question):
            raise ConfigError(f"on_question must be a tuple of functions, not {self.on_question!r}.")
        if self.secrets is not None and not callable(self.secrets):
            raise ConfigError(
                f"secrets must be a function from names to values, not {type(self.secrets).__name__}.",
                hint="Of a dict, pass its get.",
            )
        if self.redact is not None and not isinstance(self.redact, Redaction):
            raise ConfigError(f"redact must be a Redaction, not {type(self.redact).__name__}.")
        if not isinstance(self.keep_code, bool):
            raise ConfigError(f"keep_code must be True or False, not {self.keep_code!r}.")
        if self.outputs is not None and not isinstance(self.outputs, str | Path):
            raise ConfigError(f"outputs must be a folder's path, not {self.outputs!r}.")


def default_store() -> str:
    """``PERDURE_STORE``, or an SQLite file below the working directory."""
    return os.environ.get("PERDURE_STORE") or DEFAULT_STORE
