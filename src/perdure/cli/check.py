"""``perdure check`` and ``schema``: what a store promises, and how its tables are made."""

from __future__ import annotations

from math import inf

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, STORE, write
from perdure.cli.words import say
from perdure.errors import PerdureError
from perdure.runtime.client import Client
from perdure.stores import missing


@click.command()
@store_option
@json_option
def check(store: str | None, as_json: bool) -> int:
    """Say what the store promises, and what stands against that; read every run and tell which are damaged.

    Changes nothing. Exit code 4 if something is damaged.
    """
    damaged: dict[str, str] = {}
    with Client(store) as client:
        can, doubts = client.capabilities, client.warnings()
        rows = client.runs()
        for row in rows:
            try:
                client.state(str(row.key))
            except PerdureError as problem:
                damaged[str(row.key)] = str(problem)
        doubts += [said for said in client.warnings() if said not in doubts]
        place = client.url
    if as_json:
        told = {
            "store": place,
            "durable": can.durable,
            "shared": can.shared,
            "lease": None if can.lease == inf else can.lease,
            "warnings": doubts,
            "runs": len(rows),
            "damaged": damaged,
        }
        write(msgspec.json.encode(told))
    else:
        say(f"{place}: what is acknowledged {_survives(can.durable)}")
        if can.lease < inf:
            say(f"runs of a process that dies are free within {can.lease:g} s")
        for said in doubts:
            say(f"warning: {said}")
        for said in damaged.values():
            say(f"damaged: {said}")
        say(f"{len(rows)} run{'' if len(rows) == 1 else 's'} read, {len(damaged) or 'none'} damaged")
    return STORE if damaged else OK


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
