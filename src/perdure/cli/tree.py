"""``perdure ls --tree``: runs below those that they were forked from, or that began them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from perdure.model import RunMeta, head


class Branch(NamedTuple):
    """A run in its place."""

    row: RunMeta
    depth: int
    told: str
    """where it comes from, in words; "" if it was begun by itself"""


def tree(everything: Iterable[RunMeta], shows: Callable[[RunMeta], bool]) -> Iterator[Branch]:
    """The runs that ``shows`` lets through, each below its nearest one that is among them; what has none, or has lost
    it, stands at the top. Runs below one are in the order in which they were begun."""
    rows = {str(row.key): row for row in everything}
    below: dict[str, list[RunMeta]] = {}
    for row in filter(shows, rows.values()):
        above = _above(rows, row)
        while above is not None and not shows(above):
            above = _above(rows, above)
        below.setdefault("" if above is None else str(above.key), []).append(row)
    waiting = [(row, 0) for row in reversed(below.get("", ()))]
    while waiting:
        row, depth = waiting.pop()
        yield Branch(row, depth, _told(rows, row, bool(depth)))
        more = sorted(below.get(str(row.key), ()), key=lambda found: found.created, reverse=True)
        waiting += [(found, depth + 1) for found in more]


def _above(rows: dict[str, RunMeta], row: RunMeta) -> RunMeta | None:
    """The run that it comes from. One that is younger than it only has the name of that."""
    found = rows.get(row.forked.run if row.forked is not None else row.parent)
    return found if found is not None and (found.created, found.key) < (row.created, row.key) else None


def _told(rows: dict[str, RunMeta], row: RunMeta, inside: bool) -> str:
    above = _above(rows, row)
    if row.forked is None and not row.parent:
        return ""
    if above is not None and inside:
        return head(row.forked.place, 80) if row.forked is not None else "begun by it"
    said = f"forked from {row.forked}" if row.forked is not None else f"begun by {row.parent}"
    return head(said, 120) + ("" if above is not None else ", which is gone")
