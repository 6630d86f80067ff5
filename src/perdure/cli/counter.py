"""How far long work is, on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import click

from perdure.clock import SYSTEM

_PAUSE = 0.2
"""seconds between two signs of life"""


class Counter:
    """A line on standard error that says how much has been done; nothing where nobody looks. A context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._shows = sys.stderr.isatty() and not quiet
        self._next = SYSTEM.monotonic() + _PAUSE
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the line away, for something else to be said."""
        self._say("")

    def __call__(self, text: str) -> None:
        if self._shows and SYSTEM.monotonic() >= self._next:
            self._next = SYSTEM.monotonic() + _PAUSE
            self._say(text)

    def _say(self, text: str) -> None:
        if self._width or text:
            click.echo(f"\r{text:{self._width}}\r", nl=False, err=True)
        self._width = len(text)
