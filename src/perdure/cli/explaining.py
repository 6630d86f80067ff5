"""``perdure explain``: why each step of a run was executed or reused."""

from __future__ import annotations

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, write
from perdure.cli.words import SHOWN_LINES, plain_table, say, tell_diff
from perdure.errors import RunNotFound
from perdure.record import is_called
from perdure.redaction import discreet
from perdure.runtime.client import Client
from perdure.runtime.explain import Explanation, Reason


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("step", metavar="[STEP]", required=False)
@click.option("--full", is_flag=True, help="All of each difference, and of inputs what is kept of them.")
@store_option
@json_option
def explain(name: str, step: str | None, full: bool, store: str | None, as_json: bool) -> int:
    """Say of each step why it was executed or reused in the latest life of RUN: its inputs or its code have changed
    (and how), it crashed, it was asked for, it is new. Only of STEP (number, name or path), if it is given.

    \b
      perdure run review.py:review --goal paper-17 --rerun changed
      perdure explain paper-17
      perdure explain paper-17 outline --full
    """
    with Client(store) as client:
        told = client.explain(name)
    reasons = [r for r in told.steps if step is None or is_called(step, r.number, r.path)]
    if step is not None and not reasons:
        paths = ", ".join(dict.fromkeys(reason.path for reason in told.steps)) or "none yet"
        raise RunNotFound(f"run {told.run} has no step {step!r}.", hint=f"Its steps: {paths}.")
    if as_json:
        write(msgspec.json.encode(msgspec.structs.replace(told, steps=tuple(reasons))))
        return OK
    say(_summary(told))
    if reasons:
        rows = [(str(r.number), r.path, r.decision, _why(r, full)) for r in reasons]
        say(plain_table(("#", "step", "", "why"), rows))
    for reason in reasons:
        if reason.code:
            say(f"\nThe code of {reason.path} (step {reason.number}):")
            tell_diff(discreet(reason.code), None if full else SHOWN_LINES)
    return OK


def _summary(told: Explanation) -> str:
    counted = [f"{n} {word}" for word in ("reused", "executed", "copied", "not asked for") if (n := told.count(word))]
    mode = ", executing again what has changed" if told.renewed else ""
    return f"run {told.run}, life {told.life}{mode}: {', '.join(counted) or 'no steps yet'}"


def _why(reason: Reason, full: bool) -> str:
    told = "; ".join(change.told(400 if full else 60) for change in reason.changes)
    return reason.why + (f": {told}" if told else "") + (f" (instead of step {reason.before})" if reason.before else "")
