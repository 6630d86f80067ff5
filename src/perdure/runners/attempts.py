"""Several attempts at one goal, of which a judge chooses one (K2).

    best = perdure.run(perdure.best_of(3, write, judge=score, enough=0.9), "tides", goal="essay")
    best.output, best.episode, best.reason

Each attempt is a run of its own: the goal ``essay/best`` with episodes 0, 1, 2. So no attempt ever sees another's
records, whatever crashes, and each can be listed, shown and resumed by itself. The run that judges them records their
outputs, the verdicts and the choice with its reason; an attempt that was not needed in the end is left paused. Their
goal is no part of the identity of what it records: a fork of it reuses its attempts, and makes others under its own
name. Without a store the attempts are plain calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from perdure import codec
from perdure.errors import ConfigError, IncompleteCrew
from perdure.fold import State
from perdure.model import RunKey
from perdure.runners.shape import Drop, Next, Plan, Shape, Side, Start, Work, place
from perdure.runners.task import Task, work_of
from perdure.runtime.branches import Failure, result
from perdure.runtime.children import Failed, returning
from perdure.runtime.context import context, current
from perdure.runtime.declare import step
from perdure.runtime.execute import as_function, execute, execute_async, inputs_of
from perdure.runtime.live import LiveRun
from perdure.runtime.lives import CHANGED
from perdure.runtime.lives import Start as Begin
from perdure.runtime.steps import Function, Step

T = TypeVar("T")


@codec.register(name="perdure:Score")
class Score(msgspec.Struct, frozen=True):
    """What a judge says of an attempt. A judge may also return a number, True or False, or (number, reason).

    ``enough``: no further attempt is needed.
    """

    score: float
    reason: str = ""
    enough: bool = False


@codec.register(name="perdure:Attempted")
class Attempted(msgspec.Struct, frozen=True):
    """How one attempt went."""

    episode: int
    score: float | None = None
    reason: str = ""
    """the judge's, or the error of an attempt that failed"""


@codec.register(name="perdure:Choice")
class Choice(msgspec.Struct, frozen=True):
    """Which attempt was chosen, and why: what the step ``choose`` records."""

    episode: int
    reason: str
    attempts: tuple[Attempted, ...]


@codec.register(name="perdure:Best")
class Best(msgspec.Struct, Generic[T], frozen=True):
    """The chosen attempt's output, which attempt it was and why, and how all went."""

    output: T
    episode: int
    reason: str
    attempts: tuple[Attempted, ...] = ()


def best_of(
    n: int,
    flow: Callable[..., Any],
    *,
    judge: Callable[..., Any],
    enough: float | None = None,
    limit: int = 1,
    name: str = "best",
) -> BestOf:
    """A flow that makes up to ``n`` attempts at ``flow``, takes the inputs of that, and returns a ``Best``.

    - ``judge``: a function or step, sync or async, that is given the output of one attempt (and inputs, by name) and
      returns a Score, a number, a bool or (number, reason). The highest wins, the earliest of equals.
    - ``enough``: a score with which no further attempt is made; so does ``Score(enough=True)``, or True.
    - ``limit``: how many attempts run side by side; 1: one after the other.

    Attempts that fail take no part; if all do, IncompleteCrew is raised. Raises ConfigError for a wrong declaration.
    """
    return BestOf(n, flow, judge, enough, limit, name)


