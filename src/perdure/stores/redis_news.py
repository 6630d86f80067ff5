"""Hearing of news: a thread that is subscribed to the store's channel, and stays so while the server comes and goes.

News is a hint and never a fact: a message may be missed while the connection is away, so that every new subscription
counts as one (of a post), and nobody may stop looking now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import redis

from perdure.clock import Clock
from perdure.stores.base import Ring

POSTED: Final = b"post"
"""what ``lua/post.lua`` says; other news is empty"""
_QUIET: Final = 5.0
"""seconds of silence after which the server is asked for a sign of life, and as many again that it has to give one"""
_PAUSE: Final = 0.5
"""seconds between attempts to reach a server that is away"""
_FAREWELL: Final = 2.0
"""seconds that ``stop`` waits for the thread: it is awake at once, unless it is just connecting"""


class Listener:
    """The thread. ``connect`` makes a client of its own; ``ring`` is called on the thread."""

    def __init__(self, connect: Callable[[], redis.Redis], channel: str, ring: Ring, clock: Clock) -> None:
        self._connect = connect
        self._channel = channel
        self._ring = ring
        self._clock = clock
        self._stopping = threading.Event()
        self._client: redis.Redis | None = None
        self._thread = threading.Thread(target=self._work, name="perdure-news", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. ``ring`` is not called any more after this, unless it is what calls it."""
        self._stopping.set()
        client = self._client
        if client is not None:
            client.connection_pool.disconnect()  # wakes the thread from waiting for a message
        if threading.current_thread() is not self._thread:
            self._thread.join(_FAREWELL)

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._client = self._connect()
            pubsub: Any = self._client.pubsub()  # type: ignore[no-untyped-call]
            try:
                pubsub.subscribe(self._channel)
                self._hear(pubsub)
            except (redis.RedisError, OSError):
                self._clock.wait(self._stopping, _PAUSE)
            except Exception:  # what the driver says of a connection taken from under it
                if not self._stopping.is_set():
                    raise
            finally:
                pubsub.close()
                self._client.connection_pool.disconnect()

    def _hear(self, pubsub: Any) -> None:
        asked = False
        while not self._stopping.is_set():
            message = pubsub.get_message(timeout=_QUIET)
            if self._stopping.is_set():
                return
            if message is None and asked:
                raise redis.TimeoutError("no sign of life")
            if message is None:
                pubsub.ping()
            elif message["type"] == "subscribe":
                self._ring(True)  # something may have been missed
            elif message["type"] == "message":
                self._ring(message["data"] == POSTED)
            asked = message is None
