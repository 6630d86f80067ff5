"""Names are names: whatever text is given for one, in any store, it names one thing, and nothing else is touched
(rel:S4 S5 B6). ``HOSTILE_GOALS`` is the part of the corpus that every store of anybody's is tried with."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import AnswerRefused, ConfigError, CorruptStore, PerdureError, RunNotFound
from perdure.model import Attribution, File, RunKey
from perdure.redaction import sounds_secret
from perdure.secret import MASK
from perdure.stores import open_store
from perdure.stores.base import Store, Which
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.stores.postgres_setup import statements
from perdure.testing.samples import HOSTILE_GOALS

TWINS = [
    ("caf\u00e9", "cafe\u0301"),
    ("Paper", "paper"),
    ("\u212a", "k"),
    ("\ufb01", "fi"),
    ("a\u200bb", "ab"),
    ("\u0430bc", "abc"),
    ("x" * 512, "x" * 511),
    ("\u202ea", "a"),
    ("a#0", "a"),
    ("a{b}", "a%7Bb%7D"),
]
"""pairs that some file system, database or reader takes for one"""
NAMES = [
    *HOSTILE_GOALS,
    *(
        "$1",
        "%s",
        "%(goal)s",
        "?1",
        ":goal",
        "@p",
        "{s}",
        "{0.__class__}",
        "${jndi:x}",
        "`id`",
        "$(id)",
        "| id",
        "&& id",
    ),
    *(
        "'",
        '"',
        "''",
        "\\",
        "\\'",
        "--",
        "/* */",
        ";",
        "');--",
        "1' OR '1'='1",
        "'; DROP SCHEMA public CASCADE; --",
        "$$",
    ),
    *(
        "*",
        "?",
        "[a-z]*",
        "paper*",
        "pape?",
        "%",
        "_",
        "pape_",
        "by%der",
        "{paper}",
        "perdure:*",
        "index",
        "{index}:runs",
    ),
    *(
        "<script>alert(1)</script>",
        "=cmd|' /C calc'!A0",
        "a\u2028b",
        "\u200f\u200e",
        "\ufeffx",
        "\U000e0041",
        "a\u0300" * 50,
    ),
    *(name for pair in TWINS for name in pair),
]
REFUSED = [
    *(
        "",
        " ",
        " a",
        "a ",
        "a\0b",
        "a\nb",
        "a\rb",
        "a\r\nDEL perdure:x\r\n",
        "*1\r\n$8\r\nFLUSHALL\r\n",
        "a\tb",
        "\x1b[2J",
        "\x7f",
    ),
    *("\x1fworker", "\ud800", "\udcff", "x" * 513, "a\x85b"),
]
"""what no name may be: control characters, broken Unicode, blank ends, too long"""
PATHS = ["..", "../x", "a/../b", "..\\x", "/..", "a/.."]
LONG = pytest.mark.long


@pytest.fixture(params=["memory", "file", "sqlite", "postgresql", "redis"])
def again(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Store]]:
    """Another handle each time on a store that has a run called "bystander"; it must be as it was at the end."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    kind, name = request.param, sha256(str(tmp_path).encode()).hexdigest()[:16]
    backend = MemoryBackend()
    url = f"{kind}:{tmp_path}/inside/store"
    if kind == "postgresql":
        url = f"{request.getfixturevalue('postgres')(16)}?schema=i_{name}"
    elif kind == "redis":
        url = f"{request.getfixturevalue('valkey')()}?prefix=i_{name}"

    def opened() -> Store:
        return MemoryStore(backend) if kind == "memory" else open_store(url)

    with perdure.CheckpointManager(opened()) as manager:
        manager.submit(flow, "text", goal="bystander", queue="calm", idempotency_key="calm")
    before = picture(opened)
    yield opened
    assert picture(opened) == before
    assert [path.name for path in tmp_path.iterdir()] == ["inside"], "nothing is made outside"
    assert {path.name.partition("store")[0] for path in (tmp_path / "inside").iterdir()} <= {""}


def picture(opened: Callable[[], Store]) -> object:
    store = opened()
    key = RunKey("bystander")
    rows = store.runs(Which(goal="bystander"))
    seen = store.read(key), store.posts({key: 0}), rows
    store.close()
    return seen


