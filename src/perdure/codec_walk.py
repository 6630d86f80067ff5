"""The two walks over a value: to the tree that stands for it in JSON, and back (theory: codec.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import msgspec

from perdure.codec_kinds import PLAIN, Refused, type_name
from perdure.codec_tags import BLOB_THRESHOLD, READ, WRITE, to_base64, write_numpy
from perdure.codec_types import Known, find, known, learnable
from perdure.guard import OPEN, Guard, Hidden, is_mark
from perdure.limits import MAX_VALUE
from perdure.secret import Secret

MAX_DEPTH = 100
"""Containers and objects inside one another; far below the depth at which Python itself gives up."""
MAX_ITEMS = 2**24
"""Elements of all containers of one value; ends a list that holds one list ten times, which holds one ten times ..."""
MAX_BYTES = MAX_VALUE
"""JSON and blobs of one value together."""
_BIG = 2**63
_INF = float("inf")

_to_json = msgspec.json.Encoder().encode
_to_canonical_json = msgspec.json.Encoder(order="deterministic").encode


class _Budget:
    """Limits of one value, counted alike on the way out and on the way in. Never reset: an error ends the walk."""

    __slots__ = ("bytes_left", "depth", "items_left")

    def __init__(self) -> None:
        self.depth = 0
        self.items_left = MAX_ITEMS
        self.bytes_left = MAX_BYTES

    def spend(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise _too_big(MAX_BYTES, "bytes")

    def count(self, items: int) -> None:
        self.items_left -= items
        if self.items_left < 0:
            raise _too_big(MAX_ITEMS, "items")


def _too_big(limit: int, what: str) -> Refused:
    return Refused(f" takes the value beyond {limit:,} {what}.", "Keep large data in files and store their paths.")


class Writer(_Budget):
    """Walks a value and gives the tree that stands for it in JSON. One per value."""

    __slots__ = ("_rules", "_types", "blobs", "canonical", "guard", "hid", "json", "text_left")

    def __init__(self, canonical: bool, guard: Guard = OPEN) -> None:
        super().__init__()
        self.canonical = canonical
        self.guard = guard
        self._rules = guard.rules
        self._types = (Hidden, *guard.rules.types) if guard.rules is not None else ()
        self.hid = False
        """the rules have hidden something"""
        self.json: Callable[[object], bytes] = _to_canonical_json if canonical else _to_json
        self.blobs: dict[str, bytes] = {}
        self.text_left = MAX_BYTES  # an early end; the exact count is taken of the finished JSON

    def value(self, value: Any) -> object:
        kind = type(value)
        if kind is str:
            return self._text(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_BIG <= value < _BIG else {"~": "int", "hex": hex(value)}
        if kind is float:
            return value if -_INF < value < _INF else {"~": "float", "v": repr(value)}
        if self.depth >= MAX_DEPTH:
            raise Refused(f" lies more than {MAX_DEPTH} containers deep.", "Does the value contain itself? Flatten it.")
        if self._types and issubclass(kind, self._types):
            return self._hidden(value.value if kind is Hidden else value)
        self.depth += 1
        if kind is dict:
            tree: object = self._dict(value)
        elif kind is list:
            tree = self.items(value)
        else:
            tree = self._tagged(kind, value)
        self.depth -= 1
        return tree

    def _hidden(self, value: Any) -> object:
        """What stands for a value that the rules hide whole."""
        if type(value) is Secret or value is None or type(value) is bool or is_mark(value):
            return self.value(value)
        try:
            inner = Writer(canonical=True, guard=Guard(self.guard.key))
            data = inner.json(inner.value(value))
        except Refused:  # of a type that cannot be stored, and need not be
            data = type_name(type(value)).encode("utf-8", "backslashreplace")
        return self._marked(self.guard.mark(data))

    def _marked(self, text: str) -> object:
        self.hid = True
        tree = self._plain_text(text)
        return tree if self.canonical else {"~": "redacted", "v": tree}

    def _text(self, text: str) -> object:
        if self._rules is not None and self._rules.compiled:
            redacted = self.guard.text(text)
            if redacted != text:
                return self._marked(redacted)
        return self._plain_text(text)

    def _plain_text(self, text: str) -> object:
        self.text_left -= len(text)
        if self.text_left < 0:
            raise _too_big(MAX_BYTES, "bytes")
        if len(text) <= BLOB_THRESHOLD and text.isascii():
            return text
        try:
            data = text.encode()
        except UnicodeEncodeError:  # lone surrogates, as in names of files that are not UTF-8
            data = text.encode("utf-8", "surrogatepass")
            if len(data) <= BLOB_THRESHOLD:
                return {"~": "str", "b64": to_base64(data)}
        return text if len(data) <= BLOB_THRESHOLD else self.blob("str", data)

    def blob(self, kind: str, data: bytes) -> dict[str, object]:
        self.spend(len(data))
        name = sha256(data).hexdigest()
        if not self.canonical:  # a digest needs the name only
            self.blobs[name] = data
        return {"~": "blob", "as": kind, "sha256": name, "size": len(data)}

    def items(self, values: Any) -> list[object]:
        self.count(len(values))
        done: list[object] = []
        try:
            for item in values:
                done.append(self.value(item))
        except Refused as problem:
            raise problem.at(f"[{len(done)}]")  # noqa: B904 - the same exception, with its place added
        return done

    def unordered(self, values: Any) -> list[msgspec.Raw]:
        self.count(len(values))
        try:
            return [msgspec.Raw(raw) for raw in sorted(self.json(self.value(item)) for item in values)]
        except Refused as problem:
            raise problem.at("[an element]")  # noqa: B904

    def _dict(self, value: dict[Any, Any]) -> object:
        self.count(len(value))
        hidden = False
        for key in value:
            if type(key) is not str or key == "~" or not (key.isascii() or _encodable(key)):
                return {"~": "dict", "v": self._pairs(value)}
            if self._rules is not None and self._rules.compiled:
                hidden = hidden or bool(self._rules.spans(key))
        if not hidden:
            return self.named(value, "[{!r:.60}]")
        if not self.canonical:
            return {"~": "dict", "v": self._pairs(value)}
        # as the dict that will be read back; its items are hidden by their own names, which are gone then
        self.hid = True
        items = self.named(value, "[{!r:.60}]")
        return {self.guard.text(key): item for key, item in items.items()}

    def named(self, value: Mapping[str, Any], place: str) -> dict[str, object]:
        done: dict[str, object] = {}
        key = ""
        rules = self._rules
        try:
            for key, item in value.items():
                done[key] = self.value(item) if rules is None or not rules.hides(key) else self._hidden(item)
        except Refused as problem:
            raise problem.at(place.format(key))  # noqa: B904
        return done

    def _pairs(self, value: dict[Any, Any]) -> list[object]:
        pairs: list[Any] = []
        place = ""
        try:
            for key, item in value.items():
                place = f"[key {len(pairs)}]"
                stored = self.value(key)
                place = f"[value {len(pairs)}]"
                hidden = type(key) is str and self._rules is not None and self._rules.hides(key)
                pairs.append([stored, self._hidden(item) if hidden else self.value(item)])
        except Refused as problem:
            raise problem.at(place)  # noqa: B904
        if self.canonical:
            pairs.sort(key=lambda pair: self.json(pair[0]))
        return pairs

    def _tagged(self, kind: type, value: Any) -> object:
        tag = WRITE.get(kind)
        if tag is not None:
            return {"~": tag.name, **tag.write(self, value)}  # a blob's own tag, being last, wins
        entry = known(kind)
        if entry is None:
            tree = write_numpy(self, value)
            if tree is None:
                raise _not_registered(kind)
            return tree
        name = entry.name
        if self.canonical and ":" in name:  # the same module may be imported as script and as package.script
            module, _, qualname = name.partition(":")
            name = f"{module.rpartition('.')[2]}:{qualname}"
        return {"~": entry.tag, "type": name, **self._parts(entry, value)}

    def _parts(self, entry: Known, value: Any) -> dict[str, object]:
        try:
            taken = entry.kind.take(value)
        except (Refused, MemoryError):
            raise
        except Exception as problem:  # properties and adapters are foreign code
            raise Refused(f": {type_name(entry.cls)} could not be taken apart ({type(problem).__name__}).") from problem
        if self.canonical:
            taken.pop("traceback", None)
        done: dict[str, object] = {}
        for section, form in entry.kind.sections.items():
            if section in taken:
                done[section] = self._section(form, section, taken[section])
        return done

    def _section(self, form: str, name: str, part: Any) -> object:
        if form == "map":
            self.count(len(part))
            return self.named(part, ".{}")
        try:
            return self.items(part) if form == "items" else self.value(part)
        except Refused as problem:
            raise problem.at("" if name == "v" else f".{name}")  # noqa: B904


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_registered(cls: type) -> Refused:
    base = next((base for base in cls.__mro__[1:] if base in WRITE or base in PLAIN), None)
    if base is not None and not learnable(cls):
        return Refused(
            f": {type_name(cls)} cannot be stored: a subclass of {base.__name__} would come back as a plain one.",
            f"Convert it to a plain {base.__name__}, or call perdure.register({cls.__name__}, encode=..., decode=...).",
        )
    if learnable(cls):
        inside = " (annotations cannot name a class made inside a function)" if "<locals>" in cls.__qualname__ else ""
        hint = f"Annotate the step's return type with the class, or call perdure.register on it{inside}."
    else:
        hint = "Call perdure.register with encode= and decode= for this class, or return plain data instead."
    return Refused(f": {type_name(cls)} cannot be stored, because this program has not registered it.", hint)


ATOMS = frozenset((str, int, float, bool, type(None)))
"""What stands for itself in decoded JSON."""


class Reader(_Budget):
    """Walks decoded JSON and gives the value it stands for. One per value."""

    __slots__ = ("blobs", "found", "guard", "redacted", "secrets")

    def __init__(self, blobs: Mapping[str, bytes], guard: Guard = OPEN) -> None:
        super().__init__()
        self.blobs = blobs
        self.guard = guard
        self.secrets: list[Secret] = []
        """those it has made"""
        self.redacted = False
        """something is not what it was when it was written"""
        self.found: dict[str, Known] = {}

    def value(self, stored: Any) -> Any:
        kind = type(stored)
        if kind in ATOMS:
            return stored
        if self.depth > MAX_DEPTH:  # one more than the writer's: an atom that needs a tag stands in an object
            raise Refused(f" lies more than {MAX_DEPTH} containers deep.")
        self.depth += 1
        if kind is list:
            made: Any = self.items(stored)
        elif "~" in stored:
            made = self._tagged(stored)
        else:
            self.count(len(stored))
            made = self.named(stored, "[{!r:.60}]")
        self.depth -= 1
        return made

    def blob(self, name: str, size: int) -> bytes:
        data = self.blobs.get(name)
        if data is None or len(data) != size:
            raise Refused(f" is a blob that is {'missing' if data is None else 'damaged'}: sha256 {name[:64]}.")
        self.spend(size)
        return data

    def items(self, stored: list[Any]) -> list[Any]:
        self.count(len(stored))
        done: list[Any] = []
        try:
            for item in stored:
                done.append(item if type(item) in ATOMS else self.value(item))
        except Refused as problem:
            raise problem.at(f"[{len(done)}]")  # noqa: B904
        return done

    def named(self, stored: dict[str, Any], place: str) -> dict[str, Any]:
        done: dict[str, Any] = {}
        key = ""
        try:
            for key, item in stored.items():
                done[key] = item if type(item) in ATOMS else self.value(item)
        except Refused as problem:
            raise problem.at(place.format(key))  # noqa: B904
        return done

    def _tagged(self, stored: dict[str, Any]) -> Any:
        name = stored["~"]
        tag = READ.get(name) if type(name) is str else None
        if tag is not None:
            _check_form(stored, tag.keys)
            return tag.read(self, stored)
        if name == "dict":
            return self._pairs(stored)
        if "type" in stored:
            return self._object(stored)
        raise Refused(" has a stored tag that this Perdure does not know.", "A newer Perdure may have written it.")

    def _pairs(self, stored: dict[str, Any]) -> dict[Any, Any]:
        _check_form(stored, {"v": list})
        self.count(len(stored["v"]))
        made = {self.value(key): self.value(item) for key, item in stored["v"]}
        if len(made) != len(stored["v"]):
            raise Refused(" is a stored dict with a key that stands twice.")
        return made

    def _object(self, stored: dict[str, Any]) -> Any:
        name = stored["type"]
        if type(name) is not str:
            raise Refused(" is stored with a type whose name is not text.")
        entry = self.found.get(name) or self.found.setdefault(name, find(name))
        if entry.tag != stored["~"]:
            raise Refused(
                f" was stored as another kind of object than {type_name(entry.cls)}, which is of kind {entry.tag!r}.",
                "Register the class as it was, or rerun the step that made the value.",
            )
        sections = entry.kind.sections
        _check_form(stored, {"type": str, **{f"{section}?": _FORMS[form] for section, form in sections.items()}})
        parts = {
            section: self._section(sections[section], stored[section]) for section in sections if section in stored
        }
        try:
            return entry.kind.make(entry.cls, parts)
        except (Refused, MemoryError):
            raise
        except Exception as problem:
            raise Refused(
                f": {type_name(entry.cls)} could not be put together ({type(problem).__name__})."
            ) from problem

    def _section(self, form: str, part: Any) -> Any:
        if form == "map":
            self.count(len(part))
            return self.named(part, ".{}")
        return self.items(part) if form == "items" else self.value(part)


_FORMS: dict[str, Any] = {"map": dict, "items": list, "value": object}


def _check_form(stored: dict[str, Any], keys: Mapping[str, Any]) -> None:
    """Refuse a tagged object with a key missing, too many, or of another JSON type."""
    seen = 1  # the tag itself
    for key, form in keys.items():
        name = key.removesuffix("?")
        if name in stored:
            seen += 1
            if form is not object and type(stored[name]) is not form:
                raise Refused(f" is stored with a part {name!r} of another form than this Perdure writes.")
        elif name == key:
            raise Refused(f" is stored without its part {name!r}.")
    if seen != len(stored):
        raise Refused(" is stored with a part that this Perdure does not know.", "A newer Perdure may have written it.")
