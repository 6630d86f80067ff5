"""What a run waits for from outside, and what has come for it: the part of a run's state that inboxes change."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TypeAlias

import msgspec

from perdure import journal as j
from perdure.codec import Payload
from perdure.errors import CorruptStore
from perdure.limits import decoded
from perdure.model import Question, RunKey
from perdure.record import Step

_SHOWN = 8
"""questions in a run's listing row: it is written again with every append"""


Arrival: TypeAlias = j.QuestionAnswered | j.QuestionClosed | j.SignalReceived


class Pending(msgspec.Struct, eq=False):
    """Questions, signals and timers that have not ended; only the fold changes it."""

    steps: dict[int, j.StepPending] = {}
    """what each pending step waits for, in the order in which they began to"""
    arrived: dict[int, Arrival] = {}
    """what came for those of them that may go on: an answer, a signal, or the end of the wait"""
    decided: dict[str, j.QuestionAnswered | j.QuestionClosed] = {}
    """what became of each question, by its id"""
    signals: dict[str, list[j.SignalReceived]] = {}
    """signals that nobody has received yet, in order"""
    asked: dict[int, Question] = {}
    """what the steps ask that ask something"""
    shown: tuple[int, tuple[Question, ...]] | None = (0, ())
    """what listings show of the open questions; None: it has changed"""

    def question(self, step: int) -> Question:
        """What a pending step asks. Raises KeyError if it asks nothing."""
        return self.asked[step]

    def question_id(self, step: int) -> str:
        """The id of what a pending step asks; "" if it asks nothing."""
        return self.asked[step].id if step in self.asked else ""

    def questions(self) -> list[Question]:
        """What the run asks and nobody has answered, in the order in which it was asked."""
        return [question for step, question in self.asked.items() if step not in self.arrived]

    def heads(self) -> tuple[int, tuple[Question, ...]]:
        """How many questions are open, and the oldest as listings show them."""
        if self.shown is None:
            asked = self.questions()
            cut = [
                msgspec.structs.replace(
                    q,
                    prompt=q.prompt[:200],
                    schema={},
                    context="",
                    otherwise=q.otherwise[:80],
                    to=q.to[:200],
                    refused=q.refused[:400],
                )
                for q in asked[:_SHOWN]
            ]
            self.shown = len(asked), tuple(cut)
        return self.shown

    def begin(self, entry: j.StepPending, step: Step, key: RunKey, run_id: str) -> None:
        """A step waits from now on; a signal that nobody received may be there already."""
        self.steps[entry.step], self.shown = entry, None
        if entry.asked is not None:
            self.asked[entry.step] = _question(entry, entry.asked, step, key, run_id)
        self._next_signal(entry.step)

    def rename(self, steps: Mapping[int, Step], key: RunKey, run_id: str) -> None:
        """From now on another run asks what is open: under ids of its own."""
        for number, old in self.asked.items():
            entry = self.steps[number]
            assert entry.asked is not None
            asked = _question(entry, entry.asked, steps[number], key, run_id)
            self.asked[number] = msgspec.structs.replace(asked, refused=old.refused)
        self.shown = None

    def receive(self, entry: j.SignalReceived, again: bool = False) -> int | None:
        """The step that a signal is for: the one that waits longest for its name; None if it is kept for the next.
        ``again``: it was somebody's who does not need it any more, and is the first in the queue.
        """
        waiting = (n for n, pending in self.steps.items() if pending.signal == entry.name and n not in self.arrived)
        step = next(waiting, None)
        if step is None:
            queue = self.signals.setdefault(entry.name, [])
            queue.insert(0 if again else len(queue), entry)
        return step

    def arrive(self, step: int, entry: Arrival, key: RunKey) -> None:
        """Something came for a step. Raises CorruptStore if that does not wait for it."""
        if step not in self.steps or step in self.arrived:
            raise CorruptStore(f"run {key}: entry {entry.seq} is for step {step}, which does not wait for it.")
        self.arrived[step], self.shown = entry, None

    def reject(self, entry: j.AnswerRejected) -> None:
        """What came could not be taken. The question stays open; a signal is gone, the next of its name is for it."""
        arrived = self.arrived.pop(entry.step, None)
        if isinstance(arrived, j.QuestionAnswered):
            self.decided.pop(arrived.question, None)
        if entry.step in self.asked:
            self.asked[entry.step] = msgspec.structs.replace(self.asked[entry.step], refused=entry.why)
        self.shown = None
        self._next_signal(entry.step)

    def end(self, step: int) -> bool:
        """Whether the step was waiting; it is not any more."""
        waited = self.steps.pop(step, None) is not None
        if waited:
            self.arrived.pop(step, None)
            self.asked.pop(step, None)
            self.shown = None
        return waited

    def _next_signal(self, step: int) -> None:
        queue = self.signals.get(self.steps[step].signal) if step in self.steps else None
        if queue:
            self.arrived[step] = queue.pop(0)


def _question(entry: j.StepPending, asked: j.Asked, step: Step, key: RunKey, run_id: str) -> Question:
    return Question(
        run=str(key),
        step=entry.step,
        path=step.path,
        id=_id(entry, step, key, run_id),
        prompt=asked.prompt,
        to=asked.to,
        asked=entry.at,
        until=entry.until,
        otherwise=_text(asked.default),
        schema=asked.schema,
        context=_text(asked.context),
    )


def _id(entry: j.StepPending, step: Step, key: RunKey, run_id: str) -> str:
    """Names what was asked: the run, the step, which time, and everything that is shown (rel:H2)."""
    parts = (run_id, str(entry.step), str(entry.attempt), step.identity.fingerprint)
    try:
        shown = msgspec.json.encode(entry.asked)
    except RecursionError:
        raise CorruptStore(f"run {key}: what step {entry.step} asks is nested too deeply.") from None
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass") + shown).hexdigest()[:16]


def _text(payload: Payload | None) -> str:
    """A value as people read it, if it stands in the journal itself and can be read."""
    if payload is None or payload.refs:
        return ""
    try:
        value = decoded(bytes(payload.value), msgspec.json.decode)
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    except (ValueError, RecursionError):  # whoever needs the value is told
        return ""
