"""Statements in files of their own: named blocks, each with a comment that says why it is so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_BLOCK = re.compile(r"^-- name: (\w+)\n((?:.|\n)*?)(?=^-- name: |\Z)", re.MULTILINE)


def load(name: str) -> Mapping[str, str]:
    """The statements of ``name``.sql by their names, without comments."""
    text = Path(__file__).with_name(f"{name}.sql").read_text("utf-8")
    found = {}
    for block, body in _BLOCK.findall(text):
        lines = [line for line in body.splitlines() if not line.startswith("--")]
        found[block] = "\n".join(lines).strip()
    return found
