"""The inputs of a run as they were recorded: whether others are given, and what it takes to go on without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from perdure import codec
from perdure.errors import ConfigError, InputMismatch
from perdure.fold import State
from perdure.guard import Guard
from perdure.model import ArgInfo, Attribution
from perdure.record import changes
from perdure.redaction import discreet, sounds_secret
from perdure.runtime.steps import Inputs
from perdure.secret import MASK, Secret


class Recalled(NamedTuple):
    """A run and its recorded inputs; the values of Secrets among them are not there before they are resolved."""

    state: State
    inputs: Inputs
    secrets: tuple[Secret, ...] = ()

    def resolve(self) -> None:
        """Get the values of its Secrets. Raises ConfigError, naming run and secret, for one that nobody provides; what
        the application's resolver raises."""
        for secret in self.secrets:
            try:
                secret.reveal()
            except ConfigError as missing:
                raise ConfigError(
                    f"run {self.state.key} cannot go on here. {missing.args[0]} Nothing was executed.",
                    hint=missing.hint,
                ) from missing


def recall(state: State, blobs: Mapping[str, bytes], guard: Guard) -> Recalled:
    """The inputs that a run was begun with. Raises ConfigError if rules hid some of them; CodecError."""
    if state.inputs is None:
        return Recalled(state, ((), {}))
    loaded = codec.load(state.inputs, blobs, guard)
    if loaded.redacted:
        raise ConfigError(
            f"run {state.key} cannot go on with its recorded inputs: rules of redaction hid some of them. Nothing was "
            "executed.",
            hint="Run it again with its inputs; or pass perdure.Secret(value, name=...), which can be resolved.",
        )
    return Recalled(state, loaded.value, loaded.secrets)


def attributed(attribution: Attribution, guard: Guard) -> Attribution:
    """The same without what must not be shown: it is text for people, and takes part in no identity."""
    told = {field: getattr(attribution, field) for field in attribution.__struct_fields__ if field != "tags"}
    changed: dict[str, object] = {field: said for field, text in told.items() if (said := discreet(text)) != text}
    tags = {
        name: MASK if value and (sounds_secret(name) or guard.hides(name)) else discreet(value)
        for name, value in attribution.tags.items()
    }
    return replace(attribution, **changed, **({"tags": tags} if tags != attribution.tags else {}))


def differences(state: State, args: Sequence[ArgInfo]) -> list[str]:
    """Which inputs are not those the run was begun with."""
    found = sorted(changes(state.args, args), key=lambda change: change.argument)
    return [f"{c.argument} was {_told(c.before)}, now {_told(c.now)}" for c in found]


def _told(shown: str | None) -> str:
    return "absent" if shown is None else shown


def refuse_other_inputs(state: State, args: Sequence[ArgInfo]) -> None:
    """Raises InputMismatch if the run was begun with other inputs than are asked for."""
    differs = differences(state, args)
    if differs:
        hint = (
            "Pass the same inputs, or new=True for another episode, or adopt_input=True (--adopt-input) to go on with "
            "these and reuse every step whose own inputs are the same."
        )
        if any(MASK in told for told in differs):
            hint += " A Secret that is declared with rotates=True may have another value."
        raise InputMismatch(
            f"run {state.key} was begun with other inputs: {'; '.join(differs)}. Nothing was executed or changed.",
            hint=hint,
        )
