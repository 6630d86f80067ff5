"""Whatever is stored is data: nothing is executed, imported or written because of it, in any store (rel:S1 S2 S3)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hostile_journals import as_json

import perdure
from perdure.cli import main
from perdure.codec import Payload, dumps, loads
from perdure.errors import CodecError, PerdureError
from perdure.fold import fold
from perdure.framing import frame
from perdure.model import RunKey
from perdure.runners.transcript import transcript
from perdure.stores import open_store
from perdure.stores.base import Append, Store
from perdure.stores.memory import MemoryBackend, MemoryStore

SOURCE = Path(perdure.__file__).parent
CANARY = "canary-of-perdure"
COMMAND = f"touch {CANARY}"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (COMMAND,)


PICKLES = [pickle.dumps(Bomb(), protocol) for protocol in range(5)]
BYTES: dict[str, bytes] = {
    **{f"pickle {n}": data for n, data in enumerate(PICKLES)},
    "msgpack ext": b"\xc7\x20\x00" + PICKLES[2][:32],
    "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}" + PICKLES[2],
    "marshal": b"\xe3" + bytes(40),
    "yaml": b"!!python/object/apply:os.system ['" + COMMAND.encode() + b"']\n",
    "zip": b"PK\x03\x04" + bytes(40),
    "gzip": b"\x1f\x8b\x08" + bytes(40),
}
AS_TEXT = {f"{name} in base64": base64.b64encode(data).decode() for name, data in BYTES.items()}
FOREIGN: dict[str, Any] = {
    **AS_TEXT,
    "yaml text": BYTES["yaml"].decode(),
    "langchain constructor": {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": COMMAND}},
    "langchain secret": {"lc": 1, "type": "secret", "id": ["PATH"]},
    "langchain two": {"lc": 2, "type": "constructor", "id": ["builtins", "eval"], "args": [COMMAND]},
    "jsonpickle": {"py/object": "os.system", "py/reduce": [{"py/function": "os.system"}, {"py/tuple": [COMMAND]}]},
    "jsonpickle repr": {"py/repr": f"os/os.system('{COMMAND}')"},
    "class": {"__class__": "os.system", "__init__": [COMMAND], "__reduce__": ["os.system", [COMMAND]]},
    "module": {"__module__": "os", "__type__": "system", "__value__": COMMAND},
    "dotnet": {"$type": "System.Diagnostics.Process", "$ref": "#", "$value": COMMAND},
    "prototype": {"__proto__": {"x": 1}, "constructor": {"prototype": {}}, "__dict__": {"x": 1}},
    "template": "{{ ''.__class__.__mro__ }} ${jndi:ldap://127.0.0.1:1/x} {0.__globals__}",
}
"""what other libraries would make objects of; to us it is text, lists and dicts"""
OURS: dict[str, Any] = {
    name: {"~": tag, "type": what, **parts}
    for name, tag, what, parts in (
        ("data of os", "data", "os:system", {"fields": {"command": COMMAND}}),
        ("custom of os", "custom", "os:system", {"v": COMMAND}),
        ("error of eval", "error", "builtins:eval", {"args": [COMMAND], "traceback": ""}),
        ("enum of os", "enum", "os:environ", {"name": "PATH"}),
        ("model of antigravity", "model", "antigravity:x", {"fields": {}, "set": []}),
        ("named of this", "named", "this:s", {"fields": {}}),
        ("struct of pickle", "struct", "pickle:Unpickler", {"fields": {}}),
        ("path of a type", "data", "../../etc/passwd", {"fields": {}}),
        ("nothing", "data", ":", {"fields": {}}),
    )
} | {
    "array of objects": {"~": "ndarray", "dtype": "|O", "shape": [1], "data": {"~": "bytes", "b64": "AAAAAAAAAAA="}},
    "field of objects": {"~": "numpy", "dtype": [["a", ["O"]]], "data": {"~": "bytes", "b64": ""}},
    "zone of a path": {"~": "zone", "key": "../../../etc/passwd"},
    "blob of a path": {"~": "blob", "as": "str", "sha256": "../../../etc/passwd", "size": 1},
    "blob as exec": {"~": "blob", "as": "exec", "sha256": "x", "size": 1},
    "a tag of lc": {"~": "lc", "id": ["os", "system"]},
    "state of an error": {
        "~": "error", "type": "builtins:ValueError", "args": [], "traceback": "", "state": {"__class__": "os.system"},
    },
}  # fmt: skip
"""our own tags, with names of what this program never registered, and parts that it never writes"""

# -- what the interpreter is asked to do -------------------------------------------------------------------------------

_FORBIDDEN = re.compile(
    r"exec|compile|import|os\.(system|exec|posix_spawn|fork|spawn|startfile)|subprocess\.|pickle\.|ctypes\."
)
_heard: list[tuple[str, str]] = []
_listening = [False]


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if not _listening[0]:
        return
    if _FORBIDDEN.match(event):
        _heard.append((event, repr(args)[:200]))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        _heard.append((event, repr(args)[:200]))


sys.addaudithook(_hear)


@pytest.fixture
def audit() -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """From the call on, what is executed, imported, started or opened for writing is heard; the call returns it."""

    def begin() -> list[tuple[str, str]]:
        _heard.clear()
        _listening[0] = True
        return _heard

    yield begin
    _listening[0] = False


# -- five stores -------------------------------------------------------------------------------------------------------


STORES = ["memory", "file", "sqlite", "postgresql", "redis"]


def place_of(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> str:
    """The URL of a store of that kind, which nobody has used yet."""
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    if kind == "postgresql":
        return f"{request.getfixturevalue('postgres')(16)}?schema=h_{name}"
    if kind == "redis":
        return f"{request.getfixturevalue('valkey')()}?prefix=h_{name}"
    return "memory:" if kind == "memory" else f"{kind}:{tmp_path}/store"


@perdure.step
def load(value: Any) -> Any:
    return value


@perdure.flow
def flow(value: Any = None) -> Any:
    return [load(value), perdure.ask("Go?", answer=bool)]


def plant(store: Store, key: RunKey, value: Any, blob: bytes) -> None:
    """A run that waits, with a hostile value wherever it has one, and posts that are no posts."""
    digest = hashlib.sha256(blob).hexdigest()
    part = {"~": "blob", "as": "str", "sha256": digest, "size": len(blob)}
    payloads = [{"value": value}, {"refs": [digest], "whole": True}, {"value": part, "refs": [digest]}]
    asked = {"prompt": "Go?", "schema": {"type": "boolean"}, "context": payloads[0]}
    text = value if isinstance(value, str) else COMMAND
    entries: list[dict[str, Any]] = [
        {
            "kind": "run_began/1",
            "run_id": "r",
            "flow": "flow",
            "epoch": 1,
            "pid": 1,
            "host": "h",
            "inputs": payloads[0],
        },
        {"kind": "step_pending/1", "step": 1, "name": "ask", "fingerprint": "x", "asked": asked},
    ]
    for number, payload in enumerate(payloads, 2):
        entries += [
            {"kind": "step_started/1", "step": number, "name": text[:100] or "x", "fingerprint": str(number)},
            {"kind": "step_progress/1", "step": number, "value": payload},
            {"kind": "step_completed/1", "step": number, "output": payload},
            {
                "kind": "messages_added/1",
                "scope": "",
                "place": number - 2,
                "messages": [{"role": "assistant", "step": number}],
            },
        ]
    entries.append({"kind": "run_suspended/1", "reason": text, "input": True})
    lines = [frame(key, as_json({**entry, "seq": seq})) for seq, entry in enumerate(entries, 1)]
    meta = fold(key, lines).meta()
    lease = store.claim(key)
    assert store.append([Append(lease, 0, tuple(lines), meta, {digest: blob})]) == [None]
    store.release(lease)
    store.post(key, 1, frame(key, as_json({"kind": "signal_received/1", "name": "x", "value": value})))
    store.post(key, 2, blob.replace(b"\n", b"") + b"\n")


def opener(url: str) -> Callable[[], Store]:
    """Another handle each time, on one store."""
    backend = MemoryBackend()
    return (lambda: MemoryStore(backend)) if url == "memory:" else lambda: open_store(url)


def use(store: Store, again: Callable[[], Store], url: str, key: RunKey) -> None:
    """List, show, fold, answer, resume."""
    client = perdure.Client(store)
    name = str(key)
    calls: list[Callable[[], Any]] = [
        client.runs, client.waiting, client.questions, lambda: client.entries(name), lambda: transcript(client, name),
    ]  # fmt: skip
    state = fold(key, store.read(key))
    for step in state.steps.values():
        for payload in filter(None, (step.output, step.progress, state.inputs)):
            calls += [lambda p=payload: client.value(p), lambda p=payload: client.readable(p)]
    calls += [
        lambda: client.question(name),
        lambda: client.answer(name, 1, True, by="ann"),
        lambda: perdure.run(flow, goal=key.goal, store=again(), adopt_input=True, rerun="load"),
        lambda: client.cancel(name, by="ann"),
    ]
    for call in calls:
        with suppress(PerdureError):
            call()
    for words in (
        ("show R", "show R --json", "tail R --no-follow", "output R 2", "files R", "ls") if ":/" in url else ()
    ):
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        try:
            main([*words.replace("R", name).split(), "--store", url])
        finally:
            sys.stdout, sys.stderr = before


@pytest.mark.parametrize(
    ("kind", "one_in"),
    [
        *(("memory", 1), ("sqlite", 1), ("file", 9), ("postgresql", 9), ("redis", 9)),
        *(pytest.param(kind, 1, marks=pytest.mark.long) for kind in ("file", "postgresql", "redis")),
    ],
)
def test_nothing_stored_is_executed_imported_or_written(
    kind: str,
    one_in: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    audit: Callable[[], list[tuple[str, str]]],
) -> None:  # rel:S1 rel:S2
    monkeypatch.chdir(tmp_path)
    url = place_of(request, kind, tmp_path)
    logging.disable(logging.CRITICAL)
    try:
        again = opener(url)
        store = again()
        blobs = list(BYTES.values())
        corpus = [*FOREIGN.items(), *OURS.items()][::one_in]
        plant(store, RunKey("warm up"), "text", b"blob")
        use(store, again, url, RunKey("warm up"))  # what is imported at its first use does not count
        for value in [*OURS.values()] * 4:  # of an unknown type, the program's own annotations are looked at
            with suppress(CodecError):
                loads(Payload(1, msgspec.Raw(json.dumps(value).encode())))
        for place, (_, value) in enumerate(corpus):
            plant(store, RunKey(f"run {place}"), value, blobs[place % len(blobs)])
        heard = audit()
        for place, (name, _) in enumerate(corpus):
            use(store, again, url, RunKey(f"run {place}"))
            assert not heard or all(event == "open" and str(tmp_path) in said for event, said in heard), (name, heard)
            heard.clear()
    finally:
        _listening[0] = False
        logging.disable(logging.NOTSET)
        store.close()
    assert not list(tmp_path.rglob(CANARY)) and not Path(CANARY).exists()


@pytest.mark.parametrize("name", OURS)
def test_our_own_tags_with_foreign_names_are_refused(name: str) -> None:  # rel:S1 rel:S2
    with pytest.raises(CodecError):
        loads(Payload(1, msgspec.Raw(json.dumps(OURS[name]).encode())))


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_would_make_objects_of_is_data(name: str) -> None:  # rel:S3
    value = FOREIGN[name]
    assert loads(Payload(1, msgspec.Raw(json.dumps(value).encode()))) == value
    assert loads(*dumps({"x": [value]})) == {"x": [value]}


@pytest.mark.parametrize("value", [{"~": 1}, {"~": "data", "type": "os:system"}, {"~": {"~": "blob"}}, *OURS.values()])
def test_a_dict_of_the_users_that_looks_like_our_tags_stays_a_dict(value: Any) -> None:  # rel:S3
    assert loads(*dumps(value)) == value
    assert type(loads(*dumps([value]))[0]) is dict


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_other_formats_are_bytes_as_values_and_errors_as_records(name: str) -> None:  # rel:S1 rel:S2
    data = BYTES[name]
    assert loads(*dumps(data)) == data
    with pytest.raises(CodecError):
        loads(Payload(1, msgspec.Raw(data)))
    with pytest.raises(PerdureError):
        fold(RunKey("paper"), [data, frame(RunKey("paper"), data)])


def test_the_audit_hook_hears_what_it_is_for(audit: Callable[[], list[tuple[str, str]]], tmp_path: Path) -> None:
    heard = audit()
    exec("1")
    os.system("true")
    pickle.loads(PICKLES[1].replace(CANARY.encode(), b"/dev/null/a/b/cde"))
    open(tmp_path / "x", "w").close()
    _listening[0] = False
    assert {"exec", "os.system", "pickle.find_class", "open"} <= {event for event, _ in heard}


def test_no_code_of_ours_can_execute_what_is_stored() -> None:  # rel:S1
    """What could is used in two places: the command line imports what its user typed, and says so."""
    words = "|".join(
        (
            r"\b(pickle|marshal|shelve|dill|cloudpickle|jsonpickle|yaml)\.\w|\bimport (pickle|marshal|shelve|yaml)\b",
            r"\beval\(|(?<![\w.])exec\(|(?<![\w.])compile\(|import_module|__import__|exec_module|__reduce",
            r"\bos\.(system|popen|exec|spawn)|\bsubprocess\b|\bctypes\b|getattr\(sys\.modules",
        )
    )
    allowed = {"cli/target.py", "cli/demo.py"}
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if name in allowed or name.startswith("testing/"):
            continue
        lines = path.read_text().splitlines()
        # Secret refuses it; and what is only compiled is the program itself, to see whether that is what runs
        fine = ("-> NoReturn", 'self.whole, self.path, "exec"')
        found = [line for line in lines if re.search(words, line) and not any(said in line for said in fine)]
        assert not found, (name, found)
    assert "import_module" in (SOURCE / "cli" / "target.py").read_text()
