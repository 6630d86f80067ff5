"""B4 B10: a store that fails in the middle of a run stops it, or degrades it with a reason; never silently."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

import perdure
from perdure import snapshot
from perdure.errors import StoreBusy, StoreError
from perdure.runtime.live import Durability
from perdure.stores.base import Store
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.testing.faulty import Fault, faulty


def failing(good: int) -> Store:
    """Its device breaks after some batches."""
    return faulty(MemoryStore(), Fault("append", good + 1, StoreError("The device is gone."), lasting=True))


told: list[Durability] = []


@perdure.step
def double(number: int) -> int:
    told.append(perdure.context().durability)
    return 2 * number


@perdure.step
async def double_async(number: int) -> int:
    context = perdure.context()
    context.stream("some text")
    await context.save({"number": number})
    told.append(context.durability)
    return 2 * number


@perdure.flow
def chain() -> list[int]:
    return [double(n) for n in range(4)] + perdure.gather(*(functools.partial(double, n) for n in (7, 8)))


@perdure.flow
async def side_by_side() -> list[int]:
    return [await double_async(1), *await perdure.gather(*(double_async(n) for n in range(2, 7)))]


@pytest.mark.parametrize("flow", [chain, side_by_side])
@pytest.mark.parametrize("good", range(1, 5))
def test_a_run_that_may_degrade_goes_on_and_says_since_when(
    flow: Callable[[], object], good: int, caplog: pytest.LogCaptureFixture
) -> None:
    told.clear()
    config = perdure.CheckpointConfig(store_failure="degrade")
    result = perdure.run(flow, goal="g", store=failing(good), config=config)
    assert result in ([0, 2, 4, 6, 14, 16], [2, 4, 6, 8, 10, 12])
    [warning] = [record for record in caplog.records if "WITHOUT durability since" in record.message]
    assert "The device is gone" in warning.message
    assert told[-1].durable is False and "The device is gone" in told[-1].reason and told[-1].since


def test_a_run_that_goes_on_without_its_store_has_in_memory_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """B10: however long it is: an attempt that is made again asks for what an earlier one did inside it."""
    monkeypatch.setattr(snapshot, "_FEW", 5)
    executed: list[int] = []
    backend = MemoryStore()
    gone = Fault("append", 60, StoreError("The device is gone."), lasting=True)
    unread = Fault("read", 2, StoreError("The device is gone."), lasting=True)

    @perdure.step
    def inner(number: int) -> int:
        executed.append(number)
        return number

    @perdure.step(retries=1, backoff=0)
    def outer() -> int:
        found = sum(inner(n) for n in range(40))
        if perdure.context().attempt == 1:
            raise ValueError("once more")
        return found

    @perdure.flow
    def flow() -> int:
        return outer()

    config = perdure.CheckpointConfig(store_failure="degrade")
    assert perdure.run(flow, goal="g", store=faulty(backend, gone, unread), config=config) == sum(range(40))
    assert executed == list(range(40))


@pytest.mark.parametrize("flow", [chain, side_by_side])
@pytest.mark.parametrize("good", range(5))
def test_a_run_that_may_not_stops_at_once(flow: Callable[[], object], good: int) -> None:  # rel:R7
    told.clear()
    with pytest.raises(StoreError, match="The device is gone"):
        perdure.run(flow, goal="g", store=failing(good))
    assert all(durability.durable for durability in told)


@pytest.mark.parametrize("flow", [chain, side_by_side])
@pytest.mark.parametrize("executed", [False, True])
def test_whatever_became_of_an_append_that_failed_the_journal_decides(
    flow: Callable[[], object], executed: bool
) -> None:  # rel:D12 rel:X2 rel:R7
    for nth in range(1, 12):
        backend, told_before = MemoryBackend(), len(told)
        broken = Fault("append", nth, StoreError("The reply is lost."), executed=executed, lasting=not executed)
        handle = MemoryStore(backend)
        try:
            perdure.run(flow, goal="g", store=faulty(handle, broken))
        except StoreError:
            pass
        else:
            assert nth > 4, "it was to fail"
        handle.abandon()
        first = len(told) - told_before
        result = perdure.run(flow, goal="g", store=MemoryStore(backend))
        assert result in ([0, 2, 4, 6, 14, 16], [2, 4, 6, 8, 10, 12])
        again = len(told) - told_before - 6
        assert 0 <= again <= min(first, 5), "what is in the journal is not done again"
        if flow is chain and executed:
            assert again <= 1


def test_faults_come_at_their_calls_and_at_no_others() -> None:  # rel:X2
    waited: list[int] = []
    store = faulty(
        MemoryStore(),
        Fault("claim", 1, before=lambda: waited.append(1)),
        Fault("claim", 2, StoreBusy("Somebody keeps it locked.")),
        Fault("runs", 2, StoreError("It is gone."), lasting=True),
    )
    store.claim(perdure.RunKey("one"))
    with pytest.raises(StoreBusy):
        store.claim(perdure.RunKey("other"))
    assert store.claim(perdure.RunKey("other")).epoch and waited == [1] and store.runs() == []
    for _ in range(2):
        with pytest.raises(StoreError, match="gone"):
            store.runs()


def test_a_fault_in_what_no_store_has_is_refused() -> None:
    with pytest.raises(ValueError, match="no verb 'appendix'"):
        faulty(MemoryStore(), Fault("appendix"))


class Unreadable(MemoryStore):
    """Its device does not give back what is large."""

    def blob(self, digest: str) -> bytes:
        raise StoreError("The device cannot be read.")


@perdure.step
def large() -> str:
    return "word " * 20_000


@perdure.step
def after(text: str) -> int:
    if not ready:
        raise KeyboardInterrupt
    return len(text)


@perdure.flow
def inner() -> int:
    return after(large())


@perdure.flow
def outer() -> int:
    return perdure.child(inner)() + sum(perdure.gather(perdure.child(inner)))


ready: list[bool] = []


def test_a_store_that_cannot_be_read_is_no_outcome_of_the_steps_around() -> None:
    # rel:R7: the child's step is not recorded as failed, nor is the run
    ready.clear()
    backend = MemoryBackend()
    with pytest.raises(KeyboardInterrupt):
        perdure.run(outer, goal="g", store=MemoryStore(backend))
    ready.append(True)
    with pytest.raises(StoreError, match="The device cannot be read"):
        perdure.run(outer, goal="g", store=Unreadable(backend))
    with perdure.Client(MemoryStore(backend)) as client:
        state = client.state("g")
        outcomes = {attempt.outcome for step in state.steps.values() for attempt in step.attempts}
    assert state.status != "failed" and not {"failed"} & outcomes, (state.status, outcomes)
    assert perdure.run(outer, goal="g", store=MemoryStore(backend)) == 200_000
