"""Submitting and working as a stranger does it, on every store that several processes may share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest
from stranger import Shell

from perdure.testing.servers import Postgres, Valkey

REVIEW = ("submit", "review.py:review", "-i", "path=a.md")
WORK = ("worker", "--app", "review.py", "--until-idle")
BOTH = ["ann", "bob", "load", "score"]
RESULT = ["{", '"~":', '"data",', '"type":', '"review:Score",', '"fields":', "{", '"points":', "20", "}", "}"]


@pytest.fixture(params=["sqlite", "file", "postgresql", "valkey"])
def shell(request: pytest.FixtureRequest, tmp_path: Path, make_shell: Callable[[str], Shell]) -> Shell:
    name = "a" + sha256(str(tmp_path).encode()).hexdigest()[:16]
    if request.param == "postgresql":
        return make_shell(f"{request.getfixturevalue('postgres')(16)}?schema={name}&lease=1")
    if request.param == "valkey":
        return make_shell(f"{request.getfixturevalue('valkey')()}?prefix={name}&lease=1")
    return make_shell(f"{request.param}:runs")


def test_what_is_submitted_waits_for_a_worker_and_says_so(shell: Shell) -> None:
    done = shell(*REVIEW, "--priority", "3", "--queue", "night")
    assert done.stdout == "review path=a.md#0\n" and "worker --app review.py:review" in done.stderr
    assert shell.json(*REVIEW, "--queue", "night") == {"run": "review path=a.md#0"}, "it is there already"
    assert shell.ran() == []
    (row,) = shell.json("ls")
    assert (row["status"], row["queue"], row["priority"], row["why"]) == ("queued", "night", 3, "no worker runs")
    assert "no worker runs" in shell("ls").stdout
    shell(*WORK, "--queue", "day")
    assert shell.ran() == []
    done = shell(*WORK, "--queue", "night", "--queue", "day")
    assert "run review path=a.md#0 begins (it was queued)" in done.stderr and shell.ran() == BOTH
    assert shell("output", "review path=a.md").stdout.split() == RESULT
    shell(*WORK)
    assert shell.ran() == []
    assert shell("check").stdout.splitlines()[-1] == "1 run read, none damaged"


def test_a_worker_goes_on_with_what_a_killed_process_left(shell: Shell) -> None:  # B2 X14
    shell.trap("score", "SIGKILL")
    shell("run", "review.py:review", "-i", "path=a.md", "--quiet", code=-signal.SIGKILL)
    assert shell.ran() == BOTH
    worker = shell.start("worker", "--app", "review.py")
    while not (shell.folder / "ran.txt").exists():
        assert worker.poll() is None
    assert shell("run", "review.py:review", "-i", "path=a.md", "--wait", "--quiet").stdout.split() == RESULT
    worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0 and "worker stopped" in said
    assert shell.ran() == ["score"]


def test_a_poison_step_is_given_up_named_and_tried_again_after_a_fix(shell: Shell) -> None:  # X4
    shell(*REVIEW, "--goal", "poison")
    for _ in range(2):
        shell.trap("score", "SIGKILL")
        _until_it_takes_it_up(shell, code=-signal.SIGKILL)
    assert shell.ran() == [*BOTH, "score"]
    _until_it_takes_it_up(shell)
    row = shell.json("ls")[0]
    assert row["status"] == "paused" and "step 4 (score) has crashed its process 2 times in a row" in row["reason"]
    assert shell.ran() == [], "and is not executed again"
    shell("unpause", "none", code=2)
    assert "may go on" in shell("retry", "poison").stdout
    assert "it is ready" in shell("retry", "poison", code=2).stderr
    shell(*WORK)
    assert shell.ran() == ["score"] and shell.json("ls")[0]["status"] == "completed"


def _until_it_takes_it_up(shell: Shell, code: int = 0) -> None:
    """A worker until it has nothing left. On a server the lease of the one before has to end first."""
    while shell.json("ls")[0]["holder"] is not None:
        pass
    shell(*WORK, "--crash-limit", "2", code=code)


def test_what_was_submitted_under_a_key_is_not_submitted_again(make_shell: Callable[[str], Shell]) -> None:  # rel:R8
    shell = make_shell("sqlite:runs.db")
    words = ("submit", "review.py:review", "--key", "mail 17", "-i")
    assert shell(*words, "path=a").stdout == shell(*words, "path=a").stdout == "review mail 17#0\n"
    assert "was begun with other inputs" in shell(*words, "path=b", code=2).stderr
    assert len(shell.json("ls")) == 1


def test_a_failed_run_has_another_life_at_once(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    (shell.folder / "break-bob").touch()
    shell(*REVIEW, "--goal", "g")
    done = shell(*WORK)
    assert "run g#0 failed: ValueError: bob is broken" in done.stderr
    (shell.folder / "break-bob").unlink()
    shell.ran()
    done = shell("retry", "g", "--app", "review.py:review", "--by", "ann")
    assert done.stdout.split() == RESULT and shell.ran() == ["bob", "score"]
    assert "is completed" in shell("retry", "g", code=2).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("submit", "review.py:review", "-i", "path=a", "--rate", "5"), "--rate '5' is no rate"),
        (("submit", "review.py:review", "-i", "path=a", "--rate", "5/0"), "a rate is (runs, seconds)"),
        (("submit", "review.py:review", "-i", "path=a", "--concurrency", "-1"), "concurrency must be"),
        (("submit", "review.py:review", "-i", "path=a", "--delay", "-1"), "delay must be"),
        (("submit", "review.py:review", "-i", "path=a", "--queue", ""), "queue is empty"),
        (("submit", "review.py:review"), "review needs path"),
        (("submit", "review.py:nothing"), "has no 'nothing'"),
        (("worker",), "--app"),
        (("worker", "--app", "nowhere.py"), "There is no file"),
        (("worker", "--app", "review.py:load"), "load is a step"),
        (("worker", "--app", "empty.py"), "empty.py has no flows"),
        (("worker", "--app", "review.py", "--concurrency", "0"), "0 is not in the range"),
        (("worker", "--app", "review.py", "--grace", "-1"), "-1"),
        (("retry", "nothing"), "There is no run 'nothing'"),
        (("submit", "review.py:review", "-i", "path=a", "--store", "memory:"), "this store ends with the command"),
        (("schema", "--schema", "a b"), "cannot name a schema"),
        (("schema", "--role", ""), ""),
    ],
)
def test_wrong_words_are_one_sentence(make_shell: Callable[[str], Shell], words: tuple[str, ...], said: str) -> None:
    shell = make_shell("sqlite:runs.db")
    shell("submit", "review.py:review", "-i", "path=there")
    (shell.folder / "empty.py").write_text("NUMBER = 3\n")
    done = shell(*words, code=2 if said else 0)
    assert said in done.stderr and shell.ran() == []


def test_check_tells_what_a_server_would_lose(make_shell: Callable[[str], Shell]) -> None:  # rel:D5 rel:D6
    server = Postgres(16, {"synchronous_commit": "off", "fsync": "off"})
    try:
        shell = make_shell(server.url)
        done = shell("check", code=2)
        assert "There is no store at postgresql://postgres@127.0.0.1" in done.stderr
        ran = shell("run", "review.py:review", "-i", "path=a", "--quiet")
        shell("submit", "review.py:review", "-i", "path=b")
        worked = shell(*WORK)
        for said in ("synchronous_commit=off", "fsync=off"):
            assert ran.stderr.count(said) == worked.stderr.count(said) == 1, "once in the log"
            assert said in shell("check").stdout
        told = shell.json("check")
        assert told["durable"] is False and told["lease"] == 15.0
        assert [finding["kind"] for finding in told["findings"]] == ["settings"] * 2
    finally:
        server.throw_away()
    valkey = Valkey({"appendfsync": "everysec"})
    try:
        shell = make_shell(valkey.url)
        assert shell("run", "review.py:review", "-i", "path=a", "--quiet").stderr.count("appendfsync") == 1
        assert shell.json("check")["durable"] is False and "appendfsync" in shell("check").stdout
        shell.environment["PERDURE_STORE"] = f"{valkey.url}?waitaof=yes"
        assert shell.json("check")["durable"] is True
    finally:
        valkey.throw_away()


def test_check_tells_which_run_is_damaged(make_shell: Callable[[str], Shell]) -> None:  # rel:D9
    shell = make_shell("file:runs")
    for goal in ("good", "bad"):
        shell("run", "review.py:review", "-i", "path=a", "--goal", goal, "--quiet")
    path = shell.folder / "runs" / "runs" / "bad.0" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b"load", b"laod"), *lines[2:]]))
    done = shell("check", code=4)
    assert "damaged:" in done.stdout and "bad.0" in done.stdout and "2 runs read, 1 damaged" in done.stdout
    told = shell.json("check", code=4)
    (found,) = told["findings"]
    assert (found["kind"], found["level"], found["run"]) == ("damaged", "damage", "bad#0")
    assert told["store"].startswith("file:") and told["counts"]["damaged"] == 1 and told["exit_code"] == 4
    assert "none damaged" in shell("check", "good").stdout and "bad#0" in shell("check", "bad", code=4).stdout


def test_a_user_with_rights_on_the_tables_only_needs_a_database_administrator_once(
    make_shell: Callable[[str], Shell], postgres: Callable[[int], str], tmp_path: Path
) -> None:  # K4
    admin = postgres(16)
    name = "r" + sha256(str(tmp_path).encode()).hexdigest()[:12]
    with psycopg.connect(admin, autocommit=True) as db:
        db.execute(f"CREATE ROLE {name} LOGIN")
    shell = make_shell(f"{admin.replace('postgres@', name + '@')}?schema={name}")
    done = shell(*REVIEW, code=2)
    assert "this user may not" in done.stderr and f"perdure schema --schema {name} --role USER" in done.stderr
    sql = shell("schema", "--schema", name, "--role", name).stdout
    with psycopg.connect(admin, autocommit=True) as db:
        db.execute(sql)
    shell(*REVIEW)
    shell(*WORK)
    assert shell.json("ls")[0]["status"] == "completed" and shell.ran() == BOTH
    with psycopg.connect(admin.replace("postgres@", f"{name}@"), autocommit=True) as db, pytest.raises(psycopg.Error):
        db.execute(f"CREATE TABLE {name}.more (x int)")
    shell.environment["PERDURE_STORE"] = f"{admin}?schema={name}_2"
    shell("ls", code=2)


def test_the_readme_takes_a_reader_from_one_process_to_three_workers(
    make_shell: Callable[[str], Shell], postgres: Callable[[int], str], tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    section = (root / "README.md").read_text().partition("## From one process to three workers")[2]
    block = section.split("```")[1]
    install, export, *commands = [line.partition("#")[0].split() for line in block.strip().splitlines()]
    assert install[:2] == ["pip", "install"] and export[1].startswith("PERDURE_STORE=postgresql://")
    assert [words[:2] for words in commands] == [["perdure", "submit"], ["perdure", "worker"], ["perdure", "ls"]]
    name = "d" + sha256(str(tmp_path).encode()).hexdigest()[:16]
    shell = make_shell(f"{postgres(18)}?schema={name}")
    (shell.folder / "examples").symlink_to(root / "examples")
    submit, work, ls = (words[1:] for words in commands)
    shell(*submit)
    workers = [shell.start(*work) for _ in range(3)]
    while shell.json(*ls)[0]["status"] != "completed":
        assert all(worker.poll() is None for worker in workers)
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    said = [worker.communicate(timeout=60)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    assert sum("begins (it was queued)" in text for text in said) == 1, "one of them had it"
