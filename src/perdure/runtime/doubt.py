"""Asking a person about a step in doubt (X9): it was started, did not end, and perhaps had its effect."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec

from perdure import codec
from perdure.commands import Found
from perdure.errors import AnswerRefused, ConfigError
from perdure.runtime.ask import asking
from perdure.runtime.context import context
from perdure.runtime.forms import convert, schema_of
from perdure.runtime.steps import Invocation

AGAIN = "again"


@codec.register(name="perdure:Decided")
class Decided(msgspec.Struct, frozen=True):
    """What a person says of a step in doubt: execute it again, or what its result is."""

    again: bool = False
    result: Any = None


def ask_people(fn: Callable[..., Any], name: str) -> Callable[..., object]:
    """A ``verify`` for ``fn`` that asks. The answer is "again", or {"result": what it returned}."""
    kind = _returned(fn)

    def take(data: bytes) -> Decided:
        said = msgspec.json.decode(data)
        if said == AGAIN:
            return Decided(again=True)
        try:
            return Decided(result=convert(said["result"], kind))
        except Exception as problem:  # validators of a model are the user's code
            raise AnswerRefused(f"what came does not fit: {problem}") from None

    def question(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invocation:
        found = schema_of(kind, f"step {name}")
        parts = found.pop("$defs", {})
        result = {"type": "object", "properties": {"result": found}, "required": ["result"]}
        schema = {"anyOf": [{"enum": [AGAIN]}, {**result, "additionalProperties": False}], "$defs": parts}
        given = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
        return asking(
            f"Step {name} was started and did not end, so it may have had its effect. Execute it again, or what is its "
            "result?",
            kind=Any,
            take=take,
            schema=schema,
            context=f"{name}({given})"[:2000],
            name="in doubt",
            key=f"attempt {context().attempt}",
        )

    def verify(*args: Any, **kwargs: Any) -> object:
        return _found(question(args, kwargs).start())

    async def verify_async(*args: Any, **kwargs: Any) -> object:
        return _found(await question(args, kwargs).start())

    return verify_async if inspect.iscoroutinefunction(fn) else verify


def _found(decided: Decided) -> object:
    return None if decided.again else Found(decided.result)


def _returned(fn: Callable[..., Any]) -> Any:
    """The type that a function is annotated to return."""
    try:
        hints = get_type_hints(inspect.unwrap(fn))
    except Exception:  # an annotation that is known to type checkers only
        hints = {}
    kind = hints.get("return", Any)
    try:
        schema_of(kind, "result")
    except ConfigError:  # no JSON gives one: whatever is given is taken as it is
        return Any
    return kind
