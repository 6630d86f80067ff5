"""Wrong use and bad input: one paragraph that says what and what to do, the documented exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
from stranger import Shell

import perdure

RUN = ("run", "review.py:review", "--input", "path=a.md", "--goal", "paper")


def paragraph(shell: Shell, *words: str, code: int) -> str:
    """The error of a command: one paragraph on stderr, and as one JSON object with --json."""
    done = shell(*words, code=code)
    assert done.stdout == "" and "Error: " in done.stderr
    if words[0] in ("run", "resume", "ls", "show", "output", "tail"):
        told = json.loads(shell(*words, "--json", code=code).stdout.splitlines()[-1])["error"]
        assert told["exit_code"] == code and told["message"] in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mongodb:x", "no store of the kind 'mongodb'. Use one of memory:, file:DIR, sqlite:PATH"),
        (
            "postgresql://me:secret@host/db?lease=never",
            "parameter lease of the store's URL must be 0.5 to 86400 seconds",
        ),
        ("sqlite:", "names no path"),
        ("runs.db", "'runs.db' is not the URL of a store. Use one of"),
        ("sqlite:taken/runs.db", "taken"),
        ("file:taken", "taken"),
        ("sqlite:folder", "folder"),
        ("file:/proc/nowhere/runs", "/proc/nowhere"),
    ],
)
def test_a_store_that_cannot_be(make_shell: Callable[[str], Shell], url: str, said: str) -> None:
    shell = make_shell("memory:")
    (shell.folder / "taken").write_text("mine")
    (shell.folder / "folder").mkdir()
    done = shell(*RUN, "--store", url, code=2)
    assert said in done.stderr and "secret" not in done.stderr
    assert (shell.folder / "taken").read_text() == "mine" and shell.ran() == []


@pytest.mark.parametrize("kind", ["postgresql", "redis"])
def test_a_server_that_is_not_there_is_named_without_its_password(
    make_shell: Callable[[str], Shell], kind: str
) -> None:
    shell = make_shell("memory:")
    done = shell(*RUN, "--store", f"{kind}://me:secret@127.0.0.1:1/0", code=4)
    assert f"{kind}://me:***@127.0.0.1:1" in done.stderr and "secret" not in done.stderr
    assert "Traceback" not in done.stderr and shell.ran() == []


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ("../../etc", "contains the path component '..'"),
        ("", "goal is empty"),
        ("   ", "goal is empty"),
        ("x" * 100_000, "has 100,000 characters; the limit is 512"),
        ("a\nb", "control characters"),
    ],
)
def test_a_goal_that_cannot_name_a_run(shell: Shell, goal: str, said: str) -> None:
    error = paragraph(shell, "run", "review.py:review", "-i", "path=a", "--goal", goal, code=2)
    assert said in error and len(error) < 500
    assert shell.ran() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "nothing.py:review"), "There is no file"),
        (("run", "nothing:review"), "There is no module 'nothing'"),
        (("run", "review.py"), "does not name a function"),
        (("run", "review.py:reviw"), "has no 'reviw'. It has:"),
        (("run", "review.py:NUMBER"), "is a int, not a flow"),
        (("run", "review.py:load", "-i", "path=x"), "load is a step, not a flow"),
        (("run", "review.py:review"), "review needs path. It takes: --input path=TEXT, --input scale=INT (default 10)"),
        (("run", "review.py:review", "-i", "pth=x"), "takes no input 'pth'. It takes:"),
        (("run", "review.py:review", "-i", "path"), "has no '='"),
        (("run", "review.py:review", "-i", "path=x", "-i", "path=y"), "given twice"),
        (("run", "review.py:review", "-i", "path=x", "-i", "scale=many"), "input scale='many' is no INT"),
        (("run", "review.py:review", "-i", "path=x", "-i", "tone=loud"), "input tone='loud' is no"),
        (("run", "review.py:review", "-i", "path=@gone"), "cannot be read from 'gone'"),
        (("run", "gone.toml"), "There is no file gone.toml"),
        (("show", "nobody"), "There is no run 'nobody'"),
        (("ls", "--store", "sqlite:gone.db"), "gone.db"),
        (("ls", "--status", "nope"), "'nope' is no status. Write one of running, crashed"),
        (("run", "review.py:review", "-i", "path=x", "--redact", "nope"), "--redact 'nope' names no rules"),
        (("output", "nobody", "3"), "There is no run"),
    ],
)
def test_a_wrong_command_line(shell: Shell, words: tuple[str, ...], said: str) -> None:
    shell("run", "review.py:review", "-i", "path=x", "--goal", "there is one")
    shell.ran()
    error = paragraph(shell, *words, code=2)
    assert said in error
    assert shell.ran() == []
    assert [row["run"] for row in shell.json("ls")] == ["there is one#0"]


def test_a_program_that_cannot_be_imported_is_told_with_its_own_error(shell: Shell) -> None:
    (shell.folder / "broken.py").write_text("import perdure\n1 / 0\n")
    assert "broken.py cannot be imported" in (error := paragraph(shell, "run", "broken.py:review", code=2))
    assert "ZeroDivisionError: division by zero" in error and "line 2" in error
    (shell.folder / "lacking.py").write_text("import no_such_thing\n")
    assert "No module named 'no_such_thing'" in paragraph(shell, "run", "lacking:review", code=2)


def test_everything_that_is_wrong_with_a_toml_file_is_told_at_once(shell: Shell) -> None:
    (shell.folder / "wrong.toml").write_text(
        """
        nam = "x"
        [[stage]]
        run = "review:lod"
        [[stage]]
        run = "review:load"
        retires = 2
        [[stage]]
        crew = "c"
        experts = [{ run = "review:meta" }, { rn = "x" }]
        gather = { run = "gone:meta" }
        [[stage]]
        parallel = []
        """
    )
    error = paragraph(shell, "run", "wrong.toml", "-i", "path=a", code=2)
    for said in (
        "the file: unknown key 'nam'; did you mean 'name'?",
        "stage 1: review has no 'lod'",
        "stage 2: unknown key 'retires'; did you mean 'retries'?",
        'stage 3, expert 2: needs run = "module:function"',
        "stage 3, gather: There is no module 'gone'",
        "stage 4: needs a list",
    ):
        assert said in error
    (shell.folder / "wrong.toml").write_text("[[stage]\n")
    assert "wrong.toml cannot be read" in paragraph(shell, "run", "wrong.toml", code=2)
    (shell.folder / "wrong.toml").write_text('[[stage]]\nrun = "review:meta"\n[[stage]]\nrun = "review:needs"\n')
    assert "nothing fills its parameters one, two" in paragraph(shell, "run", "wrong.toml", "-i", "reviews=a", code=2)


def sql(shell: Shell, statement: str) -> None:
    database = apsw.Connection(str(shell.folder / "runs"))
    database.execute(statement).fetchall()
    database.close()


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    """These bytes wherever they stand; a database may hold them twice, once in a page that is free."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def crashed(shell: Shell) -> None:
    """A run of three finished steps whose process was killed in the fourth."""
    shell.trap("score", "SIGKILL")
    shell(*RUN, code=-signal.SIGKILL)
    shell.ran()


