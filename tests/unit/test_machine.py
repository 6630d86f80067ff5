"""The replay machine alone, driven by hand: any calls, outcomes and crashes, against a model of what must be reused."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from perdure import codec, snapshot, states
from perdure import journal as j
from perdure.checks import not_empty
from perdure.commands import Append, Call, Load, Machine, Now, Outcome, Read, Wait
from perdure.errors import OutputRefused, RateLimited
from perdure.facts import Facts
from perdure.fold import State, fold
from perdure.life import Cursor, Life, Request, StepOptions
from perdure.model import RunKey
from perdure.replay import NOT_AT_HAND, at_hand, execute
from perdure.retry import RetryPolicy

KEY = RunKey("machine")
OPTIONS = StepOptions(retry=RetryPolicy(retries=1, backoff=1), check=not_empty)


class Crash(Exception):
    """The process dies in the middle of a body."""


class World(RuleBasedStateMachine):
    """A run whose flow is rewritten at random between lives: it may ask for anything, in any order."""

    durability = "strict"

    def __init__(self) -> None:
        super().__init__()
        self.disk: list[bytes] = []
        self.queue: list[bytes] = []
        self.time = 0.0
        self.values = iter(range(1, 10**9))
        self.received: dict[tuple[str, str, int], object] = {}
        """what some flow was told, by identity: what must never be executed again"""
        self.bodies = 0
        self.kept: tuple[int, bytes] | None = None
        """a snapshot"""
        self.life: Life | None = None
        self.start()

    def start(self) -> None:
        """A new process: all it knows is the disk, and the snapshot if there is one of that."""
        self.state = self.restored() or fold(KEY, self.disk)
        self.queue = []
        self.asked: Counter[tuple[str, str]] = Counter()
        self.life = Life(
            self.state,
            durability=self.durability,
            strict=False,
            same_code=False,
            emit=self.emit,
            tell=lambda text: None,
            lock=contextlib.nullcontext(),
        )
        self.cursor = Cursor(self.life, "")
        here: dict[str, Any] = {"epoch": self.state.lives + 1, "pid": 1, "host": "h"}
        self.emit(j.RunResumed(**here) if self.disk else j.RunBegan(run_id="r", flow="f", **here))
        self.flush()

    def restored(self) -> State | None:
        if self.kept is None or self.kept[0] > len(self.disk):
            return None
        seq, content = self.kept
        state = snapshot.restore(KEY, content, self.disk[seq - 1])
        for line in self.disk[seq:] if state is not None else ():
            state.take(line)
        return state

    @rule()
    def keep(self) -> None:
        """A snapshot is made; what it is made of may yet be lost."""
        body = snapshot.take(self.state)
        self.kept = self.state.seq, snapshot.sealed(body, [*self.disk, *self.queue][-1])

    def emit(self, entry: j.Entry) -> None:
        entry.seq, entry.at = self.state.seq + 1, self.time
        self.state.apply(entry)
        self.queue.append(j.encode(KEY, entry))
        self.state.size += len(self.queue[-1])

    def flush(self) -> None:
        self.disk += self.queue
        self.queue = []

    def perform(self, request: Request, plan: list[str]) -> object:
        assert self.life is not None
        found = at_hand(self.life, self.cursor, request, by="main")
        if found is not NOT_AT_HAND:
            return found
        machine = execute(self.life, self.cursor, request, by="main")
        try:
            return self.answer(machine, plan)
        finally:  # a dead process performs nothing any more, whatever the machine would like to have journaled
            with contextlib.suppress(RuntimeError):
                machine.close()

    def answer(self, machine: Machine, plan: list[str]) -> object:
        reply: object = None
        while True:
            try:
                command = machine.send(reply)
            except StopIteration as end:
                return end.value
            match command:
                case Append(entries=entries, wait=wait):
                    for entry in entries:
                        self.emit(entry)
                    if wait:
                        self.flush()
                    reply = None
                case Call():
                    reply = self.body(plan.pop(0) if plan else "value")
                case Wait(until=until):
                    self.time = max(self.time, until)
                    reply = None
                case Now():
                    reply = self.time
                case Read(seq=seq):
                    reply = j.decode(KEY, [*self.disk, *self.queue][seq - 1], seq)
                case Load():
                    raise AssertionError("nothing here is large enough for a blob")

    def body(self, what: str) -> Outcome:
        self.bodies += 1
        self.time += 1
        match what:
            case "crash":
                raise Crash
            case "error":
                return Outcome(None, ValueError("no"), 1.0)
            case "limited":
                return Outcome(None, RateLimited("slow down", retry_after=5), 1.0)
            case "empty":
                return Outcome("", None, 1.0)
        return Outcome(next(self.values), None, 1.0)

    @rule(
        name=st.sampled_from("ab"),
        argument=st.sampled_from("xy"),
        plan=st.lists(st.sampled_from(["value", "error", "empty", "limited", "crash"]), max_size=4),
        survives=st.integers(0, 9),
    )
    def ask(self, name: str, argument: str, plan: list[str], survives: int) -> None:
        """The flow asks for a step; what has been received before is handed back, anything else is executed."""
        identity = (name, argument, self.asked[name, argument])
        self.asked[name, argument] += 1
        before = self.bodies
        try:
            value = self.perform(Request(name, OPTIONS, fingerprint=argument), plan)
        except Crash:
            assert identity not in self.received, "a step whose result was received ran again"
            self.crash(survives)
            return
        except (ValueError, OutputRefused):
            assert identity not in self.received
            return
        if identity in self.received:
            assert (value, self.bodies) == (self.received[identity], before)
        elif self.durability == "strict" or not self.queue:
            self.received[identity] = value

    @rule(survives=st.integers(0, 9))
    def crash(self, survives: int) -> None:
        """Of what was not waited for, any prefix may have reached the disk."""
        self.disk += self.queue[:survives]
        self.start()

    @rule(end=st.sampled_from(["completed", "failed", "interrupted"]))
    def finish(self, end: str) -> None:
        """The life ends in order, and a person runs it again."""
        entries: dict[str, j.Entry] = {
            "completed": j.RunCompleted(
                output=codec.dumps(1, "output")[0], unused=self.life.unused() if self.life else ()
            ),
            "failed": j.RunFailed(error=codec.describe_error(ValueError("no"))),
            "interrupted": j.RunInterrupted(reason="SIGTERM"),
        }
        self.emit(entries[end])
        self.flush()
        self.start()

    @precondition(lambda self: any(step.recorded for step in self.state.steps.values()))
    @rule(data=st.data())
    def invalidate(self, data: st.DataObject) -> None:
        """A person asks for a recorded step to be executed again."""
        number = data.draw(st.sampled_from([n for n, step in self.state.steps.items() if step.recorded]))
        self.emit(j.StepsInvalidated(steps=(number,), why="--rerun"))
        self.flush()
        step = self.state.steps[number]
        self.received.pop((step.name, step.identity.fingerprint, step.identity.n), None)
        self.crash(0)

    @invariant()
    def what_is_in_memory_is_what_the_journal_tells(self) -> None:
        assert told(fold(KEY, [*self.disk, *self.queue])) == told(self.state)

    @invariant()
    def the_row_counts_what_the_steps_are(self) -> None:
        row = self.state.meta()
        by = Counter(step.status for step in self.state.steps.values())
        assert (row.completed, row.failed, row.flagged, row.running) == (
            by[states.COMPLETED],
            by[states.FAILED],
            by[states.FLAGGED],
            by[states.RUNNING],
        )

    @invariant()
    def every_attempt_is_known(self) -> None:
        assert sum(len(step.attempts) for step in self.state.steps.values()) >= len(self.received)


class Pipelined(World):
    durability = "pipelined"

    @rule()
    def wait(self) -> None:
        """Time passes and the writer commits; only now is what was received durable."""
        self.flush()


def told(state: State) -> object:
    """Everything a state says, in comparable form; but for what a snapshot leaves in the journal: arguments, results,
    and what was streamed."""
    rest = {name: getattr(state, name) for name in Facts.__struct_fields__}
    steps = []
    for step in sorted(state.steps.values(), key=lambda step: step.number):
        attempts = [replace(attempt, text=[]) for attempt in step.attempts]
        steps.append((step.output is None, msgspec.json.encode(replace(step, args=(), output=None, attempts=attempts))))
    latest = {step.number for name in "ab" for key in "xy" if (step := state.steps.latest(name, key))}
    named = {name: sorted(state.steps.named("", name)) for name in "ab"}
    alike = [state.steps.find(step.identity) is step for step in state.steps.values()]
    more = state.scopes, state.taken, state.running.keys(), state.steps.work(), latest, named, alike
    return msgspec.json.encode(rest), steps, more, state.meta()


TestStrict = World.TestCase  # C2 X8 C3 C6 C10 X9
TestStrict.settings = settings(max_examples=150, stateful_step_count=30)
TestPipelined = Pipelined.TestCase
TestPipelined.settings = settings(max_examples=100, stateful_step_count=30)
