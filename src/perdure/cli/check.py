"""``perdure check`` and ``schema``: what a store promises, what is wrong with it, and how its tables are made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from math import inf
from pathlib import Path

import click
import msgspec

from perdure.cli.counter import Counter
from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import FIX, HELD, OK, STORE, write, write_part
from perdure.cli.words import say
from perdure.clock import SYSTEM
from perdure.errors import RunNotFound
from perdure.model import OWN, RunKey, key_named
from perdure.runtime.audit import Auditor, Counts
from perdure.runtime.client import Client
from perdure.runtime.config import default_store
from perdure.stores import Store, missing, open_store
from perdure.stores.findings import KINDS, Copies, Finding

_KINDS = "\n".join(f"  {kind:14} {level:7} {meaning}" for kind, (level, meaning) in KINDS.items())


@click.command(epilog=f"\b\nKinds of findings, and what each means:\n{_KINDS}")
@click.argument("name", metavar="[RUN]", default="")
@click.option("--repair", is_flag=True, help="Mend what a crash left behind; keep a copy of it first.")
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path), help="Folder for these copies.")
@store_option
@json_option
def check(name: str, repair: bool, keep: Path | None, store: str | None, as_json: bool) -> int:
    """Audit the store, or one RUN of it: read everything, and say what is wrong.

    Journals (checksums, sequence, what may follow what), rows in listings, inboxes, blobs against their hashes, leases,
    what is nobody's, files that others can read, settings of the server. Changes nothing without --repair, may run
    while runs do, and takes the same memory for any number of them.

    --repair mends what is of level "repair" and nothing else: it never touches damage, removes no run and nothing of a
    run that is being executed. It says in which folder the copies are.

    Exit code 4 if something is damaged; else 2 if something was written by a newer Perdure; else 3 if something could
    not be repaired because it is in use; else 0.

    \b
      perdure check                      everything
      perdure check paper-17             one run
      perdure check --repair --keep DIR  mend what can be
    """
    if keep is not None and not repair:
        raise click.UsageError("--keep DIR is for the copies of --repair.")
    opened = open_store(store or default_store(), create=False)
    with Client(opened) as client:
        kept = Copies(keep or _folder(opened)) if repair else None
        with Counter(quiet=as_json) as counter:
            auditor = Auditor(opened, keep=kept, progress=lambda counts: counter(_far(counts)))
            findings = _one(client, auditor, name) if name else auditor.everything()
            tell = _tell_json if as_json else _tell
            tell(opened, findings, auditor.counts, kept, counter)
    return _code(auditor.counts)


def _one(client: Client, auditor: Auditor, name: str) -> Iterator[Finding]:
    """What is wrong with the run of that name. Raises RunNotFound if there is none, and nothing that is left of it."""
    try:
        key = client.find(name).key
    except RunNotFound:
        found = list(auditor.run(key_named(name) or RunKey(name)))
        if not found:
            raise
        return iter(found)
    return auditor.run(key)


def _far(counts: Counts) -> str:
    return f"{counts.runs:,} runs read" if counts.runs else f"{counts.places:,} places looked at"


def _folder(store: Store) -> Path:
    audit = store.capabilities.audit
    beside = audit.folder if audit is not None else Path("perdure")
    when = datetime.fromtimestamp(SYSTEM.now()).strftime("%Y%m%d-%H%M%S")
    if beside.name == "repaired":
        return beside.with_name(f"repaired-{when}")
    return Path(f"{beside}-repaired-{when}")


def _code(counts: Counts) -> int:
    levels = {KINDS[kind][0] for kind in counts.found}
    if "damage" in levels:
        return STORE
    if "newer" in levels:
        return FIX
    return HELD if counts.left else OK


def _tell(store: Store, findings: Iterator[Finding], counts: Counts, keep: Copies | None, counter: Counter) -> None:
    can = store.capabilities
    say(f"{store.url}: what is acknowledged {_survives(can.durable)}")
    if can.lease < inf:
        say(f"runs of a process that dies are free within {can.lease:g} s")
    for finding in findings:
        counter.clear()
        say(_line(finding))
    if counts.repaired and keep is not None:
        say(f"{counts.repaired:,} repaired; copies of what was there are in {keep.folder}")
    if counts.more:
        say("There may be more orphan blobs: check again when these are repaired.")
    to_do = sum(count for kind, count in counts.found.items() if KINDS[kind][0] == "repair") - counts.repaired
    if to_do and keep is None:
        say(f"{to_do:,} to repair: perdure check --repair")
    live = ((counts.executed, "executed now"), (counts.crashed, "crashed"))
    among = ", ".join(f"{count:,} {what}" for count, what in live if count)
    say(
        f"{counts.runs:,} run{'' if counts.runs == 1 else 's'} read{f' ({among})' if among else ''}, "
        f"{counts.damaged or 'none'} damaged"
    )


def _line(finding: Finding) -> str:
    word = "damaged" if finding.level == "damage" else "warning" if finding.level == "note" else finding.level
    kind = "" if finding.kind == word else f" ({finding.kind})"
    done = " Repaired." if finding.repaired else f" Left: {finding.left}" if finding.left else ""
    return f"{word}{kind}: {finding.what}{done}".replace(OWN, "")


def _tell_json(
    store: Store, findings: Iterator[Finding], counts: Counts, keep: Copies | None, counter: Counter
) -> None:
    """One object. The findings are written as they come: there may be very many."""
    can = store.capabilities
    head = {
        "store": store.url,
        "durable": can.durable,
        "shared": can.shared,
        "lease": None if can.lease == inf else can.lease,
        "copies": str(keep.folder) if keep is not None else None,
    }
    write_part(msgspec.json.encode(head)[:-1] + b',"findings":[')
    comma = b""
    for finding in findings:
        write_part(comma + b"\n" + msgspec.json.encode(_told(finding)))
        comma = b","
    write(b'],"counts":' + msgspec.json.encode(counts) + b',"exit_code":%d}' % _code(counts))


def _told(finding: Finding) -> dict[str, object]:
    return {
        "kind": finding.kind,
        "level": finding.level,
        "run": str(finding.run).replace(OWN, "") if finding.run is not None else "",
        "place": finding.place,
        "what": finding.what.replace(OWN, ""),
        "repaired": finding.repaired,
        "left": finding.left,
    }


def _survives(durable: bool) -> str:
    return "survives a crash of any process and of the machine" if durable else "may be lost in a crash: see below"


@click.command()
@click.option("--schema", "name", default="perdure", show_default=True, help="As in ?schema= of the store's URL.")
@click.option("--role", default="", metavar="USER", help="Grant this user what Perdure needs, and no more.")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="VERSION", help="Only what is new since then.")
def schema(name: str, role: str, after: int) -> int:
    """Print the SQL that makes the PostgreSQL store's tables, for a database administrator to execute.

    Without this the tables are made when a store is opened for the first time, if its user may make them.

    \b
      perdure schema --role app | psql -d mydb
    """
    try:
        from perdure.stores.postgres_setup import statements
    except ModuleNotFoundError as error:
        raise missing("postgres", error) from None
    say(statements(name, role, after))
    return OK
