"""What counts as an output (C6): the default check, and what a check's verdict means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.errors import OutputRefused

_TEXTS = (str, bytes)
_COLLECTIONS = (list, tuple, dict, set, frozenset)


def refusal(name: str, check: Callable[[Any], object] | None, value: object) -> OutputRefused | None:
    """Why a step's check refuses its output (C6): it returned False or a reason, or raised OutputRefused."""
    if check is None:
        return None
    try:
        verdict = check(value)
    except OutputRefused as refused:
        return refused
    if verdict is False:
        return OutputRefused(f"step {name}: its check refused the output.")
    if isinstance(verdict, str):
        return OutputRefused(f"step {name}: {verdict}")
    return None


def not_empty(value: object) -> bool | str:
    """The default check (C6): None, blanks and empty collections are no output."""
    if value is None:
        return "the output is None"
    if isinstance(value, _TEXTS):
        return True if value.strip() else "the output is blank"
    if isinstance(value, _COLLECTIONS) and not value:
        return f"the output is an empty {type(value).__name__}"
    return True
