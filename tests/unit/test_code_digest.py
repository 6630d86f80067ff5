"""What belongs to the code of a step, and what does not (X1)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from perdure.record import code_changed as changed
from perdure.runtime.code import Code

BASE = {
    "flow.py": """
        import json
        import os
        import prompts
        import tools
        from prompts import TONE as VOICE
        from pathlib import Path

        import perdure

        PROMPT = "Write."
        LIMITS = {"words": 100}
        EXPERTS = ["a", "b"]
        FROM_FILE = (Path(__file__).parent / "prompt.txt").read_text()
        PARTS = {p.stem: p.read_text() for p in sorted(Path(__file__).parent.glob("*.txt"))}
        CACHE = {}
        CALLS = 0
        UNUSED = 1
        API_KEY = os.environ.get("SOME_KEY", "none")


        class Report:
            \"\"\"A report.\"\"\"
            title: str = "T"

            def line(self) -> str:
                return f"# {self.title}"


        def clean(text):
            return text.strip()


        def unrelated():
            return 1


        @perdure.step
        def inner(text: str) -> str:
            return text + "!"


        @perdure.step(retries=1)
        def write(topic: str, n: int = 3) -> str:
            \"\"\"Write it.\"\"\"
            global CALLS
            CALLS += 1
            CACHE[topic] = n
            words = LIMITS["words"]  # how many
            return clean(inner(PROMPT + VOICE + prompts.STYLE + FROM_FILE + topic)) + Report().line() + str(words)


        @perdure.step
        def late(topic: str) -> str:
            from lazy import helper

            return helper(topic) + "".join(EXPERTS) + tools.join(topic) + json.dumps(PARTS) + API_KEY


        def make(kind):
            @perdure.step(name=kind)
            def made(text: str) -> str:
                return kind + text

            return made


        short = make("short")
        """,
    "prompts.py": """
        TONE = "kind"
        STYLE = "plain"
        OTHER = "not used"
        """,
    "tools.py": """
        SEPARATOR = ","

        def join(text):
            return SEPARATOR.join(text)

        def other():
            return 2
        """,
    "lazy.py": """
        def helper(text):
            return text
        """,
    "prompt.txt": "from a file",
}

UNCHANGED: dict[str, tuple[str, str, str]] = {
    "comment": ("flow.py", "# how many", "# how many at most"),
    "formatting": ("flow.py", 'words = LIMITS["words"]', 'words = (\n                LIMITS["words"]\n            )'),
    "docstring": ("flow.py", "Write it.", "Write something."),
    "docstring of a class": ("flow.py", "A report.", "It is a report."),
    "quotes": ("flow.py", 'LIMITS["words"]', "LIMITS['words']"),
    "option of the step": ("flow.py", "retries=1", "retries=5, timeout=3"),
    "annotation": ("flow.py", "def write(topic: str, n: int = 3) -> str:", "def write(topic, n=3):"),
    "default, which is an input": ("flow.py", "n: int = 3", "n: int = 4"),
    "a constant that it does not use": ("flow.py", "UNUSED = 1", "UNUSED = 2"),
    "a function that it does not use": (
        "flow.py",
        "def unrelated():\n            return 1",
        "def unrelated():\n            return 2",
    ),
    "a constant of another module": ("prompts.py", "not used", "still not used"),
    "a function of another module": ("tools.py", "return 2", "return 3"),
    "a new function above": ("flow.py", "PROMPT =", "def new():\n            return 0\n\n\n        PROMPT ="),
}
CHANGED: dict[str, tuple[str, str, str, str]] = {
    "body": ("flow.py", "+ str(words)", "+ str(words + 1)", "write"),
    "constant": ("flow.py", '"Write."', '"Write well."', "write"),
    "constant of another module, imported by another name": ("prompts.py", '"kind"', '"stern"', "write"),
    "constant of another module": ("prompts.py", '"plain"', '"ornate"', "write"),
    "helper": ("flow.py", "text.strip()", "text.rstrip()", "write"),
    "a step inside": ("flow.py", 'text + "!"', 'text + "?"', "write inner"),
    "class": ("flow.py", 'f"# {self.title}"', 'f"## {self.title}"', "write"),
    "attribute of a class": ("flow.py", 'title: str = "T"', 'title: str = "U"', "write"),
    "dict": ("flow.py", '{"words": 100}', '{"words": 200}', "write"),
    "list": ("flow.py", '["a", "b"]', '["a", "b", "c"]', "late"),
    "a list that is added to": ("flow.py", "CACHE = {}", 'EXPERTS.append("c")\n        CACHE = {}', "late"),
    "a file that a constant was read from": ("prompt.txt", "from a file", "from another file", "write late"),
    "helper of another module": ("tools.py", "SEPARATOR.join(text)", "SEPARATOR.join(text[1:])", "late"),
    "constant of a helper": ("tools.py", '","', '";"', "late"),
    "module imported in the body": ("lazy.py", "return text", "return text * 2", "late"),
    "what a function was made with": ("flow.py", 'make("short")', 'make("brief")', "short"),
    "colour": ("flow.py", "def inner(text: str)", "async def inner(text: str)", "write inner"),
}
STEPS = ("write", "inner", "late", "short")


def codes(folder: Path, edit: tuple[str, str, str] | None = None) -> dict[str, Code]:
    """The code of every step of the program in a folder, after an edit."""
    folder.mkdir()
    for name, text in BASE.items():
        text = dedent(text).lstrip() if name.endswith(".py") else text
        if edit is not None and edit[0] == name:
            before, after = dedent("        " + edit[1]), dedent("        " + edit[2]).replace("\n        ", "\n")
            assert before.replace("\n        ", "\n") in text
            text = text.replace(before.replace("\n        ", "\n"), after)
        (folder / name).write_text(text, encoding="utf-8")
    names = [Path(name).stem for name in BASE if name.endswith(".py")]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        program: Any = importlib.import_module("flow")
        return {name: getattr(program, name).code for name in STEPS}
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Code]]:
    yield codes(tmp_path_factory.mktemp("code") / "base")


@pytest.mark.parametrize("edit", UNCHANGED.values(), ids=UNCHANGED.keys())
def test_an_edit_that_means_nothing_to_a_step_leaves_its_code_as_it_was(
    base: dict[str, Code], tmp_path: Path, edit: tuple[str, str, str]
) -> None:  # X1
    after = codes(tmp_path / "after", edit)
    assert {name: code.digest for name, code in after.items()} == {name: code.digest for name, code in base.items()}


@pytest.mark.parametrize("edit", CHANGED.values(), ids=CHANGED.keys())
def test_an_edit_changes_the_code_of_exactly_the_steps_that_use_it(
    base: dict[str, Code], tmp_path: Path, edit: tuple[str, str, str, str]
) -> None:  # X1
    after = codes(tmp_path / "after", edit[:3])
    assert {name for name in STEPS if changed(base[name].digest, after[name].digest)} == set(edit[3].split())


def test_the_text_that_is_kept_is_what_people_wrote(base: dict[str, Code]) -> None:
    parts = base["write"].parts
    assert parts["PROMPT"] == 'PROMPT = "Write."' and parts["prompts.TONE"] == 'TONE = "kind"'
    assert "# how many" in parts["write()"] and parts["clean()"].startswith("def clean(text):")
    assert "# its value: " in parts["FROM_FILE"] and "unrelated()" not in parts and "UNUSED" not in parts
    assert "from a file" not in str(parts)  # what is not written in the source is not kept


def test_a_secret_constant_is_neither_shown_nor_does_its_value_count(
    base: dict[str, Code], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # rel:S8
    monkeypatch.setenv("SOME_KEY", "canary-4711-canary")
    after = codes(tmp_path / "after")
    assert after["late"].digest == base["late"].digest
    assert "canary" not in str([code.parts for code in after.values()])


def test_it_is_the_same_as_a_script_as_a_module_and_in_any_process(base: dict[str, Code], tmp_path: Path) -> None:
    codes(tmp_path / "again")
    with (tmp_path / "again" / "flow.py").open("a", encoding="utf-8") as file:
        file.write('\n\nif __name__ == "__main__":\n    print(*(s.digest for s in (write, inner, late, short)))\n')
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    told = subprocess.run([sys.executable, "flow.py"], cwd=tmp_path / "again", env=environment, capture_output=True)
    assert told.stdout.decode().split() == [base[name].digest for name in STEPS], told.stderr.decode()


def test_what_runs_is_what_counts_and_not_a_file_that_was_changed_since(tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    script = dedent(
        """
        import pathlib, sys
        import perdure
        import helper

        @perdure.step
        def work(x: int) -> int:
            return helper.twice(x)

        pathlib.Path(helper.__file__).write_text("def twice(x):\\n    return 3 * x\\n")
        print(work.digest)
        """
    )
    folder.mkdir()
    told = []
    for _ in range(2):
        if not told:
            (folder / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
        (folder / "script.py").write_text(script)
        fresh = [sys.executable, "-B", "script.py"]  # Python does not notice a change within the same second itself
        ran = subprocess.run(fresh, cwd=folder, capture_output=True, text=True, check=True)
        told.append(ran.stdout.strip())
    assert changed(*told)  # the first executed 2 * x, the second 3 * x; the file said 3 * x both times


def test_codes_of_functions_without_source_are_compared_too() -> None:
    def made(text: str) -> Code:
        import perdure

        scope: dict[str, Any] = {}
        exec(text, scope)
        return perdure.step(scope["work"]).code

    one, same, other = made("def work(x): return x"), made("def work(x):  return x"), made("def work(x): return x + 1")
    assert one.digest == same.digest and changed(one.digest, other.digest) and not one.parts


def test_what_is_defined_anew_in_one_process_counts_at_once() -> None:
    """As in a notebook, where a cell is executed again."""
    cell = "import perdure\nPROMPT = 'a'\ndef helper(x): return x\ndef work(x): return helper(x) + PROMPT"
    scope: dict[str, Any] = {}
    exec(cell, scope)
    import perdure

    step = perdure.step(scope["work"])
    digests = [step.digest, step.digest]
    exec("PROMPT = 'b'", scope)
    digests.append(step.digest)
    exec("def helper(x): return x + 'c'", scope)
    digests.append(step.digest)
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_code_that_cannot_be_read_is_no_reason_not_to_execute_it(caplog: pytest.LogCaptureFixture) -> None:
    class Strange(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            raise RuntimeError("no")

    import types

    import perdure

    def work(x: int) -> int:
        return helper(x)  # type: ignore[name-defined,no-any-return]  # noqa: F821

    made = perdure.step(name="work")(types.FunctionType(work.__code__, Strange(), "work"))
    assert made.digest == "" and "its code cannot be read" in caplog.text


def test_a_version_stands_for_the_code() -> None:  # X1
    import perdure

    def first(x: int) -> int:
        return x

    def second(x: int) -> int:
        return x + 1

    one, two = perdure.step(name="s", version="7")(first), perdure.step(name="s", version="7")(second)
    assert one.digest == two.digest and one.options(name="t").digest == one.digest
    assert changed(one.digest, perdure.step(name="s", version="8")(first).digest)


def test_steps_and_flows_that_use_each_other_have_the_same_code_in_whatever_order_one_asks() -> None:
    def program() -> list[Any]:
        @perdure.step
        def one(x: int) -> int:
            return two(x) if x else 0

        @perdure.step
        def two(x: int) -> int:
            return one(x - 1)

        return [one, two]

    import perdure

    forwards, backwards = program(), program()
    told = [step.digest for step in forwards], [step.digest for step in reversed(backwards)]
    assert told[0] == told[1][::-1]


def test_digests_of_another_form_say_nothing() -> None:  # X13
    assert not changed("0123456789abcdef", "2.0123456789abcdef") and not changed("", "2.01")
    assert changed("2.01", "2.02") and changed("01", "02")


KINDS = {
    "a function behind a cache": ("@functools.cache\ndef helper():\n    return 'A'", "helper()"),
    "a class used as decorator": (
        """
