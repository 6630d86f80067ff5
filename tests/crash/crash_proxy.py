"""A TCP proxy between a store and its server, which does to a connection what networks do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Fault = Literal["cut", "drop", "stall", ""]
"""cut: the request passes, and the connection ends before the reply; drop: it ends before the request has passed;
stall: the request passes, and nothing comes back any more"""


class Proxy:
    """Forwards to ``port`` of this machine. The ``at``-th piece that a client sends, over all connections, meets the
    fault."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._lock = threading.Lock()
        self.sent = 0
        """pieces that clients have sent"""
        self.hit = 0
        self._at, self._fault = 0, ""
        self._refusing = False
        self._lines: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def plan(self, at: int, fault: Fault) -> None:
        """Count from now on, and do that to one piece."""
        with self._lock:
            self.sent, self.hit, self._at, self._fault = 0, 0, at, fault

    def refuse(self, refusing: bool) -> None:
        """End all connections and take no more, or take them again."""
        with self._lock:
            self._refusing = refusing
            lines = list(self._lines) if refusing else []
        for line in lines:
            _end(line)

    def close(self) -> None:
        self.refuse(True)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self._refusing:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                mute = threading.Event()
                with self._lock:
                    self._lines |= {client, server}
                threading.Thread(target=self._requests, args=(client, server, mute), daemon=True).start()
                threading.Thread(target=self._replies, args=(client, server, mute), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, mute: threading.Event) -> None:
        with self._ending(client, server):
            while piece := client.recv(1 << 20):
                with self._lock:
                    self.sent += 1
                    fault = self._fault if self.sent == self._at else ""
                    self.hit += bool(fault)
                if fault == "drop":
                    return
                if fault:
                    mute.set()
                server.sendall(piece)
                if fault == "cut":
                    server.shutdown(socket.SHUT_WR)  # it is read to its end, and executed
                    while server.recv(1 << 16):
                        pass
                    return

    def _replies(self, client: socket.socket, server: socket.socket, mute: threading.Event) -> None:
        with suppress(OSError):
            while not mute.is_set() and (piece := server.recv(1 << 20)):
                if not mute.is_set():
                    client.sendall(piece)
            if not mute.is_set():
                _end(client)

    @contextmanager
    def _ending(self, *lines: socket.socket) -> Iterator[None]:
        try:
            with suppress(OSError):
                yield
        finally:
            for line in lines:
                _end(line)
            with self._lock:
                self._lines -= set(lines)


def _end(line: socket.socket) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()
