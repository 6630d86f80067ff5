"""Values that people and other programs give as JSON: answers, signals, arguments that a model chose.

A type is described by a JSON Schema, which is stored with what asks for it. So a client can check a value before
anything is written, without the program that asks and its types; that program converts what came to the type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

from perdure.errors import AnswerRefused, ConfigError
from perdure.model import Question


def schema_of(kind: Any, what: str) -> dict[str, Any]:
    """JSON Schema of a type, in one piece. Raises ConfigError, naming ``what``, for one that JSON cannot give."""
    found: dict[str, Any] = {}

    def hook(cls: type) -> dict[str, Any]:
        describe = getattr(cls, "model_json_schema", None)
        if describe is not None:  # Pydantic models describe themselves
            schema: dict[str, Any] = describe(ref_template="#/$defs/{model}")
            found.update(schema.pop("$defs", {}))
            return schema
        if issubclass(cls, PurePath):
            return {"type": "string"}
        raise TypeError(f"a value of the type {cls!r} cannot be given")

    try:
        (schema,), parts = msgspec.json.schema_components([kind], schema_hook=hook, ref_template="#/$defs/{name}")
    except TypeError as problem:
        raise ConfigError(f"{what}: {problem}.", hint="Use types that JSON can describe.") from None
    parts = {**parts, **found}
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        whole = parts[name]
        if schema["$ref"].encode() not in msgspec.json.encode(parts):  # it does not contain itself
            parts.pop(name)
        schema = {key: part for key, part in whole.items() if key != "title"}
    return schema | ({"$defs": parts} if parts else {})


def convert(value: object, kind: Any, *, strict: bool = True) -> Any:
    """What JSON gave, as a value of a type. Raises ValueError or TypeError (msgspec's and Pydantic's are such)."""
    return msgspec.convert(value, kind, strict=strict, dec_hook=_decode)


def _decode(kind: type, value: Any) -> Any:
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    return kind(value) if issubclass(kind, PurePath) else value


def builtins_of(value: object) -> Any:
    """A value as JSON has it. Raises AnswerRefused for one that JSON cannot hold."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_plain))
    except (TypeError, ValueError, OverflowError, RecursionError) as problem:
        raise AnswerRefused(f"{type(value).__name__}: this value has no form in JSON ({problem}).") from None


def as_json(value: object) -> msgspec.Raw:
    """The same, encoded."""
    return msgspec.Raw(msgspec.json.encode(builtins_of(value)))


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"objects of type {type(value).__name__} are not JSON")


def with_choices(schema: dict[str, Any], choices: Sequence[object] | None) -> dict[str, Any]:
    """The schema, narrowed to these values."""
    return schema if choices is None else schema | {"enum": [builtins_of(choice) for choice in choices]}


def taker(kind: Any, choices: Sequence[object] | None) -> Callable[[bytes], object]:
    """A function from the JSON that came to a value of the type. It raises AnswerRefused."""

    def take(data: bytes) -> object:
        try:
            value = convert(msgspec.json.decode(data), kind)
        except Exception as problem:  # validators of a model are the user's code
            raise AnswerRefused(f"what came does not fit: {_without_value(problem)}") from None
        if choices is not None and value not in choices:
            raise AnswerRefused("what came is not one of the choices.")
        return value

    return take


def _without_value(problem: Exception) -> str:
    """What a validator found wrong. Pydantic's message would quote what it was given, into records and logs."""
    errors = getattr(problem.__cause__ or problem, "errors", None)  # msgspec says again what a hook of ours has said
    if not callable(errors):
        return str(problem)
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in errors())


def fitting(question: Question, value: object) -> msgspec.Raw:
    """A value as the JSON of an answer. Raises AnswerRefused, saying where it does not fit the question's schema."""
    plain = builtins_of(value)
    problem = misfit(plain, question.schema)
    if problem:
        raise AnswerRefused(
            f"run {question.run}: this is no answer to question {question.step} ({question.prompt[:80]}): {problem}. "
            "Nothing was written.",
            hint=f"It takes: {told(question.schema)}.",
        )
    return msgspec.Raw(msgspec.json.encode(plain))


def misfit(value: object, schema: dict[str, Any]) -> str:
    """Where and how a value does not fit a schema; "" if it does."""
    from jsonschema import Draft202012Validator, FormatChecker  # 35 ms, and only who answers needs it
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    formats = FormatChecker(())
    for name, kind in _FORMATS.items():
        formats.checks(name, raises=(ValueError, TypeError))(lambda text, kind=kind: _reads_as(text, kind))
    # an empty registry: a schema is stored data, and nothing that it names is fetched
    checker = Draft202012Validator(schema, format_checker=formats, registry=Registry())
    try:
        error = best_match(checker.iter_errors(value))
    except Unresolvable as problem:
        return f"its schema refers to what is not there ({problem})"
    except Exception as problem:  # the schema is stored data, and may be none
        return f"what it has to fit is no schema ({type(problem).__name__})"
    if error is None:
        return ""
    place = "".join(f"[{part!r}]" for part in error.absolute_path)
    said = error.message if len(error.message) <= 300 else f"{error.message[:120]} ... {error.message[-120:]}"
    return f"{place}{': ' if place else ''}{said}"


def _formats() -> dict[str, Any]:
    import datetime
    import decimal
    import uuid

    return {
        "date-time": datetime.datetime,
        "date": datetime.date,
        "time": datetime.time,
        "duration": datetime.timedelta,
        "uuid": uuid.UUID,
        "decimal": decimal.Decimal,
    }


_FORMATS = _formats()


def _reads_as(text: object, kind: Any) -> bool:
    if isinstance(text, str):
        convert(text, kind)
    return True


def told(schema: dict[str, Any]) -> str:
    """What a schema takes, in a few words for people."""
    try:
        return _told(schema)
    except (TypeError, AttributeError, RecursionError):  # it is stored data, and may be no schema
        return "any JSON"


def _told(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(msgspec.json.encode(choice).decode() for choice in schema["enum"])
    if "const" in schema:
        return msgspec.json.encode(schema["const"]).decode()
    if "anyOf" in schema:
        return " or ".join(_told(part) for part in schema["anyOf"])
    kind = schema.get("type")
    if kind == "boolean":
        return "true or false"
    if kind == "object" and "properties" in schema:
        fields = [f'"{name}": {_told(part)}' for name, part in schema["properties"].items()]
        return "{" + ", ".join(fields) + "}"
    if kind == "array":
        return f"a list of {_told(schema['items'])}" if isinstance(schema.get("items"), dict) else "a list"
    words = {"string": "text", "integer": "a whole number", "number": "a number", "null": "null", "object": "an object"}
    return str(schema.get("format") or words.get(str(kind), "any JSON"))
