"""``perdure submit`` and ``perdure worker``: runs that somebody else executes, and who does."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, command, write
from perdure.cli.run import with_secrets
from perdure.cli.target import load_app, load_rules, load_target, named_after, parse_inputs, read_secrets, resolver
from perdure.cli.words import say
from perdure.clock import SYSTEM
from perdure.errors import ConfigError, CorruptStore, RetryError, StoreError
from perdure.runtime.config import CheckpointConfig, default_store
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.submit import DEFAULT_QUEUE
from perdure.runtime.worker import by_name

_LONGEST: Final = 30.0
"""seconds between two tries to open a store that failed"""
log = logging.getLogger("perdure")


@click.command()
@click.argument("target")
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="An input; NAME=@FILE reads a file.")
@click.option("--goal", default="", help="Name of the task. Default: made of the target and its inputs or --key.")
@click.option("--new", is_flag=True, help="The next episode of the task, instead of the run that is there.")
@click.option("--queue", default=DEFAULT_QUEUE, show_default=True, help="Which workers execute it.")
@click.option("--priority", default=0, show_default=True, help="Larger ones first.")
@click.option("--delay", default=0.0, metavar="SECONDS", help="Not before so many seconds have passed.")
@click.option("--concurrency", default=0, metavar="N", help="At most N runs of the queue are executed at a time.")
@click.option("--rate", metavar="N/SECONDS", help="At most N runs of the queue begin within so many seconds.")
@click.option("--key", default="", help="Idempotency key: what was submitted under it is not submitted again.")
@with_secrets
@store_option
@json_option
def submit(
    target: str,
    inputs: tuple[str, ...],
    goal: str,
    new: bool,
    queue: str,
    priority: int,
    delay: float,
    concurrency: int,
    rate: str | None,
    key: str,
    secrets: tuple[str, ...],
    redact: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Write a run of TARGET down for a worker to execute, and print its name. Nothing is executed here.

    \b
      perdure submit review.py:review --input paper=paper.md
      perdure submit review.py:review --input paper=p.md --queue night --priority 5 --concurrency 2
    """
    flow = load_target(target)
    values = parse_inputs(flow, inputs, read_secrets(secrets))
    called = target.rpartition(":")[2] if ":" in target else flow.name
    named = goal or ("" if key else " ".join([called, *named_after(flow, inputs)]))
    if len(named) > 200 and not goal:
        raise ConfigError("The inputs are too long to name the task.", hint="Name it with --goal.")
    with CheckpointManager(store, CheckpointConfig(redact=load_rules(redact))) as manager:
        if not manager.shared:
            raise ConfigError("Nobody could execute it: this store ends with the command.", hint="Use another store.")
        run = manager.submit(
            flow,
            goal=named,
            new=new,
            queue=queue,
            priority=priority,
            delay=delay,
            concurrency=concurrency,
            rate=_rate(rate),
            idempotency_key=key,
            target=target,
            **values,
        )
    if as_json:
        write(msgspec.json.encode({"run": str(run)}))
    else:
        say(str(run))
        say("Execute it with: " + command("worker", "--app", target, store=store), err=True)
    return OK


def _rate(text: str | None) -> tuple[int, float]:
    if text is None:
        return 0, 0.0
    runs, _, seconds = text.partition("/")
    try:
        return int(runs), float(seconds)
    except ValueError:
        raise ConfigError(f"--rate {text!r} is no rate.", hint="Write N/SECONDS, such as 10/60.") from None


@click.command()
@click.option("--app", "apps", multiple=True, required=True, metavar="APP", help="Module, file or TARGET with flows.")
@click.option("--concurrency", type=click.IntRange(min=1), default=10, show_default=True, help="Runs at a time.")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Only runs submitted to this queue; repeatable.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long steps may go on when the worker is told to stop.",
)
@click.option("--until-idle", is_flag=True, help="End when there is nothing left to do, instead of waiting for more.")
@click.option(
    "--crash-limit",
    type=click.IntRange(min=1),
    default=CheckpointConfig().crash_limit,
    show_default=True,
    metavar="N",
    help="Crashes in a row of one step after which its run is paused.",
)
@click.option("--outputs", type=click.Path(file_okay=False), help="Keep every output as a file in DIR.")
@with_secrets
@click.option("--quiet", is_flag=True, help="Tell of trouble only.")
@store_option
def worker(
    apps: tuple[str, ...],
    concurrency: int,
    queues: tuple[str, ...],
    grace: float,
    until_idle: bool,
    crash_limit: int,
    outputs: str | None,
    secrets: tuple[str, ...],
    redact: str | None,
    quiet: bool,
    store: str | None,
) -> int:
    """Execute runs that wait for a worker: submitted ones, and those that were interrupted or whose process died.

    APP is package.module, path/to/file.py, or one flow of either as for run; all flows in it are executed. Any number
    of workers may share a store.

    SIGTERM or Ctrl-C: it takes up nothing more, lets steps that run come to their end, and gives its runs up for
    others to go on with. Told twice, it does not wait for steps.

    \b
      perdure worker --app review.py
      perdure worker --app reviews.flows --queue night --concurrency 4
    """
    flows = list(by_name([flow for app in apps for flow in load_app(app)]).values())
    config = CheckpointConfig(
        outputs=outputs, crash_limit=crash_limit, secrets=resolver(secrets), redact=load_rules(redact)
    )
    _log_to_terminal(quiet)
    place = store or default_store()
    told = ", ".join(flow.name for flow in flows)
    log.info("worker for %s; %d at a time%s", told, concurrency, f"; queues {', '.join(queues)}" if queues else "")
    pause = 0.5
    while True:
        began = SYSTEM.monotonic()
        try:
            _work(place, config, flows, concurrency=concurrency, queues=queues, grace=grace, until_idle=until_idle)
            log.info("worker stopped; what it executed can go on elsewhere")
            return OK
        except (StoreError, RetryError) as failure:
            if until_idle or isinstance(failure, CorruptStore):
                raise
            log.error("%s The store is opened again in %.1f s.", failure, pause)
        SYSTEM.sleep(pause)
        pause = 0.5 if SYSTEM.monotonic() - began > 60 else min(pause * 2, _LONGEST)


def _work(place: str, config: CheckpointConfig, flows: Sequence[Any], **options: Any) -> None:
    with CheckpointManager(place, config) as manager:
        asyncio.run(manager.work(*flows, **options))


def _log_to_terminal(quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
