"""One job on one store: lives of it in child processes, and the verdict on what each has left."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from crash_crew import CREWS, expected
from crash_judge import judge, judge_shape
from crash_zygote import Ended, Zygote

STORES = ("file", "sqlite")
JOBS = ("async", "graph", "agent")
"""a crew, a graph and an agent, for the matrices of which each is worth one"""


def by_turns(first: Iterable[str], *others: Iterable[str]) -> list[Any]:
    """Parameters: all combinations. The usual run (rel:X3) has each value of the first once, with those of the others
    by turns; the rest is for the long one."""
    combined = list(product(*others))
    return [
        pytest.param(value, *rest, marks=[] if turn % len(combined) == place else pytest.mark.long)
        for turn, value in enumerate(first)
        for place, rest in enumerate(combined)
    ]


def sampled(*cases: tuple[object, ...]) -> list[Any]:
    """Parameters: of each case every n-th point in the usual run, n being its last part; all points in the long one."""
    return [*cases, *(pytest.param(*case[:-1], 1, marks=pytest.mark.long) for case in cases)]


class Case:
    """Kills, faults and power cuts of one job on one store, each in a folder of its own."""

    def __init__(self, zygote: Zygote, place: Path, store: str, job: str) -> None:
        self.zygote, self.place, self.store, self.job = zygote, place, store, job
        self._whole: dict[str, Any] = {}
        if job not in CREWS:
            self._whole = self.run("resume", place / f"whole-{job}", 1).value
            assert self._whole["warnings"] == []

    def __str__(self) -> str:
        return f"{self.job} on {self.store}"

    def run(self, function: str, root: Path, life: int, of: str = "crash_jobs", **more: Any) -> Ended:
        """A life in which something of crash_jobs happens, or of another module."""
        return self.zygote.run(f"{of}:{function}", root=str(root), store=self.store, job=self.job, life=life, **more)

    def judge(self, root: Path, life: int, ended: Sequence[str] = ()) -> dict[str, Any]:
        """Resume after life number ``life``, in a process to which nothing happens, and judge. What was left.
        ``ended``: what that life may have recorded as its end, besides that the run was completed."""
        found = self.run("resume", root, life + 1).value
        before: dict[str, Any] = found["before"]
        assert set(before["statuses"]) <= {"", "crashed", "completed", *ended}, before["statuses"]
        if self.job in CREWS:
            judge(root, found, life)
        else:
            judge_shape(root, found, self._whole, life)
        return before

    def result(self) -> str:
        """What the job gives when nothing happens to it."""
        return str(self._whole["result"]) if self._whole else expected()

    @contextmanager
    def folder(self, name: object, what: str) -> Iterator[Path]:
        """A folder for lives of one point. What is wrong is told with ``what`` was done to them."""
        root = self.place / str(name)
        try:
            yield root
        except AssertionError as error:
            raise AssertionError(f"{self}, {what}: {error}") from error
        finally:
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(f"{root}.copy", ignore_errors=True)
            Path(f"{root}.witness").unlink(missing_ok=True)
