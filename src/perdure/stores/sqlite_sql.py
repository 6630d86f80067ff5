"""How a batch is one statement, whatever it has of runs and records.

Each statement gives up the interpreter's lock, and gets it back up to 5 ms later while a flow computes; a transaction
of six was late that often, and the device idle meanwhile. So a batch is inserted into a view of the connection, whose
trigger does in SQLite what there is to do for each row: in one statement, which is all or nothing, and begins with the
write lock where there is no transaction around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

from perdure.framing import FRAME
from perdure.limits import MAX_RECORD

COLUMNS: Final = "run seq record epoch owner last status meta grown begun flow queue priority taken wake".split()
NOTED: Final = 6
"""the last so many of them are looked for and hardly ever change: to write what an index has costs another page"""
FENCED: Final = "perdure: fenced"
"""what the trigger says of a row whose lease is not current, or whose record is not the next one"""
MOST: Final = 256 * len(COLUMNS)
"""values that go with one statement"""
BATCHES: Final = f"""
CREATE TEMP VIEW perdure_batch ({", ".join(COLUMNS)}) AS SELECT {", ".join(["NULL"] * len(COLUMNS))};

-- The first row of a run has an epoch, and moves the run on by all its records. Where nothing is looked for that has
-- changed, begun is NULL; where there is no record, that is.
CREATE TEMP TRIGGER perdure_append INSTEAD OF INSERT ON perdure_batch WHEN NEW.run IS NOT NULL BEGIN
    UPDATE perdure_runs SET seq = NEW.last, status = NEW.status, meta = NEW.meta, size = size + NEW.grown
    WHERE run = NEW.run AND epoch = NEW.epoch AND owner = NEW.owner AND seq = NEW.seq - 1;
    SELECT raise(ABORT, '{FENCED}') WHERE NEW.epoch IS NOT NULL AND changes() IS NOT 1;
    UPDATE perdure_runs SET begun = NEW.begun, flow = NEW.flow, queue = NEW.queue, priority = NEW.priority,
        taken = NEW.taken, wake = NEW.wake
    WHERE run = NEW.run AND NEW.begun IS NOT NULL;
    INSERT INTO perdure_journal SELECT NEW.run, NEW.seq, NEW.record WHERE NEW.record IS NOT NULL;
END;
"""


def statements(values: list[int | float | str | bytes | None]) -> Iterator[tuple[str, Sequence[object]]]:
    """The values of a batch's rows, one row after the other, as statements. Rows of nothing make the number of rows a
    power of two, so that there are few statements to be kept prepared."""
    for at in range(0, len(values), MOST):
        some = values[at : at + MOST]
        rows = 1 << (len(some) // len(COLUMNS) - 1).bit_length()
        yield _insert(rows), some + [None] * (rows * len(COLUMNS) - len(some))


_ROW: Final = f"({','.join('?' * len(COLUMNS))})"


@cache
def _insert(rows: int) -> str:
    return f"INSERT INTO perdure_batch VALUES {','.join([_ROW] * rows)}"


def bounded(column: str, most: int = 0) -> str:
    """A column whose content (by default a record) is not even looked at if it is too large: it is empty then."""
    return f"CASE WHEN length({column}) <= {most or MAX_RECORD + FRAME} THEN {column} ELSE '' END"
