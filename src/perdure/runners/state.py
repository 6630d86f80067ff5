"""Nodes with state of their own (W7): objects that remember, and say how.

    class Memory:
        state_version = 2
        reads_versions = (1,)                                    # older ones that restore_state understands

        def __init__(self) -> None: self.seen = []
        def __call__(self, topic: str) -> str: ...               # the node's work; may be async
        def save_state(self) -> object: return self.seen
        def restore_state(self, state: object, version: int) -> None: self.seen = list(state)

A graph makes an object of its own in every run. What ``save_state`` returns after a call is recorded together with the
call's result, so both are there or neither. When a recorded call is reused the object gets the state that it left; when
a call fails its object is dropped, and the next attempt begins from the state before. The state is part of a call's
identity: if an earlier call comes out differently, later ones are executed again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
from msgspec.structs import replace

from perdure import codec
from perdure.clock import SYSTEM
from perdure.errors import ConfigError, NewerFormat
from perdure.guard import Guard
from perdure.runners.shape import place
from perdure.runners.task import Task
from perdure.runtime.context import current
from perdure.runtime.steps import Step


@runtime_checkable
class Stateful(Protocol):
    """What a class must have whose objects are nodes with state."""

    state_version: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def save_state(self) -> Any:
        """Everything that later calls depend on, as a value that can be stored."""

    def restore_state(self, state: Any, version: int) -> None:
        """Become what ``save_state`` described, in a version that this class reads."""


@codec.register(name="perdure:Kept")
class Kept(msgspec.Struct, frozen=True):
    """A stateful node's output, with the state that it left."""

    output: Any
    state: Any
    version: int


class Held(NamedTuple):
    """A node's state in one run, and the object that is in this state, if there is one."""

    kept: Kept | None
    living: Stateful | None


class Keeper(Task):
    """A node whose objects are made by ``make`` and keep state. Raises ConfigError if they cannot."""

    def __init__(
        self,
        name: str,
        make: Any,
        given: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        missing = [
            part for part in ("__call__", "save_state", "restore_state", "state_version") if not hasattr(make, part)
        ]
        if missing or not isinstance(getattr(make, "state_version", None), int):
            raise ConfigError(
                f"node {name} is a class, so it keeps state, but {getattr(make, '__name__', make)} has no "
                f"{', '.join(missing) or 'whole number as state_version'}.",
                hint="Give it these, or pass a function.",
            )
        self.make: Callable[[], Stateful] = make
        self.reads: tuple[int, ...] = (make.state_version, *getattr(make, "reads_versions", ()))
        super().__init__(make.__call__, name=name, given=given, **options)
        self.parameters = self.parameters[1:]  # not self
        before = inspect.Parameter("state_before", inspect.Parameter.KEYWORD_ONLY)
        signature = inspect.Signature([*self.parameters, before])
        judge = self.step.declared.check
        if judge is not None:  # it judges what the object returns, not what is kept
            declared = replace(self.step.declared, check=lambda kept: judge(kept.output))
            self.step = self.step.variant(name, declared)
        self.step.__dict__["signature"] = signature

    def keeping(self, held: dict[str, Held]) -> Step[..., Any]:
        """The step for one execution, whose states are in ``held``."""

        def body(state_before: str, **arguments: Any) -> Kept:
            living = self._take(held)
            return self._keep(held, living, living(**arguments))

        async def body_async(state_before: str, **arguments: Any) -> Kept:
            living = self._take(held)
            return self._keep(held, living, await living(**arguments))

        return self.step.with_body(body_async if self.step.is_async else body)

    def before(self, held: Mapping[str, Held]) -> str:
        """The state that the next call begins from, as a part of its identity."""
        kept = held[self.name].kept if self.name in held else None
        frame = current()
        guard = frame.guard if frame is not None and frame.run is not None else Guard(SYSTEM.new_id())
        return codec.digest(kept.state, f"state of {self.name}", guard)[0] if kept is not None else ""

    def _take(self, held: dict[str, Held]) -> Stateful:
        """The object in its present state; it is given back by ``_keep`` if all goes well."""
        kept, living = held.get(self.name, Held(None, None))
        held[self.name] = Held(kept, None)
        if living is None:
            living = self.make()
            if kept is not None:
                living.restore_state(kept.state, kept.version)
        return living

    def _keep(self, held: dict[str, Held], living: Stateful, output: Any) -> Kept:
        kept = Kept(output, living.save_state(), living.state_version)
        held[self.name] = Held(kept, living)
        return kept

    def output(self, kept: Kept, held: dict[str, Held]) -> Any:
        """The output of a call that was executed or reused. Raises NewerFormat for a state that cannot be read."""
        if kept.version not in self.reads:
            raise NewerFormat(
                f"{place()}node {self.name} has left a state of version {kept.version}, and this program reads "
                f"{', '.join(map(str, sorted(self.reads)))}. Nothing was changed.",
                hint="Teach restore_state that version and add it to reads_versions, or run the program that wrote it.",
            )
        if self.name not in held or held[self.name].kept is not kept:
            held[self.name] = Held(kept, None)
        return kept.output
