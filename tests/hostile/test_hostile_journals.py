"""Whatever a journal says, who reads it gets a value, or an error that names the run (rel:B3 B4 R10 S2)."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hostile_journals import KEY, REAL, Judge, as_json, mutated, planted, sound

import perdure
from perdure import journal as j
from perdure.cli import main
from perdure.errors import CorruptStore, PerdureError
from perdure.fold import State, fold
from perdure.framing import frame
from perdure.limits import MAX_SCOPE
from perdure.model import RunKey, RunMeta
from perdure.runners.transcript import transcript
from perdure.runtime.client import Client
from perdure.stores import open_store
from perdure.stores.base import Append

NAME = str(KEY)
LONG = pytest.mark.long
CHUNKS = [0, *(pytest.param(chunk, marks=LONG) for chunk in range(1, 42))]


def look(judge: Judge, seed: int, client: Client, state: State) -> None:
    """Everything that reads a run without its program."""
    judge("runs", seed, client.runs)
    judge("waiting", seed, client.waiting)
    judge("due", seed, client.due)
    judge("entries", seed, lambda: client.entries(NAME))
    judge("transcript", seed, lambda: transcript(client, NAME))
    judge("explain", seed, lambda: client.explain(NAME))
    judge("at", seed, lambda: client.state(NAME, at=1 + seed % max(state.seq, 1)))
    judge("diff", seed, lambda: client.diff(NAME, NAME))
    for step in state.steps.values():
        judge("output_file", seed, lambda step=step: client.output_file(state, step))
        judge("around", seed, lambda step=step: (state.around(step), state.waits_inside(step.number), step.usage))
        for payload in filter(None, (step.output, step.progress, state.inputs)):
            judge("value", seed, lambda payload=payload: client.value(payload))
            judge("readable", seed, lambda payload=payload: client.readable(payload))


def say(judge: Judge, seed: int, client: Client) -> None:
    """Everything that others than its holder may do to it."""
    for question in judge("questions", seed, lambda: client.questions(NAME)) or ():
        asked = judge("question", seed, lambda question=question: client.question(NAME, question.id))
        for value in (True, "yes", {"a": 1}) if asked else ():
            judge("answer", seed, lambda q=asked, value=value: client.answer(NAME, q.id, value, by="ann"))
    judge("question", seed, lambda: client.question(NAME))
    judge("question", seed, lambda: client.question(NAME, 2))
    verbs: list[Any] = [client.pause, client.unpause, client.retry, client.cancel]
    judge("signal", seed, lambda: client.signal(NAME, "x", {"a": 1}, by="ann"))
    judge("fork", seed, lambda: client.fork(NAME, at=1 + seed % 7, goal="forked", by="ann"))
    judge("verb", seed, lambda: verbs[seed % 4](NAME, by="ann"))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_reading_a_hostile_journal_gives_a_value_or_our_error(chunk: int) -> None:
    judge, passed = Judge(), 0
    for seed in range(chunk * 700, chunk * 700 + 700):
        lines = mutated(seed)
        state = judge("fold", seed, lambda lines=lines: sound(lines))
        if state is None:
            continue
        passed += 1
        row = msgspec.json.encode(state.meta())
        judge("row", seed, lambda row=row: msgspec.json.decode(row, type=RunMeta))
        client = Client(planted(state, lines))
        look(judge, seed, client, state)
        say(judge, seed, client)
    judge.verdict()
    assert 100 < passed < 600, "some journals must pass as sound, and some must not"


PROGRAM = """
import perdure

@perdure.step
def load(path="p"): return "text"

@perdure.step
def review(text, n): return {"n": n}

@perdure.flow(name="crew")
def flow(*args, **inputs):
    reviews = perdure.gather(*(review(load(), n) for n in range(2)))
    return [reviews, perdure.ask("Go?", answer=bool), perdure.signal("x")]
