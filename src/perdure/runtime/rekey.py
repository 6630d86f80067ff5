"""Everything in a store under the key that is written with: after a key was changed, or when a store is encrypted.

Run after run is claimed, decrypted with whatever key it stands under, and written anew. A crash leaves some under the
one key and some under the other; both are good, and the next time goes on with what is left. Runs that are being
executed are left for another time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec

from perdure.errors import ConfigError, FencedError, LeaseHeld
from perdure.fold import summarise
from perdure.journal import decode, refs
from perdure.model import OWN, RunMeta
from perdure.runtime.look import each
from perdure.stores import open_store
from perdure.stores.base import Rewrite
from perdure.stores.compression import ready
from perdure.stores.encryption import MARK, Encryption
from perdure.stores.sealed import SealedStore
from perdure.stores.sealed_header import retire_keys


class Rekeyed(msgspec.Struct):
    """What was done."""

    runs: int = 0
    """that were looked at"""
    changed: int = 0
    left: list[str] = []
    """what living processes hold, and what stands under other keys, or in clear"""


def rekey(
    url: str,
    encryption: Encryption | None = None,
    *,
    encrypt: bool = False,
    dry: bool = False,
    progress: Callable[[Rekeyed], None] = lambda done: None,
) -> Rekeyed:
    """Write everything in a store anew that stands under another key than the one to write with, and what stands in
    clear if it is to be encrypted (``encrypt``). ``dry``: only count. Returns what was done.

    Raises ConfigError (no key, another key, a key is missing, the store stands in clear or cannot do it), CorruptStore
    for what cannot be decrypted.
    """
    keys = encryption or Encryption.from_environment()
    if keys is None:
        raise ConfigError("There is no encryption key.", hint="Make one with perdure key, and set PERDURE_KEY.")
    store = open_store(url, create=False, encryption=keys, migrate=encrypt)
    try:
        if not isinstance(store, SealedStore):
            raise ConfigError(f"{store.url} has no runs yet.", hint="The first run with this key encrypts it.")
        if store.capabilities.rewrite is None:
            raise ConfigError(f"{store.url} is of a kind whose keys cannot be changed.")
        if not dry:
            store.begin_key()
            if encrypt:
                store.migrate_again()
        done = Rekeyed()
        for row in each(store.inner):
            if row.key == MARK:
                continue
            done.runs += 1
            if store.keys_of(row) != {keys.write}:
                if dry or _rewrite(store, row):
                    done.changed += 1
                else:
                    done.left.append("a worker" if row.goal.startswith(OWN) else f"run {row.key}")
            progress(done)
        if not done.left and not dry:
            retire_keys(store.inner, keys)
        return done
    finally:
        store.close()


def _rewrite(store: SealedStore, row: RunMeta) -> bool:
    """False if somebody executes it."""
    rewrite = store.capabilities.rewrite
    assert rewrite is not None
    try:
        lease = store.claim(row.key)
    except LeaseHeld:
        return False
    try:
        while True:
            lines = store.read(row.key)
            entries = [decode(row.key, line, seq) for seq, line in enumerate(lines, 1)]
            blobs = {digest: store.blob(digest) for entry in entries for digest in refs(entry)}
            posts = store.posts({row.key: 0}).get(row.key, [])
            meta = summarise(row.key, lines)
            (new,) = ready([Rewrite(lease, tuple(lines), tuple(posts), meta, blobs)], store)
            if rewrite(new):
                return True
    finally:
        with suppress(FencedError):
            store.release(lease)
