"""What a run has recorded: as much of its journal as whoever goes on needs.

Where the store keeps a snapshot of the run, only what was recorded since is folded. Results from before are read when
they are asked for, a piece of the journal at a time, since whoever asks for one mostly asks for the next ones too.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Final

from perdure import journal as j
from perdure import snapshot
from perdure.errors import ConfigError, CorruptStore, PerdureError
from perdure.fold import State, fold
from perdure.framing import ENTRY_AT
from perdure.life import Life
from perdure.model import Lease, RunKey
from perdure.runtime.threads import in_thread
from perdure.runtime.writer import Writer
from perdure.stores.base import Store

_AHEAD: Final = 256
"""entries that are read at a time"""
_LARGE: Final = 2**18
"""bytes of a snapshot that take longer to compress than anybody should be held up"""
_RESULT: Final = b'{"kind":"step_completed/'
log = logging.getLogger("perdure")


def present(store: Store, key: RunKey, length: int | None = None) -> State:
    """The state of a run, by way of its snapshot if there is one. ``length``: how many entries it had, if that is
    known. Raises CorruptStore, NewerFormat, StoreError."""
    kept = store.capabilities.snapshots if length is None or snapshot.is_long(length) else None
    found = kept.load(key) if kept is not None else None
    if found is None:
        return fold(key, store.read(key))
    seq, content = found
    lines = store.read(key, seq - 1) if seq > 0 else []
    state = snapshot.restore(key, content, lines[0]) if lines else None
    if state is None:
        return fold(key, store.read(key))
    state.snapshot = seq
    for line in lines[1:]:
        state.take(line)
    return state


def read(store: Store, life: Life, seq: int) -> j.Entry:
    """An entry of the journal of the run that ``life`` executes. The results that follow are kept for it in
    ``read_ahead``. Raises CorruptStore, StoreError."""
    key = life.state.key
    lines = store.read(key, seq - 1, _AHEAD) if seq > 0 else []
    if not lines:
        raise CorruptStore(
            f"run {key}: its snapshot speaks of entry {seq}, which is not there. Nothing was changed.",
            hint="perdure check tells what is damaged. Restore the store from a copy.",
        )
    first = j.decode(key, lines[0], seq)
    results = [(n, line) for n, line in enumerate(lines, seq) if line.startswith(_RESULT, ENTRY_AT)]
    entries = [j.decode(key, line, n) for n, line in results]
    life.read_ahead = {entry.seq: entry.output for entry in entries if isinstance(entry, j.StepCompleted)}
    return first


def keep(writer: Writer, lease: Lease, seq: int, body: bytes, record: bytes) -> None:
    """Have a snapshot saved, if that is possible: nothing depends on it, and nobody waits for it."""

    def seal() -> None:
        content = snapshot.sealed(body, record)
        with suppress(ConfigError):  # the manager was closed
            writer.call(partial(_save, writer.store, lease, seq, content))

    in_thread(seal, "snapshot") if len(body) > _LARGE else seal()


def _save(store: Store, lease: Lease, seq: int, content: bytes) -> None:
    kept = store.capabilities.snapshots
    if kept is not None and content:
        try:
            kept.save(lease, seq, content)
        except PerdureError as problem:
            log.info("run %s: no snapshot is kept: %s", lease.key, problem)
