"""How objects of each kind of class are taken apart and put together again.

The rules are ours and run none of the class's code on load: no ``__init__``, no ``__post_init__``, no validator. (One
exception: a msgspec.Struct can only be made by calling it.) An object loses nothing, or it is refused: attributes
beyond the declared fields are kept as well, except ``functools.cached_property`` values (computed again when asked
for) and the ``__dunder__`` book-keeping of typing. A field that is not in the stored form gets its default; a stored
field that the class no longer has is an error.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import msgspec

from perdure.redaction import discreet, discreet_end

MAX_TRACEBACK = 20_000
"""Characters kept of a traceback: its end, where the fault is."""


class Refused(Exception):
    """Something below the value being walked cannot be stored or built; walkers add where, on the way up."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.parts: list[str] = []

    def at(self, part: str) -> Refused:
        self.parts.append(part)
        return self

    def path(self) -> str:
        path = "".join(reversed(self.parts))
        return path if len(path) <= 240 else f"{path[:120]} ... {path[-120:]}"


class Kind(NamedTuple):
    """How objects of one kind are taken apart.

    ``sections`` gives the form of each part: "map" (name -> value), "items" (a list of values) or "value".
    ``take(object)`` returns the parts that are not empty; ``make(known class, parts)`` is its inverse.
    """

    fits: Callable[[type], bool]
    sections: Mapping[str, str]
    take: Callable[[Any], dict[str, Any]]
    make: Callable[[type, dict[str, Any]], object]


def type_name(cls: type) -> str:
    """``module.qualname`` for people; builtins without their module."""
    module = module_of(cls)
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"


def module_of(cls: type) -> str:
    """The module in a stable name: of a script, what ``-m`` was given or the file's name."""
    module = str(cls.__module__)
    if module not in ("__main__", "__mp_main__"):  # the second is what multiprocessing calls the parent's script
        return module
    main = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return PurePath(file).stem if file else "__main__"


# ---- parts common to several kinds

PLAIN = (str, int, float, list, dict)
"""Builtins that JSON has; their subclasses are types of their own."""
_CONTAINERS = (str, int, float, complex, list, dict, tuple, set, frozenset, bytes, bytearray, deque)


def _extras(value: object, fields: Iterable[str]) -> dict[str, Any]:
    """Attributes beyond the declared fields."""
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    names = attributes.keys() - set(fields)
    if not names:
        return {}
    cls = type(value)
    return {
        name: attributes[name]
        for name in sorted(names)
        if not name.startswith("__") and not isinstance(getattr(cls, name, None), functools.cached_property)
    }


def _refuse_extras(value: object, fields: Iterable[str] = ()) -> None:
    for name in _extras(value, fields):
        raise Refused(f".{name} is no declared field of {type_name(type(value))}, so the object cannot be stored.")


def _restore_extras(value: object, extras: Mapping[str, Any]) -> None:
    if any(name.startswith("__") and name != "__notes__" for name in extras):
        raise Refused(" has a stored attribute whose name begins with two underscores.")
    if extras:
        value.__dict__.update(extras)


_MISSING: Any = object()


