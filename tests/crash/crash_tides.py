"""A small run, whose journal the tests of damage know by heart."""

from __future__ import annotations

import perdure
from perdure.model import RunKey

KEY = RunKey("tides")
executed: list[str] = []


@perdure.step
def measure(place: str) -> list[str]:
    executed.append(place)
    return [f"{place}: high", f"{place}: low"]


@perdure.flow
def tides() -> list[str]:
    return measure("quay") + measure("bar") + perdure.gather(lambda: measure("reef"), lambda: measure("bay"))[0]


RESULT = ["quay: high", "quay: low", "bar: high", "bar: low", "reef: high", "reef: low"]
PLACES = {"quay", "bar", "reef", "bay"}
