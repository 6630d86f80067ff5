"""Approval of tool calls: a person sees the tool's name and arguments before it is executed, and decides.

    @tool(needs_approval=lambda amount: amount > 100)
    def refund(order: str, amount: float) -> str: ...

The answer is true, false, or an ``Approval``: a refusal with a reason that the model is told, other arguments, and
whether it is remembered for equal calls of the same run.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import msgspec

from perdure import codec
from perdure.errors import AnswerRefused, OutputRefused
from perdure.runners.messages import ToolCall, ToolSchema
from perdure.runners.shape import Plan, Shape, Side, Work
from perdure.runtime.ask import asking
from perdure.runtime.branches import result
from perdure.runtime.forms import schema_of, taker
from perdure.runtime.steps import Step

_SHOWN = 400
"""characters of the arguments in the prompt at most; the question's context has all of them"""


@codec.register(name="perdure:Approval")
class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person decides about a call of a tool."""

    approved: bool
    reason: str = ""
    """why not; the model is told"""
    arguments: dict[str, Any] | None = None
    """call it with these instead"""
    remember: bool = False
    """equal calls of this run are decided alike, without asking again"""

    def __str__(self) -> str:
        return f"Not done: a person refused it{f': {self.reason}' if self.reason else ''}."


class Outcome(msgspec.Struct, frozen=True):
    """What came of a call that needed approval, and the step that says so."""

    value: object
    step: int
    changed: str = ""
    """the arguments that a person chose instead of the model's, as JSON"""


class Approvable(Protocol):
    """A tool, as far as it matters here."""

    step: Step[..., Any]
    schema: ToolSchema

    def arguments(self, call: ToolCall) -> dict[str, Any]:
        """A model's, or person's, arguments as the declared types. Raises OutputRefused."""


class Approved(Shape):
    """One call of a tool: asked for first, then executed or not. It has a scope of its own: ``approve-0`` and so on."""

    def __init__(self, is_async: bool) -> None:
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
        inputs = [inspect.Parameter(name, kinds) for name in ("agent", "tool", "call", "arguments")]
        super().__init__("approve", [], inputs)
        self.is_async = is_async
        self.fn = self._run_async if is_async else self._run

    def plan(self, inputs: dict[str, Any]) -> Plan:
        tool: Approvable = inputs["tool"]
        call: ToolCall = inputs["call"]
        arguments: dict[str, Any] = inputs["arguments"]
        shown = msgspec.json.encode(call.arguments).decode()
        cut = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
        asked = asking(
            f"{inputs['agent']} wants to call {call.name}({cut}). Approve?",
            kind=bool | Approval,
            context={"tool": call.name, "arguments": call.arguments},
            name=f"approve:{call.name}",
            take=lambda data: _decision(data, call, tool),
            schema=_schema(tool),
            reusable=lambda decided: isinstance(decided, Approval) and decided.remember,
        )
        decided: Approval = result((yield Side([asked]))[0])
        assert asked.request is not None
        if not decided.approved:
            return Outcome(decided, asked.request.number)
        changed = ""
        if decided.arguments is not None:
            arguments = tool.arguments(ToolCall(call.name, decided.arguments))
            changed = msgspec.json.encode(decided.arguments).decode()
        work = Work(tool.step, (), arguments)
        value = result((yield Side([work]))[0])
        assert work.request is not None
        return Outcome(value, work.request.number, changed)


def _schema(tool: Approvable) -> dict[str, Any]:
    """What an answer may be: true, false or an Approval, whose arguments are those of the tool."""
    schema = schema_of(bool | Approval, "approval")
    parameters = dict(tool.schema["function"]["parameters"])
    schema["$defs"] |= parameters.pop("$defs", {})
    schema["$defs"]["Approval"]["properties"]["arguments"] = {"anyOf": [parameters, {"type": "null"}]}
    return schema


def _decision(data: bytes, call: ToolCall, tool: Approvable) -> Approval:
    """An answer as an Approval. Raises AnswerRefused for arguments that the tool does not take."""
    said = taker(bool | Approval, None)(data)
    decided = said if isinstance(said, Approval) else Approval(bool(said))
    if decided.arguments is not None:
        try:
            tool.arguments(ToolCall(call.name, decided.arguments))
        except OutputRefused as wrong:
            raise AnswerRefused(str(wrong)) from None
    return decided
