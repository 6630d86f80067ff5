"""Agent loops: ask a model, do what it asks for, tell it what came of that, until it has nothing more to ask.

    agent = Agent(model, [search, order], instructions="You help customers.")
    answer = perdure.run(agent, "Where is my parcel?", goal="ticket-17")

Every reply of the model and every result of a tool is a step. The identity of a reply is the conversation so far, that
of a tool's call its arguments; several calls of one reply run side by side. After a crash the loop is gone through
again: recorded replies and results are handed back, and the first that is missing is the first that is paid for.

A reply that cannot be followed (no text and no call, a tool that there is not, arguments that do not fit) is refused:
the model is asked again, told what was wrong, and the refused reply never becomes part of the conversation.

``phases`` are loops one after the other over one conversation, each with a prompt of its own and, if it says so, other
tools or another model. Each has a scope (``plan-0``), so two of one name are two.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from perdure.checks import not_empty
from perdure.errors import ConfigError, LimitReached, OutputRefused
from perdure.model import check_name
from perdure.runners.approval import Approved, Outcome
from perdure.runners.conversation import Added, Conversation
from perdure.runners.messages import Message, Model, Reply, ToolCall, as_reply, assistant, tool_result
from perdure.runners.shape import Plan, Shape, Side, Work, place
from perdure.runners.tool import Tool, as_tool, told
from perdure.runtime.branches import result
from perdure.runtime.context import context, current
from perdure.runtime.declare import step
from perdure.runtime.steps import Step

_SUMMARISE = (
    "Summarise the conversation so far for yourself: the task, what was done, every fact that is still needed, and "
    "what is left to do. It will replace the conversation."
)


class Phase:
    """One part of an agent's work: ``prompt`` is what the model is told when it begins. ``tools``, ``model`` and
    ``max_iterations`` are the agent's unless given.
    """

    def __init__(
        self,
        name: str,
        prompt: str,
        *,
        tools: Sequence[Any] | None = None,
        model: Model | None = None,
        max_iterations: int | None = None,
    ) -> None:
        self.name, self.prompt, self.tools, self.model = check_name("phase", name), prompt, tools, model
        self.max_iterations = max_iterations


class Agent(Shape):
    """A model in a loop with tools; a flow with one input, ``task``, whose result is the model's last answer.

    - ``model``: any callable, sync or async, from messages and tool schemas to a Reply, a text or an assistant message;
      or a ``ChatModel``. ``retries``, ``backoff`` and ``timeout`` are those of each call.
    - ``tools``: functions, flows, agents, or what ``tool`` made of them.
    - ``max_iterations``: replies per phase at most; then LimitReached pauses the run.
    - ``transcript_limit``: characters that the model is shown at most. ``on_overflow``: ``"error"`` pauses the run with
      LimitReached; ``"compact"`` replaces the conversation by a summary, made by ``compact`` (messages -> text) or by
      the model itself, as a step of its own. Nothing is ever cut silently, and the whole transcript stays readable.

    It is async if the model or a tool is; sync tools then run in threads. Raises ConfigError for a wrong declaration.
    """

    def __init__(
        self,
        model: Model,
        tools: Sequence[Any] = (),
        *,
        instructions: str = "",
        phases: Sequence[Phase] = (),
        name: str = "agent",
        description: str = "",
        max_iterations: int = 50,
        transcript_limit: int | None = None,
        on_overflow: Literal["error", "compact"] = "error",
        compact: Callable[[list[Message]], str | Awaitable[str]] | None = None,
        retries: int = 2,
        backoff: float = 1.0,
        timeout: float | None = None,
    ) -> None:
        if on_overflow not in ("error", "compact"):
            raise ConfigError(f"agent {name}: on_overflow must be 'error' or 'compact', not {on_overflow!r}.")
        if compact is not None and on_overflow != "compact":
            raise ConfigError(f"agent {name}: compact= is for on_overflow='compact'.")
        for field, number in (("max_iterations", max_iterations), ("transcript_limit", transcript_limit)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ConfigError(f"agent {name}: {field} must be a whole number from 1, not {number!r}.")
        options = {"retries": retries, "backoff": backoff, "timeout": timeout}
        self.instructions, self.description = instructions, description
        self.transcript_limit, self.on_overflow = transcript_limit, on_overflow
        self.compact = _compaction(compact, model, options)
        self.loops = [
            _Loop(
                self,
                phase,
                phase.model or model if phase else model,
                _tools(name, tools if phase is None or phase.tools is None else phase.tools),
                phase.max_iterations or max_iterations if phase else max_iterations,
                options,
            )
            for phase in (phases or (None,))
        ]
        task = inspect.Parameter("task", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
        told = [instructions, *(f"{phase.name} {phase.prompt}" for phase in phases)]
        super().__init__(name, [step for loop in self.loops for step in loop.steps], [task], told)
        for loop in self.loops:
            loop.colour(self.is_async)

    def plan(self, inputs: dict[str, Any]) -> Plan:
        if not isinstance(inputs["task"], str):
            raise ConfigError(f"{place()}agent {self.name} takes a text, not {type(inputs['task']).__name__}.")
        conversation = Conversation(current())
        if self.instructions:
            conversation.say("system", self.instructions)
        conversation.say("user", inputs["task"])
        answer = ""
        for loop in self.loops:
            if loop.phase is None:
                answer = yield from loop.plan({"conversation": conversation})
            else:
                conversation.say("user", loop.phase.prompt)
                answer = result((yield Side([Work(loop, (conversation,), {})]))[0])
        return answer

    def fit(self, conversation: Conversation) -> Generator[Side, Any, None]:
        """Keep the conversation below its limit, as declared. What an earlier life did here is done again, whatever the
        limit is now: else all that was said since would be asked for once more.
        """
        limit, summarised = self.transcript_limit, conversation.was_summarised()
        if summarised is False or (summarised is None and (limit is None or conversation.size <= limit)):
            return
        before = conversation.size
        if summarised or self.on_overflow == "compact":
            work = Work(self.compact, (conversation,), {})
            summary = result((yield Side([work]))[0])
            keep = sum(message["role"] == "system" for message in conversation.messages) + 1  # and the task
            assert work.request is not None
            conversation.summarised(summary, work.request.number, keep)
        if limit is not None and conversation.size > limit and not summarised:
            shorter = f", and {conversation.size:,} after compaction" if self.on_overflow == "compact" else ""
            raise LimitReached(
                f"{place()}agent {self.name}: its conversation has {before:,} characters{shorter}, and the limit is "
                f"{limit:,}. Nothing was cut.",
                hint="Raise transcript_limit, or let on_overflow='compact' summarise it, and run it again to go on.",
            )


def _tools(agent: str, listed: Sequence[Any]) -> dict[str, Tool[..., Any]]:
    tools: dict[str, Tool[..., Any]] = {}
    for made in map(as_tool, listed):
        if tools.setdefault(made.name, made) is not made:
            raise ConfigError(f"agent {agent}: two tools are called {made.name!r}.", hint="Give one another name=.")
    return tools


def _compaction(
    compact: Callable[[list[Message]], Any] | None, model: Model, options: dict[str, Any]
) -> Step[..., Any]:
    """The step that makes a summary."""

    def ask(messages: list[Message]) -> Any:
        return model([*messages, {"role": "user", "content": _SUMMARISE}], ())

    make = compact or ask

    def summarise(conversation: Conversation) -> str:
        return _text(make(list(conversation.messages)))

    async def summarise_async(conversation: Conversation) -> str:
        return _text(await make(list(conversation.messages)))

    def _text(said: Any) -> str:
        return said if compact is not None else _heard(said).content

    chosen = summarise_async if _is_async(compact or model) else summarise
    return _asking("compact", chosen, compact or model, check=not_empty, metered=compact is None, **options)


def _asking(name: str, fn: Callable[[Conversation], Any], theirs: Callable[..., Any], **options: Any) -> Step[..., Any]:
    """A step whose identity is the conversation it is given, and whose code is what it asks: ``theirs``, not ours."""
    made = step(name=name, key=lambda conversation: conversation.digest, ignore=("conversation",), **options)(fn)
    made.made_of = (theirs,)
    return made.variant(name, replace(made.declared, spoken=True))


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def _heard(said: object) -> Reply:
    """What a model returned, as a Reply; what it used is counted, also if that is refused."""
    if isinstance(said, Reply):
        used = said.usage
        context().spent(input_tokens=used.input_tokens, output_tokens=used.output_tokens, cost=used.cost)
    return as_reply(said)


class _Loop(Shape):
    """The loop of one phase, or of an agent that has none."""

    def __init__(
        self,
        agent: Agent,
        phase: Phase | None,
        model: Model,
        tools: dict[str, Tool[..., Any]],
        max_iterations: int,
        options: dict[str, Any],
    ) -> None:
        self.agent, self.phase, self.model, self.tools = agent, phase, model, tools
        self.max_iterations = max_iterations
        self.schemas = [tool.schema for tool in tools.values()]
        ask = self._ask_async if _is_async(model) else self._ask
        self.ask = _asking("model", ask, model, metered=True, **options)
        self.ask.made_of += (("tools", msgspec.json.format(msgspec.json.encode(self.schemas)).decode()),)
        self.steps = [self.ask, agent.compact, *(tool.step for tool in tools.values())]
        conversation = inspect.Parameter("conversation", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        super().__init__(phase.name if phase else "loop", self.steps, [conversation])
        self.key, self.ignore = "phase", ("conversation",)  # its scope is found by name and number

    def colour(self, is_async: bool) -> None:
        """All loops of an agent have one colour."""
        self.is_async = is_async
        self.approved = Approved(is_async)
        self.fn = self._run_async if is_async else self._run

    def plan(self, inputs: dict[str, Any]) -> Plan:
        conversation: Conversation = inputs["conversation"]
        replies = 0
        if self.phase is None and not any(tool.needs_approval for tool in self.tools.values()):
            replies = yield from conversation.catch_up()
        for _ in range(replies, self.max_iterations):
            yield from self.agent.fit(conversation)
            work = Work(self.ask, (conversation,), {})
            message: Message = result((yield Side([work]))[0])
            assert work.request is not None
            conversation.add((message, work.request.number, 0))
            calls = as_reply(message).tool_calls
            if not calls:
                return message["content"]
            conversation.add(*(yield from self.do(calls)), more=True)
        raise LimitReached(
            f"{place()}agent {self.agent.name}: it has replied {self.max_iterations} times"
            f"{f' in phase {self.name}' if self.phase else ''} and is not done. What was done is kept.",
            hint="Raise max_iterations and run it again to go on.",
        )

    def do(self, calls: Sequence[ToolCall]) -> Generator[Side, Any, list[Added]]:
        """Run the calls of one reply side by side; returns their results as messages."""
        try:
            works = [self._work(self.tools[call.name], call) for call in calls]
        except (KeyError, OutputRefused) as error:  # it fitted when the reply was made
            raise ConfigError(
                f"{place()}agent {self.agent.name}: a recorded reply asks for what its tools do not take: {error}.",
                hint="Give it back the tool as it was, or ask the model again with --rerun model.",
            ) from None
        outcomes = yield Side(works)
        added: list[Added] = []
        for call, work, outcome in zip(calls, works, outcomes, strict=True):
            value = result(outcome)
            if isinstance(value, Outcome):
                text, number = told(value.value), value.step
                if value.changed:  # this is said to the model only here, and stands in the conversation itself
                    text, number = f"(A person changed the arguments to {value.changed}.)\n{text}", 0
            else:
                assert work.request is not None
                text, number = told(value), work.request.number
            added.append((tool_result(text, call.id), number, 0))
        return added

    def _work(self, tool: Tool[..., Any], call: ToolCall) -> Work:
        """One call of a tool; if a person is to approve it, that first."""
        arguments = tool.arguments(call)
        if not tool.asks(arguments):
            return Work(tool.step, (), arguments)
        return Work(self.approved, (self.agent.name, tool, call, arguments), {})

    def _ask(self, conversation: Conversation) -> Message:
        return self._judged(self.model(self._shown(conversation), self.schemas))

    async def _ask_async(self, conversation: Conversation) -> Message:
        said: Any = self.model(self._shown(conversation), self.schemas)
        return self._judged(await said)

    def _shown(self, conversation: Conversation) -> list[Message]:
        """The conversation; after a refused reply, with what was wrong with it."""
        wrong = context().progress
        said = f"Your last reply could not be used: {wrong}"
        return [*conversation.messages, {"role": "user", "content": said}] if wrong else list(conversation.messages)

    def _judged(self, said: object) -> Message:
        """A model's reply as a message. Raises OutputRefused for one that cannot be followed."""
        try:
            reply = _heard(said)
            for call in reply.tool_calls:
                if call.name not in self.tools:
                    raise OutputRefused(f"there is no tool {call.name!r}; there are {', '.join(self.tools) or 'none'}")
                self.tools[call.name].arguments(call)
        except OutputRefused as refused:
            context().save(str(refused))  # for the next attempt
            raise
        return assistant(reply)
