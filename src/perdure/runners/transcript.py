"""What an agent and its model said to each other, read from the journal: needs no program, and no process."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.codec import Payload
from perdure.errors import CodecError, RunNotFound
from perdure.fold import State
from perdure.journal import MessagesAdded, SpokenMessage
from perdure.runners.messages import asked_for
from perdure.runners.tool import told
from perdure.runtime.client import Client
from perdure.runtime.moments import At


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a transcript."""

    scope: str
    """of the agent; "" for the top of the run"""
    role: str
    content: str
    calls: tuple[str, ...] = ()
    """what an assistant asked for: ``search({"query": "tides"})``"""
    call_id: str = ""
    """of a tool's result: the call that it belongs to"""
    step: int = 0
    """the step whose output it is; 0 for none"""
    covers: int = 0
    """a summary: so many messages before it are not shown to the model any more"""


def transcript(client: Client, run: str, scope: str | None = None, at: At | None = None) -> list[Line]:
    """The conversations of a run, agent by agent; of one ``scope`` if it is given; ``at``: what had been said then, as
    for ``Client.state``. Raises RunNotFound, ConfigError."""
    state = client.state(run, at)
    if at is not None:
        _add_said(client, state)
    if scope is not None and scope not in state.conversations:
        scopes = ", ".join(repr(known) for known in state.conversations) or "none"
        raise RunNotFound(f"run {state.key} has no agent in scope {scope!r}.", hint=f"There are agents in: {scopes}.")
    wanted = [*state.conversations] if scope is None else [scope]
    return [_line(client, state, place, said) for place in wanted for said in state.conversations[place]]


def _add_said(client: Client, state: State) -> None:
    """A message becomes a part of its conversation a moment after the step whose output it is has ended, and one of
    several tools' results when all have: those that were there in between had been said too."""
    open_ = {scope: len(said) for scope, said in state.conversations.items()}
    for entry in client.entries(str(state.key), state.seq):
        if isinstance(entry, MessagesAdded) and open_.pop(entry.scope, None) == entry.place:
            said = [m for m in entry.messages if m.step in state.steps and state.steps[m.step].output is not None]
            state.conversations[entry.scope] += said


def _line(client: Client, state: State, scope: str, said: SpokenMessage) -> Line:
    payload = state.steps[said.step].output if said.step else said.content
    value = _value(client, payload) if payload is not None else "(executed again: not there at the moment)"
    content: Any = value
    calls: tuple[str, ...] = ()
    if said.role == "assistant" and isinstance(value, dict):
        content = value.get("content", "")
        calls = asked_for(value)
    return Line(
        scope=scope,
        role=said.role,
        content=told(content),
        calls=calls,
        call_id=said.call_id,
        step=said.step,
        covers=said.covers,
    )


def _value(client: Client, payload: Payload) -> Any:
    try:
        return client.value(payload)
    except CodecError:  # of a type that this program does not know: its JSON says all
        return client.readable(payload)[1].decode("utf-8", "replace").strip()
