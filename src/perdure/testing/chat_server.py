"""A local server that speaks chat completions, for tests of code that calls a model over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Reply:
    """One answer. ``pieces`` are streamed when the request asks for a stream, and joined when it does not."""

    pieces: tuple[str, ...] = ("fine",)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """sent as it is, instead of a completion"""
    cut: bool = False
    """a stream ends without its end mark"""
    hold: threading.Event | None = None
    """nothing is sent before this is set"""


class ChatServer:
    """Listens on loopback while the block runs; ``answer(request)`` gives the Reply to each request's JSON."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]) -> None:
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        """(JSON body, headers) of every request, in order of arrival"""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", "0"))
                request = json.loads(self.rfile.read(size))
                outer.requests.append((request, dict(self.headers)))
                reply = answer(request) if self.path == "/v1/chat/completions" else Reply(status=404)
                if reply.hold is not None:
                    reply.hold.wait(60)
                try:
                    self._send(request, reply)
                except (BrokenPipeError, ConnectionResetError):  # the client has given up
                    pass

            def _send(self, request: dict[str, Any], reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in _parts(request, reply):
                    self.wfile.write(part)
                    self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL, as PERDURE_MODEL_URL takes it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _parts(request: dict[str, Any], reply: Reply) -> Iterable[bytes]:
    if reply.body is not None or reply.status != 200:
        yield reply.body or b""
    elif not request.get("stream"):
        yield json.dumps({"choices": [{"message": {"role": "assistant", "content": "".join(reply.pieces)}}]}).encode()
    else:
        yield b": keep-alive\n\n"
        for piece in reply.pieces:
            event = b"data: " + json.dumps({"choices": [{"delta": {"content": piece}}]}).encode() + b"\r\n\r\n"
            yield event[:9]  # no reader may count on getting an event at once
            yield event[9:]
        if not reply.cut:
            yield b"data: [DONE]\n\n"
