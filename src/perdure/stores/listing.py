"""What ``Which`` means in SQL: the same for every store whose runs are rows of a table."""

from __future__ import annotations

from typing import Any

from perdure.stores.base import Which


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
