"""How a store is encrypted: what stands about it in a run of the store's own, and how that is changed.

Signed, so that nobody without the key can say that a store is being encrypted, or name keys of his own.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from perdure import journal as j
from perdure.clock import SYSTEM, process_identity
from perdure.codec import Payload
from perdure.errors import ConfigError, CorruptStore, LeaseHeld
from perdure.fold import State
from perdure.model import Attribution, Lease
from perdure.stores.base import Append, Rewrite, Store
from perdure.stores.encryption import MARK, Encryption
from perdure.stores.seal import Seal, refuse_wrong_key

_PATIENCE: Final = 10.0
"""seconds to wait for another process that is writing this down"""


class Header(msgspec.Struct, frozen=True):
    """How a store is encrypted."""

    store: str
    """random id"""
    keys: dict[str, str]
    """check value of every key that was ever written with"""
    retired: tuple[str, ...] = ()
    """those of them under which nothing should stand any more"""
    hide_names: bool = False
    migrating: bool = False
    signer: str = ""
    """key with which all this is signed"""
    signature: str = ""

    def signed(self, seal: Seal) -> Header:
        unsigned = replace(self, signer=seal.write, signature="")
        return replace(unsigned, signature=seal.sign(seal.write, msgspec.json.encode(unsigned)))

    def has(self, key: str) -> bool:
        """Whether a key is in use."""
        return key in self.keys and key not in self.retired

    def check(self, seal: Seal, url: str) -> None:
        """Raises ConfigError if a key that is in use is missing, or if it or the one for writing is another than it
        was; CorruptStore if this was not written by somebody with the key."""
        for key in self.keys.keys() - set(self.retired) | self.keys.keys() & {seal.write}:
            refuse_wrong_key(seal, key, self.keys[key], url)
        signature = seal.sign(self.signer, msgspec.json.encode(replace(self, signature="")))
        if not hmac.compare_digest(signature, self.signature):
            raise _damaged_header(url, "its signature is wrong")


Change: TypeAlias = Callable[[Header | None], Header]


def read_header(store: Store) -> Header | None:
    """None for a store in clear. Raises CorruptStore."""
    lines = store.read(MARK)
    if not lines:
        return None
    try:
        began = j.decode(MARK, lines[0], 1)
        assert isinstance(began, j.RunBegan)
        return msgspec.json.decode(began.attribution.tags["encryption"], type=Header)
    except (AssertionError, KeyError, msgspec.MsgspecError) as problem:
        raise _damaged_header(store.url, problem) from problem


def _damaged_header(url: str, problem: object) -> CorruptStore:
    return CorruptStore(
        f"{url}: what says how this store is encrypted is damaged ({problem}). Nothing was changed.",
        hint="Restore the store from a copy.",
    )


def begin_header(store: Store, encryption: Encryption, migrate: bool) -> Header:
    """Write down that a store is encrypted from now on. Raises ConfigError for wrong keys, if it was already."""
    return _update(store, encryption, partial(_first, encryption, migrate))


def planned_header(encryption: Encryption) -> Header:
    """That of a store whose encryption has not begun: without a key, and written down nowhere."""
    header = replace(_first(encryption, True, None), keys={})
    return header.signed(Seal(header.store, encryption))


def add_key(store: Store, encryption: Encryption) -> Header:
    """The key for writing becomes one of the store's."""
    return _update(store, encryption, partial(_with_key, encryption))


def migrate_again(store: Store, encryption: Encryption) -> Header:
    """What stands in clear is data once more: a process that has been running since before the store was encrypted
    wrote it."""
    return _update(store, encryption, partial(_migrating, encryption))


def retire_keys(store: Store, encryption: Encryption) -> Header:
    """Nothing stands under other keys than the one for writing any more, and nothing in clear."""
    return _update(store, encryption, partial(_only, encryption))


def _first(encryption: Encryption, migrate: bool, old: Header | None) -> Header:
    if old is not None:  # somebody else was faster
        return old
    seal = Seal(SYSTEM.new_id(), encryption)
    keys = {seal.write: seal.check(seal.write)}
    return Header(seal.store, keys, hide_names=encryption.hide_names, migrating=migrate).signed(seal)


def _with_key(encryption: Encryption, old: Header | None) -> Header:
    assert old is not None
    seal = Seal(old.store, encryption)
    keys = {**old.keys, seal.write: seal.check(seal.write)}
    return replace(old, keys=keys, retired=tuple(key for key in old.retired if key != seal.write)).signed(seal)


def _migrating(encryption: Encryption, old: Header | None) -> Header:
    header = _with_key(encryption, old)
    return replace(header, migrating=True).signed(Seal(header.store, encryption))


def _only(encryption: Encryption, old: Header | None) -> Header:
    header = _with_key(encryption, old)
    retired = tuple(sorted(header.keys.keys() - {encryption.write}))
    return replace(header, retired=retired, migrating=False).signed(Seal(header.store, encryption))


def _update(store: Store, encryption: Encryption, change: Change) -> Header:
    """Write down how the store is encrypted, unless somebody else has done it. Raises ConfigError for wrong keys."""
    end = SYSTEM.monotonic() + _PATIENCE
    while True:
        try:
            lease = store.claim(MARK)
            break
        except LeaseHeld:
            if SYSTEM.monotonic() >= end:
                raise
            SYSTEM.sleep(0.05)
    try:
        old = read_header(store)
        if old is not None:
            old.check(Seal(old.store, encryption), store.url)
        header = change(old)
        if header != old:
            _write(store, lease, header)
        return header
    finally:
        store.release(lease)


def _write(store: Store, lease: Lease, header: Header) -> None:
    there = store.read(MARK)
    state, now = State(MARK), j.decode(MARK, there[0], 1).at if there else SYSTEM.now()  # rewriting leaves dates alone
    pid, host = process_identity()
    tags = {"encryption": msgspec.json.encode(header).decode()}
    began = j.RunBegan(run_id=header.store, flow=MARK.goal, epoch=lease.epoch, pid=pid, host=host)
    began.attribution = Attribution(tags=tags)
    entries: Sequence[j.Entry] = (began, j.RunCompleted(output=Payload(value=msgspec.Raw(b"null"))))
    records = []
    for entry in entries:
        entry.seq, entry.at = state.seq + 1, now
        state.apply(entry)
        records.append(j.encode(MARK, entry))
    if not there:
        for error in store.append([Append(lease, 0, tuple(records), state.meta())]):
            if error is not None:
                raise error
        return
    rewrite = store.capabilities.rewrite
    if rewrite is None:
        raise ConfigError(f"{store.url} is of a kind whose keys cannot be changed.")
    if not rewrite(Rewrite(lease, tuple(records), (), state.meta(), {})):
        raise CorruptStore(f"{store.url}: what says how this store is encrypted is damaged. Nothing was changed.")
