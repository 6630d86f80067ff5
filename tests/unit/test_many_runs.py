"""A store of very many finished runs: ls and check take the same memory for any number of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from perdure import journal as j
from perdure.codec import dumps
from perdure.fold import State
from perdure.model import RunKey
from perdure.stores import disk, open_store
from perdure.stores.base import Append, Store

COMMAND = """
import re, sys
from perdure.cli import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(code, re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
"""
"""not by getrusage, which remembers the process that it was forked from"""
WORDS = (["check", "--json"], ["ls", "--json"], ["ls"])


def finished(store: Store, key: RunKey) -> Append:
    """A run of one step that has ended, all of it at once."""
    lease, state, payload = store.claim(key), State(key), dumps("done " * 40)[0]
    entries: Iterator[j.Entry] = iter(
        (
            j.RunBegan(run_id=f"{key}", flow="review", epoch=lease.epoch, pid=1, host="here"),
            j.StepStarted(step=1, name="review", fingerprint="f" * 32),
            j.StepCompleted(step=1, output=payload, seconds=1.0),
            j.RunCompleted(output=payload),
        )
    )
    records = []
    for entry in entries:
        entry.seq, entry.at = state.seq + 1, 1_800_000_000.0 + state.seq
        state.apply(entry)
        records.append(j.encode(key, entry))
    return Append(lease, 0, tuple(records), state.meta())


def fill(url: str, count: int) -> None:
    """Goals with a blank in them are no plain names: a file store has to read whose folder it is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sync", "sync_dir"):
            patch.setattr(disk, name, lambda *_: None)
        _fill(url, count)


def _fill(url: str, count: int) -> None:
    store = open_store(url)
    for first in range(0, count, 1000):
        batch = [finished(store, RunKey(f"paper {n // 3:06}", n % 3)) for n in range(first, min(first + 1000, count))]
        assert store.append(batch) == [None] * len(batch)
        for item in batch:
            store.release(item.lease)
    store.close()


def peak(url: str, words: list[str], count: int) -> int:
    """Kilobytes that the command took; what it says is right."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words, "--store", url], capture_output=True, check=True, timeout=3600
    )
    code, size = done.stderr.split()
    assert code == b"0"
    if words == ["check", "--json"]:
        told = json.loads(done.stdout)
        assert (told["findings"], told["counts"]["runs"], told["counts"]["records"]) == ([], count, 4 * count)
    else:
        said = [row["run"] for row in msgspec.json.decode(done.stdout)] if "--json" in words else None
        said = said or [line.rpartition(b"  completed")[0].strip().decode() for line in done.stdout.splitlines()[1:]]
        assert said == [f"paper {n // 3:06}#{n % 3}" for n in range(count)]
    return int(size)


def grown(url: str, commands: Sequence[list[str]], few: int, many: int) -> list[int]:
    """How many kilobytes more each command takes for many runs than for few."""
    sizes = []
    for count in (few, many):
        fill(f"{url}-{count}", count)
        sizes.append([peak(f"{url}-{count}", words, count) for words in commands])
    return [after - before for before, after in zip(*sizes, strict=True)]


def test_memory_does_not_grow_with_the_number_of_runs(tmp_path: Path) -> None:
    assert max(grown(f"sqlite:{tmp_path}/runs", WORDS[:2], 600, 3000)) < 3000, "a run is over 1 KB where it is kept"


@pytest.mark.long
@pytest.mark.parametrize(("kind", "few", "many"), [("sqlite", 1000, 100_000), ("file", 12_000, 40_000)])
def test_memory_is_the_same_for_a_hundred_thousand_runs(tmp_path: Path, kind: str, few: int, many: int) -> None:
    """A file store remembers up to 10,000 names, and is slow to fill."""
    assert max(grown(f"{kind}:{tmp_path}/runs", WORDS, few, many)) < 4000
