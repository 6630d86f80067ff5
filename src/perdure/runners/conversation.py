"""The conversation of one agent: what its model is shown, kept incrementally (B7, W4).

Every message is stored once: replies, tools' results and summaries as outputs of the steps that made them, the others
in the journal's entries of the conversation. The conversation has an identity that grows with it: the digest of a
message is mixed into that of all before, so that asking the model costs what was added and not what it has become.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import msgspec

from perdure import codec
from perdure import journal as j
from perdure.guard import OPEN
from perdure.runners.messages import Message, tool_result
from perdure.runners.shape import Recall
from perdure.runners.tool import told
from perdure.runtime.context import Frame

Added: TypeAlias = tuple[Message, int, int]
"""a message, the step whose output it is (0 for none), and how many messages before it a summary covers"""


def _summary(text: str) -> Message:
    return {"role": "user", "content": f"Summary of the conversation so far:\n\n{text}"}


def _message(said: j.SpokenMessage, value: Any) -> Message:
    """The message that a step's result became."""
    if said.covers:
        return _summary(value)
    if said.role == "assistant":
        message: Message = value
        return message
    return tool_result(told(value), said.call_id)


class Conversation:
    """Messages in order; ``digest`` is their identity, ``size`` their length in characters."""

    def __init__(self, frame: Frame | None) -> None:
        self.messages: list[Message] = []
        self.digest = ""
        self.size = 0
        self._frame = frame
        self._guard = frame.guard if frame is not None else OPEN
        self._unsaid: list[j.SpokenMessage] = []
        self._blobs: dict[str, bytes] = {}
        """what messages need that are not journaled yet"""
        self._place = 0
        """how many messages there were, those that a summary covers included"""

    def add(self, *added: Added, more: bool = False) -> None:
        """The next messages. In a run they are journaled; not waited for, as the steps they come from are durable.
        ``more``: together with the next ones.
        """
        spoken = self._unsaid
        for message, step, covers in added:
            self._show(message)
            spoken.append(self._spoken(message, step, covers))
        if not more:
            self._unsaid = []
            self._journal(spoken)

    def _show(self, message: Message) -> None:
        """The model is shown this too."""
        self.messages.append(message)
        self.digest = sha256(self.digest.encode() + self._identified(message)).hexdigest()[:32]
        self.size += len(message["content"])
        for call in message.get("tool_calls", ()):
            self.size += len(call["function"]["arguments"])

    def _identified(self, message: Message) -> bytes:
        """A message as its identity sees it: with rules of redaction, as a later life is going to find it."""
        if self._guard.rules is None:
            return msgspec.json.encode(message)
        return codec.digest(message, "message", self._guard)[0].encode()

    def say(self, role: Literal["system", "user"], content: str) -> None:
        """A message that no step made."""
        self.add(({"role": role, "content": content}, 0, 0))

    def summarised(self, summary: str, step: int, keep: int) -> None:
        """From now on the model is shown the first ``keep`` messages and the summary instead of all."""
        self.add()
        shown, covered = self.messages[:keep], len(self.messages) - keep
        self._become(shown)
        self.add((_summary(summary), step, covered))

    def was_summarised(self) -> bool | None:
        """Whether an earlier life went on from here with a summary; None if none went on from here."""
        recorded, end = self._recorded(), self._place + len(self._unsaid)
        if recorded[self._place : end] != self._unsaid or len(recorded) <= end:
            return None
        return recorded[end].covers > 0

    def catch_up(self) -> Generator[Recall, list[Any], int]:
        """Become what the conversation was when the model was last asked, if nothing has changed since: what came
        before need not be asked for once more. Returns how many replies of the model that skips.

        Only for an agent whose work is steps and nothing else: no phases, no approvals.
        """
        recorded, frame, here = self._recorded(), self._frame, self._place
        last = next((n for n in range(len(recorded) - 1, here, -1) if recorded[n].role == "assistant"), 0)
        if not last or frame is None or frame.run is None or not frame.run.life.may_skip:
            return 0
        shown: list[int] = []
        covered = replies = 0
        for n in range(last - 1, -1, -1):
            said = recorded[n]
            if n >= here and not said.step:
                return 0
            replies += said.role == "assistant"
            if covered:
                covered -= 1
            else:
                shown.append(n)
            covered += said.covers  # a summary stands for so many of those that were shown before it
        shown.reverse()
        if not frame.cursor.skip(frame.run.state.steps[recorded[last].step].begun):
            return 0
        values = iter((yield Recall([recorded[n].step for n in shown if n >= here])))
        messages = [self.messages[n] if n < here else _message(recorded[n], next(values)) for n in shown]
        self._become(messages)
        self._place = last
        return replies

    def _become(self, messages: Sequence[Message]) -> None:
        """From now on the model is shown these, which are journaled already."""
        self.messages, self.size, self.digest = [], 0, ""
        for message in messages:
            self._show(message)

    def _recorded(self) -> list[j.SpokenMessage]:
        if self._frame is None or self._frame.run is None:
            return []
        return self._frame.run.state.conversations.get(self._frame.cursor.scope, [])

    def _journal(self, spoken: Sequence[j.SpokenMessage]) -> None:
        place, self._place = self._place, self._place + len(spoken)
        blobs, self._blobs = self._blobs, {}
        if self._frame is None or self._frame.run is None:
            return
        run, scope = self._frame.run, self._frame.cursor.scope
        with run.lock:
            if list(spoken) != self._recorded()[place : self._place]:
                run.emit((j.MessagesAdded(scope=scope, place=place, messages=tuple(spoken)),), blobs)

    def _spoken(self, message: Message, step: int, covers: int) -> j.SpokenMessage:
        content = None
        if not step:
            content, blobs = codec.dumps(message["content"], "a message", self._guard)
            self._blobs |= blobs
        return j.SpokenMessage(message["role"], step, content, message.get("tool_call_id", ""), covers)
