"""``perdure questions``, ``answer``, ``signal``, ``pause``, ``unpause``, ``cancel``, as a stranger uses them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess

import pytest
from stranger import Shell

PROGRAM = """
import asyncio, functools, pathlib, signal
from dataclasses import dataclass
from datetime import timedelta
import perdure

HERE = pathlib.Path(__file__).parent


def ran(name):
    with open(HERE / "ran.txt", "a") as file:
        file.write(name + "\\n")


@dataclass
class Verdict:
    accept: bool
    score: int


@perdure.step
def draft(topic: str) -> str:
    ran("draft")
    return f"text on {topic}"


@perdure.step
def publish(text: str, how: str) -> str:
    ran("publish")
    return f"{how}: {text}"


@perdure.step
def undo() -> str:
    ran("undo")
    return "undone"


@perdure.flow
def paper(topic: str) -> str:
    text = draft(topic)
    if not perdure.ask("Publish it?", answer=bool, context=text, to="editor", deadline=timedelta(days=7)):
        return "dropped"
    return publish(text, perdure.ask("Where?", choices=["web", "print"], name="where"))


@perdure.flow
def judged() -> Verdict:
    return perdure.ask("And?", answer=Verdict)


@perdure.flow
async def panel() -> list[Verdict]:
    return await perdure.gather(perdure.ask("And?", answer=Verdict), perdure.ask("And?", answer=Verdict))


@perdure.flow
def pair() -> list:
    return perdure.gather(functools.partial(perdure.ask, "One?"), functools.partial(perdure.ask, "Two?"))


@perdure.flow
def attempt() -> str:
    return perdure.ask("Title?")


best = perdure.best_of(1, attempt, judge=lambda title: len(title))


@perdure.flow
def order() -> dict:
    return perdure.signal("paid")


@perdure.flow
def nap() -> None:
    perdure.sleep(timedelta(days=3))


@perdure.flow(on_cancel=lambda: undo())
def careful() -> str:
    return perdure.ask("Go on?")


@perdure.step
async def forever() -> str:
    ran("forever")
    await asyncio.sleep(3600)


@perdure.flow
async def busy() -> str:
    return await forever()
