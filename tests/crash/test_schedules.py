"""Chains that call one step with equal arguments side by side, in hundreds of schedules and crashes of them.

Every execution of the step gives another token. What a chain received in one life it must receive in all later ones.
The crash is simulated, to be quick: the store stops working at a chosen append, before or after keeping it, and is left
behind as a dead process would leave it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import perdure
from perdure.errors import PerdureError, StoreError
from perdure.stores.base import Append
from perdure.stores.memory import MemoryBackend, MemoryStore

CHAINS, CALLS = ("left", "right"), 3


class Halting(MemoryStore):
    """Fails at the n-th append; ``kept`` says whether its records are there nevertheless."""

    def __init__(self, backend: MemoryBackend, appends: int, kept: bool) -> None:
        super().__init__(backend)
        self._left, self._kept = appends, kept

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        self._left -= 1
        if self._left < 0 or (self._left == 0 and not self._kept):
            raise StoreError("the power is off")
        results = super().append(batch)
        if self._left == 0:
            raise StoreError("the power is off")
        return results


class World:
    """One seed: its dice, what was executed, and what each chain received, over all lives."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.tokens = itertools.count()
        self.executed = 0
        self.received: dict[tuple[str, int], str] = {}

    def token(self) -> str:
        self.executed += 1
        return f"token {next(self.tokens)}"

    def got(self, chain: str, place: int, token: str) -> None:
        assert self.received.setdefault((chain, place), token) == token, f"{chain} received another's result"

    async def pause(self) -> None:
        for _ in range(self.dice.randint(0, 4)):
            await asyncio.sleep(0)

    def nap(self) -> None:
        if self.dice.random() < 0.5:
            time.sleep(self.dice.random() * 0.0005)  # noise for the scheduler, not a wait for anything


def _async_flow(world: World, shape: str) -> Callable[..., Any]:
    @perdure.step
    async def ask(question: str) -> str:
        await world.pause()
        return world.token()

    async def chain(name: str) -> list[str]:
        tokens = []
        for place in range(CALLS):
            await world.pause()
            tokens.append(await ask("the same"))
            world.got(name, place, tokens[-1])
        return tokens

    nested = perdure.flow(name="chain")(chain)

    @perdure.flow(name="chains")
    async def chains() -> list[list[str]]:
        if shape == "steps":
            columns = [await perdure.gather(*(ask("the same") for _ in CHAINS)) for _ in range(CALLS)]
            for (place, column), (which, name) in itertools.product(enumerate(columns), enumerate(CHAINS)):
                world.got(name, place, column[which])
            return [list(row) for row in zip(*columns, strict=True)]
        branch = nested if shape == "flows" else chain
        return list(await perdure.gather(*(branch(name) for name in CHAINS)))

    return chains


def _sync_flow(world: World, shape: str) -> Callable[..., Any]:
    @perdure.step
    def ask(question: str) -> str:
        world.nap()
        return world.token()

    def chain(name: str) -> list[str]:
        tokens = []
        for place in range(CALLS):
            world.nap()
            tokens.append(ask("the same"))
            world.got(name, place, tokens[-1])
        return tokens

    nested = perdure.flow(name="chain")(chain)

    @perdure.flow(name="chains")
    def chains() -> list[list[str]]:
        if shape == "steps":
            columns = [perdure.map(ask, ["the same" for _ in CHAINS]) for _ in range(CALLS)]
            for (place, column), (which, name) in itertools.product(enumerate(columns), enumerate(CHAINS)):
                world.got(name, place, column[which])
            return [list(row) for row in zip(*columns, strict=True)]
        branch = nested if shape == "flows" else chain
        return list(perdure.gather(*(functools.partial(branch, name) for name in CHAINS)))

    return chains


def _crashes(seed: int, make: Callable[[World, str], Callable[..., Any]], shape: str) -> int:
    """Run until a life is not killed. Returns how many were."""
    world = World(seed)
    flow = make(world, shape)
    backend = MemoryBackend()
    crashes = 0
    while True:
        appends = world.dice.randint(1, 14) if crashes < 4 else 10**6
        store = Halting(backend, appends, world.dice.random() < 0.5)
        try:
            result = perdure.run(flow, goal="g", store=store)
            break
        except StoreError:
            crashes += 1
            store.abandon()
    flat = [token for tokens in result for token in tokens]
    assert len(set(flat)) == len(CHAINS) * CALLS, "two calls share a result"
    assert result == [[world.received[name, place] for place in range(CALLS)] for name in CHAINS]
    assert world.executed <= len(flat) + crashes * len(CHAINS), "more than what was in flight ran again"
    assert perdure.run(flow, goal="g", store=MemoryStore(backend)) == result
    return crashes


@pytest.mark.parametrize("shape", ["coroutines", "flows", "steps"])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_concurrent_chains_of_equal_calls_keep_their_own_results_over_any_crash(colour: str, shape: str) -> None:
    # X10 X15
    crashes = 0
    for seed in range(80 if colour == "async" else 50):
        try:
            crashes += _crashes(seed, _async_flow if colour == "async" else _sync_flow, shape)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert crashes >= 40, "hardly anything crashed"  # how often depends a little on how threads batch


@pytest.mark.long
@pytest.mark.parametrize("shape", ["coroutines", "flows", "steps"])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_concurrent_chains_of_equal_calls_in_thousands_of_schedules(colour: str, shape: str) -> None:
    # X10
    for seed in range(1_000, 4_000):
        try:
            _crashes(seed, _async_flow if colour == "async" else _sync_flow, shape)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
