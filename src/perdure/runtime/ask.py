"""``ask``, ``signal`` and ``sleep``: what a run waits for from outside. Each is a step, and needs no process meanwhile.

In async code they are awaited; in sync code they block and return the value. When nothing else of the run can move,
``perdure.run`` raises RunSuspended, unless it was told to ``wait``; run again, the code goes on behind the call.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from perdure import codec
from perdure.clock import SYSTEM
from perdure.commands import Machine, Wait
from perdure.errors import AnswerRefused, ConfigError
from perdure.guard import OPEN, Guard
from perdure.journal import Asked
from perdure.life import Request, StepOptions
from perdure.model import Question, check_name
from perdure.redaction import discreet
from perdure.replay import NOT_AT_HAND
from perdure.retry import RetryPolicy
from perdure.runtime.context import Frame, current
from perdure.runtime.drive import Body, drive, drive_async
from perdure.runtime.forms import as_json, schema_of, taker, with_choices
from perdure.runtime.steps import Invocation, Step
from perdure.runtime.strands import requester
from perdure.runtime.threads import in_thread
from perdure.waits import Spec, execute

_NOTHING: Final = object()
log = logging.getLogger("perdure")


def ask(
    prompt: str,
    *,
    answer: Any = _NOTHING,
    choices: Sequence[object] | None = None,
    deadline: timedelta | datetime | float | None = None,
    default: object = _NOTHING,
    to: str = "",
    context: object = None,
    name: str = "ask",
    key: str | None = None,
) -> Any:
    """Ask people, and return the answer: a value of type ``answer``, once, whatever crashes. Awaited in async code.

    - ``answer``: any type that JSON can give: bool, Literal, an enum, a dataclass, a Pydantic model, ``list[...]``;
      default: that of the choices, else text. ``choices``: the values that are allowed.
    - ``deadline``: a timedelta, seconds, or a date with its zone. When it passes, ``default`` is the answer; without
      one DeadlinePassed is raised.
    - ``to``: who is asked. ``context``: what they need to decide on; any value that can be stored.
    - ``name``, ``key``: as for a step. Without a key a question is the same as long as prompt, type, choices and
      context are.

    Answers come from ``Client.answer`` or ``perdure answer``. The return type depends on the colour of the code, so it
    is Any: annotate the variable. Raises DeadlinePassed; ConfigError without a store, or for a wrong declaration.
    """
    if choices is not None and (isinstance(choices, str) or not choices):
        raise ConfigError(f"ask: choices must be a list of values, not {choices!r}.")
    kind = _kind(answer, choices)
    take = taker(kind, choices)
    _check_default("ask", default, take)
    return asking(
        prompt,
        kind=kind,
        choices=choices,
        dated=_dated("ask: deadline", deadline),
        default=default,
        to=to,
        context=context,
        name=name,
        key=key,
        take=take,
    ).start()


def asking(
    prompt: str,
    *,
    kind: Any,
    take: Callable[[bytes], object],
    choices: Sequence[object] | None = None,
    dated: Mapping[str, Any] = {},
    default: object = _NOTHING,
    to: str = "",
    context: object = None,
    name: str = "ask",
    key: str | None = None,
    reusable: Callable[[object], bool] | None = None,
    schema: dict[str, Any] | None = None,
) -> Invocation:
    """The call of a question, as ``ask`` makes it. ``take`` makes the value from the JSON of an answer; ``reusable``:
    whether an answer to an equal question anywhere in the run holds for this one too; ``schema``: if the type does not
    say all."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"ask: the prompt must be a text that says something, not {prompt!r}.")
    _check_text("to", to)
    schema = schema or with_choices(schema_of(kind, f"ask: answer={getattr(kind, '__name__', kind)}"), choices)
    _learn(kind)
    shown = {"prompt": prompt, "answer": schema, "context": context}

    def spec(guard: Guard) -> Spec:
        held, blobs = codec.dumps(context, f"context of {name}", guard) if context is not None else (None, {})
        otherwise, more = codec.dumps(default, f"default of {name}", guard) if default is not _NOTHING else (None, {})
        said = discreet(prompt, names=False)
        return Spec(
            **dated,
            asked=Asked(said, schema, to, held, otherwise),
            blobs={**blobs, **more},
            take=take,
            default=None if default is _NOTHING else (default,),
            reusable=reusable,
            notify=True,
        )

    return _Waiting(name, shown, key, spec).call()


