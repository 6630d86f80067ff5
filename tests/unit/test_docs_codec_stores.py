"""What docs/codec.md and docs/stores.md say is so."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.codec import BLOB_THRESHOLD, MAX_BYTES, MAX_DEPTH, MAX_ITEMS, Payload, dumps, loads
from perdure.errors import CodecError
from perdure.stores import base
from perdure.stores.memory import MemoryBackend, MemoryStore

DOCS = Path(__file__).parents[2] / "docs"


def blocks(name: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def test_the_examples_of_the_codec_page_work_and_show_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crew.py").write_text("\n".join(blocks("codec.md")))
    monkeypatch.syspath_prepend(tmp_path)
    space = vars(importlib.import_module("crew"))
    monkeypatch.delitem(sys.modules, "crew")
    made = space["review"]("style")
    with pytest.raises(CodecError, match=r"reviews\[0\]: crew\.Review cannot be stored"):
        dumps(made, "reviews")
    assert space["review"].signature  # what a run asks for first
    values = [made, space["Verdict"](True), space["Point"](1.0, 2.0)]
    back = loads(*dumps(values))
    assert back[:2] == values[:2] and vars(back[2]) == vars(values[2])
    (shown,) = blocks("codec.md", "json")
    assert loads(msgspec.json.decode(shown, type=Payload)) == made[0]


def test_the_limits_on_the_codec_page_are_those_of_the_code() -> None:
    text = (DOCS / "codec.md").read_text()
    assert (BLOB_THRESHOLD, 4 * BLOB_THRESHOLD) == (8 * 1024, 32 * 1024) and "8 KiB" in text and "32 KiB" in text
    assert (MAX_DEPTH, MAX_ITEMS, MAX_BYTES) == (100, 2**24, 256 * 2**20)
    assert "100 containers" in text and "2**24 elements and 256 MiB" in text


def test_the_suite_runs_over_a_store_of_ones_own_as_the_stores_page_shows(tmp_path: Path) -> None:
    backends: dict[Path, MemoryBackend] = {}
    space: dict[str, Any] = {"MyStore": lambda place: MemoryStore(backends.setdefault(place, MemoryBackend()))}
    exec("\n".join(blocks("stores.md")), space)
    suite = space["TestMyStore"]()
    tests = [name for name in dir(suite) if name.startswith("test_")]
    assert len(tests) > 12
    for name in tests:
        getattr(suite, name)(tmp_path / name)


def test_the_stores_page_names_every_verb() -> None:
    verbs = [name for name, what in vars(base.Store).items() if callable(what) and not name.startswith("_")]
    (sentence,) = re.findall(
        r"A store implements twelve synchronous verbs,(.*?)and\n", (DOCS / "stores.md").read_text(), re.DOTALL
    )
    assert re.findall(r"`(\w+)`", sentence) == verbs and len(verbs) == 12
