"""A small client of OpenAI-compatible chat completions, so that the demo's experts can be a real model.

PERDURE_MODEL_URL is the base URL (``http://127.0.0.1:8080/v1``), PERDURE_MODEL names the model, PERDURE_MODEL_KEY (or
OPENAI_API_KEY) holds the key, PERDURE_MODEL_TIMEOUT the seconds to wait for the next bytes (120). The key is sent to
that address and shown nowhere: not in errors, not in what the server says back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from math import isnan
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote, urlsplit

import msgspec

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, RateLimited

Messages: TypeAlias = list[dict[str, str]]


_NEEDS_A_CHANGE: Final = (400, 401, 403, 404)
"""statuses of answers that stay the same however often they are asked for: no retry is made"""


class ModelError(Exception):
    """The endpoint refused, broke off or answered nonsense. Never contains the key."""


def configured() -> bool:
    """Whether a model is to be asked at all."""
    return bool(os.environ.get("PERDURE_MODEL_URL", "").strip())


def chat(messages: Messages) -> str:
    """The model's answer; "" when it has none.

    Raises RateLimited, TimeoutError, ModelError; ConfigError for settings with which it cannot succeed.
    """
    with _ask(messages, stream=False) as (place, response):
        return _content(_json(place, response.read()), "message")


def stream(messages: Messages) -> Iterator[str]:
    """The answer piece by piece. Raises as ``chat`` does; ModelError too when the stream breaks off before its end."""
    with _ask(messages, stream=True) as (place, response):
        if response.headers.get_content_type() == "application/json":  # a server that does not stream
            yield _content(_json(place, response.read()), "message")
            return
        while line := response.readline():
            event = line.strip()
            if not event.startswith(b"data:"):  # blank lines, comments that keep the connection alive
                continue
            data = event[5:].strip()
            if data == b"[DONE]":
                return
            answer = _json(place, data)
            piece = _content(answer, "delta")
            if piece:
                yield piece
            if _choice(answer).get("finish_reason"):
                return
        raise ModelError(f"{place} broke off in the middle of its answer.")


def check() -> None:
    """Raises ConfigError for a setting with which no request can be made; before anything is run."""
    _endpoint()
    _timeout()
    _headers(stream=False)


class Endpoint(NamedTuple):
    """Where requests go; ``place`` is how that is told, without what may be secret in it."""

    connect: Callable[[float], HTTPConnection]
    target: str
    place: str


def _endpoint() -> Endpoint:
    try:
        url = urlsplit(os.environ["PERDURE_MODEL_URL"].strip())
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or url.scheme not in ("http", "https") or not url.geturl().isprintable() or " " in url.geturl():
        raise ConfigError("PERDURE_MODEL_URL is no http or https address.", hint="Give the base, http://HOST:PORT/v1.")
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    path = quote(url.path.rstrip("/").removesuffix("/chat/completions"), safe="/%:@") + "/chat/completions"
    shown = f"[{host}]" if ":" in host else host
    place = f"{url.scheme}://{shown}{f':{port}' if port else ''}{path}"
    target = f"{path}?{quote(url.query, safe='=&%:@/')}" if url.query else path
    return Endpoint(lambda timeout: kind(host, port, timeout=timeout), target, place)


def _timeout() -> float:
    said = os.environ.get("PERDURE_MODEL_TIMEOUT", "120")
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"PERDURE_MODEL_TIMEOUT is {said!r}.", hint="Give a number of seconds, such as 120.")
    return seconds


def _key() -> str:
    return (os.environ.get("PERDURE_MODEL_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()


def _headers(stream: bool) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream" if stream else "application/json"}
    key = _key()
    if not (key.isascii() and key.isprintable()):  # http.client would show it in its error
        raise ConfigError("The model's key holds characters that no key has.", hint="Check PERDURE_MODEL_KEY.")
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


@contextmanager
def _ask(messages: Messages, stream: bool) -> Iterator[tuple[str, HTTPResponse]]:
    """Send one request; (where to, the response, which is 200)."""
    connect, target, place = _endpoint()
    timeout = _timeout()
    body = {"model": os.environ.get("PERDURE_MODEL", "default"), "messages": messages, "stream": stream}
    connection = connect(timeout)
    try:
        connection.request("POST", target, msgspec.json.encode(body), _headers(stream))
        with connection.getresponse() as response:
            if response.status != 200:
                raise _refused(place, response)
            yield place, response
    except TimeoutError:
        raise TimeoutError(f"{place} said nothing for {timeout:g} s.") from None
    except ConnectionRefusedError:
        raise ModelError(f"Nothing listens at {place}. Is the model's server running?") from None
    except (OSError, HTTPException) as error:
        raise ModelError(f"{place}: the connection failed ({type(error).__name__}: {_safe(str(error))}).") from None
    finally:
        connection.close()


def _refused(place: str, response: HTTPResponse) -> Exception:
    head = _safe(response.read(2000).decode("utf-8", "replace"))
    wait = response.headers.get("Retry-After")
    limited = response.status == 429 or (response.status == 503 and wait)
    if limited and "insufficient_quota" not in head:  # no waiting brings back a quota that is used up
        return RateLimited(f"{place} answered {response.status}: {head}", retry_after=_seconds(wait))
    said = f"{place} answered {response.status} {response.reason}: {head}"
    if response.status in _NEEDS_A_CHANGE:
        return ConfigError(said, hint="PERDURE_MODEL_URL, PERDURE_MODEL and PERDURE_MODEL_KEY say what is asked.")
    return ModelError(said)


def _safe(said: str) -> str:
    """The head of what a server said, on one line, without the key if it repeats that."""
    key = _key()
    return " ".join((said.replace(key, "[key]") if key else said).split())[:200]


def _seconds(wait: str | None) -> float:
    """Retry-After in seconds, from a number or an HTTP date, at most a day; 5 when it says nothing that can be read."""
    try:
        seconds = float(wait or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(wait)).timestamp() - SYSTEM.now()
        except (ValueError, TypeError, OverflowError):
            return 5.0
    return 5.0 if isnan(seconds) else min(max(seconds, 0.0), 86400.0)


def _json(place: str, data: bytes) -> Any:
    """What was answered. Raises ModelError for no JSON, and for an error that came with status 200."""
    try:
        answer = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ModelError(f"{place} answered no JSON: {_safe(data[:300].decode('utf-8', 'replace'))!r}") from None
    if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
        raise ModelError(f"{place} answered an error: {_safe(str(answer['error']))}")
    return answer


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _content(answer: Any, field: str) -> str:
    said = _choice(answer).get(field) or {}
    content = said.get("content") if isinstance(said, dict) else None
    return content if isinstance(content, str) else ""
