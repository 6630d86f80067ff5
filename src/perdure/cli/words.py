"""Small pieces of text that every listing shares."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import click

from perdure.model import ErrorInfo, RunMeta, head, plain
from perdure.record import Step


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line. Much of what is printed was stored, by anybody: a terminal is not to obey it."""
    click.echo(plain(text), err=err, nl=nl)


def age(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


_LAST = 253370764800.0
"""the year 9999: somewhere the last day of that is the first of a year that dates do not have"""


def moment(at: float) -> str:
    """A time of the journal as ISO 8601 in the local zone; "" for none."""
    try:
        return datetime.fromtimestamp(min(at, _LAST), UTC).astimezone().isoformat(timespec="seconds") if at else ""
    except (ValueError, OverflowError, OSError):  # stored data may say anything
        return f"second {at:g}"


def error_text(error: ErrorInfo, width: int = 160) -> str:
    """A recorded error on one line, without the module of its type."""
    return head(str(ErrorInfo(error.type.rpartition(".")[2], error.message)), width)


def inputs_text(step: Step, width: int = 32) -> str:
    """The beginnings of a step's arguments: what tells steps of one name apart."""
    return head(", ".join(arg.head for arg in step.args), width)


def step_word(step: Step) -> str:
    """A step's state as people read it."""
    edited = f", edited by {head(step.edited, 40)}" if step.edited else ""
    return step.status + edited + (" (unused)" if step.unused else "")


def holder(row: RunMeta) -> str:
    """Who executes the run at this moment."""
    return f"pid {row.holder.pid} on {row.holder.host}" if row.holder else ""


def plain_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns aligned with blanks; nothing but text."""
    lines = [titles, *(tuple(" ".join(cell.split("\n")) for cell in row) for row in rows)]
    return aligned(lines, widths_of(lines))


def widths_of(lines: Sequence[tuple[str, ...]]) -> list[int]:
    """How wide each column of a table is."""
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def aligned(lines: Sequence[tuple[str, ...]], widths: Sequence[int]) -> str:
    """Lines of a table as text."""
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


SHOWN_LINES: Final = 40
"""of one diff, unless all are asked for"""
_COLOURS: Final = {"+": "green", "-": "red", "@": "cyan"}


def tell_diff(text: str, most: int | None) -> None:
    """Print a unified diff, with colours on a terminal: at most so many lines, and how many were left out."""
    lines = text.split("\n") if text else []
    for line in lines[:most]:
        colour = None if line.startswith(("---", "+++")) else _COLOURS.get(line[:1])
        click.echo(click.style(plain(line), fg=colour) if colour else plain(line))
    if most is not None and len(lines) > most:
        say(f"... {len(lines) - most:,} more lines; --full shows them")