def test_a_flipped_byte_in_the_middle_is_told_and_never_a_silent_new_start(shell: Shell) -> None:  # G8
    crashed(shell)
    journal = "runs" if shell.url.startswith("sqlite") else "runs/runs/paper.0/journal.jsonl"
    if shell.url.startswith("sqlite"):
        sql(shell, "PRAGMA wal_checkpoint(TRUNCATE)")  # the records stand in the file itself
    path = shell.folder / journal
    replace_in(path, b"text of a.md", b"Text of a.md")
    error = paragraph(shell, *RUN, code=4)
    assert "paper#0" in error and "record" in error and "Nothing was changed" in error
    for words in (("show", "paper"), ("resume", "paper", "--app", "review.py:review"), ("tail", "paper")):
        assert "record" in paragraph(shell, *words, code=4)
    assert shell.ran() == []
    shell("run", "review.py:review", "-i", "path=b", "--goal", "another run is not affected")
    if shell.url.startswith("sqlite"):
        sql(shell, "PRAGMA wal_checkpoint(TRUNCATE)")
    shell.ran()
    replace_in(path, b"Text of a.md", b"text of a.md")
    shell(*RUN)
    assert shell.ran() == ["score"], "restored, it goes on as if nothing had been"


def test_a_newer_schema_is_refused_and_not_touched(shell: Shell) -> None:  # K4
    crashed(shell)
    if shell.url.startswith("sqlite"):
        sql(shell, "INSERT INTO perdure_schema VALUES (99, 'from the future', 0)")
    else:
        path = shell.folder / "runs" / "format.json"
        path.write_text('{"store":"perdure","version":99}')
    error = paragraph(shell, *RUN, code=2)
    assert "newer" in error and "99" in error
    assert "newer" in paragraph(shell, "ls", code=2)
    assert shell.ran() == []


