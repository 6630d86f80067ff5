"""Reconstructed power cuts of one recorded run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from crash_cases import Case
from crash_image import Image
from crash_spy import Op
from crash_zygote import Zygote


class Plug(Case):
    """Pulls the plug of one recorded run at chosen moments."""

    def __init__(self, zygote: Zygote, place: Path, store: str, job: str, drop: Iterable[str] = ()) -> None:
        super().__init__(zygote, place, store, job)
        self.ops = self.record(place / "recorded", 1, drop)
        assert len(self.ops) > 60, "the recording has gone blind"
        self.cuts = 0

    def record(self, root: Path, life: int, drop: Iterable[str] = ()) -> list[Op]:
        ended = self.run("recorded", root, life, drop=list(drop))
        assert ended.value, "the recording has gone blind"
        return msgspec.msgpack.decode(Path(f"{root}.ops").read_bytes(), type=list[Op])

    def pull(self, seeds: int, chosen: Callable[[int], bool] = lambda at: True) -> None:
        """A power cut after every chosen change, ``seeds`` different ones each; resume, judge."""
        image = Image()
        for at, op in enumerate(self.ops, 1):
            image.apply(op)
            for seed in range(seeds) if chosen(at) else ():
                self._pull(image, at, f"{self} {at} {seed}")

    def _pull(self, image: Image, at: int, seed: str) -> None:
        what = f"seed {seed!r}, power cut after {at} changes ({self.ops[at - 1]})"
        with self.folder("cut", what) as root:
            image.cut(root, seed)
            _witness(root, 1, self.ops[:at])
            self.judge(root, 1)
            self.cuts += 1

    def pull_twice(self, at: int, dice: random.Random) -> None:
        """A power cut after change ``at``, and another somewhere in the recovery."""
        seed = f"{self} {at} {dice.random()}"
        image = Image()
        for op in self.ops[:at]:
            image.apply(op)
        what = f"seed {seed!r}, second power cut"
        with self.folder("first", what) as first, self.folder("second", what) as second:
            image.cut(first, seed)
            _witness(first, 1, self.ops[:at])
            again = Image(first)
            ops = self.record(first, 2)
            stop = dice.randint(1, len(ops))
            for op in ops[:stop]:
                again.apply(op)
            again.cut(second, seed)
            _witness(second, 1, self.ops[:at])
            _witness(second, 2, ops[:stop])
            self.judge(second, 2)
            self.cuts += 1


def _witness(root: Path, life: int, ops: Iterable[Op]) -> None:
    """What the flow had been told by then."""
    with Path(f"{root}.witness").open("a") as file:
        file.writelines(f"{life} {op.path}\n" for op in ops if op.kind == "mark")
