"""Times and sizes as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from perdure.errors import ConfigError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def duration(text: str) -> timedelta:
    """``30d``, ``12h``, ``2w``: a day is 24 hours, whatever clocks do in it. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", text)
    if found is None:
        raise ConfigError(f"{text[:40]!r} is no duration.", hint="Write a number and s, m, h, d or w: 30d.")
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def date(text: str) -> float:
    """Seconds since 1970 of an ISO date or time; of a place without a zone by the clocks here. Raises ConfigError."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"{text[:40]!r} is no date.", hint="Write 2026-11-21, or 2026-11-21T08:00+01:00.") from None


def size(text: str) -> int:
    """``500M``, ``2GB``: bytes; an M is a million. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kmgt]?)b?", text.lower())
    if found is None:
        raise ConfigError(f"{text[:40]!r} is no size.", hint="Write a number and k, M, G or T: 500M.")
    return int(float(found[1]) * _BYTES[found[2]])


def shown(number: int) -> str:
    """Bytes for people."""
    for unit, much in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= much:
            return f"{number / much:.1f} {unit}"
    return f"{number} bytes"
