"""Commits that Ctrl-C does not break off."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the enums of ``signal``, which take as long as a commit
import sys
import threading
from signal import SIGINT
from types import FrameType
from typing import Any


class undisturbed:  # like the functions of contextlib
    """The block is not broken off by Ctrl-C, which has its effect when it ends. Of a commit that is broken off nobody
    knows what the store has."""

    __slots__ = ("_came", "_handler")

    def __enter__(self) -> None:
        self._came: FrameType | None = None
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():  # no other is disturbed
            handler = _signal.getsignal(SIGINT)
            if callable(handler):
                self._handler = handler
                _signal.signal(SIGINT, self._note)

    def _note(self, _: int, frame: FrameType | None) -> None:
        self._came = frame or sys._getframe()

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            _signal.signal(SIGINT, self._handler)
            if self._came is not None:
                self._handler(SIGINT, self._came)
