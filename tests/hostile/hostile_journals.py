"""Journals that nobody of ours wrote: real ones, changed here and there, framed as if they were sound.

Each is made from a number, so that a failure can be made again: ``mutated(seed)``.
"""

from __future__ import annotations

import copy
import json
import random
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from perdure.errors import Bug, PerdureError
from perdure.fold import State, fold
from perdure.framing import frame
from perdure.model import RunKey
from perdure.stores.memory import MemoryBackend, MemoryStore, _Run

KEY = RunKey("paper", 1)
REAL: Sequence[list[dict[str, Any]]] = [
    [json.loads(line)["entry"] for line in path.read_text().splitlines()]
    for path in sorted((Path(__file__).parents[1] / "journals").glob("*.jsonl"))
]
"""journals that runs have left: crews, agents, waiting ones, submitted ones; every kind of entry is among them"""
ENTRIES = [entry for journal in REAL for entry in journal]

RAW = {"<deep>": "[" * 5000 + "]" * 5000, "<huge>": "1" * 5000, "<exp>": "1e999", "<half>": '"\\ud800"', "<nan>": "NaN"}
"""JSON that no value of Python gives"""
NUMBERS = [0, 1, 2, 3, -1, 2**31, 2**53, 2**63, 2**64, 10**30, 1e308, -1e308, 1e18, 0.5]
TEXTS = [
    "",
    "a",
    "a/b",
    "x#0",
    "#",
    "x#\u0663",
    "x#" + "9" * 5000,
    "\0",
    "\x1b]0;x\x07",
    "a/" * 20_000,
    "../../x",
    "/etc",
]
PARTS = [None, True, [], {}, ["x"], {"a": 1}, {"$ref": "#"}, {"type": 5}, {"pattern": "("}, {"enum": 5}, {"anyOf": 1}]
MESSAGES = [
    {"role": "assistant", "tool_calls": said}
    for said in (1, [1], ["x"], [{"function": 1}], [{"function": {}}], [{"function": {"name": [], "arguments": 1.5}}])
]
PAYLOADS = [
    {"value": 1},
    {"codec": 2, "value": 1},
    {"whole": True},
    {"whole": True, "refs": ["x"]},
    {"refs": ["../../x"], "value": 1},
    {"value": {"~": "data", "type": "os:system", "fields": {}}},
    *({"value": raw} for raw in RAW),
    *({"value": message} for message in MESSAGES),
]
VALUES: Sequence[Any] = [*NUMBERS, *TEXTS, *PARTS, *PAYLOADS, *RAW]


def mutated(seed: int) -> list[bytes]:
    """Records of run ``KEY`` that are well framed, and say what no run of ours has said."""
    rand = random.Random(seed)
    entries = copy.deepcopy(rand.choice(REAL))
    del entries[rand.choice((len(entries), rand.randint(1, len(entries)))) :]
    for _ in range(rand.choice((0, 1, 1, 1, 2, 3, 6))):
        rand.choices((_change, _add, _drop, _repeat, _bring, _swap), (11, 2, 2, 2, 2, 1))[0](rand, entries)
    for seq, entry in enumerate(entries, 1):
        entry["seq"] = seq
    return [frame(KEY, as_json(entry)) for entry in entries]


def as_json(value: object) -> bytes:
    text = json.dumps(value)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode()


def _change(rand: random.Random, entries: list[dict[str, Any]]) -> None:
    """Another value in some place: of the same place elsewhere, a little more or less, or anything."""
    places = [place for place in _places(rand.choice(entries)) if place[1] != "seq"] if entries else []
    if not places:
        return
    part, name = rand.choice(places)
    alike = [p[n] for p, n in _places(rand.choice(ENTRIES)) if n == name]
    if alike and rand.random() < 0.5:
        part[name] = copy.deepcopy(rand.choice(alike))
    elif isinstance(part[name], int) and rand.random() < 0.6:
        part[name] += rand.choice((-1, 1, 2, 1000))
    else:
        part[name] = copy.deepcopy(rand.choice(VALUES))


def _add(rand: random.Random, entries: list[dict[str, Any]]) -> None:
    names = ("new", "steps", "step", "post", "asked", "output", "until", "question", "value", "messages")
    if entries:
        rand.choice(entries)[rand.choice(names)] = copy.deepcopy(rand.choice(VALUES))


def _drop(rand: random.Random, entries: list[dict[str, Any]]) -> None:
    if len(entries) > 1:
        del entries[rand.randrange(len(entries))]


def _repeat(rand: random.Random, entries: list[dict[str, Any]]) -> None:
    place = rand.randrange(len(entries))
    entries.insert(place, copy.deepcopy(entries[place]))


def _bring(rand: random.Random, entries: list[dict[str, Any]]) -> None:
    entries.insert(rand.randrange(len(entries)), copy.deepcopy(rand.choice(ENTRIES)))


def _swap(rand: random.Random, entries: list[dict[str, Any]]) -> None:
    one, two = rand.randrange(len(entries)), rand.randrange(len(entries))
    entries[one], entries[two] = entries[two], entries[one]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree: what it is in, and its name there."""
    found: list[tuple[Any, Any]] = []
    for name in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, name), *_places(value[name])]
    return found


def planted(state: State, lines: list[bytes]) -> MemoryStore:
    """A store that has this journal, and a row as whoever wrote it would have left it."""
    backend = MemoryBackend()
    backend.runs[KEY] = _Run(records=lines, meta=state.meta())
    return MemoryStore(backend)


def sound(lines: list[bytes]) -> State | None:
    """The state that these tell, if they pass for a journal."""
    try:
        state = fold(KEY, lines)
    except PerdureError as error:
        assert str(KEY) in str(error), error
        return None
    return state if state.status is not None else None


class Judge:
    """Calls what must give a value or one of our errors, and soon; keeps what did not."""

    def __init__(self, patience: float = 1.0) -> None:
        self.faults: dict[str, object] = {}
        self.calls = self.values = 0
        self._patience = patience

    def __call__(self, name: str, seed: object, call: Callable[[], Any]) -> Any:
        self.calls += 1
        began, value = perf_counter(), None
        try:
            value = call()
            self.values += 1
        except Bug as error:
            self.faults[f"{name}: {error}"] = seed
        except PerdureError as error:
            assert str(error)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.faults[f"{name}: {type(error).__name__}: {error!s:.100} ({place.filename}:{place.lineno})"] = seed
        if perf_counter() - began > self._patience:
            self.faults[f"{name} takes long"] = seed
        return value

    def verdict(self) -> None:
        told = "\n".join(f"  {fault}, seed {seed!r}" for fault, seed in self.faults.items())
        assert not self.faults, f"{len(self.faults)} faults in {self.calls} calls:\n{told}"
