"""``perdure fork``: another run that goes on from some point of one, with some things changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, command, write
from perdure.cli.run import resume
from perdure.cli.target import load_target, parse_words, read_word
from perdure.cli.waiting import by_option, read_text
from perdure.cli.words import say
from perdure.errors import ConfigError
from perdure.fold import State
from perdure.limits import decoded
from perdure.redaction import discreet_part
from perdure.runtime.client import Client
from perdure.runtime.edits import Typed

_KINDS: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
    list: "a list",
    dict: "an object",
}


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--after", metavar="STEP", help="The step (number, name or path) that the fork shares last.")
@click.option("--at", type=int, metavar="SEQ", help="The entry that it shares last (perdure tail --json shows them).")
@click.option("--set", "inputs", multiple=True, metavar="NAME=VALUE", help="Change an input; NAME=@FILE reads a file.")
@click.option("--answer", "answers", multiple=True, metavar="QUESTION=VALUE", help="Answer a question otherwise.")
@click.option("--output", "outputs", multiple=True, metavar="STEP=VALUE", help="Give a step another result.")
@click.option("--goal", help="Goal of the fork. Default: that of RUN.")
@click.option("--app", metavar="TARGET", help="Go on with the fork at once: module:flow, file.py:flow or file.toml.")
@by_option
@store_option
@json_option
@click.pass_context
def fork(
    context: click.Context,
    name: str,
    after: str | None,
    at: int | None,
    inputs: tuple[str, ...],
    answers: tuple[str, ...],
    outputs: tuple[str, ...],
    goal: str | None,
    app: str | None,
    by: str,
    store: str | None,
    as_json: bool,
) -> int:
    """Make another run that shares what RUN has recorded up to some point, and goes on from there.

    RUN itself is only read, also while it is executed. Without --after and --at all of it is shared; with --answer,
    what there was before the question was answered. The fork is the next episode of the goal. Steps whose own inputs
    stay the same are reused.

    Text stays text, and other values are read as JSON of the kind that was recorded; for other types name --app, as far
    as it is about inputs.

    \b
      perdure fork paper-17 --after 5 --set tone=friendly
      perdure fork paper-17 --answer "ask=no" --app review.py:review
      perdure fork paper-17 --output draft=@better.md
    """
    with Client(store) as client:
        flow, meant = load_target(app).name if app is not None else "", client.state(name)
        if flow and flow != meant.flow:
            raise ConfigError(f"Run {meant.key} is of flow {meant.flow!r}, and {app} is {flow!r}.", hint="Check --app.")
        state = client.fork(
            name,
            by=by,
            after=after,
            at=at,
            inputs=_inputs(app, inputs),
            answers=_each("--answer", answers, read_text),
            outputs=_each("--output", outputs, _output),
            goal=goal,
        )
    go_on = command("resume", str(state.key), "--app", app or state.target or "TARGET", store=store)
    assert state.forked is not None
    if app is not None:
        say(f"Run {state.key} is forked from {state.forked}.", err=True)
        return int(context.invoke(resume, name=str(state.key), app=app, store=store, as_json=as_json))
    if as_json:
        told = {"run": str(state.key), "forked_from": state.forked.run, "at_seq": state.forked.seq}
        write(msgspec.json.encode({**told, "kept": _kept(state), "resume": go_on}))
        return OK
    steps = f"{_kept(state)} step{'s are' if _kept(state) != 1 else ' is'} recorded"
    say(f"Run {state.key} is forked from {state.forked}: {steps}. Go on with:\n  {go_on}")
    return OK


def _kept(state: State) -> int:
    return sum(step.recorded for step in state.steps.values())


def _inputs(app: str | None, words: Sequence[str]) -> dict[str, Any]:
    """Inputs to change, as the flow declares them if it is named, else as what they take the place of."""
    if app is None:
        return _each("--set", words, _input)
    flow = load_target(app)
    return parse_words(flow, words, "--set")


def _each(option: str, words: Sequence[str], take: Callable[[str, Any], object]) -> dict[str, Any]:
    """For each ``NAME=VALUE`` word, what makes the value of what is recorded."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {discreet_part(word, 60)!r} has no '='.", hint=f"Write {option} NAME=VALUE.")
        if name in found:
            raise ConfigError(f"{option} {name!r} is given twice.")
        found[name] = Typed(partial(take, read_word(option, name, text)))
    return found


def _input(text: str, recorded: bytes | None) -> object:
    if recorded is None:
        raise ConfigError(
            "--set: an input that was left at its default is recorded nowhere. Nothing was written.",
            hint="Name the program with --app, which says what it is.",
        )
    return _as_recorded("--set", text, recorded)


def _output(text: str, recorded: bytes | None) -> object:
    """Of a step that failed nothing says what its result would be: it is JSON if it is that, else text."""
    if recorded is not None:
        return _as_recorded("--output", text, recorded)
    try:
        return decoded(text, msgspec.json.decode)
    except ValueError:
        return text


def _as_recorded(option: str, text: str, recorded: bytes) -> object:
    """What a person typed, as a value of the kind that is recorded. Raises ConfigError."""
    old = msgspec.json.decode(recorded)
    if isinstance(old, str) or (isinstance(old, dict) and old.get("~") == "blob" and old.get("as") == "str"):
        return text
    if b'"~":' in recorded:
        raise ConfigError(
            f"{option}: what is recorded is of a type that is known to its program only. Nothing was written.",
            hint="Name the program with --app, which says what inputs are; or fork the run from Python.",
        )
    try:
        new = decoded(text, msgspec.json.decode)
    except ValueError:
        new = inspect.Parameter.empty
    if isinstance(old, float) and type(new) is int:
        return float(new)
    if type(new) is not type(old):
        raise ConfigError(
            f"{option}: {discreet_part(text, 60)!r} is not {_KINDS[type(old)]}, as what is recorded. Nothing was "
            "written.",
            hint="Name the program with --app to give an input of another type.",
        )
    return new
