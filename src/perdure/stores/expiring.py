"""What stores have in common whose leases end by themselves: how long they are good, and how that is told in a URL.

``runtime/lease.py`` has the theory.
"""

from __future__ import annotations

from math import isfinite
from typing import Final

from perdure.errors import ConfigError

LEASE: Final = "15"
"""seconds within which the runs of a dead process go on elsewhere, unless the URL says otherwise"""
_TERM: Final = 0.75
"""of these: for so long an owner lives after its last heartbeat was taken. The rest is for others to notice."""
_TRUST: Final = 0.6
"""of these: for so long its holder goes on after it *sent* its last heartbeat"""


def term(lease: float) -> float:
    """Seconds for which a heartbeat is good, by the store's clock."""
    return lease * _TERM


def trust(lease: float) -> float:
    """Seconds for which its sender counts on it, by his own."""
    return lease * _TRUST


def lease_of(text: str) -> float:
    """What ``lease=`` in a URL says. Raises ConfigError."""
    return seconds("lease", text, 0.5, 86400.0)


def seconds(name: str, text: str, least: float, most: float) -> float:
    """A parameter of a URL as seconds. Raises ConfigError naming it."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not isfinite(value) or not least <= value <= most:
        raise ConfigError(
            f"The parameter {name} of the store's URL must be {least:g} to {most:g} seconds, not {text[:80]!r}."
        )
    return value


def masked(user: str) -> str:
    """``name:password`` as it is shown."""
    name, colon, _ = user.partition(":")
    return f"{name}:***" if colon else name
