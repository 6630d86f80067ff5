"""What must hold, once: every aim is a ratio of two things that were measured in one run, and a bound for it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bench.cast import Contender, ours, perdure, raw
from bench.peers_cast import PEERS
from bench.workload import Row, Table, over

Tables = Mapping[str, Table]
Measured = Callable[[Tables], "list[float]"]
"""the ratio, round by round; nothing if it was not measured"""


class Aim(NamedTuple):
    workload: str
    what: str
    bound: float
    measured: Measured
    at_most: bool = False
    unit: str = ""

    def judged(self, tables: Tables) -> Verdict | None:
        """None if nothing was measured that could be judged."""
        values = self.measured(tables)
        if not values:
            return None
        median = statistics.median(values)
        return Verdict(median, min(values), max(values), median <= self.bound if self.at_most else median >= self.bound)


class Verdict(NamedTuple):
    median: float
    least: float
    most: float
    met: bool


def _only(table: Table, contender: Contender) -> Row | None:
    """The row of a contender that has one size."""
    return next((row for row in table.samples if row[0] == contender.name), None)


def _faster(workload: str, one: Contender, other: Contender) -> Measured:
    """How many times as fast one is as the other."""

    def measured(tables: Tables) -> list[float]:
        table = tables.get(workload, Table())
        rows = _only(table, one), _only(table, other)
        return table.ratios(rows[0], rows[1], "per_second") if rows[0] and rows[1] else []

    return measured


def _best_peer(workload: str, one: Contender) -> Measured:
    """How many times as fast one is as the fastest durable peer on the same kind of store."""

    def measured(tables: Tables) -> list[float]:
        durable = [p.contender for p in PEERS if p.contender.durable and p.contender.store == one.store]
        found = [ratios for peer in durable if (ratios := _faster(workload, one, peer)(tables))]
        return min(found, key=statistics.median, default=[])

    return measured


def _figure(workload: str, one: Contender, key: str, size: int = -1, over_key: str = "") -> Measured:
    """A figure, of the ``size``-th size (the last: -1); over another figure of the same sample, if one is named."""

    def measured(tables: Tables) -> list[float]:
        table = tables.get(workload, Table())
        row = _sized(table, one, size)
        values = table.values(row, key) if row else []
        if over_key and row:
            return over(values, table.values(row, over_key))
        return [value for value in values if value is not None]

    return measured


def _growth(workload: str, one: Contender, key: str, large: int, small: int) -> Measured:
    """A figure of one size over that of another; sizes are counted in their order, from the end if negative."""

    def measured(tables: Tables) -> list[float]:
        table = tables.get(workload, Table())
        rows = _sized(table, one, large), _sized(table, one, small)
        return table.ratios(rows[0], rows[1], key) if rows[0] and rows[1] and rows[0] != rows[1] else []

    return measured


def _sized(table: Table, contender: Contender, place: int) -> Row | None:
    sizes = sorted(size for name, size in table.samples if name == contender.name)
    return (contender.name, sizes[place]) if -len(sizes) <= place < len(sizes) else None


def _w1() -> list[Aim]:
    bounds = {
        ("sqlite", "strict", "sync"): 0.45,
        ("sqlite", "strict", "async"): 0.33,
        ("sqlite", "pipelined", "sync"): 0.8,
        ("sqlite", "pipelined", "async"): 0.65,
        ("file", "pipelined", "sync"): 0.8,
        ("postgresql", "strict", "sync"): 0.2,
        ("postgresql", "pipelined", "sync"): 0.35,
        ("valkey", "strict", "sync"): 0.2,
        ("valkey", "pipelined", "sync"): 0.35,
    }
    aims = [
        Aim("W1", f"{', '.join(of)}: steps over raw commits", bound, _faster("W1", ours(*of), raw(of[0])))
        for of, bound in bounds.items()
    ]
    return aims + [
        Aim("W1", f"{store}, strict, sync: over the best durable peer", 1.0, _best_peer("W1", ours(store)))
        for store in ("sqlite", "postgresql")
    ]


def _w3() -> list[Aim]:
    many = {store: perdure(store) for store in ("sqlite", "postgresql", "valkey")}
    return [
        Aim("W3", "sqlite: steps over raw single commits", 3.0, _faster("W3", many["sqlite"], raw("sqlite"))),
        Aim("W3", "postgresql: the same", 1.5, _faster("W3", many["postgresql"], raw("postgresql"))),
        Aim("W3", "valkey: the same", 1.5, _faster("W3", many["valkey"], raw("valkey"))),
        Aim("W3", "sqlite: over the best durable peer", 15.0, _best_peer("W3", many["sqlite"])),
        Aim("W3", "postgresql: over the best durable peer", 4.0, _best_peer("W3", many["postgresql"])),
    ]


def _w4() -> list[Aim]:
    aims = []
    for shape in ("flow", "agent", "summarising agent"):
        one = perdure("sqlite", shape=shape)
        for place, (steps, bound) in enumerate([("10,000", 0.25), ("100,000", 0.5)], 1):
            measured = _figure("W4", one, "over", place)
            aims.append(Aim("W4", f"sqlite, {shape}: {steps} steps", bound, measured, at_most=True, unit=" s"))
    return aims


def _w6() -> list[Aim]:
    queries = {"page": "list 100", "due": "due", "claim": "claim 10", "deadline": "next deadline"}
    return [
        Aim(
            "W6",
            f"{store}, {what}: 100,000 runs over 1,000",
            2.0,
            _growth("W6", perdure(store), key, -1, 0),
            at_most=True,
        )
        for store in ("sqlite", "postgresql")
        for key, what in queries.items()
    ]


_AGENT = perdure("sqlite")
AIMS: Sequence[Aim] = (
    Aim("W0", "import", 60.0, _figure("W0", perdure("(none)"), "milliseconds"), at_most=True, unit=" ms"),
    *_w1(),
    Aim("W2", "sqlite: bytes over payload", 1.5, _figure("W2", _AGENT, "bytes", over_key="payload"), at_most=True),
    Aim("W2", "sqlite: time of 2,000 steps over 1,000", 2.2, _growth("W2", _AGENT, "seconds", 2, 1), at_most=True),
    *_w3(),
    *_w4(),
    *(
        Aim(
            "W5",
            f"{colour}: microseconds a step",
            15.0,
            _figure("W5", perdure("(none)", colour=colour), "microseconds"),
            at_most=True,
            unit=" us",
        )
        for colour in ("sync", "async")
    ),
    *_w6(),
)
