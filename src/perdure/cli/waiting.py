"""``perdure questions``, ``answer`` and ``signal``: what runs wait for, and giving it to them."""

from __future__ import annotations

import getpass
import sys
from contextlib import suppress
from typing import Any

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, command, write
from perdure.cli.run import resume
from perdure.cli.words import age, moment, plain_table, say
from perdure.clock import SYSTEM
from perdure.errors import AnswerRefused, ConfigError
from perdure.fold import State
from perdure.inbox import MAX_POST
from perdure.limits import decoded
from perdure.model import Question, head
from perdure.redaction import discreet
from perdure.runtime.client import Client
from perdure.runtime.forms import misfit, told

_YES_NO = {"yes": True, "y": True, "true": True, "no": False, "n": False, "false": False}
by_option = click.option("--by", default=getpass.getuser, show_default="you", help="Who decides; kept with the run.")
_GIVEN = (
    click.option(
        "--value", metavar="TEXT", help="The value: text, a choice, yes or no, or JSON where text does not fit."
    ),
    click.option("--json", "as_json", metavar="JSON", help="The value as JSON."),
)


@click.command()
@click.argument("name", metavar="[RUN]", required=False)
@store_option
@json_option
def questions(name: str | None, store: str | None, as_json: bool) -> int:
    """List what runs ask people, oldest first, with deadlines: of all runs, or of RUN.

    The column "then" says what holds when the deadline passes without an answer.

    \b
      perdure questions
      perdure answer RUN QUESTION      answers one
    """
    with Client(store) as client:
        found = client.questions(name)
        if as_json:
            write(msgspec.json.encode([_row(client.question(q.run, q.id)) for q in found]))
            return OK
        place = client.url
    if not found:
        say(f"Nobody is asked anything in {place}.")
        return OK
    now = SYSTEM.now()
    cells = [
        (
            q.run,
            str(q.step),
            head(q.prompt, 60),
            q.to,
            age(now - q.asked) + " ago",
            _deadline(q, now),
            q.otherwise or "-",
        )
        for q in found
    ]
    say(plain_table(("run", "#", "question", "to", "asked", "deadline", "then"), cells))
    say("Answer one with: " + command("answer", "RUN", "QUESTION", store=store))
    return OK


def _row(question: Question) -> dict[str, Any]:
    row = {field: getattr(question, field) for field in question.__struct_fields__}
    return {**row, "asked": moment(question.asked), "until": moment(question.until) or None}


def _deadline(question: Question, now: float) -> str:
    if not question.until:
        return "-"
    return f"in {age(question.until - now)}" if question.until > now else "passed"


def given(fn: Any) -> Any:
    for option in reversed(_GIVEN):
        fn = option(fn)
    return fn


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("question", metavar="[QUESTION]", required=False)
@given
@by_option
@click.option("--app", metavar="TARGET", help="Go on with the run at once: module:flow, file.py:flow or file.toml.")
@store_option
@click.pass_context
def answer(
    context: click.Context,
    name: str,
    question: str | None,
    value: str | None,
    as_json: str | None,
    by: str,
    app: str | None,
    store: str | None,
) -> int:
    """Answer QUESTION (its number, name or id; needed if there are several) of RUN.

    Shows the question and reads the answer: from --value or --json, else from standard input. On a terminal it asks,
    until the answer fits. The first answer counts.

    \b
      perdure answer paper-17
      perdure answer paper-17 3 --value yes --app review.py:review
      echo '{"approved": true}' | perdure answer paper-17
    """
    with Client(store) as client:
        asked = client.question(name, _chosen(client, name, question))
        _show(asked)
        decided = (
            _prompted(asked)
            if value is None and as_json is None and sys.stdin.isatty()
            else read(value, as_json, asked)
        )
        state = client.answer(name, asked.id, decided, by=by)
    say(f"Answered: {msgspec.json.encode(decided).decode()}, by {by}.", err=True)
    if app is not None:
        return int(context.invoke(resume, name=str(state.key), app=app, store=store))
    _tell_next(state, store)
    return OK


def _tell_next(state: State, store: str | None) -> None:
    if state.status == "ready":
        go_on = command("resume", str(state.key), "--app", state.target or "TARGET", store=store)
        say(f"Run {state.key} can go on:\n  {go_on}", err=True)