@perdure.step
def load(text: str) -> str:
    return text


@perdure.flow
def flow(text: str) -> Any:
    return [load(text), perdure.signal("go"), perdure.ask("Go?", answer=bool)]


def test_a_name_of_any_kind_names_one_thing(again: Callable[[], Store]) -> None:  # rel:S4 rel:B6
    names = [name for name in dict.fromkeys(NAMES) if not is_path(name)]
    assert len(names) > 80
    with perdure.CheckpointManager(again()) as manager:
        for name in names:
            said = Attribution(tags={name: name}, agent=name, caller=name, channel=name, prompt=name, model=name)
            options: dict[str, Any] = {"queue": name, "idempotency_key": name, "attribution": said, "concurrency": 1}
            key = manager.submit(flow, name, goal=name, **options)
            assert key == RunKey(name) == manager.submit(flow, name, goal=name, **options)
    with perdure.Client(again()) as client:
        rows = {row.goal: row for row in client.runs()}
        assert rows.keys() == {*names, "bystander"}
        for name in names:
            row, key = rows[name], RunKey(name)
            assert row.queue == row.idempotency_key == name and row.tags == {
                name: MASK if sounds_secret(name) else name
            }
            assert [found.goal for found in client.runs(name)] == [name]
            assert client.find(str(key)).key == key
            assert client.find(name).key == (RunKey("a") if name == "a#0" else key), (
                "first, goal#episode is a run's name"
            )
            inputs = client.state(str(key)).inputs
            assert inputs is not None and client.value(inputs) == ((name,), {})


def is_path(name: str) -> bool:
    return ".." in name.replace("\\", "/").split("/")


def test_what_is_said_to_a_run_reaches_that_run_and_nothing_else(again: Callable[[], Store]) -> None:  # rel:S4
    names = [name for name in dict.fromkeys(NAMES) if not is_path(name)][::12]
    with perdure.CheckpointManager(again()) as manager:
        for name in names:
            manager.submit(flow, "text", goal=name)
    with perdure.Client(again()) as client:
        for name in names:
            state = client.signal(name, name, {name: name}, by=name)
            assert list(state.waits.signals) == [name]
            assert client.pause(name, by=name, reason=name).stopped_by == name
            for wrong in (name, f"{name}#7", "5", "*", "%"):
                with pytest.raises((RunNotFound, AnswerRefused)):
                    client.answer(name, wrong, True, by=name)
            with pytest.raises(RunNotFound):
                client.step(name, name)
            client.cancel(name, by=name, reason=name)
        assert {row.goal for row in client.runs() if row.status == "cancelled"} == set(names)


def test_a_worker_takes_runs_of_the_queues_and_flows_that_it_names(again: Callable[[], Store]) -> None:  # rel:S4
    store = again()
    for name in NAMES[::4]:
        for which in (Which(queues=(name,)), Which(flows=(name,)), Which(queues=(name,), due=9e9), Which(goal=name)):
            assert store.runs(which) == []
    assert [row.goal for row in store.runs(Which(queues=("calm",)))] == ["bystander"]
    store.close()


@pytest.mark.parametrize("name", [*REFUSED, *PATHS, 5, None, b"x"])
def test_what_is_no_name_is_refused_before_anything_is_made(name: Any, tmp_path: Path) -> None:  # rel:B6
    store = f"file:{tmp_path}/store"
    with pytest.raises(ConfigError) as told:
        perdure.run(flow, "text", goal=name, store=store)
    assert len(str(told.value)) < 400 and str(told.value).isprintable()
    assert list(tmp_path.iterdir()) == []
    if name in PATHS:
        return
    with perdure.CheckpointManager("memory:") as manager:
        for options in ({"queue": name}, {"idempotency_key": name or " "}):
            with pytest.raises(ConfigError):
                manager.submit(flow, "text", goal="paper", **options)
        with pytest.raises(ConfigError):
            perdure.step(name=name or " ")(lambda: 1)
        with pytest.raises((ConfigError, TypeError)):
            Attribution(tags={name: "x"})
            perdure.run(flow, "text", goal="paper", store="memory:", attribution=Attribution(tags={name: "x"}))


