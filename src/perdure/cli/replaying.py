"""``perdure replay``: today's code of a flow against recorded runs, without executing any step."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext, redirect_stdout

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import FIX, FOUND, OK, write
from perdure.cli.run import with_secrets
from perdure.cli.target import load_app, load_rules, resolver
from perdure.cli.words import say
from perdure.errors import ConfigError
from perdure.runtime.api import sigterm_as_exit
from perdure.runtime.config import CheckpointConfig

# perdure.testing is imported below and not here: other commands do without it.


@click.command()
@click.argument("names", metavar="[RUN]...", nargs=-1)
@click.option(
    "--app",
    "apps",
    metavar="APP",
    multiple=True,
    required=True,
    help="The program: module, file.py, or a flow of it.",
)
@click.option("--from", "archive", metavar="ARCHIVE", help="Runs that perdure export wrote, instead of a store's.")
@click.option("--unfinished", is_flag=True, help="Every run of the program's flows that has not ended.")
@with_secrets
@store_option
@json_option
def replay(
    names: tuple[str, ...],
    apps: tuple[str, ...],
    archive: str | None,
    unfinished: bool,
    secrets: tuple[str, ...],
    redact: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Run today's code against the recorded results of runs, without executing any step, and report where it first asks
    for something else than they did.

    Without RUN: every run of an archive; of a store every one that has not ended, which are those that the code would
    have to go on with. Nothing is written to the store.

    \b
      perdure replay --app review.py                             before a deploy: what would it break?
      perdure replay paper-17 --app review.py:review
      perdure replay --from recorded.perdure --app review.py     a regression test

    Exit code 7 if anything diverges, else 2 if a run could not be replayed.
    """
    from perdure.testing.replaying import Recorded

    if names and unfinished:
        raise click.UsageError("Name runs, or say --unfinished.")
    flows = list({id(flow): flow for app in apps for flow in load_app(app)}.values())
    config = CheckpointConfig(redact=load_rules(redact), secrets=resolver(secrets))
    found = []
    printed = redirect_stdout(sys.stderr) if as_json else nullcontext()  # by the flows' own code
    with printed, sigterm_as_exit(), Recorded(flows, archive=archive, store=store, config=config) as recorded:
        for told in recorded.replayed(names, unfinished=unfinished):
            found.append(told)
            if not as_json:
                say(str(told))
        place, others = recorded.place, recorded.others
    if archive is not None and not found:
        hint = f"It has runs of: {_counted(others)}." if others else "It has none, or all have ended."
        raise ConfigError(f"{place} has no run of {', '.join(flow.name for flow in flows)} to replay.", hint=hint)
    counts = Counter[str](told.verdict for told in found)
    if as_json:
        write(msgspec.json.encode({"ok": all(told.ok for told in found), "runs": found, "other_flows": others}))
    else:
        say(_summary(counts, others))
    return FOUND if counts["diverges"] else FIX if counts["refused"] else OK


def _summary(counts: Counter[str], others: Counter[str]) -> str:
    runs = sum(counts.values())
    told = f"{runs:,} run{'' if runs == 1 else 's'} replayed: {counts['follows']:,} can be followed"
    told += f", {counts['diverges']:,} diverge{'s' if counts['diverges'] == 1 else ''}"
    told += f", {counts['undecided']:,} cannot be judged" if counts["undecided"] else ""
    told += f", {counts['refused']:,} cannot be replayed" if counts["refused"] else ""
    told += ". No step was executed."
    return told + (f" Runs of other flows were left out: {_counted(others)}." if others else "")


def _counted(others: Counter[str]) -> str:
    return ", ".join(f"{flow} ({count:,})" for flow, count in sorted(others.items()))
