"""Statements of the SQLite store for any number of runs and records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, TypeVar

from perdure.framing import FRAME
from perdure.limits import MAX_RECORD

_T = TypeVar("_T")


def chunks(items: Sequence[_T], width: int) -> Iterator[Sequence[_T]]:
    """The items of rows of so many, in parts whose lengths are powers of two: few statements for any number of rows,
    and few kinds of statements.

    Few statements matter because each gives up the interpreter's lock, and gets it back late while a flow computes.
    """
    at, rows = 0, len(items) // width
    while at < rows:
        size = min(1 << ((rows - at).bit_length() - 1), 128)
        yield items[at * width : (at + size) * width]
        at += size


def bounded(column: str, most: int = 0) -> str:
    """A column whose content (by default a record) is not even looked at if it is too large: it is empty then."""
    return f"CASE WHEN length({column}) <= {most or MAX_RECORD + FRAME} THEN {column} ELSE '' END"


@cache
def advance_sql(rows: int) -> str:
    places = ",".join(["(?,?,?,?,?,?,?,?)"] * rows)
    return (
        f"WITH new(run, epoch, owner, seq, last, status, meta, grown) AS (VALUES {places}) "
        "UPDATE perdure_runs AS r SET seq = new.last, status = new.status, meta = new.meta, size = size + new.grown "
        "FROM new WHERE r.run = new.run AND r.epoch = new.epoch AND r.owner = new.owner AND r.seq = new.seq"
    )


@cache
def insert_sql(rows: int) -> str:
    return f"INSERT INTO perdure_journal VALUES {','.join(['(?,?,?)'] * rows)}"


_FEW: Final = 4
"""records that go with one call"""
APPEND_ONE: Final = {
    count: "BEGIN IMMEDIATE; "
    "UPDATE perdure_runs SET seq = ?5, status = ?6, meta = ?7, size = size + ?8 "
    "WHERE run = ?1 AND epoch = ?2 AND owner = ?3 AND seq = ?4; "
    f"INSERT INTO perdure_journal SELECT * FROM (VALUES {','.join(['(?,?,?)'] * count)}) WHERE changes() = 1; "
    "COMMIT"
    for count in range(1, _FEW + 1)
}