class BestOf(Shape):
    """Made by ``best_of``."""

    def __init__(
        self, n: int, flow: Callable[..., Any], judge: Callable[..., Any], enough: float | None, limit: int, name: str
    ) -> None:
        for what, number in (("n", n), ("limit", limit)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ConfigError(f"best_of: {what} must be a whole number from 1, not {number!r}.")
        if isinstance(flow, Step):
            raise ConfigError(f"best_of: {flow.name} is a step; attempts are made at a flow that calls it.")
        self.n, self.enough, self.limit = n, enough, limit
        self.flow: Function[..., Any] = as_function(flow)
        self.judge = Task(judge, name="judge")
        asynchronous = self.flow.is_async
        attempt = self._attempt_async if asynchronous else self._attempt
        made = step(name="attempt", check=False, ignore=("goal",))(attempt)
        made.made_of = (self.flow,)  # what is attempted is its code
        self.attempt = returning(made)
        self.dismiss = step(name="dismiss", ignore=("goal",))(_dismiss_async if asynchronous else _dismiss)
        super().__init__(name, [self.attempt, self.judge.step], list(self.flow.signature.parameters.values()))

    def plan(self, inputs: dict[str, Any]) -> Plan:
        goal = _goal(self.name)
        outputs: dict[int, Any] = {}
        went: dict[int, Attempted] = {}
        flying: dict[int, int] = {}
        """place -> episode that is being made or judged"""
        failure: Failure | None = None
        begun, satisfied = 0, False
        while failure is None and not satisfied:
            while begun < self.n and len(flying) < self.limit:
                flying[(yield Start(Work(self.attempt, (goal, begun, inputs), {})))] = begun
                begun += 1
            if not flying:
                break
            number, outcome = yield Next()
            episode = flying.pop(number)
            if isinstance(outcome, Failure):
                failure = outcome
            elif episode in outputs:
                score = _score(outcome)
                went[episode] = Attempted(episode, score.score, score.reason)
                satisfied = score.enough or (self.enough is not None and score.score >= self.enough)
            elif isinstance(outcome, Failed):
                went[episode] = Attempted(episode, None, outcome.error)
            else:
                outputs[episode] = outcome
                flying[(yield Start(work_of(self.judge, inputs, outcome)))] = episode
        yield Drop()
        if failure is not None:
            raise failure.error
        listed = tuple(went[episode] for episode in sorted(went))
        choice: Choice = result((yield Side([Work(_choose, (listed,), {})]))[0])
        if flying:
            result((yield Side([Work(self.dismiss, (goal, sorted(flying.values()), choice.episode), {})]))[0])
        return Best(outputs[choice.episode], choice.episode, choice.reason, choice.attempts)

    def _attempt(self, goal: str, episode: int, inputs: dict[str, Any]) -> Any:
        run = _running()
        if run is None:
            return self.flow.fn(**inputs)
        try:
            value = execute(run.lives, self.flow, self._start(run, goal, episode, inputs))
        except Exception:
            _count(run, run.lives.look(goal, episode).result())
            raise
        _count(run, run.lives.look(goal, episode).result())
        return value

    async def _attempt_async(self, goal: str, episode: int, inputs: dict[str, Any]) -> Any:
        run = _running()
        if run is None:
            return await self.flow.fn(**inputs)
        try:
            value = await execute_async(run.lives, self.flow, self._start(run, goal, episode, inputs))
        except Exception:
            _count(run, await asyncio.wrap_future(run.lives.look(goal, episode)))
            raise
        _count(run, await asyncio.wrap_future(run.lives.look(goal, episode)))
        return value

    def _start(self, run: LiveRun, goal: str, episode: int, inputs: dict[str, Any]) -> Begin:
        given = inputs_of(self.flow, (), inputs, run.lives.config.redact)
        return Begin(
            goal,
            episode,
            rerun=(CHANGED,) if run.life.renew else (),
            adopt_input=True,  # other inputs were refused or adopted when the judging run began
            attribution=replace(run.state.attribution, parent=str(run.key)),
            flow=self.flow.name,
            digest=self.flow.digest,
            **given,
            wait=run.strands.stay,
        )


def _running() -> LiveRun | None:
    frame = current()
    return frame.run if frame is not None else None


def _goal(name: str) -> str:
    """The goal of the attempts: the run that judges them, and the place in it where it does."""
    frame = current()
    if frame is None or frame.run is None:
        return name
    key = frame.run.key
    return f"{key if key.episode else key.goal}/{frame.cursor.scope or name}"


def _count(run: LiveRun, state: State | None) -> None:
    """What an attempt has used, in lives that crashed too, counts for the run that judges it, once."""
    if state is None or run.broken is not None:
        return
    counted = context().usage
    context().spent(
        calls=max(state.usage.calls - counted.calls, 0),
        input_tokens=max(state.usage.input_tokens - counted.input_tokens, 0),
        output_tokens=max(state.usage.output_tokens - counted.output_tokens, 0),
        cost=max(state.usage.cost - counted.cost, 0.0),
    )


@step(name="choose")
def _choose(attempts: tuple[Attempted, ...]) -> Choice:
    """The attempt with the highest score, the earliest of equals."""
    good = [attempt for attempt in attempts if attempt.score is not None]
    if not good:
        raise IncompleteCrew(
            f"None of {len(attempts)} attempts delivered: "
            + "; ".join(f"attempt {attempt.episode}: {attempt.reason}" for attempt in attempts),
            missing={f"attempt {attempt.episode}": attempt.reason for attempt in attempts},
            hint="Run it again with --rerun flagged to make the failed ones again.",
        )
    best = max(good, key=lambda attempt: (attempt.score, -attempt.episode))
    others = ", ".join(f"attempt {a.episode}: {_told(a)}" for a in attempts if a is not best)
    reason = f"attempt {best.episode} has the highest score, {best.score:g}" + (f" ({others})" if others else "")
    return Choice(best.episode, f"{reason}: {best.reason}" if best.reason else reason, attempts)


def _told(attempt: Attempted) -> str:
    return "failed" if attempt.score is None else f"{attempt.score:g}"


def _dismiss(goal: str, episodes: list[int], chosen: int) -> None:
    for stopping in _stops(goal, episodes, chosen):
        stopping.result()


async def _dismiss_async(goal: str, episodes: list[int], chosen: int) -> None:
    for stopping in _stops(goal, episodes, chosen):
        await asyncio.wrap_future(stopping)


def _stops(goal: str, episodes: list[int], chosen: int) -> list[Future[None]]:
    """Attempts that are not needed are cancelled."""
    run = _running()
    if run is None:
        return []
    why = f"attempt {chosen} was chosen"
    return [run.lives.cancel(RunKey(goal, episode), "best_of", why) for episode in episodes]


def _score(said: object) -> Score:
    if isinstance(said, Score):
        return said
    if isinstance(said, bool):
        return Score(float(said), enough=said)
    if isinstance(said, int | float):
        return Score(float(said))
    if isinstance(said, tuple | list) and len(said) == 2 and isinstance(said[0], int | float):
        return Score(float(said[0]), str(said[1]))
    raise ConfigError(
        f"{place()}best_of: the judge returned {said!r}.",
        hint="Return a Score, a number, True or False, or (number, reason); then run it with --rerun judge.",
    )
