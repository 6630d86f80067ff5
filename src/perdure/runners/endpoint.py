"""A model behind an OpenAI-compatible endpoint (chat completions), for agents and for code of one's own.

    model = ChatModel("http://127.0.0.1:8080/v1", "small", temperature=0.2)
    agent = Agent(model, [search])

Rate limits (429, 503 with Retry-After) become RateLimited and are waited out durably. The key is sent to the endpoint
and shown nowhere: not in errors, not in ``repr``, not in what the server says back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from math import isnan
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import msgspec

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, RateLimited
from perdure.limits import decoded, read_all
from perdure.model import Usage
from perdure.runners.messages import Message, Reply, ToolSchema, reply_of
from perdure.runtime.code import Coded, Source

_NEEDS_A_CHANGE: Final = (400, 401, 403, 404)
"""statuses of answers that stay the same however often they are asked for: no retry is made"""


MAX_REPLY: Final = 64 * 2**20
"""bytes of an answer, streamed or not: far more than any model writes"""


class ModelError(Exception):
    """The endpoint refused, broke off or answered nonsense. Never contains the key."""


class ChatModel(Coded):
    """A model at ``url`` (the base, ``http://HOST:PORT/v1``), for ``Agent(model=...)`` or to be called by steps.

    - ``key``: default PERDURE_MODEL_KEY or OPENAI_API_KEY of the environment; sent as a bearer token.
    - ``timeout``: seconds to wait for the next bytes.
    - ``prices``: cost of a million input tokens and of a million output tokens; without them what the endpoint says.
    - ``options`` stand in every request: temperature, max_tokens ...

    Raises ConfigError for settings with which no request can be made.
    """

    def __init__(
        self,
        url: str,
        model: str = "default",
        *,
        key: str | None = None,
        timeout: float = 120.0,
        prices: tuple[float, float] | None = None,
        **options: Any,
    ) -> None:
        self.model, self.prices, self.options = model, prices, options
        self._key = (key or os.environ.get("PERDURE_MODEL_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # http.client would show it in its error
            raise ConfigError("The model's key holds characters that no key has.", hint="Check PERDURE_MODEL_KEY.")
        if not 0 < timeout < 1e6:
            raise ConfigError(f"The model's timeout is {timeout!r}.", hint="Give a number of seconds, such as 120.")
        self.timeout = timeout
        self._endpoint(url)

    @classmethod
    def from_environment(cls) -> Self:
        """From PERDURE_MODEL_URL, PERDURE_MODEL (its name), PERDURE_MODEL_KEY and PERDURE_MODEL_TIMEOUT (seconds)."""
        said = os.environ.get("PERDURE_MODEL_TIMEOUT", "120")
        try:
            timeout = float(said)
        except ValueError:
            raise ConfigError(f"PERDURE_MODEL_TIMEOUT is {said!r}.", hint="Give a number of seconds.") from None
        return cls(os.environ.get("PERDURE_MODEL_URL", ""), os.environ.get("PERDURE_MODEL", "default"), timeout=timeout)

    def _endpoint(self, text: str) -> None:
        """Where requests go; ``place`` is how that is told, without what may be secret in it."""
        try:
            url = urlsplit(text.strip())
            host, port = url.hostname, url.port
        except ValueError:
            host = port = None
        if not host or url.scheme not in ("http", "https") or not url.geturl().isprintable() or " " in url.geturl():
            raise ConfigError(
                "The model's URL (PERDURE_MODEL_URL) is no http or https address.",
                hint="Give the base, http://HOST:PORT/v1.",
            )
        self._connection = HTTPSConnection if url.scheme == "https" else HTTPConnection
        self._host, self._port = host, port
        path = quote(url.path.rstrip("/").removesuffix("/chat/completions"), safe="/%:@") + "/chat/completions"
        shown = f"[{host}]" if ":" in host else host
        self.place = f"{url.scheme}://{shown}{f':{port}' if port else ''}{path}"
        self._target = f"{path}?{quote(url.query, safe='=&%:@/')}" if url.query else path

    def __repr__(self) -> str:
        return f"ChatModel({self.place!r}, {self.model!r})"

    def sources(self) -> Iterable[Source]:
        """Another model, or other options, make other replies; it does not matter where it is reached."""
        return (
            ("model", "\n".join([self.model, *(f"{name}={value!r}" for name, value in sorted(self.options.items()))])),
        )

    def __call__(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> Reply:
        """The model's reply; an empty one when it has none.

        Raises RateLimited, TimeoutError, ModelError; OutputRefused for tool calls that are none; ConfigError for what
        stays refused however often it is asked.
        """
        with self._ask(messages, tools, stream=False) as response:
            answer = self._json(self._all(response))
        said = _choice(answer).get("message")
        reply = reply_of(said) if isinstance(said, Mapping) else Reply()
        return Reply(reply.content, reply.tool_calls, self._usage(answer))

    def stream(self, messages: Sequence[Message]) -> Iterator[str]:
        """The answer piece by piece. Raises as a call does; ModelError too when the stream breaks off early."""
        with self._ask(messages, (), stream=True) as response:
            if response.headers.get_content_type() == "application/json":  # a server that does not stream
                yield _content(self._json(self._all(response)), "message")
                return
            left = MAX_REPLY
            while line := response.readline(MAX_REPLY + 1):
                left -= len(line)
                if left < 0:
                    raise self._too_long()
                event = line.strip()
                if not event.startswith(b"data:"):  # blank lines, comments that keep the connection alive
                    continue
                data = event[5:].strip()
                if data == b"[DONE]":
                    return
                answer = self._json(data)
                piece = _content(answer, "delta")
                if piece:
                    yield piece
                if _choice(answer).get("finish_reason"):
                    return
            raise ModelError(f"{self.place} broke off in the middle of its answer.")

    @contextmanager
    def _ask(self, messages: Sequence[Message], tools: Sequence[ToolSchema], stream: bool) -> Iterator[HTTPResponse]:
        """Send one request; the response, which is 200."""
        body = {"model": self.model, "messages": messages, "stream": stream, **self.options}
        if tools:
            body["tools"] = tools
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream" if stream else "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._connection(self._host, self._port, timeout=self.timeout)
        try:
            connection.request("POST", self._target, msgspec.json.encode(body), headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise self._refused(response)
                yield response
        except TimeoutError:
            raise TimeoutError(f"{self.place} said nothing for {self.timeout:g} s.") from None
        except ConnectionRefusedError:
            raise ModelError(f"Nothing listens at {self.place}. Is the model's server running?") from None
        except (OSError, HTTPException) as error:
            said = f"{type(error).__name__}: {self._safe(str(error))}"
            raise ModelError(f"{self.place}: the connection failed ({said}).") from None
        finally:
            connection.close()

    def _all(self, response: HTTPResponse) -> bytes:
        try:
            return read_all(response, MAX_REPLY)
        except ValueError:
            raise self._too_long() from None

    def _too_long(self) -> ModelError:
        return ModelError(f"{self.place} answered more than {MAX_REPLY:,} bytes.")

    def _refused(self, response: HTTPResponse) -> Exception:
        head = self._safe(response.read(2000).decode("utf-8", "replace"))
        wait = response.headers.get("Retry-After")
        limited = response.status == 429 or (response.status == 503 and wait)
        if limited and "insufficient_quota" not in head:  # no waiting brings back a quota that is used up
            return RateLimited(f"{self.place} answered {response.status}: {head}", retry_after=_seconds(wait))
        said = f"{self.place} answered {response.status} {response.reason}: {head}"
        if response.status in _NEEDS_A_CHANGE:
            return ConfigError(said, hint="The model's URL, name and key say what is asked.")
        return ModelError(said)

    def _safe(self, said: str) -> str:
        """The head of what a server said, on one line, without the key if it repeats that."""
        return " ".join((said.replace(self._key, "[key]") if self._key else said).split())[:200]

    def _json(self, data: bytes) -> Any:
        """What was answered. Raises ModelError for no JSON, and for an error that came with status 200."""
        try:
            answer = decoded(data, msgspec.json.decode)
        except ValueError:
            said = self._safe(data[:300].decode("utf-8", "replace"))
            raise ModelError(f"{self.place} answered no JSON: {said!r}") from None
        if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
            raise ModelError(f"{self.place} answered an error: {self._safe(str(answer['error']))}")
        return answer

    def _usage(self, answer: Any) -> Usage:
        used = answer.get("usage") if isinstance(answer, dict) else None
        if not isinstance(used, dict):
            return Usage()
        tokens_in, tokens_out = int(_number(used.get("prompt_tokens"))), int(_number(used.get("completion_tokens")))
        cost = _number(used.get("cost"))
        if self.prices is not None:
            cost = (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        return Usage(input_tokens=tokens_in, output_tokens=tokens_out, cost=cost)


def _number(said: object) -> float:
    """What a server counted; 0 for anything that is no count."""
    return float(said) if isinstance(said, int | float) and 0 <= said < 1e15 else 0.0


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


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _content(answer: Any, field: str) -> str:
    said = _choice(answer).get(field) or {}
    content = said.get("content") if isinstance(said, dict) else None
    return content if isinstance(content, str) else ""