def signal(
    name: str,
    *,
    type: Any = Any,
    deadline: timedelta | datetime | float | None = None,
    default: object = _NOTHING,
) -> Any:
    """Receive the next signal of that name, which ``Client.signal`` or ``perdure signal`` sends: each once, in the
    order in which they were sent, also those that came before anybody waited. Returns its value, as ``type``.

    ``deadline`` and ``default`` as for ``ask``; so is the return type. A value that does not fit is refused, logged,
    and waited over. Raises DeadlinePassed; ConfigError without a store, or for a wrong declaration.
    """
    check_name("signal", name)
    schema_of(type, f"signal: type={getattr(type, '__name__', type)}")
    take = taker(type, None)
    _check_default("signal", default, take)
    _learn(type)

    def spec(_: Guard) -> Spec:
        return Spec(
            **_dated("signal: deadline", deadline),
            signal=name,
            take=take,
            default=None if default is _NOTHING else (default,),
        )

    return _Waiting(f"signal:{name.replace('/', '-')}"[:200], {"name": name}, None, spec).call().start()


def sleep(duration: timedelta | float | None = None, *, until: datetime | None = None) -> Any:
    """Wait for so long (a timedelta, or seconds), or until a date with its zone; the time is set once, and needs no
    process. Returns None; awaited in async code.

    Without a store it just waits. Raises ConfigError for a date without a zone.
    """
    if (duration is None) == (until is None):
        raise ConfigError("sleep: give a duration, or until= a date.")
    dated = _dated("sleep", duration if until is None else until, positive=False)
    shown = {"seconds": dated.get("seconds"), "until": dated.get("until")}
    return _Waiting("sleep", shown, None, lambda _: Spec(**dated)).call().start()


class _Waiting(Step[..., Any]):
    """One call of the above, as a step without a body."""

    def __init__(self, name: str, shown: dict[str, object], key: str | None, spec: Callable[[Guard], Spec]) -> None:
        super().__init__(_no_body, name, StepOptions(), None, key, ())
        self.is_async = _is_async(name)
        self.shown, self.spec = shown, spec
        self.made_of = ()

    def call(self) -> Invocation:
        return Invocation(self, (), self.shown)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return kwargs.items()

    def request(self, frame: Frame, invocation: Invocation) -> Request:
        return Request(self.name, self.declared, *self.identify((), invocation.kwargs, frame.guard))

    def at_hand(self, invocation: Invocation) -> Any:
        return NOT_AT_HAND  # an answer becomes a value of the declared type first

    def run_body(self, invocation: Invocation) -> Any:
        frame = current()
        if frame is None or frame.run is None or not frame.run.durability.durable:  # then nobody sees what it asks
            machine, run = self._without_store(), None
        else:
            run = frame.run
            request = invocation.request = invocation.request or self.request(frame, invocation)
            cursor = invocation.cursor or frame.cursor
            machine = execute(run.life, cursor, request, self.spec(run.life.guard), requester())

        def notify() -> Any:
            assert run is not None and invocation.request is not None
            return tell_all(
                run.lives.config.on_question, run.state.waits.question(invocation.request.number), self.is_async
            )

        body = Body(self.name, self.is_async, None, notify, None)
        return (drive_async if self.is_async else drive)(machine, run, body)

    def _without_store(self) -> Machine:
        spec = self.spec(OPEN)
        if spec.asked is not None or spec.signal:
            raise ConfigError(
                f"{self.name}: nobody can answer code that runs without a store.",
                hint="Execute the flow with perdure.run(flow, goal=...); with store='memory:' and wait=True in tests.",
            )
        yield Wait(spec.until if spec.seconds is None else SYSTEM.now() + spec.seconds)


def _no_body(**shown: object) -> None:
    """Waits have none."""


