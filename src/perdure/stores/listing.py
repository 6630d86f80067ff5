"""What ``Which`` means in SQL: the same for every store whose runs are rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from perdure.model import OWN, RunKey, RunMeta
from perdure.stores.base import Which
from perdure.stores.findings import Finding, empty_run


def selection(which: Which, table: str, free: str, mark: str) -> tuple[str, list[Any]]:
    """The conditions, order and limit of a listing, and the values for its ``mark``s.

    ``free`` is the condition that nobody holds a run. What is due, unread, held or begun has an index of its own each.
    """
    where, values = ["meta <> ''"], list[Any]()
    if which.goal is not None:
        where.append(f"goal = {mark}")
        values.append(which.goal)
    if which.due is not None:
        where.append(
            f"run IN (SELECT run FROM {table} WHERE wake > 0 AND wake <= {mark} "
            f"UNION ALL SELECT run FROM {table} WHERE posts > taken) AND {free}"
        )
        values.append(which.due)
    if which.later is not None:
        where.append(f"wake > 0 AND wake > {mark} AND {free}")
        values.append(which.later)
    if which.active is not None:
        where.append(
            f"run IN (SELECT run FROM {table} WHERE owner <> '' AND NOT ({free}) "
            f"UNION ALL SELECT run FROM {table} WHERE begun > 0 AND begun > {mark})"
        )
        values.append(which.active)
    if which.after is not None:
        where.append(f"(goal, episode) > ({mark}, {mark})")
        values += [which.after.goal, which.after.episode]
    for column, names in (("queue", which.queues), ("flow", which.flows)):
        if names:
            where.append(f"{column} IN ({','.join([mark] * len(names))})")
            values += names
    order = "goal, episode"
    if which.later is not None:
        order = f"wake, {order}"
    elif which.due is not None:
        order = f"priority DESC, wake, {order}"
    limit = f" LIMIT {which.limit:d}" if which.limit else ""
    return f"{' AND '.join(where)} ORDER BY {order}{limit}", values


COLUMNS: Final = "seq, status, taken, wake, begun, flow, queue, priority"
"""what a table of runs has of their rows in columns of its own, to look for"""


def odd_row(key: RunKey, posts: int, there: int, meta: str, *columns: object) -> Iterator[Finding]:
    """What is wrong with a row whose ``COLUMNS`` these are, and that says that its inbox has ``posts``."""
    if posts != there:
        what = f"run {key}: its inbox has {there} posts, and its row says {posts}."
        yield Finding(kind="inbox", what=what, run=key, place="row")
    try:
        row = msgspec.json.decode(meta, type=RunMeta)
    except msgspec.DecodeError:  # a row that cannot be read is not what its journal says either
        return
    expected = (row.seq, row.status, row.posts, row.wake, row.begun, row.flow, row.queue, row.priority)
    odd = [name for name, one, other in zip(COLUMNS.split(", "), columns, expected, strict=True) if one != other]
    if odd:
        what = f"run {key}: columns of its row do not say what the row does: {', '.join(odd)}."
        yield Finding(kind="row_differs", what=what, run=key, place="columns")


def empty_row(key: RunKey, seq: int) -> Iterator[Finding]:
    """What is wrong with a run without a row, that nobody who lives has claimed."""
    if seq:
        what = f"run {key}: it has {seq} records and no row: no listing shows it."
        yield Finding(kind="row_differs", what=what, run=key, place="row")
    elif not key.goal.startswith(OWN):  # locks of queues have none
        yield empty_run(key)
