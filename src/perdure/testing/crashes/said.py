"""What a crash test's processes say to each other, one JSON object a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

GOAL: Final = "crashtest"
"""what the runs of a crash test are called; each has a store of its own"""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One life that the parent wants to be lived."""

    store: str
    witness: str
    log: str
    """where what the flow prints goes"""
    life: int
    at: int = 0
    """the durable point of this life at which to die; 0: at none"""
    when: str = ""
    """"before" or "after" it is durable"""
    ahead: float = 0.0
    """seconds by which its clock is ahead"""
    durability: str = "strict"
    timeout: float
    look: bool = False
    """tell digests of all outputs in the end"""


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A server has loaded the flow, or says why it cannot."""

    flow: str = ""
    forks: bool = True
    """it takes any number of orders; else one, and it ends with it"""
    error: str = ""
    hint: str = ""


class Gone(msgspec.Struct, frozen=True):
    """A life has ended: its exit code, or the negative number of the signal that it died of."""

    status: int


class Said(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of what lives write down."""

    life: int = 0


class Point(Said, frozen=True, tag="point"):
    """A change of the store is next: the last record of it, by run, kind and step."""

    number: int
    run: str = ""
    entry: str = ""
    step: int = 0


class Died(Said, frozen=True, tag="died"):
    """It kills itself now, as it was told to. ``digest``: of the result that it was about to record, if it was."""

    when: str
    digest: str = ""
    head: str = ""


class Acknowledged(Said, frozen=True, tag="acknowledged"):
    """An observer was told that this record of a run is durable."""

    run: str
    seq: int


class Called(Said, frozen=True, tag="called"):
    """A step's body begins. ``run`` is empty where there is none around it, so that nothing of it is kept."""

    run: str
    step: int
    attempt: int
    name: str


class Effect(Said, frozen=True, tag="effect"):
    """The flow itself, outside of its steps, does something to the world."""

    event: str
    target: str
    file: str
    line: int
    function: str


class Ended(Said, frozen=True, tag="ended"):
    """A life has come to its end by itself."""

    outcome: str
    """"completed", "failed", "suspended" or "stopped" (it cannot go on by itself)"""
    digest: str = ""
    head: str = ""
    error: str = ""
    """type of what was raised"""
    message: str = ""
    place: str = ""
    """the line of the user's code that raised it"""
    until: float = 0.0
    """a suspended run: when it can go on by itself"""
    outputs: dict[str, str] = {}
    """digests of the outputs of steps, by what identifies these"""


Line: TypeAlias = Point | Died | Acknowledged | Called | Effect | Ended
_LINES = msgspec.json.Decoder(Line)
_ENCODER = msgspec.json.Encoder()


def encoded(message: msgspec.Struct) -> bytes:
    return _ENCODER.encode(message) + b"\n"


def read_lines(path: Path) -> list[Line]:
    """What lives have written down so far."""
    if not path.exists():
        return []
    return [_LINES.decode(line) for line in path.read_bytes().splitlines()]


class Witness:
    """The file that a life writes to: one write a line, so that whatever was said is there after SIGKILL."""

    def __init__(self, path: str, life: int) -> None:
        self.life = life
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(self, line: Line) -> None:
        os.write(self._fd, encoded(msgspec.structs.replace(line, life=self.life)))
