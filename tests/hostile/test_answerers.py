"""Who answers, and may mean harm: what an answer cannot do, and what is kept of it (rel:H2 H3 H4 H5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import perdure
from perdure import journal as j
from perdure.errors import AnswerRefused, RunSuspended
from perdure.fold import fold
from perdure.framing import frame
from perdure.inbox import MAX_POST
from perdure.model import RunKey
from perdure.stores import open_store

DONE: list[str] = []


@perdure.step
def transfer(amount: int, to: str) -> str:
    DONE.append(f"{amount} to {to}")
    return "done"


@perdure.flow
def payment(amount: int, to: str) -> str:
    ok: bool = perdure.ask(f"Pay {amount} to {to}?", answer=bool, context={"amount": amount, "to": to}, to="treasurer")
    return transfer(amount, to) if ok else "refused"


@pytest.fixture
def url(tmp_path: Path) -> str:
    DONE.clear()
    return f"sqlite:{tmp_path}/runs.db"


def ask(url: str, amount: int = 10, goal: str = "pay", **options: Any) -> str:
    """Have a payment asked for; the id of the question."""
    with pytest.raises(RunSuspended):
        perdure.run(payment, amount, "ann", goal=goal, store=url, **options)
    with perdure.Client(url) as client:
        return client.question(goal).id


def test_an_answer_names_what_was_shown_and_fits_no_other_question(url: str) -> None:  # rel:H2
    ten = ask(url)
    thousand = ask(url, 1000, goal="more")
    with perdure.Client(url) as client:
        with pytest.raises(perdure.PerdureError):
            client.answer("more", ten, True, by="eve")
        client.answer("pay", ten, False, by="ann")
    assert ten != thousand and perdure.run(payment, 10, "ann", goal="pay", store=url) == "refused"
    again = ask(url, 1000, goal="pay", adopt_input=True, rerun="ask")
    with perdure.Client(url) as client, pytest.raises(AnswerRefused, match="answered already"):
        client.answer("pay", ten, True, by="eve")
    assert again not in (ten, thousand) and DONE == []


def test_a_post_that_was_kept_and_sent_again_changes_nothing(url: str) -> None:  # rel:H3
    question = ask(url)
    store, key = open_store(url), RunKey("pay")
    answer = j.QuestionAnswered(step=1, question=question, value=msgspec.Raw(b"false"), by="ann")
    with perdure.Client(url) as client:
        client.answer("pay", question, False, by="ann")
    for number in (2, 3):
        answer.value = msgspec.Raw(b"true")
        assert store.post(key, number, j.encode(key, answer))
    store.close()
    assert perdure.run(payment, 10, "ann", goal="pay", store=url) == "refused" and DONE == []
    with perdure.Client(url) as client:
        dropped = [entry for entry in client.entries("pay") if isinstance(entry, j.PostDropped)]
    assert [entry.post for entry in dropped] == [2, 3] and "was answered already, by ann" in dropped[0].why


POSTS: dict[str, Callable[[str], bytes]] = {
    "an end of the run": lambda _: b'{"kind":"run_completed/1","output":{"value":"stolen"}}',
    "a result of a step": lambda _: b'{"kind":"step_completed/1","step":1,"output":{"value":true}}',
    "another life": lambda _: b'{"kind":"run_resumed/1","epoch":9,"pid":1,"host":"h"}',
    "an answer to another step": lambda q: (
        b'{"kind":"question_answered/1","step":9,"question":"%s","value":true}' % q.encode()
    ),
    "an answer to no question": lambda _: b'{"kind":"question_answered/1","step":1,"question":"","value":true}',
    "an answer that is a tag of ours": lambda q: (
        b'{"kind":"question_answered/1","step":1,"question":"%s","value":{"~":"data","type":"os:system"}}' % q.encode()
    ),
    "an answer with another number": lambda q: (
        b'{"kind":"question_answered/1","post":7,"step":1,"question":"%s","value":"yes"}' % q.encode()
    ),
    "no JSON": lambda _: b"\x80\x04\x95",
    "a newer kind": lambda _: b'{"kind":"run_owned/9"}',
    "too much": lambda q: b'{"kind":"signal_received/1","name":"x","value":"%s"}' % (b"x" * MAX_POST),
}


@pytest.mark.parametrize("name", POSTS)
def test_whoever_may_post_decides_nothing_but_what_he_is_asked(name: str, url: str) -> None:  # rel:H2
    """A post that no client of ours makes is dropped, not taken for an answer, or told as damage; never obeyed."""
    question = ask(url)
    store, key = open_store(url), RunKey("pay")
    assert store.post(key, 1, frame(key, POSTS[name](question)))
    store.close()
    for _ in range(2):
        with pytest.raises(perdure.PerdureError):
            perdure.run(payment, 10, "ann", goal="pay", store=url)
    assert DONE == []


def test_a_post_that_was_tampered_with_is_told(url: str) -> None:
    question = ask(url)
    store, key = open_store(url), RunKey("pay")
    record = j.encode(key, j.QuestionAnswered(step=1, question=question, value=msgspec.Raw(b"false"), by="ann"))
    store.post(key, 1, record.replace(b"false", b"true "))
    store.close()
    with pytest.raises(perdure.PerdureError, match="post 1 of its inbox is damaged"):
        perdure.run(payment, 10, "ann", goal="pay", store=url)
    assert DONE == []


def test_who_when_what_was_shown_and_what_was_decided_stay_in_the_journal(url: str) -> None:  # rel:H5
    question = ask(url)
    with perdure.Client(url) as client:
        client.answer("pay", question, True, by="ann")
        before = client.find("pay").updated
    assert perdure.run(payment, 10, "ann", goal="pay", store=url) == "done"
    store, key = open_store(url), RunKey("pay")
    lines = [json.loads(line)["entry"] for line in store.read(key)]
    state = fold(key, store.read(key))
    store.close()
    (asked,) = [entry for entry in lines if entry["kind"] == "step_pending/1"]
    (answered,) = [entry for entry in lines if entry["kind"] == "question_answered/1"]
    assert asked["asked"]["prompt"] == "Pay 10 to ann?" and asked["asked"]["to"] == "treasurer"
    assert asked["asked"]["context"]["value"] == {"amount": 10, "to": "ann"}
    assert (answered["by"], answered["value"], answered["question"]) == ("ann", True, question)
    assert 0 < answered["posted"] <= before and state.waits.decided[question].by == "ann"
