"""What the code of a flow or step can know of the run around it, carried by a context variable."""

from __future__ import annotations

from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

from perdure import codec
from perdure import journal as j
from perdure.commands import Call
from perdure.errors import ConfigError, StepTimeout
from perdure.guard import OPEN, Guard, Veil
from perdure.life import Cursor
from perdure.model import RunKey, Usage
from perdure.runtime.live import Durability, LiveRun
from perdure.runtime.tickets import Ticket


class StepContext:
    """The attempt that is running: ``perdure.context()`` inside a step.

    ``attempt`` counts from 1; ``idempotency_key`` is the same in every attempt and life; ``progress`` and
    ``partial_text`` are what earlier attempts saved and streamed (C5).
    """

    __slots__ = (
        *("_buffer", "_connection", "_in_flight", "_is_async", "_key", "_over", "_run", "_step", "_veil"),
        *("__weakref__", "attempt", "name", "partial_text", "progress"),
    )

    def __init__(self, run: LiveRun | None, call: Call, name: str, is_async: bool) -> None:
        self.name = name
        self.attempt = call.attempt
        self.progress = call.progress
        self.partial_text = call.partial_text
        self._key = call.idempotency_key
        self._run = run
        self._step = call.step
        self._is_async = is_async
        self._over = False
        self._buffer: list[str] = []
        self._in_flight = False
        rules = run.life.guard.rules if run is not None else None
        self._veil = Veil(run.life.guard) if run is not None and rules is not None and rules.compiled else None
        self._connection: Any = None

    @property
    def idempotency_key(self) -> str:
        """For calls to the outside: the same in every attempt and life of this step, different for all others (X7)."""
        return self._key()

    @property
    def run(self) -> RunKey | None:
        """The run this step belongs to; None without a store."""
        return self._run.key if self._run else None

    @property
    def cancelled(self) -> bool:
        """Whether the run is being cancelled, or goes on elsewhere: a long sync step may look, and end early. Async
        ones are cancelled."""
        return self._run is not None and (self._run.halt == "cancelled" or self._run.broken is not None)

    @property
    def transaction(self) -> Any:
        """The driver's connection (apsw or psycopg) to the store, inside the transaction in which this step's
        completion is recorded. Raises ConfigError unless the step is declared ``transaction=True``."""
        if self._connection is None:
            raise ConfigError(f"step {self.name} is not declared transaction=True, and has no transaction.")
        return self._connection

    @property
    def durability(self) -> Durability:
        """Whether records of this run are durable, or since which step not, and why (B10)."""
        return self._run.durability if self._run else Durability(False, "", "no store was given")

    def save(self, progress: object) -> Saved:
        """Keep ``progress`` for the next attempt, and with it all text streamed so far. Durable on return in a sync
        step, once awaited in an async one.
        """
        self.progress = progress
        if self._run is None:
            return Saved(None, None)
        self._check()
        payload, blobs = codec.dumps(progress, f"progress of {self.name}()", self._run.life.guard)
        with self._run.lock:
            entries = (
                *self._rest(all_of_it=True),
                j.StepProgress(step=self._step, attempt=self.attempt, value=payload),
            )
            ticket = self._run.emit(entries, blobs)
        if not self._is_async:
            self._run.wait(ticket)
        return Saved(self._run, ticket)

    def spent(self, *, calls: int = 0, input_tokens: int = 0, output_tokens: int = 0, cost: float = 0.0) -> None:
        """Count what this attempt has used, as often as there is something to say: it adds up in the run's usage, also
        if the attempt crashes or fails later, and counts against its budget (X6). Does not wait.

        Raises ConfigError for anything but numbers from 0.
        """
        numbers = (calls, input_tokens, output_tokens, cost)
        if not all(isinstance(n, int | float) and n >= 0 for n in numbers):
            raise ConfigError(f"step {self.name}: spent() takes numbers from 0, not {numbers!r}.")
        usage = Usage(calls=calls, input_tokens=input_tokens, output_tokens=output_tokens, cost=cost)
        if self._run is not None and usage:
            self._check()
            self._run.emit((j.StepUsage(step=self._step, attempt=self.attempt, usage=usage),))

    @property
    def usage(self) -> Usage:
        """What all attempts of this step have used so far; nothing without a store."""
        return self._run.state.steps[self._step].usage if self._run is not None else Usage()

    def stream(self, text: str) -> None:
        """Add to the text streamed so far. Readers see it at once; it is durable within about one write of the device.

        Does not wait: while one piece is being written the following ones gather into the next.
        """
        if self._run is None:
            self._buffer.append(text)
        if self._run is None or not text:
            return
        self._check()
        with self._run.lock:
            self._buffer.append(text)
            if not self._in_flight:
                self._flush()

    @property
    def kept(self) -> tuple[object, str]:
        """Progress and text, where no journal has them: for the next attempt in this process."""
        return (self.progress, "".join(self._buffer)) if self._run is None else (None, "")

    def _flush(self) -> None:
        assert self._run is not None
        with self._run.lock:
            going_on = bool(self._buffer) and self._run.broken is None and not self._over
            entries = self._rest() if going_on else ()
            self._in_flight = bool(entries)
            if entries:
                self._run.emit(entries).then(self._flush)

    def _rest(self, all_of_it: bool = False) -> tuple[j.Entry, ...]:
        """The text that is not queued yet, as entries: as much as can be redacted by itself, or ``all_of_it``."""
        text, self._buffer = "".join(self._buffer), []
        if self._veil is not None:
            text = self._veil.feed(text) + (self._veil.rest() if all_of_it else "")
        return (j.StepChunk(step=self._step, attempt=self.attempt, text=text),) if text else ()

    def _check(self) -> None:
        if self._over:
            raise StepTimeout(f"step {self.name}: attempt {self.attempt} has ended; what it saves now is not kept.")

    def lend(self, connection: Any) -> None:
        """The attempt runs in a transaction."""
        self._connection = connection

    def end(self, keep_text: bool) -> None:
        """The attempt is over. Text not yet written is kept if the output does not replace it."""
        if self._run is not None and (self._buffer or self._veil is not None):
            with self._run.lock:
                rest = self._rest(all_of_it=True)
                if rest and keep_text and not self._over and self._run.broken is None:
                    self._run.emit(rest)
        self._over = True


