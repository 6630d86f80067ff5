"""Tools: typed Python functions, sync or async, that a model may ask for. Every call is a step.

    @tool(cache=True, ttl=3600)
    def search(query: str, limit: int = 5) -> list[str]:
        "Search the archive."                # the description that the model is given

A model's arguments are converted to the declared types (dataclasses, enums, dates, Pydantic models ...); what does not
fit is told to the model before anything runs. A tool returns any value that can be stored; the model reads text as it
is, a ``File`` as its name, type and size, everything else as JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, ParamSpec, TypeVar, get_type_hints, overload

import msgspec
from msgspec.structs import replace

from perdure.errors import ConfigError, OutputRefused
from perdure.model import File
from perdure.runners.approval import Approval
from perdure.runners.messages import ToolCall, ToolSchema
from perdure.runtime.children import Failed, as_step, returning
from perdure.runtime.code import Coded, Source
from perdure.runtime.context import context
from perdure.runtime.forms import convert, schema_of
from perdure.runtime.steps import Flow, Step

P = ParamSpec("P")
R = TypeVar("R")
_KEY = "idempotency_key"


class Tool(Coded, Generic[P, R]):
    """A function that a model may ask for: its step, and how a model is told of it. Made by ``tool``; call it as the
    function it wraps.
    """

    def __init__(
        self,
        step: Step[P, R],
        arguments: type[msgspec.Struct],
        description: str,
        needs_approval: bool | Callable[..., bool] = False,
    ) -> None:
        self.step = step
        self.needs_approval = needs_approval
        self.name = step.name
        self.schema: ToolSchema = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": description,
                "parameters": schema_of(arguments, f"tool {self.name}"),
            },
        }
        self._arguments = arguments

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.step(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name}>"

    def sources(self) -> Iterable[Source]:
        return (self.step,)

    def asks(self, arguments: dict[str, Any]) -> bool:
        """Whether a person is to approve a call with these arguments."""
        return bool(self.needs_approval(**arguments) if callable(self.needs_approval) else self.needs_approval)

    def arguments(self, call: ToolCall) -> dict[str, Any]:
        """A model's arguments as the declared types. Raises OutputRefused, saying what does not fit."""
        try:
            made = convert(call.arguments, self._arguments, strict=False)
        except (ValueError, TypeError) as problem:
            raise OutputRefused(f"the arguments of {self.name} do not fit: {problem}") from None
        return {field: getattr(made, field) for field in made.__struct_fields__ if field in call.arguments}


@overload
def tool(fn: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    cache: bool = False,
    ttl: float | None = None,
    side_effect: bool = False,
    on_error: Literal["fail", "tell"] = "fail",
    needs_approval: bool | Callable[..., bool] = False,
    **options: Any,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    cache: bool = False,
    ttl: float | None = None,
    side_effect: bool = False,
    on_error: Literal["fail", "tell"] = "fail",
    needs_approval: bool | Callable[..., bool] = False,
    **options: Any,
) -> Any:
    """Make a function a tool; a flow or an agent too, which then runs in a scope of its own.

    - ``cache``: equal calls, by whichever agent of the run, get the recorded result, for ``ttl`` seconds (default: as
      long as the run lives). It survives crashes (W5).
    - ``side_effect``: it acts on the outside. It is never cached, and gets its idempotency key: as ``idempotency_key``,
      if it has a parameter of that name (the model does not see it), or from ``perdure.context()``.
    - ``on_error``: what a failure after the last retry does: ``"fail"`` the run, which goes on there when it is run
      again; or ``"tell"`` the model, which is recorded like a result.
    - ``needs_approval``: True, or a function of its arguments: a person is asked before a model's call is executed. The
      answer is true, false or an ``Approval``. Without a store nobody can be asked, and it is an error.
    - ``options`` are those of ``@perdure.step``: retries, timeout, on_crash, verify ...

    Raises ConfigError for a wrong declaration.
    """
    if cache and side_effect:
        raise ConfigError("cache=True and side_effect=True exclude each other: a side effect is not had from a cache.")
    if ttl is not None and (not cache or not ttl > 0):
        raise ConfigError(f"ttl={ttl!r} must be a number of seconds above 0, with cache=True.")
    if on_error not in ("fail", "tell"):
        raise ConfigError(f"on_error must be 'fail' or 'tell', not {on_error!r}.")

    def decorate(fn: Callable[..., Any]) -> Tool[..., Any]:
        step = as_step(fn, name, **({} if isinstance(fn, Step) else {"check": False, **options}))
        arguments = _arguments(step)
        if _KEY in step.signature.parameters:
            step = _with_key(step)
        kept = 0.0 if not cache else ttl or float("inf")
        step = step.variant(step.name, replace(step.declared, cache=kept, spoken=True))
        if on_error == "tell":
            step = returning(step)
        return Tool(step, arguments, description or _description(fn), needs_approval)

    return decorate if fn is None else decorate(fn)


def as_tool(fn: object) -> Tool[..., Any]:
    """A tool, or what can be made one as it is. Raises ConfigError."""
    if isinstance(fn, Tool):
        return fn
    if not callable(fn):
        raise ConfigError(f"A tool must be a function, not {fn!r}.")
    return tool(fn)


def _description(fn: Callable[..., Any]) -> str:
    own = getattr(fn, "description", "")  # of an agent
    return str(own) or inspect.getdoc(fn.fn if isinstance(fn, Step | Flow) else fn) or ""


def _with_key(step: Step[..., Any]) -> Step[..., Any]:
    """The step without its parameter ``idempotency_key``, which it is given when it runs."""
    inner = step.fn

    def body(**arguments: Any) -> Any:
        return inner(**arguments, **{_KEY: context().idempotency_key})

    async def body_async(**arguments: Any) -> Any:
        return await inner(**arguments, **{_KEY: context().idempotency_key})

    made = step.with_body(body_async if step.is_async else body)
    kept = [p.replace(kind=p.KEYWORD_ONLY) for name, p in step.signature.parameters.items() if name != _KEY]
    made.__dict__["signature"] = inspect.Signature(kept)
    return made


def _arguments(step: Step[..., Any]) -> type[msgspec.Struct]:
    """A struct with the parameters that a model gives."""
    try:
        hints = get_type_hints(inspect.unwrap(step.fn), include_extras=True)
    except Exception:  # an annotation that is known to type checkers only
        hints = {}
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for p in step.signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise ConfigError(f"tool {step.name}: a model gives arguments by name; {p} cannot be given.")
        plain = p.annotation is not p.empty and not isinstance(p.annotation, str)
        hint = hints.get(p.name, p.annotation if plain else Any)
        if p.name == _KEY:
            continue
        if p.default is p.empty:
            fields.append((p.name, hint))
        elif type(p.default) in (str, int, float, bool):
            fields.append((p.name, hint, p.default))
        else:  # not shown; an argument that is not given is left to the function
            fields.append((p.name, hint if hint is Any else hint | None, None))
    return msgspec.defstruct(step.name, fields, kw_only=True, forbid_unknown_fields=True)


def told(value: object) -> str:
    """A tool's result as the model reads it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Failed):
        return f"Error: {value.error}"
    if isinstance(value, Approval):
        return str(value)
    if value is None:
        return "done"
    shown = _without_contents(value)
    return shown if isinstance(shown, str) else msgspec.json.encode(shown, enc_hook=_plain).decode()


def _without_contents(value: Any) -> Any:
    """Files by name, wherever they are in lists and dicts."""
    if isinstance(value, File):
        return repr(value)
    if isinstance(value, list | tuple):
        return [_without_contents(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_contents(item) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return repr(value) if dump is None else dump(mode="json")
