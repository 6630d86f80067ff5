"""The conversation of one agent: what its model is shown, kept incrementally (B7, W4).

Every message is stored once: replies, tools' results and summaries as outputs of the steps that made them, the others
in the journal's entries of the conversation. The conversation has an identity that grows with it: the digest of a
message is mixed into that of all before, so that asking the model costs what was added and not what it has become.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal, TypeAlias

import msgspec

from perdure import codec
from perdure import journal as j
from perdure.guard import OPEN
from perdure.runners.messages import Message
from perdure.runtime.context import Frame

Added: TypeAlias = tuple[Message, int, int]
"""a message, the step whose output it is (0 for none), and how many messages before it a summary covers"""


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
            self.messages.append(message)
            raw = self._identified(message)
            self.digest = sha256(self.digest.encode() + raw).hexdigest()[:32]
            self.size += len(message["content"]) + sum(
                len(call["function"]["arguments"]) for call in message.get("tool_calls", ())
            )
            spoken.append(self._spoken(message, step, covers))
        if not more:
            self._unsaid = []
            self._journal(spoken)

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
        self.messages, self.size, self.digest = [], 0, ""
        place, self._frame, frame = self._place, None, self._frame
        self.add(*((message, 0, 0) for message in shown))  # these are journaled already
        self._place, self._frame = place, frame
        text = f"Summary of the conversation so far:\n\n{summary}"
        self.add(({"role": "user", "content": text}, step, covered))

    def was_summarised(self) -> bool | None:
        """Whether an earlier life went on from here with a summary; None if none went on from here."""
        recorded, end = self._recorded(), self._place + len(self._unsaid)
        if recorded[self._place : end] != self._unsaid or len(recorded) <= end:
            return None
        return recorded[end].covers > 0

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
