"""Sizes as people write them."""

from __future__ import annotations

import re
from typing import Final

from perdure.errors import ConfigError

_BYTES: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


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