"""
COMMANDS = (
    "ls|ls --json|show R|show R --json|transcript R|tail R --no-follow|questions --json|files R|output R|output R 2|"
    "output R 1 --json|check --json|answer R --value yes --by ann|signal R x --by ann|cancel R --by ann"
)


@pytest.mark.parametrize(
    ("kind", "chunk"),
    [("file", 0), *(pytest.param(kind, chunk, marks=LONG) for kind in ("file", "sqlite") for chunk in range(1, 41))],
)
def test_running_and_showing_a_hostile_journal_gives_a_value_or_our_error(
    kind: str, chunk: int, tmp_path: Path
) -> None:
    scope: dict[str, Any] = {"__name__": "program"}
    exec(compile(PROGRAM, "program", "exec"), scope)
    logging.disable(logging.CRITICAL)
    judge, ran = Judge(patience=20.0), 0
    try:
        for seed in range(chunk * 30, chunk * 30 + 30):
            lines = mutated(seed)
            state = sound(lines)
            if state is None:
                continue
            url = f"{kind}:{tmp_path}/{seed}"
            with_store = open_store(url)
            done = with_store.append([Append(with_store.claim(KEY), 0, tuple(lines), state.meta())])
            with_store.close()
            assert done == [None]
            ran += 1
            run(judge, seed, url, scope["flow"], state)
            for words in COMMANDS.split("|")[seed % 3 :: 3]:
                given = [*words.replace("R", NAME).split(), "--store", url]
                judge(words, seed, lambda given=given: command(given))
    finally:
        logging.disable(logging.NOTSET)
    judge.verdict()
    assert ran > 1


def run(judge: Judge, seed: int, url: str, flow: Any, state: State) -> None:
    """Go on with it, as a program of that name would."""

    def go_on() -> object:
        with perdure.CheckpointManager(url) as manager:
            again = ((), ("failed",), ("flagged",))[seed % 3]
            options = {"adopt_input": bool(seed % 4), "rerun": again, "resume_stopped": True}
            return manager.run_sync(flow, goal=KEY.goal, episode=KEY.episode, **options)

    judge("run", seed, go_on)


def command(words: list[str]) -> str:
    """What a command prints; ``main`` tells our errors and lets any other out."""
    before, printed = (sys.stdout, sys.stderr), io.BytesIO()
    sys.stdout = sys.stderr = io.TextIOWrapper(printed, encoding="utf-8", write_through=True)
    try:
        main(words)
        return printed.getvalue().decode()
    finally:
        sys.stdout, sys.stderr = before


def test_the_mutations_are_many_and_each_can_be_made_again() -> None:
    assert mutated(7) == mutated(7)
    assert len({tuple(mutated(seed)) for seed in range(300)}) > 280
    assert {entry["kind"].partition("/")[0] for journal in REAL for entry in journal} == {
        str(kind.__struct_config__.tag).partition("/")[0] for kind in j.KINDS
    }


# -- what the fuzzing found, one by one --------------------------------------------------------------------------------


BEGAN = b'{"kind":"run_began/1","seq":1,"run_id":"r","flow":"f","epoch":1,"pid":1,"host":"h"%s}'


@pytest.mark.parametrize("more", [b',"new":%s', b',"attribution":{"tags":%s}', b',"inputs":{"value":%s}'])
def test_json_nested_too_deeply_is_damage_that_names_the_record(more: bytes) -> None:
    for depth in (3_000, 1_000_000):
        deep = BEGAN % (more % (b"[" * depth + b"]" * depth))
        with pytest.raises(CorruptStore, match="paper#1: record 1 is damaged"):
            j.decode(KEY, frame(KEY, deep), 1)


def test_an_inbox_that_lost_posts_which_the_journal_has_is_told_and_does_not_keep_anybody_waiting() -> None:
    lines = [frame(KEY, BEGAN % b""), frame(KEY, b'{"kind":"post_dropped/1","seq":2,"post":1,"why":"late"}')]
    with pytest.raises(CorruptStore, match="its inbox has 0 posts, and its journal tells of 1"):
        Client(planted(fold(KEY, lines), lines)).pause(NAME, by="ann")


def test_a_scope_of_a_million_levels_costs_no_memory() -> None:
    path = "a/" * (MAX_SCOPE // 2 + 1)
    state = fold(KEY, [frame(KEY, BEGAN % b"")])
    for entry in (j.ScopeOpened(seq=2, path=path, name="a"), j.StepStarted(seq=2, step=1, scope=path, name="a")):
        with pytest.raises(CorruptStore, match="has a scope of 32,770 characters"):
            state.apply(entry)


def test_a_worker_that_says_nothing_sensible_explains_nothing_and_breaks_no_listing() -> None:
    store = open_store("memory:")
    for place, said in enumerate(({}, {"worker": "{"}, {"worker": "[" * 10_000})):
        key = RunKey("\x1fworker", place)
        row = RunMeta(goal=key.goal, episode=place, status="running", flow="\x1fworker", tags=said, seq=1)
        store.append([Append(store.claim(key), 0, (frame(key, BEGAN % b""),), row)])
    assert Client(store).waiting() == {}


def test_a_name_of_a_run_with_thousands_of_digits_is_not_there() -> None:
    client = Client(open_store("memory:"))
    for name in ("x#" + "9" * 5000, "x#\u0663", "#", "a\0b", "\ud800", "a\nb", "\x1fworker#0"):
        with pytest.raises(PerdureError, match="no run"):
            client.find(name)


EVIL = "\x1b]0;owned\x07\x1b[2J\u202egnp.\x9b31m\r"


def test_a_terminal_does_not_obey_what_is_stored(tmp_path: Path) -> None:
    """No control characters reach it, from whatever place of a journal."""
    args = [{"name": EVIL, "digest": "x", "head": EVIL}]
    asked = {"prompt": EVIL, "to": EVIL, "context": {"value": EVIL}, "schema": {"enum": [EVIL]}}
    began = {"run_id": "r", "flow": EVIL, "epoch": 1, "pid": 1, "host": EVIL, "target": EVIL, "args": args}
    said = {"role": EVIL, "step": 1, "call_id": EVIL}
    failed = {"outcome": EVIL, "error": {"type": EVIL, "message": EVIL}, "final": True}
    entries: list[dict[str, Any]] = [
        {"kind": "run_began/1", **began},
        {"kind": "step_started/1", "step": 1, "scope": EVIL, "name": EVIL, "fingerprint": "x", "args": args},
        {"kind": "step_chunk/1", "step": 1, "text": EVIL},
        {"kind": "step_completed/1", "step": 1, "output": {"value": EVIL}, "flagged": EVIL},
        {"kind": "messages_added/1", "scope": EVIL, "place": 0, "messages": [said]},
        {"kind": "step_started/1", "step": 2, "name": EVIL, "fingerprint": "y"},
        {"kind": "step_failed/1", "step": 2, **failed},
        {"kind": "step_pending/1", "step": 3, "name": EVIL, "fingerprint": "z", "asked": asked},
        {"kind": "answer_rejected/1", "step": 3, "why": EVIL},
        {"kind": "signal_received/1", "post": 1, "by": EVIL, "name": EVIL},
        {"kind": "run_suspended/1", "reason": EVIL, "input": True},
    ]
    url = f"file:{tmp_path}/s"
    store = open_store(url)
    for key, told in ((RunKey("paper"), entries), (RunKey(f"pa{EVIL}per"), entries[:1])):
        lines = [frame(key, as_json({**entry, "seq": seq})) for seq, entry in enumerate(told, 1)]
        assert store.append([Append(store.claim(key), 0, tuple(lines), fold(key, lines).meta())]) == [None]
    store.close()
    printed = ""
    for words in COMMANDS.replace(" --json", "").replace("--value yes", "--value no").split("|"):
        printed += command([*words.replace("R", "paper").split(), "--store", url])
    assert printed.count("owned") > 30, "it is shown"
    printed = printed.replace(command(["output", "paper", "1", "--store", url]), "")  # a value, to a pipe
    assert not set(printed) & set("\x1b\x07\x9b\r\u202e"), "and does nothing"
