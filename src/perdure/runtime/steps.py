"""``@step`` and ``@flow``: ordinary functions, sync or async, that become durable inside a run."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Hashable, Iterable
from hashlib import sha256
from types import NoneType
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast

from msgspec.structs import replace

from perdure import codec
from perdure.codec import Digested
from perdure.errors import CodecError, ConfigError
from perdure.guard import OPEN, Guard, Hidden
from perdure.life import Cursor, Request, Seen, StepOptions
from perdure.model import ArgInfo, check_name
from perdure.record import Identity
from perdure.redaction import sounds_secret
from perdure.replay import NOT_AT_HAND, at_hand, execute
from perdure.runtime import live
from perdure.runtime.code import Code, Coded, Source, code_of
from perdure.runtime.context import Frame, current, entered
from perdure.runtime.drive import Body, drive, drive_async
from perdure.runtime.strands import requester, strand_of
from perdure.secret import MASK, Secret

P = ParamSpec("P")
R = TypeVar("R")
Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
_IMMUTABLE = frozenset({str, bytes, int, float, bool, NoneType, Secret})
_NO_STORE = Frame(None, Cursor(None, ""))
_told_outside: set[str] = set()
log = logging.getLogger("perdure")


class Function(Coded, Generic[P, R]):
    """What steps and flows have in common: a function, its name, and the identity of its arguments."""

    def __init__(
        self, fn: Callable[P, R], name: str, key: str | Callable[P, str] | None, ignore: tuple[str, ...]
    ) -> None:
        self.fn = fn
        self.name = check_name("step name", name)
        if "/" in name:
            raise ConfigError(f"The name {name!r} contains '/', which separates scopes.", hint="Choose another name=.")
        self.key = key
        self.ignore = ignore
        self.version = ""
        """of the code, as declared; "" if it is not"""
        self.accepts: tuple[str, ...] = ()
        """versions whose runs it goes on with, besides its own"""
        self.made_of: tuple[Source, ...] = (fn,)
        """what its code is"""
        self._code: Code | None = None
        self.is_async = inspect.iscoroutinefunction(fn)
        functools.update_wrapper(cast(Any, self), fn, updated=())
        codec.declare(fn)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"

    def __get__(self, obj: object, owner: type | None = None) -> Any:
        return self if obj is None else functools.partial(cast(Callable[..., Any], self), obj)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        codec.learn(self.fn)
        return inspect.signature(self.fn)

    def sources(self) -> Iterable[Source]:
        return self.made_of

    @property
    def code(self) -> Code:
        """Its code, and that of its project that it uses: see code.py."""
        if self._code is None or not self._code.holds():
            try:
                self._code = code_of(self.sources(), defaults=self.key is not None or bool(self.ignore))
            except Exception as problem:  # of objects that it uses: no reason not to execute it
                log.warning("%r: its code cannot be read, and changes of it will not be seen: %r", self, problem)
                self._code = Code("")
        return self._code

    @property
    def digest(self) -> str:
        """Digest of that; "" where there is none to be seen."""
        return self.code.digest

    def identify(self, args: tuple[Any, ...], kwargs: dict[str, Any], guard: Guard = OPEN) -> tuple[str, Seen]:
        """(fingerprint, arguments as seen). Raises CodecError for an argument that cannot be part of an identity."""
        seen: list[tuple[str, Digested | ArgInfo]] = []
        joined = ""
        hiding = guard.rules is not None
        for name, value in self._bound(args, kwargs):
            if name in self.ignore:
                continue
            try:
                found = codec.digested(Hidden(value) if hiding and guard.hides(name) else value, name, guard)
                seen.append((name, found))
                joined += f"{name}={found.hex};"
            except CodecError as error:
                if self.key is None:
                    raise CodecError(
                        f"step {self.name}, argument {error}",
                        hint=f"Or leave it out of the identity: ignore=({name!r},).",
                    ) from None
                head = MASK if sounds_secret(name) else f"<{type(value).__qualname__}>"
                seen.append((name, ArgInfo(name, "", head)))
        if self.key is not None:
            text = guard.text(str(self.key(*args, **kwargs) if callable(self.key) else self.key))
            return sha256(f"key:{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32], Seen(seen)
        return sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:32], Seen(seen)

    def as_recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any], guard: Guard) -> Inputs:
        """The arguments as they are to be recorded: those whose names the rules hide are marked. (Those given by name
        are recorded with it, and need no mark.)"""
        if guard.rules is None:
            return args, kwargs
        declared = list(self.signature.parameters.values())
        rest = [p.name for p in declared if p.kind is p.VAR_POSITIONAL] * len(args)
        names = [p.name for p in declared if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)] + rest
        return tuple(Hidden(a) if guard.hides(n) else a for n, a in zip(names, args, strict=False)), kwargs

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[tuple[str, object]]:
        # by far the most calls, and binding is slow
        if not kwargs and self._plain is not None and len(args) == len(self._plain):
            return zip(self._plain, args, strict=True)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments.items()

    @functools.cached_property
    def _plain(self) -> tuple[str, ...] | None:
        """Names of the parameters, if each takes one positional argument."""
        declared = self.signature.parameters.values()
        simple = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in declared)
        return tuple(p.name for p in declared) if simple else None


def arg_info(name: str, value: object, guard: Guard) -> ArgInfo:
    """An argument as the identity of a call sees it. Raises CodecError for one that cannot be part of it."""
    return Seen([(name, codec.digested(Hidden(value) if guard.hides(name) else value, name, guard))]).infos[0]


class Step(Function[P, R]):
    """A durable function. Call it as the function it wraps; make variants with ``options``."""

    def __init__(
        self,
        fn: Callable[P, R],
        name: str,
        declared: StepOptions,
        verify: Callable[P, object] | None,
        key: str | Callable[P, str] | None,
        ignore: tuple[str, ...],
        version: str = "",
    ) -> None:
        super().__init__(fn, name, key, ignore)
        self.declared = declared
        self.verify = verify
        self.version = version
        """stands for its code, if it is given"""

    def sources(self) -> Iterable[Source]:
        return (("version", self.version),) if self.version else self.made_of

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        invocation = Invocation(self, args, kwargs)
        return cast(R, invocation.start())

    def options(self, *, name: str | None = None, key: str | None = None, timeout: float | None = None) -> Step[P, R]:
        """The same step under another name, with an explicit identity ``key``, or another time limit."""
        declared = self.declared if timeout is None else replace(self.declared, timeout=timeout)
        return self.variant(name or self.name, declared, key)

    def variant(self, name: str, declared: StepOptions, key: str | Callable[P, str] | None = None) -> Step[P, R]:
        """The same function as another step."""
        made = Step(self.fn, name, declared, self.verify, key or self.key, self.ignore, self.version)
        made.__dict__ |= {known: value for known, value in self.__dict__.items() if known in ("signature", "made_of")}
        return made

    def with_body(self, fn: Callable[..., Any]) -> Step[..., Any]:
        """The same step in all else, with another function of the same colour as its body."""
        made: Step[..., Any] = Step(fn, self.name, self.declared, self.verify, self.key, self.ignore, self.version)
        made.__dict__ |= {"signature": self.signature, "made_of": self.made_of}
        return made

    def at_hand(self, invocation: Invocation) -> Any:
        """The recorded result of a call, if it lies in memory; else NOT_AT_HAND."""
        frame = current()
        if frame is None or frame.run is None or not frame.run.life.resumed or invocation.request is not None:
            return NOT_AT_HAND
        strand_of(frame.run)  # a task that somebody made shows itself by what it asks for
        request = invocation.request = self.request(frame, invocation)
        return at_hand(frame.run.life, frame.cursor, request, requester())

    def run_body(self, invocation: Invocation) -> Any:
        frame = current() or _outside(self)
        request = invocation.request = invocation.request or self.request(frame, invocation)
        if frame.run is None:
            machine = execute(None, frame.cursor, request, None)
        else:
            machine = execute(frame.run.life, invocation.cursor or frame.cursor, request, requester())
        body = Body(
            self.name,
            self.is_async,
            self.declared.timeout,
            functools.partial(self.fn, *invocation.args, **invocation.kwargs),
            functools.partial(self.verify, *invocation.args, **invocation.kwargs) if self.verify else None,
            bool(self.declared.child),
        )
        return (drive_async if self.is_async else drive)(machine, frame.run, body)

    def request(self, frame: Frame, invocation: Invocation) -> Request:
        if frame.run is None:
            return Request(self.name, self.declared)
        guard = frame.guard
        fingerprint, seen = self.identify(invocation.args, invocation.kwargs, guard)
        code = self.code
        parts = code.parts if frame.run.lives.config.keep_code else {}
        request = Request(self.name, self.declared, fingerprint, seen, code.digest, parts)
        for value in (*invocation.args, *invocation.kwargs.values()):
            if type(value) not in _IMMUTABLE:
                request.look_again = lambda: self.identify(invocation.args, invocation.kwargs, guard)[1].infos
                break
        return request


class Flow(Function[P, R]):
    """A function whose steps are durable when it is run with a store; a plain function call otherwise."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, Invocation(self, args, kwargs).start())

    def at_hand(self, invocation: Invocation) -> Any:
        return NOT_AT_HAND  # it is gone through

    def run_body(self, invocation: Invocation) -> Any:
        frame = current()
        if frame is None or frame.run is None:
            return self.fn(*invocation.args, **invocation.kwargs)
        cursor = invocation.cursor or self.open(frame, invocation)
        inner = Frame(frame.run, cursor, frame.step, is_async=self.is_async)
        if not self.is_async:
            with entered(inner):
                return self.fn(*invocation.args, **invocation.kwargs)
        return _inside(inner, cast(Coroutine[Any, Any, Any], self.fn(*invocation.args, **invocation.kwargs)))

    def open(self, frame: Frame, invocation: Invocation) -> Cursor:
        """A scope of its own for this call, numbered now."""
        try:
            fingerprint, _ = self.identify(invocation.args, invocation.kwargs, frame.guard)
        except CodecError:  # told apart by number alone
            fingerprint = ""
        return Cursor(frame.cursor.life, frame.cursor.branch(self.name, fingerprint))


