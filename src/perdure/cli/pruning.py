"""``perdure prune``, ``pin`` and ``unpin``: which finished runs stay."""

from __future__ import annotations

from datetime import timedelta

import click
import msgspec

from perdure import states
from perdure.cli.amounts import shown, size
from perdure.cli.counter import Counter
from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, command, write
from perdure.cli.waiting import by_option
from perdure.cli.words import age, say
from perdure.clock import SYSTEM
from perdure.model import RunMeta
from perdure.runtime.client import Client
from perdure.runtime.moments import date, duration
from perdure.runtime.retention import Keep, Retention


@click.command()
@click.argument("names", metavar="[RUN]...", nargs=-1)
@click.option("--older-than", metavar="TIME", help="Only runs about which nothing was heard for so long: 30d, 12h, 2w.")
@click.option("--before", metavar="DATE", help="Only runs about which nothing was heard since then: 2026-11-21.")
@click.option("--keep", type=click.IntRange(min=0), default=0, help="The newest so many of each goal stay in any case.")
@click.option("--max-size", metavar="SIZE", help="Of each status the oldest go until the rest takes no more: 500M, 2G.")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(states.RUN_REMOVABLE), help="Only these. [all three]"
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--compact", is_flag=True, help="Give the space back to the disk afterwards, and wipe what was removed.")
@store_option
@json_option
def prune(
    names: tuple[str, ...],
    older_than: str | None,
    before: str | None,
    keep: int,
    max_size: str | None,
    statuses: tuple[str, ...],
    dry_run: bool,
    compact: bool,
    store: str | None,
    as_json: bool,
) -> int:
    """Remove finished runs: those named, or those that do not stay.

    Only runs that have completed, failed or been cancelled go, never one that is executed, waits for something, is
    pinned, or is needed by the run that began it. Large values go with the last run that has them.

    \b
      perdure prune --older-than 30d --keep 3 --dry-run
      perdure prune --status failed --older-than 2w
      perdure prune --max-size 2G
      perdure prune paper-17#0
    """
    limits = older_than or before or keep or max_size
    if bool(names) == bool(limits) and not (compact and not names):
        raise click.UsageError("Name runs, or say what stays: --older-than, --before, --keep, --max-size.")
    if older_than and before:
        raise click.UsageError("Give --older-than or --before, not both.")
    rule = None
    if limits:
        old = duration(older_than) if older_than else None
        if before:
            old = timedelta(seconds=max(SYSTEM.now() - date(before), 0.0))
        rule = Keep(age=old, count=keep, size=size(max_size) if max_size else None)
    with Client(store) as client:
        keys = dict.fromkeys([client.find(name).key for name in names])  # all are there before one goes
        told = _Told(dry_run, as_json)
        with Counter(quiet=as_json) as counter:
            for key in keys:
                told.row(client.remove(str(key), dry=dry_run))
            if rule is not None:
                wanted = statuses or states.RUN_REMOVABLE
                for row in client.prune(Retention(**dict.fromkeys(wanted, rule)), dry=dry_run):
                    counter(f"{told.runs:,} runs {told.word}, {shown(told.bytes)}")
                    if row is not None:
                        told.row(row)
            if compact and not dry_run:
                counter("giving the space back")
                client.compact()
        told.end()
    return OK


class _Told:
    """What is said of runs that go: a line each, or a list in JSON that is written as it grows."""

    def __init__(self, dry: bool, as_json: bool) -> None:
        self.runs = self.bytes = 0
        self.word = "to be removed" if dry else "removed"
        self._dry, self._json = dry, as_json
        if as_json:
            write(b'{"dry_run":%b,"runs":[' % (b"true" if dry else b"false"))

    def row(self, row: RunMeta) -> None:
        if self._json:
            facts = {"run": str(row.key), "status": row.status, "updated": row.updated, "size": row.size}
            write((b"," if self.runs else b"") + msgspec.json.encode(facts))
        else:
            old = age(SYSTEM.now() - row.updated)
            say(f"{self.word}: {row.key} ({row.status}, last heard of {old} ago, {shown(row.size)})")
        self.runs += 1
        self.bytes += row.size

    def end(self) -> None:
        if self._json:
            write(b'],"count":%d,"bytes":%d}' % (self.runs, self.bytes))
        else:
            say(f"{self.runs:,} run{'' if self.runs == 1 else 's'} {self.word}, {shown(self.bytes)}")


@click.command()
@click.argument("name", metavar="RUN")
@by_option
@store_option
def pin(name: str, by: str, store: str | None) -> int:
    """Keep RUN, whatever retention says, until it is unpinned."""
    with Client(store) as client:
        key = client.pin(name, by=by).key
    say(f"Run {key} is kept, until: {command('unpin', str(key), store=store)}")
    return OK


@click.command()
@click.argument("name", metavar="RUN")
@by_option
@store_option
def unpin(name: str, by: str, store: str | None) -> int:
    """Let retention decide about RUN again."""
    with Client(store) as client:
        key = client.unpin(name, by=by).key
    say(f"Run {key} goes when retention says so.")
    return OK
