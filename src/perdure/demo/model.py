"""A small client of OpenAI-compatible chat completions, so that the demo's experts can be a real model.

PERDURE_MODEL_URL is the base URL (``http://127.0.0.1:8080/v1``), PERDURE_MODEL names the model, PERDURE_MODEL_KEY (or
OPENAI_API_KEY) holds the key, PERDURE_MODEL_TIMEOUT the seconds to wait for the next bytes (120).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, RateLimited

Messages: TypeAlias = list[dict[str, str]]


class ModelError(Exception):
    """The endpoint refused, broke off or answered nonsense. Never contains the key."""


def configured() -> bool:
    """Whether a model is to be asked at all."""
    return bool(os.environ.get("PERDURE_MODEL_URL", "").strip())


def chat(messages: Messages) -> str:
    """The model's answer; "" when it has none.

    Raises RateLimited, TimeoutError, ModelError; ConfigError for a wrong PERDURE_MODEL_URL.
    """
    with _ask(messages, stream=False) as (place, response):
        return _content(_json(place, response.read()), "message")


def stream(messages: Messages) -> Iterator[str]:
    """The answer piece by piece. Raises as ``chat`` does; ModelError too when the stream breaks off before its end."""
    with _ask(messages, stream=True) as (place, response):
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


@contextmanager
def _ask(messages: Messages, stream: bool) -> Iterator[tuple[str, HTTPResponse]]:
    """Send one request; (where to, the response, which is 200)."""
    url = urlsplit(os.environ["PERDURE_MODEL_URL"].strip())
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError("PERDURE_MODEL_URL is no http or https address.", hint="Give the base, http://HOST:PORT/v1.")
    timeout = float(os.environ.get("PERDURE_MODEL_TIMEOUT", "120"))
    path = url.path.rstrip("/") + "/chat/completions"
    place = f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}{path}"
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.hostname, url.port, timeout=timeout)
    body = {"model": os.environ.get("PERDURE_MODEL", "default"), "messages": messages, "stream": stream}
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream" if stream else "application/json"}
    key = os.environ.get("PERDURE_MODEL_KEY") or os.environ.get("OPENAI_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request("POST", path, msgspec.json.encode(body), headers)
        with connection.getresponse() as response:
            if response.status != 200:
                raise _refused(place, response)
            yield place, response
    except TimeoutError:
        raise TimeoutError(f"{place} said nothing for {timeout:g} s.") from None
    except ConnectionRefusedError:
        raise ModelError(f"Nothing listens at {place}. Is the model's server running?") from None
    except (OSError, HTTPException) as error:
        raise ModelError(f"{place}: the connection failed ({type(error).__name__}: {error}).") from None
    finally:
        connection.close()


def _refused(place: str, response: HTTPResponse) -> Exception:
    head = " ".join(response.read(2000).decode("utf-8", "replace").split())[:200]
    wait = response.headers.get("Retry-After")
    if response.status == 429 or (response.status == 503 and wait):
        return RateLimited(f"{place} answered {response.status}", retry_after=_seconds(wait))
    return ModelError(f"{place} answered {response.status} {response.reason}: {head}")


def _seconds(wait: str | None) -> float:
    """Retry-After in seconds, from a number or an HTTP date; 5 when it says nothing that can be read."""
    try:
        return max(float(wait or 5), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(str(wait)).timestamp() - SYSTEM.now(), 0.0)
    except ValueError:
        return 5.0


def _json(place: str, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        raise ModelError(f"{place} answered no JSON: {data[:100]!r}") from None


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _content(answer: Any, field: str) -> str:
    said = _choice(answer).get(field) or {}
    content = said.get("content") if isinstance(said, dict) else None
    return content if isinstance(content, str) else ""