class Saved:
    """Await it in async code to know that the progress is durable."""

    def __init__(self, run: LiveRun | None, ticket: Ticket | None) -> None:
        self._run, self._ticket = run, ticket

    def __await__(self) -> Generator[Any, None, None]:
        if self._run is not None and self._ticket is not None:
            yield from self._run.wait_async(self._ticket).__await__()


class Frame:
    """Where code is running: in which run (None without a store), scope and step."""

    __slots__ = ("cursor", "is_async", "run", "step")

    def __init__(
        self, run: LiveRun | None, cursor: Cursor, step: StepContext | None = None, *, is_async: bool = False
    ) -> None:
        self.run, self.cursor, self.step = run, cursor, step
        self.is_async = is_async
        """the colour of the code"""

    @property
    def guard(self) -> Guard:
        """What is kept out of records here."""
        return self.run.life.guard if self.run is not None else OPEN


FRAME: ContextVar[Frame | None] = ContextVar("perdure_frame", default=None)
"""of the running code"""


def current() -> Frame | None:
    """The frame of the running code; None outside of any flow or step."""
    return FRAME.get()


def enter(frame: Frame) -> None:
    """From now on the running context is inside ``frame``: for a context made for one branch."""
    FRAME.set(frame)


class entered:  # by hand: contextlib's costs as much as all else around a body
    """Run the block inside ``frame``."""

    __slots__ = ("_frame", "_token")

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __enter__(self) -> None:
        self._token = FRAME.set(self._frame)

    def __exit__(self, *_: object) -> None:
        FRAME.reset(self._token)


def context() -> StepContext:
    """The context of the running step. Raises ConfigError outside of steps."""
    frame = FRAME.get()
    if frame is None or frame.step is None:
        raise ConfigError("perdure.context() was called outside of a step.", hint="Call it in the body of a step.")
    return frame.step
