"""``Client.diff``: which step of one run is which of another, what differs, and how that is shown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure.errors import RunNotFound
from perdure.model import Usage
from perdure.record import Change, family
from perdure.redaction import Redaction
from perdure.runners import File
from perdure.runtime.compare import Comparison, StepPair
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.text_diff import Shown, diff

SAID: dict[str, Any] = {}
"""what steps return, by their argument"""


@pytest.fixture(autouse=True)
def _forget() -> None:
    SAID.clear()


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}" if request.param == "sqlite" else f"file:{tmp_path / 'runs'}"


@perdure.step(check=False)
def say(what: str, mood: str = "") -> Any:
    return SAID.get(what, f"{what}!")


def compared(url: str, one: Callable[..., Any], other: Callable[..., Any], *, between: Callable[[], Any]) -> Comparison:
    """Two runs of flows without inputs, and what differs."""
    perdure.run(perdure.flow(name="f")(one), goal="a", store=url)
    between()
    perdure.run(perdure.flow(name="f")(other), goal="b", store=url)
    with perdure.Client(url) as client:
        return client.diff("a", "b")


def nothing() -> None: ...


def numbers(found: Comparison) -> list[tuple[int | None, int | None, str]]:
    return [(p.a.number if p.a else None, p.b.number if p.b else None, p.found_by) for p in found.steps]


def only(found: Comparison) -> StepPair:
    [pair] = [pair for pair in found.steps if not pair.same]
    return pair


def test_equal_runs_are_the_same(url: str) -> None:
    found = compared(url, lambda: say(say("x")), lambda: say(say("x")), between=nothing)
    assert found.same and all(pair.same for pair in found.steps) and found.result_diff == ""
    assert numbers(found) == [(1, 1, "identity"), (2, 2, "identity")]


def test_steps_are_found_by_identity_then_by_name_in_order(url: str) -> None:
    found = compared(
        url,
        lambda: [say(x) for x in ("a", "b", "c", "c")] and "",
        lambda: [say(x) for x in ("new", "c", "b", "newer", "c", "newest")] and "",
        between=nothing,
    )
    assert numbers(found) == [
        (1, 1, "name"),
        (2, 3, "identity"),
        (3, 2, "identity"),
        (4, 5, "identity"),
        (None, 4, ""),
        (None, 6, ""),
    ]
    assert found.steps[0].inputs == (Change("what", '"a"', '"new"'),) and not found.steps[4].same


def test_steps_of_children_are_found_in_the_family_of_their_scope(url: str) -> None:
    @perdure.flow
    def worker(what: str) -> str:
        return str(say(what))

    def one() -> str:
        return perdure.child(worker)("x") + perdure.child(worker)("y")

    def other() -> str:
        return perdure.child(worker)("other") + perdure.child(worker)("x") + perdure.child(worker)("y")

    found = compared(url, one, other, between=nothing)
    paths = {(p.a.path if p.a else "", p.b.path if p.b else "", p.found_by) for p in found.steps}
    assert ("worker", "worker", "identity") in paths
    assert ("worker-0/say", "worker-0/say", "name") in paths and ("", "worker-2/say", "") in paths
    assert family("worker-2/say-1-x/reviewer-10") == "worker/say-1-x/reviewer"


def test_a_scope_of_another_number_is_of_the_family(url: str) -> None:
    @perdure.flow
    def worker(what: str) -> str:
        return str(say(what))

    @perdure.flow
    def f(what: str) -> str:
        return perdure.child(worker)(what)

    perdure.run(f, "x", goal="a", store=url)
    perdure.run(f, "y", goal="a", adopt_input=True, store=url)
    perdure.run(f, "y", goal="b", store=url)
    with perdure.Client(url) as client:
        found = client.diff("a", "b")
    assert [(p.path, p.b.path if p.b else "", p.found_by) for p in found.steps] == [
        ("worker", "worker", "identity"),
        ("worker-1/say", "worker-0/say", "family"),
    ]
    assert found.same


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("one\ntwo\nthree", "one\n2\nthree", ["-two", "+2"]),
        ({"k": [1, 2]}, {"k": [1, 3]}, ["-    2", "+    3"]),
        (b"\0\1", b"\0\1\2", ["-2 bytes, sha256 b413f47d", "+3 bytes, sha256 ae4b3280"]),
        ("1", 1, ["One is text, one JSON."]),
        (File("a.txt", b"hello\n"), File("a.txt", b"hello there\n"), ["-hello", "+hello there"]),
        (File("a.txt", b"hello\n"), File("b.txt", b"hello\n"), ["-a.txt (application", "+b.txt (application"]),
        (File("a.bin", b"\xff"), File("a.bin", b"\0"), ["-1 bytes, sha256 a8100a", "+1 bytes, sha256 6e340b"]),
        ({"text": "x" * 70000 + " end"}, {"text": "x" * 70000 + " END"}, [" end", " END"]),
        ((1, 2), [1, 2], ['-  "~": "tuple"']),
        (None, "", ["-null", "+"]),
    ],
)
def test_outputs_are_shown_as_a_diff_of_what_people_read(url: str, old: Any, new: Any, lines: list[str]) -> None:
    SAID["x"] = old
    found = compared(url, lambda: say("x") and "", lambda: say("x") and "", between=lambda: SAID.update(x=new))
    pair = only(found)
    assert pair.differs == ("output",) and pair.diff.startswith("--- a#0 step 1 (say)\n+++ b#0 step 1 (say)\n")
    assert all(line in pair.diff for line in lines)
    assert len(pair.diff) < 3000, "a long line is not shown whole for a word that differs"


def test_a_value_of_a_type_that_this_program_does_not_know_is_compared_as_it_is_stored(tmp_path: Path) -> None:  # W8
    program = tmp_path / "page.py"
    program.write_text(
        "import sys, dataclasses, perdure\n"
        "@dataclasses.dataclass\nclass Score:\n    points: int\n    why: str\n"
        "@perdure.step\ndef score(n: int) -> Score: return Score(n, 'as ever')\n"
        "@perdure.flow\ndef f(n: int) -> Score: return score(n)\n"
        "[perdure.run(f, n, goal=f'g{n}', store='file:runs') for n in (1, 2)]\n"
    )
    subprocess.run([sys.executable, program], cwd=tmp_path, check=True)
    with perdure.Client(f"file:{tmp_path / 'runs'}") as client:
        pair = only(client.diff("g1", "g2"))
    assert '-    "points": 1,\n+    "points": 2,' in pair.diff and "page" not in sys.modules


def test_states_errors_attempts_and_usage_differ(url: str) -> None:
    failing = [3]

    @perdure.step(name="try", retries=2, backoff=0.001, metered=True)
    def attempt() -> str:
        perdure.context().spent(cost=0.5)
        failing[0] -= 1
        if failing[0] >= 0:
            raise ValueError("no luck with sk-abcdefghijklmnopqrstuvwxyz123456")
        return "luck"

    @perdure.flow
    def f() -> str:
        return attempt()

    with pytest.raises(ValueError, match="no luck"):
        perdure.run(f, goal="a", store=url)
    perdure.run(f, goal="b", store=url)
    with perdure.Client(url) as client:
        found = client.diff("a", "b")
    pair = only(found)
    assert pair.differs == ("output", "state", "attempts", "usage")
    assert pair.a is not None and pair.b is not None and (pair.a.state, pair.b.state) == ("failed", "completed")
    assert pair.a.error.startswith("ValueError: no luck") and "abcdefgh" not in pair.a.error
    assert (pair.a.attempts, pair.b.attempts, pair.b.usage) == (3, 1, Usage(calls=1, cost=0.5))
    assert (found.a.status, found.b.status) == ("failed", "completed") and "+luck" in found.result_diff


def test_what_an_edit_superseded_takes_no_part(url: str) -> None:
    @perdure.flow
    def f(x: str) -> str:
        return str(say(x))

    perdure.run(f, "one", goal="a", store=url)
    perdure.run(f, "two", goal="a", adopt_input=True, store=url)
    perdure.run(f, "two", goal="b", store=url)
    with perdure.Client(url) as client:
        found = client.diff("a", "b")
        assert numbers(found) == [(2, 1, "identity")] and found.same
        with pytest.raises(RunNotFound):
            client.diff("a", "nobody")


def test_inputs_of_runs_and_the_ends_of_long_arguments_are_told(url: str) -> None:
    @perdure.flow
    def f(text: str, more: int = 1) -> str:
        return str(say(text))

    perdure.run(f, "x" * 500, goal="a", store=url)
    perdure.run(f, "x" * 501, 2, goal="b", store=url)
    with perdure.Client(url) as client:
        found = client.diff("a", "b")
    text, more = found.inputs
    assert text.before == text.now and more == Change("more", "1", "2") and not found.same
    assert only(found).inputs[0].argument == "what"


def test_a_step_with_a_key_of_its_own_was_asked_for_otherwise(url: str) -> None:
    found = compared(url, lambda: say.options(key="1")("x"), lambda: say.options(key="2")("x"), between=nothing)
    pair = only(found)
    assert pair.differs == ("inputs",) and pair.inputs == () and pair.found_by == "name"


def test_secrets_are_not_shown_and_are_no_difference(url: str) -> None:  # rel:S8
    @perdure.step
    def use(key: perdure.Secret, note: str) -> list[Any]:
        return [key, f"my mail is {note}", note]

    @perdure.flow
    def f(key: perdure.Secret, note: str) -> list[Any]:
        say(note)
        return use(key, note)

    rules = Redaction(patterns=(r"canary-\d+",))
    with CheckpointManager(url, perdure.CheckpointConfig(redact=rules)) as manager:
        for goal in ("a", "b"):
            manager.run_sync(f, perdure.Secret("canary-key", name="k"), "canary-123", goal=goal)
        manager.run_sync(f, perdure.Secret("other-key", name="k"), "canary-9 now", goal="c")
    with perdure.Client(url) as client:
        alike, other = client.diff("a", "b"), client.diff("a", "c")
    assert alike.same and set(alike.hidden) >= {"key"} and all(pair.same for pair in alike.steps), alike
    assert not other.same and "canary" not in str(other)
    assert [("[redacted] now" in pair.diff, "[redacted]!" in pair.diff) for pair in other.steps] == [
        (True, True),
        (True, False),
    ]


texts = st.lists(st.sampled_from(["a. ", "b", "\n", "x" * 70, "\\n", "; ", " ", "é"]), max_size=30).map("".join)


@given(texts, texts)
def test_a_diff_is_empty_for_equal_texts_only_and_shows_what_is_there(old: str, new: str) -> None:
    said = diff(Shown("text", old), Shown("text", new), "a", "b")
    assert (said == "") == (old == new)
    for line in said.split("\n")[2:]:
        assert not line.startswith("-") or line[1:] in old
        assert not line.startswith("+") or line[1:] in new


def test_texts_that_are_too_long_to_be_compared_are_measured() -> None:
    long = "\n".join(map(str, range(30_000)))
    assert "168,889 bytes" in diff(Shown("text", long), Shown("text", long + "x"), "a", "b")


def test_lines_that_were_only_joined_are_told() -> None:
    sentences = [
        "A sentence that is long enough. ",
        "Another one that is even longer. ",
        "And so on it goes for long. ",
    ] * 2
    said = diff(Shown("text", "".join(sentences)), Shown("text", "\n".join(sentences)), "a", "b")
    assert said.endswith("They differ in line breaks only.")


def test_nothing_is_executed_by_a_comparison(url: str) -> None:
    made = partial(say, "x")
    found = compared(url, lambda: made(), lambda: made(mood="glad"), between=nothing)
    assert only(found).inputs == (Change("mood", '""', '"glad"'),)