def _complete(cls: type, stored: Mapping[str, Any], fields: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """``stored`` plus defaults, in the order of ``fields`` (name -> a function giving the default or _MISSING)."""
    unknown = stored.keys() - fields.keys()
    if unknown:
        raise Refused(
            f" was stored with fields that {type_name(cls)} no longer has: {', '.join(sorted(unknown))}.",
            "Give the class these fields back (a default will do), or rerun the step that made the value.",
        )
    complete = {name: stored[name] if name in stored else default() for name, default in fields.items()}
    missing = [name for name, value in complete.items() if value is _MISSING]
    if missing:
        raise Refused(
            f" was stored without fields that {type_name(cls)} requires: {', '.join(missing)}.",
            "Give new fields a default, or rerun the step that made the value.",
        )
    return complete


def _present(value: object, names: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """Fields of ``value`` that are set. A required one that is not cannot be built again, so it is refused."""
    found = {}
    for name in names:
        item = getattr(value, name, _MISSING)
        if item is not _MISSING:
            found[name] = item
        elif name not in optional:
            raise _never_set(value, name)
    return found


def _never_set(value: object, name: str) -> Refused:
    return Refused(f".{name} of {type_name(type(value))} was never set, so the object cannot be stored.")


def _nothing() -> Any:
    return _MISSING


# ---- dataclasses


def _is_data(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and not issubclass(cls, _CONTAINERS)


def _take_data(value: Any) -> dict[str, Any]:
    fields = dataclasses.fields(value)
    names = [field.name for field in fields]
    parts: dict[str, Any] = {"fields": _present(value, names, [field.name for field in fields if not field.init])}
    if more := _extras(value, names):
        parts["more"] = more
    return parts


def _make_data(cls: type, parts: dict[str, Any]) -> object:
    defaults = {field.name: functools.partial(_data_default, field) for field in dataclasses.fields(cls)}
    value: object = object.__new__(cls)
    for name, item in _complete(cls, parts["fields"], defaults).items():
        if item is not _UNSET:
            object.__setattr__(value, name, item)  # frozen classes refuse the ordinary way
    _restore_extras(value, parts.get("more", {}))
    return value


_UNSET: Any = object()


def _data_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _MISSING if field.init else _UNSET  # a field that __init__ does not take may be unset


# ---- enums


def _take_enum(value: Any) -> dict[str, Any]:
    cls = type(value)
    if isinstance(value, enum.Flag):
        return {"value": int(value.value)}  # combinations have no name of their own
    if cls.__members__.get(value.name) is not value:
        raise Refused(f" is not a declared member of {type_name(cls)}, so it cannot be stored.")
    return {"name": value.name}


def _make_enum(cls: Any, parts: dict[str, Any]) -> object:
    if "value" in parts:
        if not issubclass(cls, enum.Flag) or type(parts["value"]) is not int:
            raise Refused(f" was stored as a flag, and {type_name(cls)} is none.")
        return cls(parts["value"])
    member = cls.__members__.get(parts["name"])
    if member is None:
        raise Refused(f" was stored as a member that {type_name(cls)} no longer has.", "Give the enum its member back.")
    return member


# ---- NamedTuples


def _is_named(cls: type) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def _take_named(value: Any) -> dict[str, Any]:
    _refuse_extras(value)
    return {"fields": dict(zip(type(value)._fields, value, strict=True))}


def _make_named(cls: Any, parts: dict[str, Any]) -> object:
    defaults = {name: functools.partial(cls._field_defaults.get, name, _MISSING) for name in cls._fields}
    return tuple.__new__(cls, _complete(cls, parts["fields"], defaults).values())


# ---- msgspec.Struct


def _take_struct(value: Any) -> dict[str, Any]:
    _refuse_extras(value)
    return {"fields": _present(value, type(value).__struct_fields__)}


def _make_struct(cls: Any, parts: dict[str, Any]) -> object:
    fields = msgspec.structs.fields(cls)
    names = [field.name for field in fields]
    required = {field.name for field in fields if field.required}
    defaults = {name: (_nothing if name in required else _default_of_struct) for name in names}
    complete = _complete(cls, parts["fields"], defaults)
    made: object = cls(**{name: item for name, item in complete.items() if item is not _UNSET})
    return made


def _default_of_struct() -> Any:
    return _UNSET  # the constructor fills it in


# ---- Pydantic v2, which is never imported from here


def _is_model(cls: type) -> bool:
    main = sys.modules.get("pydantic.main")
    base = getattr(main, "BaseModel", None)
    return base is not None and issubclass(cls, base)


def _take_model(value: Any) -> dict[str, Any]:
    cls = type(value)
    found = {name: value.__dict__[name] for name in cls.model_fields if name in value.__dict__}
    for name, info in cls.model_fields.items():
        if name not in found and info.is_required():
            raise _never_set(value, name)
    _refuse_extras(value, found)
    parts: dict[str, Any] = {"fields": found, "set": sorted(value.model_fields_set)}
    if value.__pydantic_extra__ is not None:
        parts["extra"] = value.__pydantic_extra__
    if value.__pydantic_private__:
        parts["private"] = value.__pydantic_private__
    return parts


def _make_model(cls: Any, parts: dict[str, Any]) -> object:
    fields = {name: functools.partial(_model_default, info) for name, info in cls.model_fields.items()}
    private = {name: functools.partial(_model_default, info) for name, info in cls.__private_attributes__.items()}
    extra = parts.get("extra")
    if (cls.model_config.get("extra") == "allow") != (extra is not None):
        raise Refused(f" was stored when {type_name(cls)} treated extra fields differently.")
    if not {*parts["set"]} <= {*fields, *(extra or ())}:
        raise Refused(f" was stored with fields that {type_name(cls)} does not have.")
    value: object = object.__new__(cls)
    for name, item in {
        "__dict__": _complete(cls, parts["fields"], fields),
        "__pydantic_fields_set__": set(parts["set"]),
        "__pydantic_extra__": extra,
        "__pydantic_private__": _private(cls, parts.get("private", {}), private) if private else None,
    }.items():
        object.__setattr__(value, name, item)
    return value


def _private(cls: type, stored: Mapping[str, Any], fields: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    optional = {name: (lambda f=default: _UNSET if (v := f()) is _MISSING else v) for name, default in fields.items()}
    return {name: item for name, item in _complete(cls, stored, optional).items() if item is not _UNSET}


def _model_default(info: Any) -> Any:
    default = info.get_default(call_default_factory=True) if hasattr(info, "is_required") else info.get_default()
    return _MISSING if type(default).__name__ == "PydanticUndefinedType" else default


# ---- exceptions

BUILTIN_ERRORS = {
    f"builtins:{name}": cls
    for name, cls in vars(builtins).items()
    if isinstance(cls, type) and issubclass(cls, BaseException) and cls.__name__ == name
}
_SLOTS = ((ImportError, ("name", "path")), (NameError, ("name",)), (AttributeError, ("name",)))
"""What constructors of builtin exceptions take by keyword only, so that ``args`` lacks it."""


def _take_error(value: BaseException) -> dict[str, Any]:
    args = value.args
    if isinstance(value, OSError) and value.filename is not None and len(args) == 2:
        args = (*args, value.filename, None, value.filename2)  # args leaves the file names out
    state = _extras(value, ("recorded_traceback",))
    if notes := getattr(value, "__notes__", None):
        state["__notes__"] = notes
    slots = {
        name: getattr(value, name)
        for cls, names in _SLOTS
        if isinstance(value, cls)
        for name in names
        if getattr(value, name) is not None
    }
    parts: dict[str, Any] = {"args": args, "traceback": error_text(value)}
    return parts | ({"state": state} if state else {}) | ({"slots": slots} if slots else {})


def _make_error(cls: Any, parts: dict[str, Any]) -> object:
    args = tuple(parts["args"])
    value: Any = cls.__new__(cls, *args)
    if type(value) is not cls:
        raise Refused(f" makes another exception than {type_name(cls)}.")
    base = next(base for base in cls.__mro__ if BUILTIN_ERRORS.get(f"builtins:{base.__name__}") is base)
    base.__init__(value, *args)  # C code that parses args, such as errno; never the class's own __init__
    for name, item in parts.get("slots", {}).items():
        if not any(issubclass(cls, owner) and name in names for owner, names in _SLOTS):
            raise Refused(f" has a stored attribute that {type_name(cls)} does not have.")
        setattr(value, name, item)
    _restore_extras(value, parts.get("state", {}))
    if type(parts["traceback"]) is not str:
        raise Refused(" has a stored traceback that is not text.")
    value.__dict__["recorded_traceback"] = parts["traceback"]
    return value


def error_text(error: BaseException) -> str:
    """The traceback as text; ``recorded_traceback`` of an exception from a journal; "" if it was never raised."""
    recorded = error.__dict__.get("recorded_traceback")
    if error.__traceback__ is None and isinstance(recorded, str):
        return recorded
    if error.__traceback__ is None:
        return ""
    try:
        return printable("".join(traceback.format_exception(error)), MAX_TRACEBACK)
    except Exception as problem:  # the message of a foreign exception is foreign code
        return f"(the traceback could not be formatted: {type(problem).__name__})"


def printable(text: str, limit: int) -> str:
    """``text`` for people: discreet, without lone surrogates, cut to its last ``limit`` characters."""
    if len(text) <= limit:
        text = discreet(text)
    else:
        text = f"... ({len(text) - limit:,} characters left out)\n{discreet_end(text, limit)}"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


# ---- the table


KINDS: dict[str, Kind] = {
    "error": Kind(
        lambda cls: issubclass(cls, BaseException),
        {"args": "items", "state": "map", "slots": "map", "traceback": "value"},
        _take_error,
        _make_error,
    ),
    "enum": Kind(lambda cls: issubclass(cls, enum.Enum), {"name": "value", "value": "value"}, _take_enum, _make_enum),
    "named": Kind(_is_named, {"fields": "map"}, _take_named, _make_named),
    "struct": Kind(lambda cls: issubclass(cls, msgspec.Struct), {"fields": "map"}, _take_struct, _make_struct),
    "model": Kind(
        _is_model, {"fields": "map", "set": "items", "extra": "map", "private": "map"}, _take_model, _make_model
    ),
    "data": Kind(_is_data, {"fields": "map", "more": "map"}, _take_data, _make_data),
}
"""Tag -> kind, in the order in which a class is asked: a dataclass that is an exception is stored as an exception."""