def _outside(step: Step[..., Any]) -> Frame:
    """Where a step runs that no run called. While there are runs in this process this is probably a mistake."""
    if live.running and step.name not in _told_outside:
        _told_outside.add(step.name)
        log.warning(
            "step %s is executed WITHOUT durability: it was called outside of any run, in thread %s, while %s is "
            "running. Threads and executors of your own do not know the run that started them: use perdure.gather or "
            "perdure.map, or start them with contextvars.copy_context().run.",
            step.name,
            threading.current_thread().name,
            ", ".join(str(run.key) for run in list(live.running)[:3]),
        )
    return _NO_STORE


async def _inside(frame: Frame, work: Coroutine[Any, Any, R]) -> R:
    with entered(frame):
        return await work


class Invocation:
    """One call of a step or flow, not started yet: fan-outs claim its place before it runs."""

    __slots__ = ("args", "cursor", "function", "kwargs", "request")

    def __init__(
        self, function: Step[..., Any] | Flow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.request: Request | None = None
        self.cursor: Cursor | None = None

    def start(self) -> Any:
        """Run it (sync), or give the coroutine that will (async)."""
        if self.function.is_async:
            return self._run()
        found = self.function.at_hand(self)
        return found if found is not NOT_AT_HAND else self.function.run_body(self)

    async def _run(self) -> Any:
        found = self.function.at_hand(self)
        return found if found is not NOT_AT_HAND else await self.function.run_body(self)

    def claim(self, frame: Frame, by: Hashable) -> str:
        """Take the place in the journal that this call will have, now. Returns a label that is stable over lives."""
        if isinstance(self.function, Flow):
            self.cursor = self.function.open(frame, self)
            return self.cursor.scope
        self.cursor = frame.cursor
        self.request = self.function.request(frame, self)
        self.request.n = frame.cursor.claim(self.request, by)
        return f"{self.request.name}:{self.request.fingerprint}:{self.request.n}"

    def unrecorded(self) -> bool:
        """Whether it is a step's call that was claimed, and that no result is recorded for."""
        identity, cursor = self.claimed, self.cursor
        if identity is None or cursor is None or cursor.life is None:
            return False
        step = cursor.life.state.steps.find(identity)
        return step is None or not step.recorded

    @property
    def claimed(self) -> Identity | None:
        """The place in the journal that was taken for the call of a step."""
        request, cursor = self.request, self.cursor
        if request is None or request.n is None or cursor is None:
            return None
        return Identity(cursor.scope, request.name, request.fingerprint, request.n)

    def release(self, by: Hashable) -> None:
        """The claim of a step call has been used."""
        if self.request is not None and self.cursor is not None:
            self.cursor.done(self.request.name, self.request.fingerprint, by)


def invocation_of(coroutine: Coroutine[Any, Any, Any]) -> Invocation | None:
    """The call of a step or flow that a coroutine was made by, if it has not begun yet: for fan-outs, which take its
    place before it runs."""
    if getattr(coroutine, "cr_code", None) is not Invocation._run.__code__:
        return None
    found = inspect.getcoroutinelocals(coroutine).get("self")
    return found if isinstance(found, Invocation) else None