"""


@pytest.fixture
def shop(shell: Shell) -> Shell:
    (shell.folder / "shop.py").write_text(PROGRAM)
    return shell


def run(shop: Shell, flow: str, *more: str, code: int = 5, goal: str = "g") -> subprocess.CompletedProcess[str]:
    return shop("run", f"shop.py:{flow}", "--goal", goal, *more, code=code)


def test_a_run_asks_and_is_answered_days_later_from_elsewhere(shop: Shell) -> None:  # W1
    told = run(shop, "paper", "-i", "topic=tides").stderr
    assert "Waiting: run g#0 waits for an answer to question 2 (Publish it?)" in told and "Error" not in told
    assert "perdure answer 'g#0' 2" in told and "perdure resume 'g#0' --app shop.py:paper" in told
    [row] = shop.json("ls", "--status", "pending_input")
    assert row["run"] == "g#0" and row["questions"][0]["prompt"] == "Publish it?"
    [question] = shop.json("questions")
    assert (question["to"], question["context"], question["schema"]) == ("editor", "text on tides", {"type": "boolean"})
    text = shop("questions").stdout
    assert "Publish it?" in text and "editor" in text and ("in 6 d 23 h" in text or "in 7 d 0 h" in text)
    assert "perdure answer 'g#0' 2" in shop("show", "g").stdout
    done = shop("answer", "g", "--value", "yes", "--by", "ann")
    assert "text on tides" in done.stderr and "Answered: true, by ann" in done.stderr
    assert [row["run"] for row in shop.json("ls", "--due")] == ["g#0"]
    again = shop("answer", "g", "--value", "no", code=2).stderr
    assert "question 2 was answered already, by ann at 2" in again
    assert "answer to question 3 (Where?)" in shop("resume", "g", "--app", "shop.py:paper", code=5).stderr
    assert shop("answer", "g", "where", "--value", "2", "--app", "shop.py:paper").stdout == "print: text on tides\n"
    assert shop.ran() == ["draft", "publish"]
    assert shop("questions").stdout.startswith("Nobody is asked anything in ")
    assert "was answered by ann: true" in shop("tail", "g", "--no-follow").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("g", "--value", "perhaps"), "'perhaps' is not of type 'boolean'"),
        (("g", "--json", "{"), "is no JSON"),
        (("g", "--json", '"yes"'), "'yes' is not of type 'boolean'"),
        (("g", "--json", "1", "--value", "1"), "use one"),
        (("g", "9", "--value", "yes"), "asks no question '9'"),
        (("h", "--value", "yes"), "There is no run 'h'"),
        (("g", "--value", "yes", "--by", " "), "by"),
    ],
)
def test_an_answer_that_cannot_be_taken_is_refused_with_the_reason(
    shop: Shell, words: tuple[str, ...], said: str
) -> None:
    run(shop, "paper", "-i", "topic=tides")
    done = shop("answer", *words, code=2)
    assert said in done.stderr
    assert len(shop.json("questions")) == 1, "nothing was changed"


def test_an_answer_as_json_and_from_standard_input(shop: Shell) -> None:
    for value, goal in (("--json", "a"), ("", "b")):
        run(shop, "judged", goal=goal)
        words = shop.words("answer", goal, *((value, '{"accept": true, "score": 3}') if value else ()))
        done = subprocess.run(
            [*words, "--app", "shop.py:judged"],
            cwd=shop.folder,
            env=shop.environment,
            input='{"accept": true, "score": 3}\n',
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["fields"] == {"accept": True, "score": 3}


def test_of_several_questions_one_must_be_named(shop: Shell) -> None:
    run(shop, "pair")
    assert "asks 2 questions: 1 (One?); 2 (Two?)" in shop("answer", "g", "--value", "x", code=2).stderr
    shop("answer", "g", "1", "--value", "x")
    shop("answer", "g", "--value", "y")
    assert json.loads(run(shop, "pair", code=0).stdout) == ["x", "y"]


class Terminal:
    """A command on a pseudo-terminal that somebody types into."""

    def __init__(self, shop: Shell, *words: str) -> None:
        self._fd, theirs = pty.openpty()
        environment = {**shop.environment, "TERM": "dumb"}
        self._child = subprocess.Popen(
            shop.words(*words), cwd=shop.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.seen = ""

    def expect(self, text: str) -> None:
        while text not in self.seen:
            assert select.select([self._fd], [], [], 60)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self._fd, 65536).decode()
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._fd, f"{text}\n".encode())

    def end(self) -> int:
        code = self._child.wait(60)
        os.close(self._fd)
        return code


def test_on_a_terminal_it_asks_until_the_answer_fits(shop: Shell) -> None:
    run(shop, "paper", "-i", "topic=tides")
    terminal = Terminal(shop, "answer", "g")
    terminal.expect("text on tides")
    terminal.expect("Answer (true or false)")
    terminal.type("perhaps")
    terminal.expect("It takes: true or false")
    terminal.type("Yes")
    terminal.expect("Answered: true")
    assert terminal.end() == 0
    run(shop, "paper", "-i", "topic=tides")
    terminal = Terminal(shop, "answer", "g")
    terminal.expect("2) print")
    terminal.type("2")
    terminal.expect('Answered: "print"')
    assert terminal.end() == 0


def test_on_a_terminal_one_of_several_questions_is_chosen(shop: Shell) -> None:
    run(shop, "pair")
    terminal = Terminal(shop, "answer", "g")
    terminal.expect("2  Two?")
    terminal.expect("Which one")
    terminal.type("2")
    terminal.expect("Two?")
    terminal.type("second")
    terminal.expect("Answered")
    assert terminal.end() == 0
    assert [q["prompt"] for q in shop.json("questions")] == ["One?"]


def test_a_signal_and_its_value(shop: Shell) -> None:
    assert "the signal 'paid'" in run(shop, "order").stderr
    shop("signal", "g", "other", "--value", "x")
    assert run(shop, "order").returncode == 5
    assert "can go on" in shop("signal", "g", "paid", "--json", '{"amount": 12.5}', "--by", "bank").stderr
    assert json.loads(run(shop, "order", code=0).stdout) == {"amount": 12.5}
    assert "is completed; nothing was changed" in shop("signal", "g", "paid", code=2).stderr


def test_what_an_attempt_asks_is_told_by_the_run_that_began_it(shop: Shell) -> None:  # K2
    told = run(shop, "best").stderr
    assert "perdure answer 'g/best#0' 1" in told
    shop("answer", "g/best#0", "--value", "x")
    assert run(shop, "best", code=0).returncode == 0


def test_a_run_that_sleeps_tells_until_when_as_json_too(shop: Shell) -> None:
    told = json.loads(run(shop, "nap", "--json").stdout)
    assert (told["run"], told["status"], told["questions"]) == ("g#0", "waiting", []) and told["until"].startswith("2")
    assert shop.json("ls", "--due") == [] and shop.json("ls", "--status", "waiting")[0]["wake"] > 1e9


def test_cancel_at_rest_with_clean_ups_and_in_the_middle_of_a_step(shop: Shell) -> None:  # B9
    run(shop, "judged", goal="rest")
    assert shop("cancel", "rest", "--reason", "enough").stdout == "Run rest#0 is cancelled.\n"
    assert "was cancelled by" in run(shop, "judged", goal="rest", code=6).stderr
    run(shop, "careful", goal="careful")
    assert "as soon as its clean-ups have run" in shop("cancel", "careful").stdout
    shop("resume", "careful", "--app", "shop.py:careful", code=6)
    assert shop.ran() == ["undo"]
    child = shop.start("run", "shop.py:busy", "--goal", "busy")
    assert child.stderr is not None
    for line in child.stderr:
        if "forever" in line:
            break
    assert shop("cancel", "busy", "--by", "ann").stdout == "Run busy#0 is cancelled.\n"
    assert child.wait(60) == 6 and "cancelled by ann" in child.stderr.read()
    child.stderr.close()
    assert child.stdout is not None
    child.stdout.close()
    assert {row["run"]: row["status"] for row in shop.json("ls")} == dict.fromkeys(
        ("busy#0", "careful#0", "rest#0"), "cancelled"
    )
    assert "is cancelled; nothing was changed" in shop("pause", "rest", code=2).stderr


def test_wait_stays_until_the_answer_is_there(shop: Shell) -> None:
    child = shop.start("run", "shop.py:judged", "--goal", "g", "--wait", "--quiet")
    while not _asked(shop):
        assert child.poll() is None
    shop("answer", "g", "--json", '{"accept": false, "score": 1}')
    out, error = child.communicate(timeout=60)
    assert child.returncode == 0, error
    assert json.loads(out)["fields"] == {"accept": False, "score": 1}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("flow", ["judged", "panel"])
def test_stopped_while_it_waits_the_question_stays_and_the_run_goes_on(
    shop: Shell, flow: str, number: int, code: int
) -> None:  # B3
    child = shop.start("run", f"shop.py:{flow}", "--goal", "g", "--wait")
    while not _asked(shop):
        assert child.poll() is None
    child.send_signal(number)
    _, error = child.communicate(timeout=60)
    assert child.returncode == code, error
    [row] = shop.json("ls")
    assert (row["status"], row["holder"], row["asking"]) == ("interrupted", None, 1 if flow == "judged" else 2)
    for question in shop.json("questions"):
        shop("answer", "g", question["id"], "--json", '{"accept": false, "score": 1}')
    assert '"score":1' in "".join(run(shop, flow, code=0).stdout.split())


def _asked(shop: Shell) -> bool:
    done = subprocess.run(
        shop.words("questions", "--json"), cwd=shop.folder, env=shop.environment, capture_output=True, text=True
    )
    return done.returncode == 0 and done.stdout.strip() not in ("", "[]")


def test_help_teaches(shop: Shell) -> None:
    for name in ("questions", "answer", "signal", "pause", "unpause", "cancel"):
        text = shop(name, "--help").stdout
        assert "RUN" in text.partition("\n")[0] and "--store" in text
