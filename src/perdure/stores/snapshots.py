"""How stores keep snapshots: how large one may be, and how it stands where there are no columns for its sequence."""

from __future__ import annotations

from typing import Final

from perdure.limits import MAX_BLOB

_DIGITS: Final = 16
"""of a sequence: more than any run can have"""
HEAD: Final = _DIGITS + 1
"""bytes that ``packed`` adds, at most"""


def refuse_too_large(content: bytes) -> None:
    """Raises ValueError for what would not be loaded."""
    if len(content) > MAX_BLOB:
        raise ValueError(f"A snapshot has {len(content):,} bytes, and the limit is {MAX_BLOB:,}.")


def packed(seq: int, content: bytes) -> bytes:
    """The sequence in a line of its own, then the content."""
    return b"%d\n%b" % (seq, content)


def unpacked(data: bytes) -> tuple[int, bytes] | None:
    """What was packed; None for anything else. The content is whatever it is: its reader knows."""
    seq, line, content = data.partition(b"\n")
    if not (line and seq.isdigit() and len(seq) <= _DIGITS) or len(content) > MAX_BLOB:
        return None
    return int(seq), content