def _chosen(client: Client, name: str, question: str | None) -> str | None:
    """The question that is meant; on a terminal a person may choose among several."""
    open_ = client.questions(name)
    if question is not None or len(open_) < 2 or not sys.stdin.isatty():
        return question
    for asked in open_:
        say(f"  {asked.step:3d}  {head(asked.prompt, 70)}", err=True)
    numbers = [str(asked.step) for asked in open_]
    return str(click.prompt("Which one", type=click.Choice(numbers), show_choices=False, err=True))


def _show(question: Question) -> None:
    now = SYSTEM.now()
    say(f"Question {question.step} of run {question.run}, asked {age(now - question.asked)} ago", err=True, nl=False)
    say(f" of {question.to}:" if question.to else ":", err=True)
    if question.context:
        say("\n".join(f"  | {line}" for line in discreet(question.context).splitlines()), err=True)
    say(f"  {question.prompt}", err=True)
    if question.refused:
        say(f"  The last answer was not taken: {question.refused}", err=True)
    if question.until:
        then = f"then the answer is {question.otherwise}" if question.otherwise else "then it is an error"
        say(f"  Deadline: {moment(question.until)} ({_deadline(question, now)}); {then}", err=True)
    for number, choice in enumerate(_choices(question), 1):
        say(f"  {number}) {_text(choice)}", err=True)


def _choices(question: Question) -> list[Any]:
    found = question.schema.get("enum", [])
    return found if isinstance(found, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _prompted(question: Question) -> Any:
    while True:
        text = click.prompt(f"Answer ({told(question.schema)})", err=True)
        try:
            return read_text(text, question)
        except AnswerRefused as wrong:
            say(f"  {wrong}", err=True)


def read(value: str | None, as_json: str | None, question: Question | None) -> Any:
    """The value that options or standard input give. Raises ConfigError, AnswerRefused."""
    if value is not None and as_json is not None:
        raise ConfigError("--value and --json both give the value; use one.")
    if as_json is not None:
        try:
            return decoded(as_json, msgspec.json.decode)
        except ValueError as problem:
            raise ConfigError(f"--json {as_json[:60]!r} is no JSON: {problem}.") from None
    text = value if value is not None else _from_stdin()
    return read_text(text, question) if question is not None else text


def _from_stdin() -> str:
    text = sys.stdin.read(MAX_POST + 1).removesuffix("\n")
    if len(text) > MAX_POST:
        raise AnswerRefused(f"Standard input has more than {MAX_POST:,} characters. Nothing was written.")
    return text


def read_text(text: str, question: Question) -> Any:
    """What a person typed, as the question takes it. Raises AnswerRefused."""
    candidates: list[Any] = []
    choices = _choices(question)
    candidates += [choice for choice in choices if _text(choice) == text.strip()]
    if text.strip().lower() in _YES_NO:
        candidates.append(_YES_NO[text.strip().lower()])
    candidates.append(text)
    with suppress(ValueError):
        candidates.append(decoded(text, msgspec.json.decode))
    if text.strip().isdecimal() and len(text) < 10 and 0 < int(text) <= len(choices):
        candidates.append(choices[int(text) - 1])
    problems = [misfit(candidate, question.schema) for candidate in candidates]
    fits = [candidate for candidate, problem in zip(candidates, problems, strict=True) if not problem]
    if fits:
        return fits[0]
    raise AnswerRefused(
        f"{text[:60]!r} is no answer to question {question.step}: {problems[-1]}. Nothing was written.",
        hint=f"It takes: {told(question.schema)}.",
    )


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("signal", metavar="SIGNAL")
@given
@by_option
@store_option
def signal(name: str, signal: str, value: str | None, as_json: str | None, by: str, store: str | None) -> int:
    """Send SIGNAL to RUN, with a text (--value) or JSON (--json) if it needs one. It is received once, in order.

    \b
      perdure signal order-8 paid --json '{"amount": 12.5}'
    """
    sent = read(value, as_json, None) if value is not None or as_json is not None else None
    with Client(store) as client:
        state = client.signal(name, signal, sent, by=by)
    say(f"Signal {signal} is with run {state.key}.", err=True)
    _tell_next(state, store)
    return OK
