"""What differs between two recorded values, as a unified diff that people can read.

Lines of models' texts, and of JSON with such texts in it, are often as long as a page. So where one of
them is long both are compared sentence by sentence, and the line breaks between sentences are ours. A value is shown as
`perdure output` prints it, except that large texts inside of it stand where they belong, and that the digests under
which secrets and redacted texts are kept are left out: they are keyed by run, so they differ between runs of course.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from perdure import codec
from perdure.errors import CodecError
from perdure.limits import decoded
from perdure.model import File
from perdure.runtime.outputs import indented

_LONG: Final = 120
"""characters above which a line is compared in parts"""
_MOST: Final = 20_000
"""parts that are compared with each other: time grows with their square when they are all alike"""
_REDACTED: Final = re.compile(r"\[redacted:[0-9a-f]{16}\]")


class Shown(NamedTuple):
    """A value as it is compared."""

    kind: str
    """text, bytes, file or JSON"""
    text: str


NOTHING: Final = Shown("nothing", "")


def shown(payload: codec.Payload | None, blobs: Mapping[str, bytes]) -> Shown:
    """A recorded value; it takes no type of the program that made it. Raises CodecError for what is damaged."""
    if payload is None:
        return NOTHING
    try:
        value = codec.loads(payload, blobs)
    except CodecError:  # of a type that this program does not know: its JSON says all
        value = None
    if isinstance(value, str):
        return Shown("text", _REDACTED.sub("[redacted]", value))
    if isinstance(value, bytes):
        return Shown("bytes", _measured(value))
    if isinstance(value, File):
        return Shown("file", f"{value.name} ({value.type})\n{_content(value.content)}")
    stored = codec.stored_json(payload, blobs)
    try:
        stored = msgspec.json.encode(_whole(decoded(stored, msgspec.json.decode), blobs))
    except (ValueError, RecursionError):  # numbers or depths that nothing reads: as it stands
        pass
    return Shown("JSON", _REDACTED.sub("[redacted]", indented(stored).decode("utf-8", "replace")))


def diff(old: Shown, new: Shown, old_name: str, new_name: str) -> str:
    """What differs, as a unified diff; "" if nothing does."""
    if old == new:
        return ""
    both = [value.text.split("\n") if value is not NOTHING else [] for value in (old, new)]
    if any(len(line) > _LONG for lines in both for line in lines):
        both = [[part for line in lines for part in _of_line(line)] for lines in both]
    before, after = both
    if max(len(before), len(after)) > _MOST:
        before, after = [_measured(old.text.encode())], [_measured(new.text.encode())]
    lines = list(difflib.unified_diff(before, after, old_name, new_name, lineterm=""))
    if not lines:
        what = "They differ in line breaks only." if old.kind == new.kind else f"One is {old.kind}, one {new.kind}."
        lines = [f"--- {old_name}", f"+++ {new_name}", what]
    return "\n".join(lines)


def _measured(content: bytes) -> str:
    return f"{len(content):,} bytes, sha256 {sha256(content).hexdigest()}"


def _content(content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return _measured(content)
    return _measured(content) if "\0" in text else text


def _whole(tree: Any, blobs: Mapping[str, bytes]) -> Any:
    """Tagged JSON with large texts in their places, and without digests that are keyed by run."""
    if isinstance(tree, list):
        return [_whole(item, blobs) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get("~") == "blob" and tree.get("as") == "str" and tree.get("sha256") in blobs:
        return blobs[tree["sha256"]].decode("utf-8", "replace")
    keyed = tree.get("~") == "secret"
    return {name: _whole(item, blobs) for name, item in tree.items() if not (keyed and name == "mac")}


_SENTENCE: Final = re.compile(r"(?<=[.!?;]\s)(?!\\n)|(?<=\\n)")  # in JSON a line's end is two characters
_PIECE: Final = re.compile(rf".{{1,{_LONG - 20}}}(?:\s|$)|.{{1,{_LONG}}}", re.DOTALL)


def _of_line(line: str) -> Iterator[str]:
    """The sentences of a line, each in pieces that are no longer than a line should be."""
    for sentence in [part for part in _SENTENCE.split(line) if part] or [""]:
        if len(sentence) <= _LONG:
            yield sentence
        else:
            yield from _PIECE.findall(sentence)