class D:
    def __init__(self, f): self.f = f
    def __call__(self): return self.f()
@D
def helper(): return 'A'
""",
        "helper()",
    ),
    "a named tuple": ("P = collections.namedtuple('P', 'x A')", "P._fields"),
    "an enum of names": ("E = enum.Enum('E', 'A B')", "list(E)"),
    "a second definition of a class": (
        """
try:
    import nothing_of_this_name
    class K: v = 1
except ImportError:
    class K: v = 'A'
""",
        "K.v",
    ),
    "a registry": (
        """
R = {}
def reg(f):
    R[f.__name__] = f
    return f
@reg
def a(): return 'A'
""",
        "R['a']()",
    ),
    "an attribute that the module sets": ("class K: v = 1\nK.v = 'A'", "K.v"),
    "a partial of a helper": (
        "def a(): return 'A'\ndef run(f): return f()\nP = functools.partial(run, a)",
        "P()",
    ),
    "a function that a factory made": (
        """
def mk(w):
    def made(): return w
    return made
helper = mk('A')
""",
        "helper()",
    ),
    "a frozen dataclass in a closure": (
        """
@dataclasses.dataclass(frozen=True)
class C: v: str = ''
def mk(c):
    def made(): return c.v
    return made
helper = mk(C('A'))
""",
        "helper()",
    ),
    "a chain of a thousand helpers": (
        "def h0(): return 'A'\n" + "".join(f"def h{n}(): return h{n - 1}()\n" for n in range(1, 1000)),
        "h999()",
    ),
    "a tuple with a secret in it": ("ADMIN, PASSWORD = 'A', 'tuplePw9'", "ADMIN"),
}
"""what the module has, in which an A is edited, and how a step uses it"""
_IMPORTS = "import collections, dataclasses, enum, functools, os, time\nimport perdure\n"


@pytest.fixture(autouse=True)
def forget_kinds() -> Iterator[None]:
    yield
    sys.modules.pop("kinds", None)


def _loaded(folder: Path, text: str) -> Any:
    """The module of that text."""
    sys.modules.pop("kinds", None)
    folder.mkdir(exist_ok=True)
    (folder / "kinds.py").write_text(text)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module("kinds")
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_kind_of_thing_a_step_uses_its_edit_is_seen(tmp_path: Path, kind: str) -> None:  # X1
    has, use = KINDS[kind]
    after = f"@perdure.step\ndef work() -> str:\n    return str({use})\n"
    other = has.replace("'A'", "'C'").replace(" A'", " C'").replace("'A ", "'C ")
    told = [
        _loaded(tmp_path / where, f"{_IMPORTS}{text}\n{after}").work.code
        for where, text in (("one", has), ("two", has), ("three", other))
    ]
    assert told[0].digest == told[1].digest and changed(told[0].digest, told[2].digest)
    assert "tuplePw9" not in str(told[0].parts)


def test_two_constants_that_change_places_are_seen(tmp_path: Path) -> None:  # X1
    text = f"{_IMPORTS}X = 'a'\nY = 'b'\n@perdure.step\ndef work() -> str:\n    return X + '-' + Y\n"
    swapped = text.replace("X = 'a'\nY = 'b'", "X = 'b'\nY = 'a'")
    assert changed(*(_loaded(tmp_path / n, t).work.digest for n, t in (("one", text), ("two", swapped))))


def test_an_object_that_was_given_to_a_step_counts_by_its_plain_attributes(tmp_path: Path) -> None:  # X1
    text = (
        f"{_IMPORTS}from perdure.runners import Agent\nclass M:\n    def __init__(self, name): self.name = name\n"
        "    def __call__(self, messages, tools): return 'done'\nagent = Agent(M('gpt-4'))\n"
    )
    old, new = (_loaded(tmp_path / n, text.replace("gpt-4", n)).agent.loops[0].ask.digest for n in ("gpt-4", "gpt-5"))
    assert changed(old, new)


VOLATILE = {
    "a clock": ("T = time.time()", "T"),
    "a place": ("HERE = os.path.dirname(os.path.abspath(__file__))", "HERE"),
    "the environment": ("W = os.environ.get('PERDURE_TEST_WHO', '') + '-x'", "W"),
    "a dict that is filled": ("SEEN = {k: 0 for k in 'ab'}\ndef see(k):\n    SEEN[k] += 1\n    return k", "see('a')"),
    "a list that is filled": ("L = [0] * 3\ndef see():\n    L.append(1)\n    return 1", "see()"),
    "a counter": ("C = collections.Counter()", "C.update('a')"),
}


@pytest.mark.parametrize("kind", VOLATILE)
def test_what_is_another_in_each_process_is_no_change_and_is_not_kept(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # X1 rel:S8
    has, use = VOLATILE[kind]
    program = f"{_IMPORTS}{has}\n@perdure.step\ndef work() -> str:\n    return str({use})\n"
    told = []
    for where in ("one", "two"):
        monkeypatch.setenv("PERDURE_TEST_WHO", f"canary-{where}")
        module = _loaded(tmp_path / where, program)
        if where == "two":
            module.work.fn()  # it fills what it fills before anybody asks
        told.append(module.work.code)
    assert told[0].digest == told[1].digest
    kept = str([code.parts for code in told])
    assert "canary" not in kept and str(tmp_path) not in kept


def test_a_file_that_is_edited_while_a_run_executes_is_not_what_was_executed(tmp_path: Path) -> None:  # X1
    text = (
        f"{_IMPORTS}class P:\n    X = 'A'\nL = {{'w': 'A'}}\n"
        "@perdure.step\ndef work() -> str:\n    return P.X + L['w']\n"
        "flow = perdure.flow(name='f')(lambda: work())\n"
    )
    module = _loaded(tmp_path, text)
    _ = module.flow.digest  # a run or a worker begins
    (tmp_path / "kinds.py").write_text(text.replace("'A'", "'B'"))
    recorded = module.work.digest
    assert not changed(recorded, _loaded(tmp_path / "old", text).work.digest)
    assert changed(recorded, _loaded(tmp_path / "new", text.replace("'A'", "'B'")).work.digest)


def test_a_version_stands_for_the_code_also_where_another_step_uses_it(tmp_path: Path) -> None:  # X1
    text = (
        f"{_IMPORTS}@perdure.step(version='1')\ndef inner(x: int) -> int:\n    return x + 1\n"
        "other = perdure.step(version='1', name='other')(lambda x: x + 1)\n"
        "@perdure.step\ndef work(x: int) -> int:\n    return inner(x) + other(x)\n"
    )
    edits = {"one": text, "two": text.replace("x + 1", "x + 2"), "three": text.replace("version='1'", "version='2'")}
    one, two, three = (_loaded(tmp_path / where, edit).work.digest for where, edit in edits.items())
    assert one == two and changed(one, three)


@pytest.mark.parametrize("edited", ["D = {'a': 'A'}", "L = ['A']", "    v = 'A'", "P = 'A'", "    return 'A'"])
def test_a_module_that_is_loaded_anew_counts_as_it_is_now(tmp_path: Path, edited: str) -> None:  # X1
    text = (
        f"{_IMPORTS}D = {{'a': 'A'}}\nL = ['A']\nP = 'A'\nclass K:\n    v = 'A'\ndef helper():\n    return 'A'\n"
        "@perdure.step\ndef work() -> str:\n    return D['a'] + L[0] + P + K.v + helper()\n"
    )
    assert edited in text
    before = _loaded(tmp_path, text).work.digest
    (tmp_path / "kinds.py").write_text(text.replace(edited, edited.replace("'A'", "'BB'")))
    module = sys.modules["kinds"]
    assert module.work.digest == before  # not what runs
    sys.path.insert(0, str(tmp_path))
    try:
        assert changed(before, importlib.reload(module).work.digest)
    finally:
        sys.path.remove(str(tmp_path))
