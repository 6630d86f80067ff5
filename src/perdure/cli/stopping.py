"""``perdure pause``, ``unpause``, ``retry`` and ``cancel``: what people decide about a run."""

from __future__ import annotations

from typing import Final

import click

from perdure import states
from perdure.cli.listing import store_option
from perdure.cli.outcome import OK, command
from perdure.cli.run import resume
from perdure.cli.waiting import by_option
from perdure.cli.words import say
from perdure.clock import SYSTEM
from perdure.model import RunMeta
from perdure.runtime.client import Client

_PATIENCE: Final = 10.0
"""seconds to watch a process stop a run, before it is said that it has not yet"""

reason_option = click.option("--reason", default="", help="Why; shown to whoever looks at the run.")


@click.command()
@click.argument("name", metavar="RUN")
@reason_option
@by_option
@store_option
def pause(name: str, reason: str, by: str, store: str | None) -> int:
    """Stop RUN until a person lets it go on: nothing resumes it by itself, after restarts either.

    What it executes at this moment is finished and kept; nothing new begins.
    """
    with Client(store) as client:
        key = client.pause(name, by=by, reason=reason).key
        row = _watch(client, str(key))
    if row.status == states.PAUSED:
        go_on = command("unpause", str(key), store=store)
        say(f"Run {key} is paused. Let it go on with: {go_on}")
    else:
        say(f"Run {key} is going to be paused when what it executes has ended ({_held(row)}).")
    return OK


@click.command()
@click.argument("name", metavar="RUN")
@by_option
@store_option
def unpause(name: str, by: str, store: str | None) -> int:
    """Let a paused RUN go on. Nothing is executed by this: run or resume it then."""
    with Client(store) as client:
        state = client.unpause(name, by=by)
    words = command("resume", str(state.key), "--app", state.target or "TARGET", store=store)
    say(f"Run {state.key} may go on:\n  {words}")
    return OK


@click.command()
@click.argument("name", metavar="RUN")
@by_option
@click.option("--app", metavar="TARGET", help="Go on with the run at once: module:flow, file.py:flow or file.toml.")
@store_option
@click.pass_context
def retry(context: click.Context, name: str, by: str, app: str | None, store: str | None) -> int:
    """Give RUN another life after a fix: a run that failed, or was paused because it could not go on.

    Its failed steps are executed again; what finished is kept. A worker takes it up, or --app executes it here.
    """
    with Client(store) as client:
        state = client.retry(name, by=by)
    if app is not None:
        return int(context.invoke(resume, name=str(state.key), app=app, store=store))
    words = command("resume", str(state.key), "--app", state.target or "TARGET", store=store)
    say(f"Run {state.key} may go on, in a worker or with:\n  {words}")
    return OK


@click.command()
@click.argument("name", metavar="RUN")
@reason_option
@by_option
@store_option
def cancel(name: str, reason: str, by: str, store: str | None) -> int:
    """Give RUN up, and the runs that it began: steps that run are cancelled, its clean-ups executed."""
    with Client(store) as client:
        state = client.cancel(name, by=by, reason=reason)
        row = _watch(client, str(state.key))
    if row.status == states.CANCELLED:
        say(f"Run {row.key} is cancelled.")
    elif row.status == states.COMPLETED:
        say(f"Run {row.key} had completed before it could be cancelled.")
    elif row.holder is not None:
        say(f"Run {row.key} is going to be cancelled when what it executes has ended ({_held(row)}).")
    else:
        words = command("resume", str(row.key), "--app", state.target or "TARGET", store=store)
        say(f"Run {row.key} is cancelled as soon as its clean-ups have run:\n  {words}")
    return OK


def _watch(client: Client, name: str) -> RunMeta:
    """The run's row, when the process that executes it has had some time to stop it."""
    end = SYSTEM.monotonic() + _PATIENCE
    row = client.find(name)
    while row.holder is not None and SYSTEM.monotonic() < end:
        SYSTEM.sleep(0.1)
        row = client.find(name)
    return row


def _held(row: RunMeta) -> str:
    return f"process {row.holder.pid} on {row.holder.host}" if row.holder else "nobody executes it"
