"""Children: flows that run inside a run as steps, with everything they do in a scope of their own (K1, K3).

    found = await perdure.gather(*(perdure.child(worker)(topic) for topic in topics))

A child is a step whose body is a flow. When it has ended its result is recorded whole, and no later life looks inside;
when it was cut off, its body runs again, and the steps inside it that had ended are reused. Its scope is its role and
number (``worker-2``), given in the order in which the parent starts its children, at any depth:
``planner-0/worker-2``.

What a parent sees of a child that fails is declared: the exception, which ends the parent too unless it is caught; or a
``Failed`` value, which is recorded like a result (flagged), so that what a parent concluded from it stays true in
later lives until a person reruns the flagged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Literal, ParamSpec, TypeVar, cast, overload

import msgspec
from msgspec.structs import replace

from perdure import codec
from perdure.codec import describe_error
from perdure.errors import ConfigError
from perdure.runtime.declare import step
from perdure.runtime.steps import Flow, Step

P = ParamSpec("P")
R = TypeVar("R")


@codec.register(name="perdure:Failed")
class Failed(msgspec.Struct, frozen=True):
    """What stands in the place of the result of a child or tool that failed and was declared to return that."""

    name: str
    error: str
    """its type and message"""

    def __bool__(self) -> bool:
        return False


@overload
def child(flow: Callable[P, R], *, name: str | None = None, on_error: Literal["raise"] = "raise") -> Step[P, R]: ...
@overload
def child(
    flow: Callable[P, Coroutine[Any, Any, R]], *, name: str | None = None, on_error: Literal["return"]
) -> Step[P, Coroutine[Any, Any, R | Failed]]: ...
@overload
def child(flow: Callable[P, R], *, name: str | None = None, on_error: Literal["return"]) -> Step[P, R | Failed]: ...
def child(
    flow: Callable[P, Any], *, name: str | None = None, on_error: Literal["raise", "return"] = "raise"
) -> Step[P, Any]:
    """``flow`` as a child of the run that calls it: call what is returned like the flow itself.

    - ``name``: its own name among its parent's children; two of one name are refused. Without it children of one flow
      are numbered in the order in which they are started.
    - ``on_error``: ``"raise"``, or ``"return"`` a ``Failed`` (false in conditions) in the place of a result.

    Children run side by side in ``gather`` and ``map``, sync and async. Raises ConfigError for a wrong declaration.
    """
    if on_error not in ("raise", "return"):
        raise ConfigError(f"on_error must be 'raise' or 'return', not {on_error!r}.")
    if isinstance(flow, Step):
        raise ConfigError(f"{flow.name} is a step already; children are flows or plain functions.")
    made = as_step(flow if isinstance(flow, Flow) else Flow(flow, _name_of(flow), None, ()), name)
    if name is not None:
        made = made.variant(made.name, replace(made.declared, child="name"))
    return made if on_error == "raise" else returning(made)


def as_step(fn: Callable[P, R], name: str | None = None, **options: Any) -> Step[P, R]:
    """``fn`` as a step: a step under another name, a flow as a step with a scope of its own, a function as ``@step``
    makes it. Raises ConfigError for options of what is a step already.
    """
    if isinstance(fn, Step):
        if options:
            raise ConfigError(f"{fn.name} is a step already; give {', '.join(options)} to @step instead.")
        return cast(Step[P, R], fn.options(name=name))
    if not isinstance(fn, Flow):
        return step(name=name, **options)(fn)
    made: Step[P, R] = step(name=name or fn.name, **{"check": False, **options})(cast(Any, fn.fn))
    made.__dict__ |= {"signature": fn.signature, "made_of": (fn,)}
    return made.variant(made.name, replace(made.declared, child="role"))


def _name_of(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__name__", "child")).replace("<lambda>", "child")


def returning(made: Step[P, Any]) -> Step[P, Any]:
    """The same step, with its failure after the last retry as a flagged value. What is not its own fault is raised."""
    return made.variant(made.name, replace(made.declared, failed=functools.partial(_failed, made.name)))


def _failed(name: str, error: Exception) -> Failed:
    info = describe_error(error)
    return Failed(name, f"{info.type.rpartition('.')[2]}: {info.message}")
