"""Coverage-guided fuzzing of everything that reads bytes: ``make fuzz``, or ``python tests/fuzz/fuzz.py TARGET``.

Each target gives a value or one of Perdure's errors, for any bytes. Options are libFuzzer's: ``-max_total_time=60``, a
folder for what was found interesting, a file that is to be tried again. The other tests of this kind are made from
numbers and run everywhere; this one needs atheris, finds its own way, and has no end.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from perdure import codec, inbox
from perdure.codec import Payload
from perdure.errors import Bug, ConfigError, PerdureError
from perdure.fold import fold
from perdure.framing import frame, scan
from perdure.limits import MAX_BLOB
from perdure.model import RunKey, key_named
from perdure.runners.messages import reply_of
from perdure.runners.toml import load_pipeline
from perdure.runtime.forms import misfit, told
from perdure.runtime.outputs import readable
from perdure.stores.compression import decompressed
from perdure.stores.handle import sound_blob
from perdure.stores.postgres_link import parse
from perdure.stores.redis_keys import FIELDS, Row, key_of
from perdure.stores.redis_url import target

KEY = RunKey("paper", 1)
BEGAN = b'{"kind":"run_began/1","seq":1,"run_id":"r","flow":"f","epoch":1,"pid":1,"host":"h"}'
ENDLESS = {"pattern", "patternProperties", "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf"}
"""parts of a schema that may take for ever, as docs/limits.md says"""
FOLDER = Path(tempfile.mkdtemp(prefix="perdure-fuzz-"))


def journal_file(data: bytes) -> None:
    """A file of records, as it stands on the disk."""
    fold(KEY, scan(KEY, data).lines)


def entry(data: bytes) -> None:
    """Entries behind a sound first one, one a line, framed as if they were ours."""
    lines = [BEGAN, *data.split(b"\n")]
    state = fold(KEY, [frame(KEY, line) for line in lines])
    msgspec.json.decode(msgspec.json.encode(state.meta()))


def post(data: bytes) -> None:
    """A post of an inbox."""
    state = fold(KEY, [frame(KEY, BEGAN)])
    inbox.check(state, inbox.decode(state, frame(KEY, data), 1))
    list(inbox.moved(state, [frame(KEY, data)]))


def value(data: bytes) -> None:
    """A stored value, and as people read it."""
    payload = Payload(1, msgspec.Raw(data))
    with contextlib.suppress(PerdureError):
        codec.dumps(codec.loads(payload))
    readable(payload, {})


def blob(data: bytes) -> None:
    """A large value as it stands in a store."""
    plain = decompressed(data, MAX_BLOB)
    sound_blob(hashlib.sha256(plain or data).hexdigest(), data, "here")
    sound_blob("0" * 64, data, "here")


def toml(data: bytes) -> None:
    path = FOLDER / "p.toml"
    path.write_bytes(data)
    load_pipeline(path, _load)


def url(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for scheme, read in (("postgresql://", parse), ("redis://", target)):
        with contextlib.suppress(PerdureError):
            read(scheme + text)


def name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    key_named(text)
    key_of(data)
    values = data.split(b"\0")[: len(FIELDS)]
    Row.of(KEY, [*values, *[None] * (len(FIELDS) - len(values))], "redis:")
    RunKey.of(text)


def schema(data: bytes) -> None:
    """The schema of a question, which is stored, and an answer."""
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
    except (ValueError, RecursionError):
        return
    told(found)
    if not {"pattern", "patternProperties", "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf"} & set(
        str(found).split("'")
    ):
        misfit({"a": [1, "x"]}, found)


def reply(data: bytes) -> None:
    """An assistant message of a model."""
    try:
        found = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        reply_of(found)


def _load(text: str, _folder: Path) -> Any:
    if text != "a:b":
        raise ConfigError(f"There is no {text[:20]!r}.")
    return lambda paper="", missing=None: paper


TARGETS: dict[str, Callable[[bytes], None]] = {
    run.__name__: run for run in (journal_file, entry, post, value, blob, toml, url, name, schema, reply)
}
SEEDS: dict[str, list[bytes]] = {
    "journal_file": [frame(KEY, BEGAN), b" " + frame(KEY, BEGAN), bytes(64)],
    "entry": [
        b'{"kind":"step_started/1","seq":2,"step":1,"name":"a","fingerprint":"x"}',
        b'{"kind":"step_pending/1","seq":2,"step":1,"name":"a","asked":{"prompt":"Go?","schema":{"type":"boolean"}}}',
    ],
    "post": [b'{"kind":"signal_received/1","name":"x","value":1}', b'{"kind":"stop_requested/1","cancel":true}'],
    "value": [
        b'{"~":"tuple","v":[1,{"~":"int","hex":"0x1"}]}',
        b'{"~":"datetime","v":"2026-01-01T00:00:00"}',
        b"[1,null]",
    ],
    "blob": [b"perdure zlib blob 1\nx\x01KL\x04\x82$(\x01\x00*\x1e\x03\xbd", b"any"],
    "toml": [b'name = "x"\n[[stage]]\nrun = "a:b"\n', b'[[stage]]\ncrew = "c"\nexperts = [{ run = "a:b" }]\n'],
    "url": [b"u:p@h:1/x?schema=a&lease=5", b"h/0?prefix=a"],
    "name": [b"paper#0", b"1\x00owner\x001\x00host\x001.5\x003\x000\x00{}"],
    "schema": [b'{"type":"object","properties":{"a":{"type":"array"}}}', b'{"enum":[1,2]}'],
    "reply": [b'{"content":"x","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}}]}'],
}


def attempt(run: Callable[[bytes], None], data: bytes) -> None:
    """Lets nothing out that is a fault."""
    try:
        run(data)
    except Bug:
        raise
    except PerdureError:
        pass


def main() -> None:
    import atheris  # type: ignore[import-not-found]

    chosen, options = sys.argv[1] if len(sys.argv) > 1 else "entry", sys.argv[2:]
    seeds = FOLDER / "seeds"
    seeds.mkdir(exist_ok=True)
    for number, seed in enumerate(SEEDS[chosen]):
        (seeds / str(number)).write_bytes(seed)
    atheris.instrument_all()
    given = [option for option in options if not option.startswith("-")]
    atheris.Setup(
        [sys.argv[0], *options, *([] if given else [str(seeds)])], lambda data: attempt(TARGETS[chosen], data)
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