def limited(shell: Shell, size: int, *words: str) -> subprocess.CompletedProcess[str]:
    """A command that may write no file larger than ``size`` bytes: a disk that fills up."""
    return subprocess.run(
        shell.words(*words),
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)),
    )


def test_a_disk_that_fills_up_stops_the_run_with_what_to_do_and_loses_nothing(shell: Shell) -> None:
    crashed(shell)
    files = [path for path in shell.folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    grown = max(path.stat().st_size for path in files)
    done = limited(shell, grown + 100, *RUN)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert "lost" in done.stderr and "run again" in done.stderr
    shell.ran()
    shell(*RUN)
    assert shell.ran() == ["score"]


def test_a_result_that_cannot_be_stored_is_refused_with_path_and_type(shell: Shell) -> None:  # W8
    (shell.folder / "odd.py").write_text(
        "import perdure, threading\n"
        "@perdure.step\n"
        "def make() -> dict:\n"
        "    return {'reviews': [1, threading.Event()]}\n"
        "@perdure.flow\n"
        "def odd() -> dict:\n"
        "    return make()\n"
    )
    error = paragraph(shell, "run", "odd.py:odd", code=2)
    assert "make()['reviews'][1]: threading.Event" in error and "register" in error


def test_a_ten_megabyte_goal_is_refused_in_a_short_sentence(tmp_path: Path) -> None:
    import perdure

    with pytest.raises(perdure.PerdureError) as error:
        perdure.run(lambda: 1, goal="x" * 10_000_000, store=f"sqlite:{tmp_path / 'runs.db'}")
    assert "10,000,000 characters" in str(error.value) and len(str(error.value)) < 300
    assert not list(tmp_path.iterdir())


def test_what_a_run_says_does_nothing_to_a_terminal(tmp_path: Path) -> None:  # rel:S12
    hostile = "\x1b[2J\x07\x9b31m"

    @perdure.step
    def work(what: str) -> str:
        perdure.context().stream(what)
        raise ValueError(what)

    @perdure.flow(name="flow")
    def flow(what: str) -> str:
        if perdure.ask(f"Go {what}?", answer=bool, to=what):
            return work(what)
        return what

    url = f"sqlite:{tmp_path / 'runs.db'}"
    with suppress(perdure.PerdureError):
        perdure.run(flow, hostile, goal="g", store=url)
    for words in (["questions"], ["answer", "g", "--value", "true", "--by", "ann"]):
        told = _on_a_terminal([*words, "--store", url])
        assert "Go" in told or "answer" in told.lower()
        assert not any(mark in told for mark in ("\x1b[2J", "\x07", "\x9b"))
    with suppress(ValueError):
        perdure.run(flow, hostile, goal="g", store=url)
    for words in (["ls"], ["show", "g"], ["tail", "g", "--no-follow"], ["output", "g", "work"]):
        told = _on_a_terminal([*words, "--store", url])
        assert not any(mark in told for mark in ("\x1b[2J", "\x07", "\x9b")), words


def _on_a_terminal(words: list[str]) -> str:
    """What the command prints to a terminal."""
    parent, child = pty.openpty()
    done = subprocess.Popen([sys.executable, "-m", "perdure", *words], stdin=child, stdout=child, stderr=child)
    os.close(child)
    told = b""
    with suppress(OSError):  # the other end was closed
        while piece := os.read(parent, 65536):
            told += piece
    os.close(parent)
    done.wait(timeout=60)
    return told.decode("utf-8", "replace")
