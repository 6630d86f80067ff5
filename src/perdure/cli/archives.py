"""``perdure export`` and ``import``: runs as one file, from any store to any other."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import IO, Final

import click
import msgspec

from perdure.cli.amounts import size
from perdure.cli.counter import Counter
from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, STORE, command, write
from perdure.cli.waiting import by_option
from perdure.cli.words import moment, say
from perdure.clock import SYSTEM
from perdure.errors import ConfigError
from perdure.runtime.client import Client
from perdure.runtime.config import default_store
from perdure.runtime.export import Exported
from perdure.runtime.restore import Came, Imported
from perdure.runtime.unpack import unpack
from perdure.stores import open_store

_SHOWN: Final = 20


@click.command()
@click.argument("names", metavar="[RUN]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All runs of the store.")
@click.option("-o", "--output", "file", metavar="FILE", required=True, help="The file to write; - for standard output.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@store_option
@json_option
def export(names: tuple[str, ...], everything: bool, file: str, force: bool, store: str | None, as_json: bool) -> int:
    """Write each RUN, and the runs that it began, into one archive that `perdure import` takes into any other store.

    Others may execute them meanwhile: the archive has them as they are at this moment. Exit code 4 if runs of a whole
    store are damaged and were left out.

    \b
      perdure export paper-17 -o paper-17.tgz
      perdure export --all -o - | ssh elsewhere perdure import - --trust
    """
    if bool(names) == everything:
        raise ConfigError("Name the runs to export, or say --all.", hint="List what there is: perdure ls")
    if file == "-" and (as_json or sys.stdout.isatty()):
        raise ConfigError("An archive is nothing for a terminal, or among JSON.", hint="Name a file, or use a pipe.")
    with Client(store) as client, Counter() as counter:
        target: str | IO[bytes] = sys.stdout.buffer if file == "-" else file
        done = client.export(
            target, *names, replace=force, progress=lambda runs: counter(f"{runs:,} runs exported ...")
        )
        doubts = _doubts(client)
    for said in doubts:
        say(f"warning: {said}", err=True)
    for said in done.damaged.values():
        say(f"left out: {said}", err=True)
    if as_json:
        write(msgspec.json.encode(done))
    else:
        say(_exported(done, "standard output" if file == "-" else file), err=file == "-")
    return STORE if done.damaged else OK


def _doubts(client: Client) -> list[str]:
    """What whoever has the archive should know of it, besides what is in it."""
    told = client.warnings()
    if client.capabilities.encrypted:
        told.append("the store is encrypted, and the archive is not: whoever has it can read it.")
    return told


def _exported(done: Exported, place: str) -> str:
    told = f"Exported {_count(done.runs, 'run')} ({done.records:,} records, {_count(done.blobs, 'blob')}) to {place}"
    told += f": {done.size:,} bytes."
    if done.allow:
        told += f"\nIt is larger than what is imported without asking: import it with --max-size {done.allow}"
    return told


@click.command(name="import")
@click.argument("file", metavar="FILE")
@click.option("--trust", is_flag=True, help="The archive is your own: its runs may go on at once.")
@click.option("--skip", is_flag=True, help="Leave a run that is here with other content as it is.")
@click.option("--new", is_flag=True, help="Bring such a run in as the next episode of its goal.")
@click.option("--as", "goal", metavar="GOAL", help="Bring the runs in under this goal, if they are all of one.")
@click.option("--max-size", metavar="SIZE", help="What the archive may unpack to: 300M, 20G. [64M to 4G, by its size]")
@click.option("--dry-run", is_flag=True, help="Check the archive, say what would be done, and write nothing.")
@by_option
@store_option
@json_option
def import_(
    file: str,
    trust: bool,
    skip: bool,
    new: bool,
    goal: str | None,
    max_size: str | None,
    dry_run: bool,
    by: str,
    store: str | None,
    as_json: bool,
) -> int:
    """Take the runs of an archive that `perdure export` wrote into a store; FILE is - for standard input.

    The archive may come from a stranger: all of it is checked before anything is written, and nothing is executed. Runs
    that have not ended come in paused, unless you --trust whom it is from. What is here already is left as it is; so
    if this was interrupted, do it again.

    \b
      perdure import paper-17.tgz --store postgresql://app@db/app
      perdure unpause paper-17
    """
    if skip and new:
        raise ConfigError("--skip and --new contradict each other.", hint="Choose one.")
    most = size(max_size) if max_size is not None else None
    source = sys.stdin.buffer if file == "-" else file
    with (
        Counter() as counter,
        unpack(
            source, now=SYSTEM.now(), max_size=most, progress=lambda n: counter(f"{n:,} runs checked ...")
        ) as archive,
        closing(open_store(store or default_store(), create=not dry_run)) as place,
        Client(place) as client,
    ):
        done = client.import_archive(
            archive,
            by=by,
            trust=trust,
            skip=skip,
            new=new,
            goal=goal,
            dry_run=dry_run,
            progress=lambda runs: counter(f"{runs:,} runs imported ..."),
        )
        name, where, doubts = archive.name, client.url, client.warnings()
    for said in doubts:
        say(f"warning: {said}", err=True)
    if as_json:
        write(msgspec.json.encode(done))
    else:
        say("\n".join(_imported(done, name, where, dry_run, store)))
    return OK


def _imported(done: Imported, name: str, where: str, dry_run: bool, store: str | None) -> list[str]:
    made = f", written {moment(done.made)} by {done.by}" if done.made else ""
    told = [f"{name}: {_count(len(done.runs), 'run')}{made}. It is sound."]
    moved = done.count("imported") + done.count("completed")
    told.append(f"{'Would import' if dry_run else 'Imported'} {_count(moved, 'run')} into {where}.")
    if done.count("there"):
        told.append(f"{_count(done.count('there'), 'run')}: here already.")
    if done.count("skipped"):
        told.append(f"{_count(done.count('skipped'), 'run')}: left as they are here, with other content.")
    comes = "would come" if dry_run else "came"
    told += _some([f"{came.run} {comes} in as {came.here}" for came in done.runs if _is_renamed(came)])
    if done.paused:
        told.append(f"{_count(len(done.paused), 'run')} came in paused. Let one go on with:")
        told += _some(["  " + command("unpause", run, store=store) for run in done.paused])
    return told


def _is_renamed(came: Came) -> bool:
    return came.run != came.here and came.fate in ("imported", "completed")


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"... and {len(lines) - _SHOWN:,} more"]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