def tell_all(hooks: Sequence[Callable[[Question], object]], question: Question, is_async: bool) -> Any:
    """Tell every hook of a question, as steps: each again after a crash, with the same question id, until it has ended
    once. A hook that fails after its retries is logged, and the question stays open."""
    calls = [_notification(hook, place, is_async) for place, hook in enumerate(hooks)]
    if is_async:
        return _tell_async(calls, question)
    for call in calls:
        call(question)
    return None


async def _tell_async(calls: Sequence[Callable[[Question], Any]], question: Question) -> None:
    for call in calls:
        await call(question)


def _notification(hook: Callable[[Question], object], place: int, is_async: bool) -> Step[..., Any]:
    name = f"notify-{place}"

    def failed(error: Exception) -> str:
        log.warning("question hook %s failed: %s. The question is open, and can be answered.", hook, error)
        return f"{type(error).__name__}: {error}"

    def call(question: Question) -> None:
        said = hook(question)
        if isinstance(said, Coroutine):
            asyncio.run(said)

    def tell(question: Question) -> None:
        in_thread(functools.partial(call, question), name).result()

    async def tell_async(question: Question) -> None:
        if asyncio.iscoroutinefunction(hook):
            await hook(question)
        else:
            await asyncio.wrap_future(in_thread(functools.partial(call, question), name))

    options = StepOptions(retry=RetryPolicy(retries=3), failed=failed)
    body: Callable[..., Any] = tell_async if is_async else tell

    def identity(question: Question) -> str:
        return question.id

    made: Step[..., Any] = Step(body, name, options, None, identity, ("question",))
    made.made_of = ()
    return made


def _is_async(name: str) -> bool:
    """The colour of the code that waits. Raises ConfigError for sync code that an event loop executes in between: to
    wait there would stop everything else on the loop."""
    frame = current()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    if frame is None or frame.is_async:
        return True
    if frame.run is not None and frame.run.task is None:  # the flow itself is sync, whatever runs around it
        return False
    raise ConfigError(
        f"{name}: this is sync code that an async flow executes on its event loop, which would stand still meanwhile.",
        hint="Make the function async and await it, or start it with perdure.gather, which gives it a thread.",
    )


def _kind(answer: Any, choices: Sequence[object] | None) -> Any:
    if answer is not _NOTHING:
        return answer
    kinds = {type(choice) for choice in choices or ("",)}
    return kinds.pop() if len(kinds) == 1 else Any


def _learn(kind: Any) -> None:
    """Let values of the type into the journal."""

    def answering() -> None: ...

    answering.__annotations__ = {"return": kind}
    codec.learn(answering)


def _check_default(what: str, default: object, take: Callable[[bytes], object]) -> None:
    """Raises ConfigError for a default that no answer could be; None is allowed, and says that nobody answered."""
    if default is _NOTHING or default is None:
        return
    try:
        take(bytes(as_json(default)))
    except AnswerRefused as problem:
        raise ConfigError(
            f"{what}: default={default!r} is not what is asked for: {problem.args[0]}",
            hint="Give a value of the answer's type, or None.",
        ) from None


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str) or len(text) > 512:
        raise ConfigError(f"ask: {what} must be a text of at most 512 characters, not {text!r}.")


def _dated(what: str, said: timedelta | datetime | float | None, positive: bool = True) -> dict[str, Any]:
    """A time, as ``Spec`` has it. Raises ConfigError for one that means nothing."""
    if said is None:
        return {}
    if isinstance(said, datetime):
        if said.tzinfo is None:
            raise ConfigError(f"{what}: {said} has no time zone.", hint="Write datetime(..., tzinfo=ZoneInfo(...)).")
        return {"until": said.timestamp()}
    seconds = said.total_seconds() if isinstance(said, timedelta) else said
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e11:
        raise ConfigError(f"{what} must be a timedelta, seconds from 0 or a date, not {said!r}.")
    if positive and seconds == 0:
        raise ConfigError(f"{what} is over before it begins: {said!r}.")
    return {"seconds": float(seconds)}
