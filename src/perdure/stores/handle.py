"""What all stores have in common: when a handle may be used, and how they say the same things."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from perdure.clock import SYSTEM, Clock
from perdure.errors import Bug, ConfigError, CorruptStore, LeaseHeld, LeaseLost, RunNotFound, StoreError
from perdure.inbox import when
from perdure.limits import MAX_BLOB, MAX_RECORD, MAX_ROW, MAX_VALUE, decoded
from perdure.model import Lease, RunKey, RunMeta
from perdure.states import FAILED
from perdure.stores import disk
from perdure.stores.base import Append, Store
from perdure.stores.compression import decompressed

SEALED_BLOB: Final = b"perdure sealed blob 1\n"
"""with this begins a blob that is encrypted"""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Handle:
    """An open store. It belongs to the process that opened it, and is of no use after the store failed once."""

    def __init__(self, url: str, clock: Clock = SYSTEM) -> None:
        self.url = url
        self._clock = clock
        self._pid = os.getpid()
        self._closed = False
        self._broken: StoreError | None = None
        self._warnings: list[str] = []

    def heartbeat(self) -> float:
        """See Store.heartbeat. Here the operating system tells who lives."""
        self._check()
        return self._clock.now()

    def warnings(self) -> list[str]:
        """See Store.warnings."""
        found, self._warnings = self._warnings, []
        return found

    def _check(self) -> None:
        """Raise unless this handle may be used: at the beginning of every verb."""
        if self._foreign:
            raise ConfigError(
                f"The store {self.url} was opened by process {self._pid}, and this is its forked child {os.getpid()}, "
                "which must not use it.",
                hint="Open the store in the child, or start children with 'spawn'.",
            )
        if self._broken is not None:
            raise StoreError(
                f"The store {self.url} was closed after it failed: {self._broken.args[0]}",
                hint="Open it again; what was acknowledged is kept.",
            ) from self._broken
        if self._closed:
            raise ConfigError(f"The store {self.url} is closed.", hint="Open it again.")

    @property
    def _foreign(self) -> bool:
        return os.getpid() != self._pid


def nothing_there(url: str) -> ConfigError:
    return ConfigError(f"There is no store at {url}.", hint="Check the path, or run something with it first.")


def unusable(error: BaseException, *refusals: type[Exception]) -> BaseException:
    """What to raise when opening failed: a place that refuses us is for the user to change, all else is as it was.

    ``refusals`` are the driver's own errors that mean this, besides those of the system.
    """
    if isinstance(error, StoreError) and isinstance(error.__cause__, (OSError, *refusals)) and not disk.full(error):
        return ConfigError(error.args[0], hint="Choose another place, or change its permissions.")
    return error


def held(lease: Lease) -> LeaseHeld:
    since = when(lease.since)
    error = LeaseHeld(
        f"Run {lease.key} is being executed by {lease} since {since}. Nothing was changed.",
        hint="Wait for it to end, or stop that process; the run is free as soon as it is gone.",
    )
    error.since = lease.since
    return error


def lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"Run {lease.key} is no longer held under lease {lease.epoch}: it was released, deleted or taken over. "
        "Nothing was written.",
        hint="Look at the run: another process may be executing it.",
    )


def too_late(where: str) -> LeaseLost:
    return LeaseLost(
        f"{where}: this process could not say in time that it lives, and its leases have ended. Nothing that it does "
        "under them is kept.",
        hint="Its runs go on wherever they are taken up.",
    )


def ended_by_others() -> ConfigError:
    return ConfigError(
        "A transactional step ended its transaction itself: what it did is not committed together with its record.",
        hint="Leave COMMIT and ROLLBACK to Perdure, and raise an error to have everything rolled back.",
    )


def not_found(key: RunKey, where: str) -> RunNotFound:
    return RunNotFound(f"There is no run {key} in {where}.", hint="List what there is: perdure ls")


def wrong_seq(item: Append, last: int) -> Bug:
    return Bug(f"Run {item.lease.key} has {last} records and was to be continued after record {item.seq}.")


_META = msgspec.json.Decoder(RunMeta)


def shown_row(key: RunKey, text: bytes | str, where: str, warnings: list[str]) -> RunMeta:
    """A run's row in listings, from how it is stored. One that cannot be read, or is another run's, is told as a
    warning and in its own place, so that the others show. Its journal may be sound."""
    try:
        meta = decoded(text, _META.decode, MAX_ROW)
        if meta.key == key:
            return meta
        problem = f"it says that it is of run {str(meta.key)[:80]}"
    except ValueError as error:
        problem = str(error)
    damage = damaged_row(key, where, problem)
    warnings.append(damage.reason)
    return damage


def damaged_row(key: RunKey, where: str, problem: str) -> RunMeta:
    """What a listing shows instead of a row that cannot be read."""
    reason = f"{where}: the row of run {key} is damaged ({problem}). Restore it from a copy."
    return RunMeta(goal=key.goal, episode=key.episode, status=FAILED, reason=reason)


def too_large(where: str, key: RunKey, what: str) -> CorruptStore:
    return CorruptStore(
        f"{where}: run {key}: {what} has more than {MAX_RECORD:,} bytes, or is none. Nothing was changed.",
        hint="Restore the store from a copy.",
    )


def looked_for(meta: RunMeta) -> tuple[float | str, ...]:
    """What of a row runs are looked for by, and hardly ever changes: written only if it has."""
    return meta.begun, meta.flow, meta.queue, meta.priority, meta.posts, meta.wake


def missing_records(where: str, key: RunKey, found: int, expected: int) -> CorruptStore:
    return CorruptStore(
        f"{where}: run {key} should have record {expected} and has {found} instead. Nothing was changed.",
        hint="Restore the store from a copy.",
    )


def checked_digest(digest: str) -> str:
    """A name for a blob that is to be stored. Raises Bug for anything else: digests become file names."""
    if not _DIGEST.fullmatch(digest):
        raise Bug(f"{digest[:80]!r} is not a sha256.")
    return digest


def stored_digest(digest: str, where: str) -> str:
    """The same for one that stored data names. Raises CorruptStore."""
    if not _DIGEST.fullmatch(digest):
        raise CorruptStore(f"{where}: {digest[:80]!r} is named as a blob, and is no sha256. Nothing was changed.")
    return digest


def blobs_of(store: Store, digests: Iterable[str]) -> dict[str, bytes]:
    """The blobs that one value needs. Raises CorruptStore, also when they are more than a value may have."""
    found: dict[str, bytes] = {}
    left = MAX_VALUE
    for digest in dict.fromkeys(digests):
        found[digest] = store.blob(digest)
        left -= len(found[digest])
        if left < 0:
            raise CorruptStore(
                f"{store.url}: a stored value names blobs of more than {MAX_VALUE:,} bytes, and no value has so many. "
                "Nothing was changed."
            )
    return found


def sound_blob(digest: str, content: bytes | None, where: str) -> bytes:
    """The plain content of a blob, given ``content`` as it stands in a store. One that is encrypted ends in a checksum
    of its own, since its name is none, and stays as it is. Raises CorruptStore."""
    if isinstance(content, bytes) and len(content) <= MAX_BLOB:
        if content.startswith(SEALED_BLOB) and hashlib.sha256(content[:-32]).digest() == content[-32:]:
            return content
        for plain in (decompressed(content, MAX_BLOB), content):
            if plain is not None and hashlib.sha256(plain).hexdigest() == digest:
                return plain
    wrong = "is missing" if content is None else "does not have the content it was stored with"
    raise CorruptStore(
        f"{where}: blob {digest[:80]} {wrong}. Nothing was changed.",
        hint="Restore it from a copy; steps that do not use it are intact.",
    )
