"""What passes between an agent and its model: messages in the form of chat completions, and the model's replies.

A model is any callable, sync or async, that is given the messages so far and the JSON schemas of the tools, and returns
a ``Reply``, a text, or an assistant message as chat completions have it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

import msgspec

from perdure.errors import ConfigError, OutputRefused
from perdure.limits import decoded
from perdure.model import Usage


class FunctionCall(TypedDict):
    name: str
    arguments: str
    """JSON"""


class CallMessage(TypedDict):
    """A call of a tool, inside an assistant's message."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """One message, in the form of chat completions."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: NotRequired[list[CallMessage]]
    tool_call_id: NotRequired[str]
    """of which call this is the result"""


class ToolSchema(TypedDict):
    """A tool as a model is told of it: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""

    type: Literal["function"]
    function: dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True):
    """What a model asks for: a tool by name, with arguments by name."""

    name: str
    arguments: dict[str, Any] = {}
    id: str = ""
    """the model's own name of this call; "" if it has none"""


class Reply(msgspec.Struct, frozen=True):
    """What a model says: text, calls of tools, or both; and what it used, if it knows."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()


Said: TypeAlias = Reply | str | Mapping[str, Any]
Model: TypeAlias = Callable[[list[Message], Sequence[ToolSchema]], Said | Awaitable[Said]]


def tool_result(content: str, call_id: str) -> Message:
    """What came of a call, as a message."""
    return {"role": "tool", "content": content, "tool_call_id": call_id}


def as_reply(said: object) -> Reply:
    """What a model returned, as a Reply. Raises OutputRefused, saying what is wrong, for anything that is none, and for
    one that says nothing.
    """
    if isinstance(said, Reply):
        reply = said
    elif isinstance(said, str):
        reply = Reply(said)
    elif isinstance(said, Mapping):
        reply = reply_of(said)
    elif inspect.isawaitable(said):
        if inspect.iscoroutine(said):
            said.close()
        raise ConfigError("the model returned an awaitable.", hint="Declare it async def, so that it is awaited.")
    else:
        raise OutputRefused(f"the model returned {_shown(said)}, which is no Reply, no text and no message.")
    if not isinstance(reply.content, str) or not isinstance(reply.tool_calls, tuple | list):
        raise OutputRefused(f"the model's reply is not made of text and tool calls: {_shown(reply)}.")
    for call in reply.tool_calls:
        if not isinstance(call, ToolCall) or not isinstance(call.name, str) or not isinstance(call.arguments, dict):
            raise OutputRefused(f"the model's reply has a tool call that is none: {_shown(call)}.")
    if not reply.content.strip() and not reply.tool_calls:
        raise OutputRefused("the model's reply is empty: no text and no tool call.")
    return reply


def reply_of(message: Mapping[str, Any]) -> Reply:
    """An assistant message, perhaps an empty one, as a Reply. Raises OutputRefused for anything else."""
    content, listed = message.get("content"), message.get("tool_calls")
    if (content is not None and not isinstance(content, str)) or not isinstance(listed or [], list):
        raise OutputRefused(f"the model's reply is no assistant message: {_shown(message)}.")
    return Reply(content or "", tuple(_call(call) for call in listed or ()))


def _call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise OutputRefused(f"the model's reply has a tool call that is none: {_shown(call)}.")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = decoded(arguments, msgspec.json.decode)
        except ValueError as error:
            raise OutputRefused(
                f"the model's call of {function['name']} has arguments that are no JSON ({error}): {_shown(arguments)}."
            ) from None
    if not isinstance(arguments, dict):
        raise OutputRefused(f"the model's call of {function['name']} has arguments without names: {_shown(arguments)}.")
    return ToolCall(function["name"], arguments, str(call.get("id") or ""))


def asked_for(message: Mapping[str, Any]) -> tuple[str, ...]:
    """The tool calls of a recorded message, as people read them; ``(no tool call)`` for what is none."""
    listed = message.get("tool_calls") or ()
    return tuple(map(_asked, listed)) if isinstance(listed, list | tuple) else ("(no tool call)",)


def _asked(call: object) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return "(no tool call)"
    return f"{function.get('name')}({function.get('arguments')})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def assistant(reply: Reply) -> Message:
    """A reply as the message that the conversation goes on with; every tool call in it has an id."""
    message: Message = {"role": "assistant", "content": reply.content}
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id or f"call-{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": msgspec.json.encode(call.arguments).decode()},
            }
            for place, call in enumerate(reply.tool_calls)
        ]
    return message
