"""``perdure key`` and ``rekey``: keys for encryption at rest, and how they are changed."""

from __future__ import annotations

import click
import msgspec

from perdure.cli.counter import Counter
from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import HELD, OK, write
from perdure.cli.words import say
from perdure.clock import SYSTEM
from perdure.runtime.config import default_store
from perdure.stores import missing
from perdure.stores.encryption import new_key


@click.command()
@click.argument("name", metavar="[ID]", default="")
def key(name: str) -> int:
    """Print a new encryption key, as PERDURE_KEY and a key file take it.

    ID tells it from others, and is stored in clear; without one it is made of the date. Keep the key where the store
    is not: whoever has both can read everything, and without the key nobody can, neither you.

    \b
      umask 077; perdure key > perdure.keys
      export PERDURE_KEY_FILE=$PWD/perdure.keys
    """
    say(new_key(name or f"k{int(SYSTEM.now())}"))
    return OK


@click.command()
@click.option("--encrypt", is_flag=True, help="Also encrypt a store whose runs stand in clear.")
@click.option("--dry-run", is_flag=True, help="Only count what stands under other keys.")
@store_option
@json_option
def rekey(encrypt: bool, dry_run: bool, store: str | None, as_json: bool) -> int:
    """Write everything in the store anew under the first key of PERDURE_KEY or PERDURE_KEY_FILE.

    To change a key: put the new one first and keep the old one behind it, restart what uses the store, run this, and
    take the old key out when nothing is left. Killed at any moment it goes on where it was; runs that are being
    executed are left, and told (exit code 3): run it again when they have ended.

    Before --encrypt end every process that uses the store without the key, also one that does nothing just now: what
    it writes afterwards stands in clear, and is not read until --encrypt is run once more.

    \b
      umask 077; { perdure key 2027; cat perdure.keys; } > new.keys
      PERDURE_KEY_FILE=new.keys perdure rekey
    """
    try:
        from perdure.runtime.rekey import rekey as run
    except ModuleNotFoundError as error:
        raise missing("encryption", error) from None
    with Counter(quiet=as_json) as counter:
        done = run(
            store or default_store(),
            encrypt=encrypt,
            dry=dry_run,
            progress=lambda done: counter(f"{done.runs:,} runs looked at, {done.changed:,} written anew"),
        )
    if as_json:
        write(msgspec.json.encode({"dry_run": dry_run, **msgspec.to_builtins(done)}))
    else:
        say(f"{done.runs:,} runs looked at, {done.changed:,} {'to write' if dry_run else 'written'} anew")
        for left in done.left:
            say(f"left: {left} is being executed. Run this again when it has ended.")
    return HELD if done.left else OK
