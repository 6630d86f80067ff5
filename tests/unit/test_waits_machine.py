"""The machine of waits alone, driven by hand: any order of asking, answering, deadlines and deaths of either side,
against a model of what was acknowledged."""

from __future__ import annotations

import contextlib
from collections import Counter

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perdure import inbox
from perdure import journal as j
from perdure.commands import Append, Call, Load, Machine, Now, Post, Wait
from perdure.errors import AnswerRefused, DeadlinePassed
from perdure.fold import State, fold
from perdure.life import Cursor, Life, Request, StepOptions
from perdure.model import RunKey
from perdure.waits import Spec, execute

KEY = RunKey("waits")
PATIENCE = 50.0


class World(RuleBasedStateMachine):
    """A run that asks and listens in any order, in a store whose inbox others write to."""

    def __init__(self) -> None:
        super().__init__()
        self.disk: list[bytes] = []
        self.queue: list[bytes] = []
        self.posts: list[bytes] = []
        self.time = 0.0
        self.tokens = iter(range(1, 10**9))
        self.acknowledged: dict[str, int] = {}
        """question -> the answer that somebody was told is kept"""
        self.sent: list[int] = []
        """signals, in the order in which they were acknowledged"""
        self.received: dict[tuple[str, int], object] = {}
        self.start()

    def start(self) -> None:
        """A new process: all it knows is the disk."""
        self.state = fold(KEY, self.disk)
        self.queue = []
        self.asked: Counter[str] = Counter()
        self.waiting: dict[tuple[str, int], Machine] = {}
        self.life = Life(
            self.state,
            durability="strict",
            strict=False,
            same_code=True,
            emit=self.emit,
            tell=lambda text: None,
            lock=contextlib.nullcontext(),
        )
        self.cursor = Cursor(self.life, "")
        epoch, pid, host = self.state.lives + 1, 1, "h"
        began = j.RunBegan(run_id="r", flow="f", epoch=epoch, pid=pid, host=host)
        self.emit(j.RunResumed(epoch=epoch, pid=pid, host=host) if self.disk else began)
        self.flush()

    def emit(self, entry: j.Entry) -> None:
        entry.seq, entry.at = self.state.seq + 1, self.time
        self.state.apply(entry)
        self.queue.append(j.encode(KEY, entry))

    def flush(self) -> None:
        self.disk += self.queue
        self.queue = []

    def take(self) -> None:
        """The holder moves what was posted."""
        for entry in inbox.moved(self.state, self.posts[self.state.posts :]):
            self.emit(entry)

    def post(self, state: State, post: j.Posted) -> bool:
        """Under the next number, if nobody was faster since ``state``."""
        if state.posts != len(self.posts):
            return False
        self.posts.append(j.encode(KEY, post))
        return True

    def go_on(self, place: tuple[str, int]) -> None:
        """Drive the machine of one wait until it waits again, or ends."""
        machine, reply = self.waiting[place], None
        while True:
            try:
                command = machine.send(reply)
            except StopIteration as end:
                self.end(place, end.value)
                return
            except DeadlinePassed:
                del self.waiting[place]  # another life asks anew
                return
            reply = None
            match command:
                case Append(entries=entries, wait=wait):
                    for entry in entries:
                        self.emit(entry)
                    if wait:
                        self.flush()
                case Post(entry=post):
                    post.posted = self.time
                    self.post(self.state, post)
                    self.take()
                case Now():
                    reply = self.time
                case Wait():
                    return
                case Call() | Load():
                    raise AssertionError("nobody is notified here, and nothing is large")

    def end(self, place: tuple[str, int], value: object) -> None:
        del self.waiting[place]
        assert value == self.received.setdefault(place, value), "another life received another value"

    @rule(name=st.sampled_from(["ask-a", "ask-b", "dated", "signal", "timer"]))
    def wait_for(self, name: str) -> None:
        """The flow asks; what was received before is handed back."""
        place = (name, self.asked[name])
        self.asked[name] += 1
        asked = j.Asked(name) if name.startswith("ask") or name == "dated" else None
        spec = Spec(
            seconds=PATIENCE if name in ("dated", "timer") else None,
            asked=asked,
            signal="news" if name == "signal" else "",
        )
        request = Request(name, StepOptions(), fingerprint=name)
        self.waiting[place] = execute(self.life, self.cursor, request, spec, by=place)
        self.cursor.done = lambda *_: None  # type: ignore[method-assign]  # several of one name are open here
        self.cursor._claims.clear()
        self.go_on(place)
        if place in self.received:
            assert place not in self.waiting, "what was received is waited for again"

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """The holder looks into the inbox, and one of those that wait looks whether something has come."""
        self.take()
        self.go_on(data.draw(st.sampled_from(sorted(self.waiting)), "place"))

    @rule(data=st.data(), stale=st.booleans())
    def answer(self, data: st.DataObject, stale: bool) -> None:
        """Somebody elsewhere answers what he sees on the disk, or saw some time ago."""
        seen = fold(KEY, self.disk[: len(self.disk) - (1 if stale and len(self.disk) > 1 else 0)])
        for entry in inbox.moved(seen, self.posts[seen.posts :]):
            entry.seq = seen.seq + 1
            seen.apply(entry)
        if not seen.waits.questions():
            return
        question = data.draw(st.sampled_from(seen.waits.questions()), "question")
        value = next(self.tokens)
        post = j.QuestionAnswered(
            step=question.step, question=question.id, value=msgspec.Raw(b"%d" % value), by="x", posted=self.time
        )
        try:
            inbox.check(seen, post)
        except AnswerRefused:
            assert question.until and max(self.time, seen.updated) >= question.until  # a clock may be set back
            return
        if self.post(seen, post):
            assert question.id not in self.acknowledged, "two answers were accepted"
            self.acknowledged[question.id] = value

    @rule()
    def send(self) -> None:
        """Somebody sends a signal."""
        value = next(self.tokens)
        self.posts.append(j.encode(KEY, j.SignalReceived(name="news", value=msgspec.Raw(b"%d" % value), by="x")))
        self.sent.append(value)

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0, -20.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes; now and then a clock is set back."""
        self.time = max(self.time + seconds, 0.0)

    @rule(survives=st.integers(0, 9))
    def crash(self, survives: int) -> None:
        """Of what was not waited for, any prefix may have reached the disk."""
        self.disk += self.queue[:survives]
        for machine in self.waiting.values():
            with contextlib.suppress(RuntimeError):
                machine.close()
        self.start()

    @invariant()
    def what_was_acknowledged_is_what_is_used(self) -> None:
        state = self.state
        waits, again = state.waits, fold(KEY, [*self.disk, *self.queue]).waits
        assert (waits.steps.keys(), waits.arrived.keys(), waits.heads()) == (
            again.steps.keys(),
            again.arrived.keys(),
            again.heads(),
        ), "what is in memory is not what the journal tells"
        asked = [(step.name, step.identity.n) for step in state.steps.values()]
        assert len(set(asked)) == len(asked), "asked twice"
        assert all(len(step.attempts) == 1 for step in state.steps.values() if step.name != "dated"), "asked again"
        for question, decided in state.waits.decided.items():
            if isinstance(decided, j.QuestionAnswered):
                assert int(bytes(decided.value)) == self.acknowledged[question]
            else:
                assert question not in self.acknowledged, "an answer was acknowledged, and the deadline held"
        got = {n: value for (name, n), value in self.received.items() if name == "signal"}
        assert all(value == self.sent[n] for n, value in got.items()), "signals came out of order, twice or not at all"


TestWaits = World.TestCase
TestWaits.settings = settings(max_examples=150, stateful_step_count=40)
