"""Work on what the store is to have that no signal breaks off."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the enums of ``signal``, which take as long as a commit
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

_HELD_BACK: Final = [
    int(number)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2")
    if (number := getattr(signal, name, None)) is not None
]


class undisturbed:  # like the functions of contextlib
    """The block is not broken off by Ctrl-C, nor by any other signal whose handler may raise: that has its effect when
    the block ends. Of a commit that is broken off nobody knows what the store has, and of an entry whether the state
    has all of it."""

    __slots__ = ("_came", "_handlers", "_over")

    def __enter__(self) -> None:
        self._came: list[tuple[int, FrameType]] = []
        self._handlers: dict[int, Any] = {}
        self._over = False
        if threading.get_ident() != threading.main_thread().ident:  # no other is disturbed
            return
        try:
            for number in _HELD_BACK:
                handler = _signal.getsignal(number)
                if handler is not None and type(handler) is not int:  # SIG_DFL, SIG_IGN
                    self._handlers[number] = handler
                    _signal.signal(number, self._note)
        except BaseException:  # a handler that is still there has raised
            self._let_go()
            raise

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._over:  # one that was let go before has raised, and this could not be put back any more
            self._handlers[number](number, frame)
        else:
            self._came.append((number, frame or sys._getframe()))

    def _let_go(self) -> None:
        self._over = True
        for number, handler in self._handlers.items():
            _signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        try:
            self._let_go()
        finally:
            for number, frame in self._came:
                self._handlers[number](number, frame)
