"""Whatever stands in a store, loading it gives a value or a CodecError, within limits (rel:S1 S2 B1 B3 B4 R10)."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import codec, codec_types, codec_walk
from perdure.codec import Payload, dumps, loads
from perdure.errors import CodecError


def _raw(text: str | bytes, codec_version: int = 1) -> Payload:
    return Payload(codec_version, msgspec.Raw(text if isinstance(text, bytes) else text.encode()))


def trip(value: Any) -> Any:
    return loads(*dumps(value))


SOUND = [
    {1: (2, {"~": 3}), "a": [datetime(2026, 1, 1, tzinfo=UTC), Decimal("1.5"), {1, 2}]},
    [np.arange(4), 2**70, float("nan"), "\ud800", b"abc", ValueError("x", 1)],
    ["x" * 9000, {"k": None, "é": True}],
]


def test_cycles_and_deep_values_are_refused() -> None:  # rel:R10 B4
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = 2**70
    for _ in range(codec.MAX_DEPTH):
        deep = (deep,)
    assert trip(deep) == deep
    for value in (cycle, [deep]):
        with pytest.raises(CodecError, match="more than 100 containers deep"):
            dumps(value)
    with pytest.raises(CodecError, match="deep"):
        loads(_raw("[" * 102 + "]" * 102))
    with pytest.raises(CodecError):
        loads(_raw("[" * 100_000 + "]" * 100_000))


def test_sizes_are_limited_on_save_and_on_load(monkeypatch: pytest.MonkeyPatch) -> None:  # rel:B1 B4
    big, many = dumps(["x" * 9000] * 3), dumps(list(range(3000)))
    bomb: list[Any] = []
    for _ in range(90):
        bomb = [bomb] * 10
    monkeypatch.setattr(codec_walk, "MAX_ITEMS", 900)
    monkeypatch.setattr(codec_walk, "MAX_BYTES", 20_000)
    for value in (["x" * 9000] * 3, "x" * 20_001, list(range(1000)), bomb):
        with pytest.raises(CodecError, match="beyond"):
            dumps(value)
    for payload, blobs in (big, many):
        with pytest.raises(CodecError, match="beyond"):
            loads(payload, blobs)


BAD = [
    "",
    "{",
    "nul",
    '{"~":1}',
    '{"~":"lc"}',
    '{"~":null}',
    '{"~":"tuple"}',
    '{"~":"tuple","v":1}',
    '{"~":"tuple","v":[],"w":1}',
    '{"~":"set","v":[[]]}',
    '{"~":"set","v":[1,1]}',
    '{"~":"dict","v":[[1]]}',
    '{"~":"dict","v":[[1,2],[1,3]]}',
    '{"~":"dict","v":[1]}',
    '{"~":"int","hex":"zz"}',
    '{"~":"int","hex":"0x1_0"}',
    '{"~":"float","v":"1"}',
    '{"~":"bytes","b64":"&&"}',
    '{"~":"bytes","b64":"é"}',
    '{"~":"str","b64":"/w=="}',
    '{"~":"blob","as":"str","sha256":"x","size":1}',
    '{"~":"blob","as":"exec","sha256":"x","size":1}',
    '{"~":"datetime","v":"now"}',
    '{"~":"datetime","v":"2026-01-01","zone":"../../etc/passwd"}',
    '{"~":"zone","key":"No/Such"}',
    '{"~":"zone","key":"Europe"}',
    '{"~":"datetime","v":"2026-01-01","fold":7}',
    '{"~":"datetime","v":"2026-01-01","name":"x"}',
    '{"~":"timedelta","v":[1]}',
    '{"~":"timedelta","v":[1e99,0,0]}',
    '{"~":"fraction","v":[1,0]}',
    '{"~":"fraction","v":["1e99999999",1]}',
    '{"~":"decimal","v":"x"}',
    '{"~":"uuid","v":"x"}',
    '{"~":"range","v":[0,1,0]}',
    '{"~":"deque","v":[1,2],"maxlen":1}',
    '{"~":"complex","v":["a",1]}',
    '{"~":"windows_path","v":"x"}',
    '{"~":"posix_path","v":1}',
    '{"~":"timezone","offset":[9,0,0]}',
    '{"~":"ndarray","dtype":"O","shape":[1],"data":{"~":"bytes","b64":""}}',
    '{"~":"ndarray","dtype":"<U0","shape":[1000000000000],"data":{"~":"bytes","b64":""}}',
    '{"~":"ndarray","dtype":"<f8","shape":[-1],"data":{"~":"bytes","b64":""}}',
    '{"~":"numpy","dtype":[["a",["O"]]],"data":{"~":"bytes","b64":""}}',
    '{"~":"data","type":"os:system","fields":{}}',
    '{"~":"error","type":"builtins:eval","args":["1"]}',
    '{"~":"enum","type":"builtins:ValueError","name":"x"}',
    '{"~":"error","type":"builtins:ValueError"}',
    '{"~":"error","type":"builtins:ValueError","args":[],"traceback":1}',
    '{"~":"error","type":"builtins:ValueError","args":[],"traceback":"","state":{"__class__":1}}',
    '{"~":"error","type":1,"args":[]}',
    '{"~":"error","type":"builtins:UnicodeDecodeError","args":[1],"traceback":""}',
    '{"~":"error","type":"builtins:OSError","args":[2,"x"],"traceback":""}',
    '{"~":"model","type":"tests:Open","fields":{}}',
    b"\x80\x04\x95",
    b'"\xff"',
    b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
]


@pytest.mark.parametrize("text", BAD)
def test_a_form_we_do_not_write_is_a_codec_error(text: str | bytes) -> None:  # rel:S1 S2 B3
    with pytest.raises(CodecError):
        loads(_raw(text))


def test_no_stored_name_is_imported_or_executed() -> None:  # rel:S1
    seen: list[str] = []
    listening = False
    sys.addaudithook(lambda event, _: seen.append(event) if listening else None)
    for turn in range(2):  # what the standard library imports for itself at its first use does not count
        listening = turn == 1
        for text in BAD:
            with pytest.raises(CodecError):
                loads(_raw(text))
    listening = False
    assert not {"exec", "os.system", "subprocess.Popen"} & set(seen)
    source = "".join(p.read_text() for p in pathlib.Path(codec.__file__).parent.glob("codec*.py"))
    assert not any(word in source for word in ("pick" + "le", "ev" + "al(", "import_" + "module"))


PARTS = ["v", "type", "fields", "hex", "b64", "dtype", "shape", "data", "zone", "name", "value", "args", "traceback"]
PARTS += ["state", "slots", "set", "extra", "more", "private", "as", "sha256", "size", "maxlen", "offset"]
TAGS = [*codec_walk.READ, "dict", "data", "error", "enum", "named", "struct", "model", "custom"]
NAMES = st.sampled_from(list(codec_types._by_name))


def _grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.dictionaries(st.sampled_from(PARTS), inner, max_size=3)
    tagged = st.builds(lambda tag, rest: {"~": tag, **rest}, st.sampled_from(TAGS), parts)
    one_part = st.builds(
        lambda tag, key, part: {"~": tag, key: part}, st.sampled_from(TAGS), st.sampled_from(PARTS), inner
    )
    errors = st.builds(
        lambda name, args, rest: {"~": "error", "type": name, "args": args, "traceback": "", **rest},
        NAMES,
        st.lists(inner, max_size=5),
        parts.map(lambda rest: {k: v for k, v in rest.items() if k in ("state", "slots")}),
    )
    return st.lists(inner, max_size=4) | parts | tagged | one_part | errors


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    _grow,
    max_leaves=20,
)


@settings(max_examples=1000)
@given(json_like)
def test_loading_anything_gives_a_value_or_a_codec_error(stored: Any) -> None:  # rel:S2 B3
    with suppress(CodecError):
        loads(_raw(msgspec.json.encode(stored)))


@settings(max_examples=300)
@given(st.sampled_from(SOUND), st.data())
def test_damaged_bytes_give_a_value_or_a_codec_error(value: Any, data: Any) -> None:  # rel:B3
    payload, blobs = dumps(value)
    raw = bytearray(payload.value or next(iter(blobs.values())))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CodecError):
        loads(_raw(bytes(raw)), blobs)


_PIECES = [
    *"[]{},:1 ",
    '"a"',
    '"~"',
    '"\\u007e"',
    '"\\u007E"',
    '"v"',
    '"set"',
    '"tuple"',
    "null",
    "true",
    "-1.5",
    "1e999",
    "NaN",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join) | st.recursive(st.integers(), st.lists).map(str))
def test_the_quick_way_to_load_gives_what_the_long_one_does(text: str) -> None:  # rel:S2
    assert outcome(loads, text) == outcome(lambda payload: codec.load(payload).value, text)


@pytest.mark.parametrize(
    "text", ['{"~":"set","v":[1]}', ' {"~":"set","v":[1]}', '{"\\u007e":"set","v":[1]}', "[[1],{}]"]
)
def test_no_tag_is_taken_for_data(text: str) -> None:  # rel:S2 S3
    assert outcome(loads, text) == outcome(lambda payload: codec.load(payload).value, text)
    assert outcome(loads, text) == (repr({1}) if "set" in text else repr([[1], {}]))


def outcome(load: Callable[[Payload], Any], text: str) -> str:
    try:
        return repr(load(_raw(text)))
    except CodecError as refused:
        return f"refused: {refused}"


def test_a_newer_codec_is_refused_and_says_so() -> None:  # rel:R6
    with pytest.raises(CodecError, match="codec version 2"):
        loads(_raw("1", codec_version=2))


def test_values_without_numpy_or_pydantic_do_not_import_them() -> None:  # W8
    program = (
        "import sys; from perdure.codec import dumps, loads; loads(*dumps([1, (2,), {3: 4}])); "
        "sys.exit('numpy' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
