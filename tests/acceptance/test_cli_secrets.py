"""No command shows a secret, and no file of the store has one, through a crash, an error and a worker (rel:S8)."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from stranger import Shell

from perdure.cli import main
from perdure.cli.outcome import command

CANARY = "canary-7QzX-hunter2"
PROGRAM = """
import logging, os, pathlib, signal
import perdure
from perdure.redaction import Redaction

logging.basicConfig(level=logging.DEBUG)
HERE = pathlib.Path(__file__).parent
RULES = Redaction(patterns=("cust-[0-9]+",))


@perdure.step
def call(key: perdure.Secret, headers: dict, n: int) -> str:
    with open(HERE / "ran.txt", "a") as file:
        file.write(f"{n}\\n")
    perdure.context().stream("calling ")
    perdure.context().save({"key": key})
    for word, act in (("kill", lambda: os.kill(os.getpid(), signal.SIGKILL)), ("fail", lambda: fail(key.reveal()))):
        if n == 2 and (HERE / word).exists():
            (HERE / word).unlink()
            act()
    return f"{n}: {len(key.reveal())}, cust-{n}{n}"


def fail(password):
    raise ValueError(f"cannot log in with {password}", password)


@perdure.flow
def shop(api_key: perdure.Secret, name: str = "ann") -> str:
    headers = {"Authorization": api_key, "X-Name": name}
    return call(api_key, headers, 1) + " " + call(api_key, headers, 2)


@perdure.flow
def plain(api_key: str, n: int = 1) -> int:
    return n
"""
SECRET = ("--secret", "api_key=SHOP_KEY")
RUN = ("run", "shop.py:shop", "-i", "name=bob", *SECRET)
RAN = [str(n) for n in (1, 2)]


@pytest.fixture
def start(
    tmp_path: Path, make_shell: Callable[[str], Shell], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Shell]:
    """A stranger with that program, and the secret in his environment."""

    def made(url: str) -> Shell:
        shell = make_shell(url)
        shell.environment["SHOP_KEY"] = CANARY
        (tmp_path / "shop.py").write_text(PROGRAM)
        monkeypatch.chdir(tmp_path)
        return shell

    return made


@pytest.fixture
def looked_at(capfd: pytest.CaptureFixture[str]) -> Callable[[Shell, str], None]:
    """Has every command show what it has of a run: none shows the canary, and no file has it."""

    def look(shell: Shell, run: str) -> None:
        for words in (
            *(["ls"], ["show", run], ["output", run], ["output", run, "2"], ["tail", run, "--no-follow"]),
            *(["transcript", run], ["files", run], ["questions"], ["check"]),
        ):
            for form in ([], ["--json"]):
                main([*words, *form, "--store", shell.url])
                told = capfd.readouterr()
                assert told.out + told.err and CANARY not in told.out + told.err, words
        for path in shell.folder.rglob("*"):
            assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path

    return look


Look = Callable[[Shell, str], None]


@pytest.mark.parametrize("url", ["sqlite:runs", "file:runs"])
def test_killed_failed_and_resumed_a_run_shows_its_secret_nowhere(
    url: str, start: Callable[[str], Shell], looked_at: Look
) -> None:  # C3
    shell = start(url)
    (shell.folder / "kill").touch()
    shell(*RUN, code=-signal.SIGKILL)
    name = "shop name=bob"
    looked_at(shell, name)
    (shell.folder / "fail").touch()
    failed = subprocess.run(
        shell.words(*RUN, "--traceback"), env=shell.environment, capture_output=True, text=True, timeout=60
    )
    assert failed.returncode == 1
    assert "cannot log in with ***" in failed.stderr and "fail(key.reveal())" in failed.stderr
    assert CANARY not in failed.stdout + failed.stderr
    assert "--secret api_key=SHOP_KEY" in failed.stderr, "the command that goes on says where it was"
    looked_at(shell, name)
    refused = shell("resume", name, "--app", "shop.py:shop", code=2)
    assert "'api_key' is not here" in refused.stderr and "--secret NAME" in refused.stderr
    done = shell("resume", name, "--app", "shop.py:shop", *SECRET, "--redact", "shop.py:RULES")
    assert done.stdout.startswith("1: 19, [redacted:"), "printed as it is recorded"
    assert shell.ran() == sorted([*RAN, "2", "2"])
    looked_at(shell, name)
    assert shell(*RUN, SHOP_KEY="another", code=2).stderr.count("***") >= 2


def test_a_command_to_go_on_with_says_nothing_of_the_stores_password() -> None:
    told = command("resume", "a#0", store="postgresql://ann:hunter2@db/runs?schema=a")
    assert "postgresql://ann:***@db/runs?schema=a" in told
    assert command("ls", store="sqlite:runs.db").endswith(" ls --store sqlite:runs.db")


def test_a_worker_is_told_where_its_secrets_are(start: Callable[[str], Shell], looked_at: Look) -> None:
    shell = start("sqlite:runs")
    run = shell("submit", "shop.py:shop", *SECRET, "--goal", "w").stdout.strip()
    work = ("worker", "--app", "shop.py:shop", "--until-idle")
    assert "is left alone" in shell(*work).stderr and shell.ran() == []
    shell(*work, *SECRET)
    assert shell.ran() == RAN
    looked_at(shell, run)


def test_inputs_that_are_secrets_name_no_run_and_are_not_told_back(
    start: Callable[[str], Shell], looked_at: Look
) -> None:
    shell = start("sqlite:runs")
    key = shell.folder / "key.txt"
    key.write_text(CANARY + "\n")
    done = shell("run", "shop.py:shop", "-i", "api_key=@key.txt")
    key.unlink()
    assert "run shop#0 completed" in done.stderr and CANARY not in done.stderr
    looked_at(shell, "shop")
    done = shell("run", "shop.py:plain", "-i", f"api_key={CANARY}", "-i", "n=two", code=2)
    assert CANARY not in done.stderr
    done = shell("run", "shop.py:plain", "-i", f"api_key={CANARY}")
    assert "run plain#0 completed" in done.stderr and CANARY not in done.stderr
    assert CANARY not in shell("show", "plain").stdout, "a name that says so is enough for people"
    for words in (("--secret", "api_key=NOT_THERE"), ("--redact", "shop.py:shop"), ("--redact", "nowhere")):
        assert shell("run", "shop.py:shop", *words, code=2).stderr.startswith("Error: ")
    assert "declare it so" in shell("run", "shop.py:plain", *SECRET, code=2).stderr.lower()