@pytest.mark.parametrize("name", [*REFUSED, 5])
def test_whoever_says_something_to_a_run_has_a_name_too(name: Any, tmp_path: Path) -> None:  # rel:B6 rel:H5
    store = f"file:{tmp_path}/store"
    with perdure.CheckpointManager(store) as manager:
        manager.submit(flow, "text", goal="paper")
    client = perdure.Client(store)
    before = client.entries("paper")
    for call in (
        lambda: client.pause("paper", by=name),
        lambda: client.cancel("paper", by=name),
        lambda: client.answer("paper", None, True, by=name),
        lambda: client.signal("paper", name),
    ):
        with pytest.raises(PerdureError):
            call()
    assert client.entries("paper") == before and client.find("paper").unread == 0
    client.close()


@pytest.mark.parametrize(
    "name", ["a b", 'a"b', "a;b", "a'b", "a.b", "pg_catalog", "", "1a", "a" * 64, "\u00e9", "a\0b", "a-b"]
)
def test_a_schema_that_would_have_to_be_quoted_is_refused(name: str) -> None:  # rel:S4
    with pytest.raises(ConfigError):
        statements(name)
    with pytest.raises(ConfigError):
        open_store(f"postgresql://u@127.0.0.1:1/x?schema={name}")


@pytest.mark.parametrize("role", ['x"; DROP SCHEMA perdure CASCADE; --', "a'b", "a b", '"', "CURRENT_USER"])
def test_a_role_is_quoted_in_the_sql_that_is_printed(role: str) -> None:  # rel:S4
    granted = [line for line in statements("perdure", role).splitlines() if line.startswith("GRANT")]
    assert len(granted) == 3 and all(line.endswith('TO "' + role.replace('"', '""') + '";') for line in granted)


@pytest.mark.parametrize("name", ["a b", "a*", "a?", "[a]", "a{b", "a\r\nb", "", "a" * 65, "\u00e9", "a/b"])
def test_a_prefix_with_signs_that_mean_something_is_refused(name: str) -> None:  # rel:S4
    with pytest.raises(ConfigError):
        open_store(f"redis://127.0.0.1:1/0?prefix={name}")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".bashrc", "", "a\0b", "x" * 513, "a\nb", " a"]
)
def test_a_file_of_a_step_has_no_path(name: str) -> None:  # rel:S5
    with pytest.raises(ConfigError):
        File(name, b"")


def test_twins_are_two_runs(again: Callable[[], Store]) -> None:  # rel:S5
    store = again()
    for pair in TWINS:
        leases = [store.claim(RunKey(name)) for name in pair]
        for lease in leases:
            store.delete(lease)
    store.close()


def test_the_twins_are_twins() -> None:
    assert unicodedata.normalize("NFC", TWINS[0][1]) == TWINS[0][0] and TWINS[1][0].lower() == TWINS[1][1]
    assert unicodedata.normalize("NFKC", TWINS[3][0]) == TWINS[3][1] and TWINS[2][0].lower() == TWINS[2][1]


def test_blobs_are_asked_for_by_nothing_but_their_hash(again: Callable[[], Store]) -> None:  # rel:S4 rel:S5
    store = again()
    for name in [*NAMES[::3], *PATHS, "..", "\0", "x' OR 1=1 --"]:
        with pytest.raises(CorruptStore):
            store.blob(name)
    store.close()


def test_names_of_steps_and_their_outputs_stay_below_their_folder(tmp_path: Path) -> None:  # rel:S5
    made: list[Path] = []
    (tmp_path / "outside").write_text("mine")
    names = [name for name in dict.fromkeys([*NAMES, "..", "...", "~root", "con", "-rf"]) if "/" not in name]

    @perdure.flow
    def flow() -> None:
        for name in names:
            perdure.step(name=name)(lambda: File("report.txt", b"text"))()

    with suppress(ConfigError):
        perdure.run(
            flow, goal="paper", store=f"file:{tmp_path}/store", config=perdure.CheckpointConfig(durability="async")
        )
    folder = tmp_path / "store" / "runs" / "paper.0" / "outputs"
    made = [path for path in tmp_path.rglob("*report*") if path.is_file()] + list(folder.rglob("*.txt"))
    assert len(list(folder.iterdir())) == len(names), "each has a file of its own"
    assert all(folder in path.parents and path.name[0].isdigit() for path in made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "store"]
