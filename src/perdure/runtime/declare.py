"""``@step`` and ``@flow``: what can be declared of functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, overload

from perdure.checks import not_empty
from perdure.errors import ConfigError
from perdure.life import StepOptions
from perdure.retry import RetryPolicy
from perdure.runtime.cleanup import with_cleanup
from perdure.runtime.doubt import ask_people
from perdure.runtime.steps import Flow, Step

P = ParamSpec("P")
R = TypeVar("R")


@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    retries: int | RetryPolicy = 0,
    backoff: float = 1.0,
    timeout: float | None = None,
    check: Callable[[Any], object] | Literal[False] | None = None,
    on_refused: Literal["fail", "flag"] = "fail",
    on_crash: Literal["rerun", "verify", "ask", "fail"] = "rerun",
    verify: Callable[..., object] | None = None,
    key: str | Callable[..., str] | None = None,
    ignore: tuple[str, ...] = (),
    metered: bool = False,
    transaction: bool = False,
    version: str = "",
) -> Callable[[Callable[P, R]], Step[P, R]]: ...
def step(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    retries: int | RetryPolicy = 0,
    backoff: float = 1.0,
    timeout: float | None = None,
    check: Callable[[Any], object] | Literal[False] | None = None,
    on_refused: Literal["fail", "flag"] = "fail",
    on_crash: Literal["rerun", "verify", "ask", "fail"] = "rerun",
    verify: Callable[..., object] | None = None,
    key: str | Callable[..., str] | None = None,
    ignore: tuple[str, ...] = (),
    metered: bool = False,
    transaction: bool = False,
    version: str = "",
) -> Step[P, R] | Callable[[Callable[P, R]], Step[P, R]]:
    """Make a function a step: a named unit of work whose result is kept.

    - ``retries``: attempts after the first (or a RetryPolicy); waits grow from ``backoff`` seconds.
    - ``timeout``: seconds an attempt may take. A sync body that is late runs on in its thread and is ignored.
    - ``check``: called with the output; False, a reason (str) or OutputRefused refuses it. Default: an empty output is
      refused, unless the function is annotated ``-> None``; ``check=False`` accepts anything.
    - ``on_refused``: after the last retry, ``"fail"`` the step, or ``"flag"`` it: completed, but suspect.
    - ``on_crash``: what to do when an attempt was started and never ended: ``"rerun"`` (same idempotency key),
      ``"verify"`` (``verify`` gets the same arguments and returns the result, or None if nothing happened), ``"ask"``
      (a person decides: "again", or what the result is), ``"fail"``.
    - ``key``: identity instead of the arguments, text or a function of them. ``ignore``: arguments outside of it.
    - ``metered``: each attempt is a call that is paid for; it counts in the run's usage and against its budget, also
      when it crashes. What a call has used, ``context().spent`` says.
    - ``transaction``: the body is given a transaction of the store (``context().transaction``, the driver's
      connection), in which its completion is recorded too: its effect on tables beside the store's is there exactly
      once. For short sync functions on ``sqlite:`` and ``postgresql:``; meanwhile nothing else of the process is
      committed.
    - ``version``: any text that stands for the code of the step: as long as it is the same, nothing has changed.

    Raises ConfigError for a wrong declaration.
    """
    if not isinstance(version, str):
        raise ConfigError(f"version must be text, not {version!r}.")
    if on_refused not in ("fail", "flag"):
        raise ConfigError(f"on_refused must be 'fail' or 'flag', not {on_refused!r}.")
    if on_crash not in ("rerun", "verify", "ask", "fail"):
        raise ConfigError(f"on_crash must be 'rerun', 'verify', 'ask' or 'fail', not {on_crash!r}.")
    if (on_crash == "verify") != (verify is not None):
        raise ConfigError("on_crash='verify' and verify=FUNCTION go together.")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"timeout must be a number of seconds above 0, not {timeout!r}.")
    if transaction and (on_crash != "rerun" or on_refused != "fail" or timeout is not None):
        raise ConfigError(
            "transaction=True excludes timeout=, on_crash= and on_refused='flag'.",
            hint="Such a step is never in doubt: what is not recorded was rolled back.",
        )
    policy = retries if isinstance(retries, RetryPolicy) else RetryPolicy(retries=retries, backoff=backoff)

    def decorate(fn: Callable[P, R]) -> Step[P, R]:
        if not callable(fn) or inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise ConfigError(f"A step must be a function or a coroutine function, not {fn!r}.")
        named = name or str(getattr(fn, "__name__", "step"))
        if transaction and inspect.iscoroutinefunction(fn):
            raise ConfigError(f"{named} is async; a step that takes a transaction must be a sync function.")
        returns_nothing = getattr(fn, "__annotations__", {}).get("return", ...) in (None, "None")
        checked = check if check is not None else (None if returns_nothing else not_empty)
        declared = StepOptions(
            retry=policy,
            timeout=timeout,
            check=checked or None,
            on_refused=on_refused,
            on_crash=on_crash,
            metered=metered,
            transaction=transaction,
        )
        finds_out = ask_people(fn, named) if on_crash == "ask" else verify
        return Step(fn, named, declared, finds_out, key, tuple(ignore), version)

    return decorate(fn) if fn is not None else decorate


@overload
def flow(fn: Callable[P, R], /) -> Flow[P, R]: ...
@overload
def flow(
    *,
    name: str | None = None,
    on_cancel: Callable[P, object] | None = None,
    version: str = "",
    accepts: tuple[str, ...] = (),
) -> Callable[[Callable[P, R]], Flow[P, R]]: ...
def flow(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    on_cancel: Callable[P, object] | None = None,
    version: str = "",
    accepts: tuple[str, ...] = (),
) -> Flow[P, R] | Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a flow: what ``perdure.run`` executes. Called inside another run it gets a scope of its own.

    - ``on_cancel``: a function that cleans up when the run is cancelled in the middle of this flow. It is given the
      flow's arguments; its steps are durable.
    - ``version``: of this code, any text. A worker goes on only with runs of its own version, and with those that
      ``accepts`` lists. Without one it goes on with runs that have none.

    Raises ConfigError for a wrong declaration.
    """
    versions: object = accepts
    if not isinstance(versions, tuple | list) or not all(isinstance(told, str) for told in (version, *versions)):
        raise ConfigError(f"version must be text and accepts a tuple of texts, not {version!r} and {accepts!r}.")

    def decorate(fn: Callable[P, R]) -> Flow[P, R]:
        if not callable(fn):
            raise ConfigError(f"A flow must be a function, not {fn!r}.")
        made = Flow(with_cleanup(fn, on_cancel), name or str(getattr(fn, "__name__", "flow")), None, ())
        made.version, made.accepts = version, tuple(accepts)
        return made

    return decorate(fn) if fn is not None else decorate
