"""The only source of time, identifiers and randomness; a lint rule bans them everywhere else.

Tests and simulations hand a ``Clock`` of their own to the manager.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time


class Clock:
    """Wall time for records, monotonic time for durations and waits, sleeping, and random identifiers."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC, by the wall clock, to the microsecond."""
        return round(time.time(), 6)

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps; only differences mean anything."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread. Interrupted by signals whose handlers raise."""
        if seconds > 0:
            threading.Event().wait(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Suspend this task."""
        await asyncio.sleep(max(seconds, 0))

    def new_id(self) -> str:
        """32 random hexadecimal digits."""
        return secrets.token_hex(16)


SYSTEM = Clock()


def process_identity() -> tuple[int, str]:
    """(pid, host name) of this process, as shown to whoever finds a run held."""
    return os.getpid(), socket.gethostname()
