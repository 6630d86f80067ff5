"""When to try again: a pure function of how often it failed. Attempts stand in the journal: a crash forgets none."""

from __future__ import annotations

import zlib

import msgspec

from perdure.errors import ConfigError, FencedError, FixError, OutputRefused, StepTimeout, StoreError


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Wait ``backoff * factor ** (failures - 1)`` seconds, at most ``maximum``, less up to a quarter of jitter."""

    retries: int = 0
    """attempts after the first; crashes and rate limits are not counted"""
    backoff: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    on: tuple[type[BaseException], ...] = (Exception,)
    """errors worth another attempt"""

    def __post_init__(self) -> None:
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigError(f"retries must be a whole number from 0, not {self.retries!r}.")
        for field in ("backoff", "factor", "maximum"):
            value = getattr(self, field)
            if not isinstance(value, int | float) or not value >= 0:
                raise ConfigError(f"{field} must be a number of seconds from 0, not {value!r}.")

    def next_delay(self, failures: int, error: BaseException, seed: str) -> float | None:
        """Seconds to wait after the ``failures``-th failed attempt (1 for the first), or None to give up.

        ``seed`` spreads the jitter: the same step and count always wait equally long, so that replays are exact.
        """
        if failures > self.retries or not isinstance(error, self.on) or is_final(error):
            return None
        try:
            full = min(self.backoff * self.factor ** (failures - 1), self.maximum)
        except OverflowError:  # after a thousand failures
            full = self.maximum
        return full * (1 - zlib.crc32(f"{seed}/{failures}".encode()) / 2**34)


def is_final(error: BaseException) -> bool:
    """Whether no attempt can succeed without a change: a value that cannot be stored, a wrong declaration."""
    if isinstance(error, OutputRefused | StepTimeout):
        return False
    return isinstance(error, FixError | FencedError | StoreError)


def retry_after(error: BaseException) -> float | None:
    """Seconds a rate-limited attempt was told to wait: a numeric ``retry_after`` attribute of the error (C10)."""
    seconds = getattr(error, "retry_after", None)
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0:
        return float(seconds)
    return None
