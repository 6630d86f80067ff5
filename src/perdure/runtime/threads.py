"""Daemon threads whose result can be waited for, blocking or awaiting.

Not the event loop's pool: that has few threads, so that experts would wait for each other, and the interpreter waits
for it at exit, so that Ctrl-C would wait for a ten-minute call.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Run ``work`` in a thread of its own, with a copy of this context. The future's exception is what it raised."""
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def target() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    future.set_running_or_notify_cancel()
    threading.Thread(target=target, name=f"perdure-{name}", daemon=True).start()
    return future
