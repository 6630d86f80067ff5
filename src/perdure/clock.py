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
from contextlib import suppress
from math import isinf
from typing import Final

_SLEEPLESS: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On macOS the clock of the second name goes on in sleep, and Python's ``time.monotonic`` is another one."""


class Clock:
    """Wall time for records, monotonic time for durations and waits, sleeping, and random identifiers."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC, by the wall clock, to the microsecond."""
        return time.time_ns() // 1000 / 1e6  # a quarter of what ``round`` takes

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps; only differences mean anything."""
        return time.monotonic()

    def uptime(self) -> float:
        """As ``monotonic``, and goes on while the machine sleeps: what a lease is measured with."""
        return time.clock_gettime(_SLEEPLESS)

    def sleep(self, seconds: float) -> None:
        """Block this thread. Interrupted by signals whose handlers raise."""
        self.wait(threading.Event(), seconds)

    def wait(self, bell: threading.Event, seconds: float) -> None:
        """As ``sleep``, but no longer than until ``bell`` is set; ``seconds`` may be infinite."""
        if seconds > 0:
            bell.wait(min(seconds, threading.TIMEOUT_MAX))

    async def sleep_async(self, seconds: float) -> None:
        """Suspend this task."""
        await self.wait_async(asyncio.Event(), seconds)

    async def wait_async(self, bell: asyncio.Event, seconds: float) -> None:
        """As ``sleep_async``, but no longer than until ``bell`` is set; ``seconds`` may be infinite."""
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if isinf(seconds) else seconds):
                    await bell.wait()

    def new_id(self) -> str:
        """32 random hexadecimal digits."""
        return secrets.token_hex(16)

    def new_key(self) -> bytes:
        """32 random bytes that nobody can guess."""
        return secrets.token_bytes(32)


SYSTEM = Clock()


def process_identity() -> tuple[int, str]:
    """(pid, host name) of this process, as shown to whoever finds a run held."""
    return os.getpid(), socket.gethostname()
