"""Wake-ups from PostgreSQL: a thread with a connection of its own that hears NOTIFY.

A notification says only that there is something to look at, and many may become one. Whoever could have missed some,
because the connection broke, is rung as well. So nothing depends on them but how soon somebody looks.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from perdure.clock import Clock
from perdure.stores.base import Ring
from perdure.stores.postgres_link import Connection, Place, connected

_IDLE = 60.0
"""seconds without a notification after which the server is asked whether it is still there"""


def listener(place: Place, channel: str, clock: Clock) -> Callable[[Ring], Callable[[], None]]:
    """What ``Capabilities.listen`` is."""

    def listen(ring: Ring) -> Callable[[], None]:
        ear = _Ear(place, channel, clock, ring)
        threading.Thread(target=ear.listen, name="perdure-listen", daemon=True).start()
        return ear.stop

    return listen


class _Ear:
    def __init__(self, place: Place, channel: str, clock: Clock, ring: Ring) -> None:
        self._place, self._channel, self._clock, self._ring = place, channel, clock, ring
        self._stopped = threading.Event()
        self._db: Connection | None = None

    def listen(self) -> None:
        """Until it is stopped; a server that is away is waited for."""
        while not self._stopped.is_set():
            with suppress(psycopg.Error, OSError):
                self._hear()
            self._clock.wait(self._stopped, 1.0)

    def _hear(self) -> None:
        with connected(self._place) as db:
            self._db = db
            db.execute(f'LISTEN "{self._channel}"')
            self._ring(True)
            while not self._stopped.is_set():
                db.patient = True
                heard = list(db.notifies(timeout=_IDLE, stop_after=1))
                db.patient = False
                if heard:
                    self._ring(any(news.payload for news in heard))
                else:
                    db.execute("SELECT 1")

    def stop(self) -> None:
        """End the thread; its connection is cut under it."""
        self._stopped.set()
        db = self._db
        if db is not None:
            with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(db.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
