"""Recorded errors, to be raised again where today's code is held against the records (rehearsal.py).

A record names the type of an error, and nothing is imported or looked up by a stored name. So there is a fixed table of
types that can be raised as they were: Python's own and Perdure's. Any other is raised as a ``RecordedError``, which
says the same, and which code that catches the type by name does not catch.
"""

from __future__ import annotations

import builtins
from typing import Any, Final

import perdure.errors
from perdure.codec import MAX_MESSAGE
from perdure.codec_kinds import type_name
from perdure.errors import PerdureError
from perdure.model import ErrorInfo
from perdure.secret import MASK


class RecordedError(Exception):
    """Stands for a recorded error of a type that cannot be raised again."""


_KNOWN: Final = {
    type_name(kind): kind
    for module in (builtins, perdure.errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, BaseExceptionGroup)
}
_EMPTY: Final[dict[str, Any]] = {"missing": {}, "retry_after": 0.0, "run": "", "questions": (), "until": 0.0}
"""what some of Perdure's errors say besides their message, and records do not"""


def revive(error: ErrorInfo) -> Exception:
    """An error that has the recorded type, as far as that is known here, and the recorded message."""
    known = _KNOWN.get(error.type)
    base: type[Exception] = known or RecordedError
    module, _, name = error.type.rpartition(".")
    body = {
        **_EMPTY,
        "__module__": module or "builtins",
        "__qualname__": name,
        "__init__": lambda self: None,  # whatever arguments the type takes: the message is what its text was
        "__str__": lambda self: error.message,
    }
    made: Exception = type(name if name.isidentifier() else base.__name__, (base,), body)()  # anybody may have named it
    made.args = (error.message,)
    return made


_MORE: Final = (PerdureError, OSError, UnicodeError, SyntaxError, ImportError, KeyError)
"""types whose errors say more than a message, or say it in another way"""


def is_whole(error: ErrorInfo) -> bool:
    """Whether an error that is raised again is, for code that catches it, what it was: of its type, with all that it
    said."""
    kind = _KNOWN.get(error.type)
    cut = len(error.message) >= MAX_MESSAGE or MASK in error.message
    return kind is not None and not issubclass(kind, _MORE) and not cut
