"""A Redis or Valkey server as the store sees it: commands sent together, and sent again when no reply came.

When a connection breaks nobody knows whether the server did what it was told. The driver's own retries are off, because
they would do it twice without a word. Ours hand ``again`` to what is tried, and all that a store sends is written so
that doing it again changes nothing: scripts compare before they write, and take what they find of their own as done.

Every call has a time limit. While the server is away (restarting, loading its data, electing another primary) a call is
tried again until the patience is used up; then the store has failed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from perdure.clock import Clock
from perdure.errors import ConfigError, PerdureError, StoreBusy, StoreError
from perdure.stores.redis_keys import Keys
from perdure.stores.redis_url import Target

_T = TypeVar("_T")
Command: TypeAlias = "tuple[str | bytes | int | float, ...]"

FAILURES: Final = (redis.RedisError, OSError)
"""what the driver raises; its own replies that are errors are among them"""
_SCRIPTS: Final = {path.stem: path.read_bytes() for path in (Path(__file__).parent / "lua").glob("*.lua")}
_DIGESTS: Final = {name: hashlib.sha1(text, usedforsecurity=False).hexdigest() for name, text in _SCRIPTS.items()}
_REFUSED = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.NoPermissionError)
_PASSING = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.exceptions.NoScriptError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
    OSError,
)
_PASSES = re.compile(r"\b(READONLY|MASTERDOWN|LOADING|TRYAGAIN|CLUSTERDOWN|NOREPLICAS|BUSY) ")
"""the same in what a script failed with, where the driver does not tell kinds apart"""
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_PULSE: Final = 2.0
"""seconds that a heartbeat may take to connect, and to be answered: late ones are of no use"""


_pack: Callable[[Any], bytes] | None
try:
    from hiredis import pack_command as _pack
except ImportError:  # the driver works without
    _pack = None


class _AtOnce:
    """Commands that are sent together leave in one piece. The driver would cut them, and a server that syncs what it
    has read before it answers would sync once for each piece."""

    def pack_commands(self, commands: Any) -> list[bytes]:
        packed = []
        for command in commands:
            if _pack is not None and command[0] == "EVALSHA":  # by far the most, and of plain values
                packed.append(_pack(command))
            else:
                packed += super().pack_commands([command])  # type: ignore[misc]
        return [b"".join(packed)]


class _Whole(_AtOnce, redis.Connection):
    pass


class _WholeSecure(_AtOnce, redis.SSLConnection):
    pass


class Link:
    """Connections to the server of a store. ``ask(quick=True)`` has some of its own, for any thread."""

    def __init__(self, target: Target, keys: Keys, clock: Clock) -> None:
        self.url = target.shown
        self._target = target
        self._clock = clock
        self._keys = keys
        self._client = self.connect(target.answer, target.connect)
        self._pulse = self.connect(min(_PULSE, target.answer), min(_PULSE, target.connect))

    def connect(self, answer: float, connect: float) -> redis.Redis:
        """A client that never does anything twice on its own."""
        options: dict[str, Any] = {"socket_timeout": answer, "socket_connect_timeout": connect, "protocol": 2}
        options |= {"retry": Retry(NoBackoff(), 0), "retry_on_error": [], "decode_responses": False}
        secure = self._target.url.startswith("rediss")
        try:
            return redis.Redis.from_url(
                self._target.url, connection_class=_WholeSecure if secure else _Whole, **options
            )
        except (ValueError, TypeError):  # it may quote the password
            raise ConfigError(f"The driver does not take the parameters of {self.url}.") from None

    def call(self, script: str, keys: Sequence[str], *args: str | bytes | int | float) -> Command:
        """The command that runs a script."""
        return ("EVALSHA", _DIGESTS[script], len(keys), *keys, *args)

    def index(self, verb: str, run: bytes, *args: str | bytes | int | float) -> Command:
        """The command that tells the index about a run; see ``lua/index.lua``."""
        return self.call("index", self._keys.index, verb, run, *args)

    def load(self) -> None:
        """Give the server the scripts: it forgets them when it restarts."""
        self.ask([("SCRIPT LOAD", text) for text in _SCRIPTS.values()])

    def ask(
        self, commands: Sequence[Command], *, atomic: bool = False, synced: bool = False, quick: bool = False
    ) -> list[Any]:
        """Send commands together, once, and return their replies. Raises ``FAILURES`` when one is an error.

        ``atomic``: nobody else's come between them. ``synced``: where it was asked for, the replies come after what the
        commands wrote is in the append-only file, on the device.
        """
        client = self._pulse if quick else self._client
        wait = synced and self._target.waitaof
        pipe: Any = client.pipeline(transaction=atomic)
        for command in commands:
            pipe.execute_command(*command)
        if wait:
            pipe.execute_command("WAITAOF", 1, 0, int(self._target.answer * 800))
        try:
            replies: list[Any] = pipe.execute(raise_on_error=False)
        except BaseException:  # an interrupted call leaves replies behind that the next one would take for its own
            client.connection_pool.disconnect(inuse_connections=False)
            raise
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        if wait and replies.pop()[0] < 1:
            raise redis.exceptions.ResponseError("its disk did not take the write in time (WAITAOF)")
        return replies

    def until_answered(self, doing: str, patience: float, attempt: Callable[[bool], _T]) -> _T:
        """What ``attempt`` returns once the server answers. It is told whether an earlier one may have got through.

        Raises StoreError when the server stays away for ``patience`` seconds, or refuses.
        """
        again, unloaded, pause, until = False, False, 0.0, 0.0
        while True:
            try:
                if unloaded:
                    self.load()
                return attempt(again)
            except FAILURES as error:
                now = self._clock.monotonic()
                until = until or now + patience
                if not _passes(error) or now + pause > until:
                    raise self.failure(doing, error) from error
                unloaded = isinstance(error, redis.exceptions.NoScriptError)
            again = True
            self._clock.sleep(pause)
            pause = min(pause * 2 or _PAUSE, _LONGEST_PAUSE)

    def failure(self, doing: str, error: BaseException) -> StoreError:
        """What to say when the server does not do what it is told."""
        reason = str(error).rstrip(".") or type(error).__name__
        hint = "See that the server can be reached, then run again."
        if isinstance(error, _REFUSED):
            hint = "Give this user the right to it, or correct name and password; then run again."
        elif re.search(r"\bOOM\b|used memory > 'maxmemory'", reason):
            reason = f"its memory is full, {reason}"
            hint = "Raise maxmemory or delete runs, then run again."
        elif "MISCONF" in reason:
            reason = f"it cannot write to its disk, {reason}"
            hint = "See to the server's disk, then run again."
        return StoreError(
            f"Cannot {doing} {self.url}: {reason}.", hint=f"Nothing that was acknowledged is lost. {hint}"
        )

    def busy(self, doing: str, error: BaseException) -> StoreBusy:
        """The same for what is tried once."""
        return StoreBusy(f"Cannot {doing} {self.url}: {str(error).rstrip('.')}.", hint="Try again.")

    def close(self) -> None:
        """Close what is not in use; what another thread is using is closed with it."""
        for client in (self._client, self._pulse):
            client.connection_pool.disconnect(inuse_connections=False)


def unusable(error: StoreError) -> PerdureError:
    """What to raise when opening failed: what the server refuses is for the user to change."""
    cause = error.__cause__
    refused = isinstance(cause, redis.ResponseError) and not isinstance(cause, redis.exceptions.OutOfMemoryError)
    if isinstance(cause, _REFUSED) or (refused and "MISCONF" not in error.args[0]):
        return ConfigError(error.args[0], hint="Correct name, password, rights or number of the database in the URL.")
    return error


def _passes(error: BaseException) -> bool:
    """Whether it may well be over soon."""
    if isinstance(error, _REFUSED):
        return False
    return isinstance(error, _PASSING) or _PASSES.search(str(error)) is not None
