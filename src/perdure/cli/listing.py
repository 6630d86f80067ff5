"""``perdure ls``, ``show`` and ``output``: what there is, and what it says."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import click
import msgspec

from perdure import codec, states
from perdure.cli.counter import Counter
from perdure.cli.outcome import OK, command, write, write_part
from perdure.cli.progress import elapsed, progress
from perdure.cli.tree import tree
from perdure.cli.words import age, aligned, holder, inputs_text, moment, plain_table, say, step_word, widths_of
from perdure.clock import SYSTEM
from perdure.errors import ConfigError
from perdure.fold import State
from perdure.limits import decoded
from perdure.model import RunMeta, head
from perdure.record import Step
from perdure.redaction import discreet
from perdure.runners.messages import asked_for
from perdure.runtime.client import Client

_STATUSES = (
    *("running", "crashed", "completed", "failed", "paused", "interrupted"),
    *("queued", "pending_input", "waiting", "ready", "cancelled"),
)
_PAGE = 500
_DEEPEST = 30
"""levels of a tree that are told apart by their indentation"""
_TITLES = ("run", "status", "steps", "used", "updated", "executed by", "reason")
store_option = click.option("--store", help="Where the journal is kept. [PERDURE_STORE, or sqlite:.perdure/runs.db]")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
at_option = click.option(
    "--at",
    metavar="WHEN",
    help="As it was then: after entry N, when the step '#N' or NAME had ended, at a date, or so long ago (10m).",
)


@click.command()
@click.option("--status", metavar="STATUS", help=f"Only runs of this status: {', '.join(_STATUSES)}.")
@click.option("--goal", help="Only runs of this task.")
@click.option("--due", is_flag=True, help="Only suspended runs that can go on now.")
@click.option(
    "--tree", "as_tree", is_flag=True, help="Runs below those that they were forked from, or that began them."
)
@store_option
@json_option
def ls(status: str | None, goal: str | None, due: bool, as_tree: bool, store: str | None, as_json: bool) -> int:
    """List runs: what each is, how far it is, and who executes it now."""
    if status not in (None, *_STATUSES):
        raise ConfigError(f"{status[:40]!r} is no status.", hint=f"Write one of {', '.join(_STATUSES)}.")
    if as_tree and as_json:
        raise ConfigError("--tree is for people.", hint='--json has "forked" and "parent" of each run.')
    with Client(store) as client, Counter(quiet=sys.stdout.isatty()) as counter:
        rows = filter(lambda row: status in (None, row.status), _counted(_rows(client, goal, due), counter))
        if as_json:
            _ls_json(client, rows)
        elif not (_ls_tree(client, list(rows)) if as_tree else _ls_table(client, rows)):
            kind = " of that kind" if status or goal or due else ""
            say(f"No runs{kind} in {client.url}. Begin one with: perdure run TARGET")
    return OK


def _rows(client: Client, goal: str | None, due: bool) -> Iterable[RunMeta]:
    return (row for row in client.due() if goal in (None, row.goal)) if due else client.each(goal)


def _counted(rows: Iterable[RunMeta], counter: Counter) -> Iterator[RunMeta]:
    for number, row in enumerate(rows, 1):
        counter(f"{number:,} runs looked at")
        yield row


def _pages(client: Client, rows: Iterator[RunMeta]) -> Iterator[list[tuple[RunMeta, str]]]:
    """Some rows at a time, each with the reason why nobody executes it: a listing may be longer than memory."""
    while page := list(islice(rows, _PAGE)):
        waits = any(row.status in states.RUN_WAITS_FOR_WORKER for row in page)
        why = client.waiting(page) if waits else {}
        yield [(row, why.get(row.key, "")) for row in page]


def _ls_json(client: Client, rows: Iterator[RunMeta]) -> None:
    """One array, written as it is read."""
    between = b"["
    for page in _pages(client, rows):
        write_part(between + b",\n".join(msgspec.json.encode({**_row(row), "why": why}) for row, why in page))
        between = b",\n"
    write(b"]" if between != b"[" else b"[]")


def _ls_table(client: Client, rows: Iterator[RunMeta]) -> bool:
    """Written as it is read: the columns are as wide as the first page is. Whether there was anything."""
    widths: list[int] = []
    for page in _pages(client, rows):
        lines = [_cells(row, why) for row, why in page]
        if not widths:
            lines.insert(0, _TITLES)
            widths = widths_of(lines)
        say(aligned(lines, widths))
    return bool(widths)


def _ls_tree(client: Client, rows: list[RunMeta]) -> bool:
    """All runs are looked at, also those that are not shown: a run may come from one of them."""
    shown = {row.key for row in rows}
    why = client.waiting(rows)
    lines = []
    for row, depth, told in tree(client.each(), lambda row: row.key in shown):
        name, *cells = _cells(row, why.get(row.key, ""))
        lines.append(("  " * min(depth, _DEEPEST) + name, told, *cells))
    if lines:
        say(plain_table((_TITLES[0], "from", *_TITLES[1:]), lines))
    return bool(lines)


def _cells(row: RunMeta, why: str) -> tuple[str, ...]:
    return (
        str(row.key),
        row.status + (", pinned" if row.pinned else ""),
        _steps(row),
        f"{row.used}{f' ({row.saved} saved)' if row.saved else ''}" if row.used else "",
        age(SYSTEM.now() - row.updated) + " ago",
        holder(row),
        head(why or row.reason, 80),
    )


def _steps(row: RunMeta) -> str:
    told = f"{row.completed} done"
    for count, word in ((row.running, "running"), (row.flagged, "flagged"), (row.failed, "failed")):
        told += f", {count} {word}" if count else ""
    told += f", {row.asking} asked" if row.asking else ""
    return told


def _row(row: RunMeta) -> dict[str, Any]:
    told = msgspec.to_builtins(row)
    assert isinstance(told, dict)
    return {"run": str(row.key), **told}


@click.command()
@click.argument("name", metavar="RUN")
@at_option
@store_option
@json_option
def show(name: str, at: str | None, store: str | None, as_json: bool) -> int:
    """Show every step of RUN (GOAL or GOAL#EPISODE): state, attempts, time, its output's head and file.

    --at shows the run as it was at some moment of its past: WHEN is the number of an entry (perdure tail --json prints
    them), '#6' or a step's name for right after that step had ended, a date or time, or an age. Files of outputs, which
    are those of today, are left out then.

    \b
      perdure show paper-17 --at '#6'
      perdure show paper-17 --at 2026-11-20T10:03
    """
    with Client(store) as client:
        state = client.state(name, at)
        today = client.find(name)
        row = today if at is None else state.meta()
        now = SYSTEM.now() if at is None else state.updated
        told = [_step(client, state, step, now, past=at is not None) for step in _in_order(state)]
    if as_json:
        then = {} if at is None else {"at_seq": state.seq, "last_seq": today.seq}
        write(msgspec.json.encode({**_row(row), **_run(state), **then, "steps": told}))
        return OK
    _describe(state, row)
    if at is not None:
        say(f"as of entry {state.seq} of {today.seq}, {moment(state.updated)}")
    _tell_steps(state, told)
    files = [facts["file"] for facts in told if facts["file"]]
    if files:
        say(f"Outputs stand in {files[0].rpartition('/')[0]}")
    for asked in state.waits.questions():
        words = command("answer", str(state.key), str(asked.step), store=store)
        say(f"Question {asked.step}: {head(asked.prompt, 80)}" + (f"\n  {words}" if at is None else ""))
    if at is None and row.status not in (states.COMPLETED, states.RUNNING, states.PENDING_INPUT, states.CANCELLED):
        say("Go on with: " + command("resume", str(state.key), "--app", state.target or "TARGET", store=store))
    return OK


def _in_order(state: State) -> list[Step]:
    return sorted(state.steps.values(), key=lambda step: step.number)


def _tell_steps(state: State, told: list[dict[str, Any]]) -> None:
    cells = [
        (
            str(step.number),
            step.path,
            inputs_text(step),
            step_word(step),
            str(len(step.attempts)),
            age(facts["seconds"]),
            *((str(step.usage) if step.usage else "",) if state.usage else ()),
            head(facts["output_head"] or progress(step), 60),
        )
        for step, facts in zip(_in_order(state), told, strict=True)
    ]
    used = ("used",) if state.usage else ()
    titles = ("#", "step", "inputs", "state", "attempts", "time", *used, "output")
    say(plain_table(titles, cells) if cells else "No step has started.")


def _describe(state: State, row: RunMeta) -> None:
    pinned = ", pinned" if row.pinned else ""
    say(f"run {state.key}: {row.status}{f' by {holder(row)}' if row.holder else ''}{pinned}")
    say(f"flow {state.flow}, begun {moment(state.created)}, {state.lives} {'life' if state.lives == 1 else 'lives'}")
    if state.forked is not None:
        by = f" by {head(state.forked.by, 80)}" if state.forked.by else ""
        say(f"forked from {head(str(state.forked), 200)}{by}")
    for arg in state.args:
        say(f"input {arg.name} = {head(arg.head, 80)}")
    if row.reason and row.reason != f"forked from {state.forked}":
        say(f"reason: {head(row.reason, 400)}")
    if state.reused:
        say(f"reused in the last life: {state.reused} steps, {state.saved:.1f} s saved")
    if state.usage:
        say(f"used: {state.usage}; in the last life: {state.paid}; saved by resuming: {state.saved_usage}")
    if state.budget:
        say("budget: " + ", ".join(f"{cap} {value:g}" for cap, value in budget_of(state).items()))


def budget_of(state: State) -> dict[str, float]:
    """The caps that a run has."""
    caps = msgspec.to_builtins(state.budget) if state.budget is not None else {}
    assert isinstance(caps, dict)
    return caps


def _run(state: State) -> dict[str, Any]:
    return {
        "lives": state.lives,
        "reused": state.reused,
        "seconds_saved": state.saved,
        "target": state.target,
        "durability": state.durability,
        "budget": budget_of(state),
        "inputs": {arg.name: arg.head for arg in state.args},
        "error": msgspec.to_builtins(state.error),
    }


def _step(client: Client, state: State, step: Step, now: float, past: bool) -> dict[str, Any]:
    output = ""
    if step.output is not None:
        suffix, content = client.readable(step.output)
        text = head(content[:400].decode("utf-8", "replace"), 120)
        output = text if suffix in (".md", ".json") else f"({len(content)} bytes)"
        output = _said(content) or output if step.spoken and suffix == ".json" else output
    file = None if past else client.output_file(state, step)  # which may have been written again since then
    return {
        "number": step.number,
        "path": step.path,
        "name": step.name,
        "state": step.status,
        "unused": step.unused,
        "edited": step.edited,
        "flagged": step.flagged,
        "seconds": elapsed(step, now),
        "usage": msgspec.to_builtins(step.usage),
        "attempts": [
            {
                "number": a.number,
                "outcome": a.outcome,
                "started": moment(a.started),
                "seconds": a.seconds,
                "error": str(a.error) if a.error else None,
                "streamed_characters": sum(map(len, a.text)),
            }
            for a in step.attempts
        ],
        "output_head": output,
        "file": str(file) if file else None,
    }


def _said(content: bytes) -> str:
    """A model's reply in a few words; "" for anything else."""
    try:
        message = decoded(content, msgspec.json.decode)
    except ValueError:
        return ""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return ""
    calls = [f"-> {call}" for call in asked_for(message)]
    return head(" ".join([str(message.get("content", "")), *calls]), 120)


@click.command()
@click.argument("name", metavar="RUN")
@click.argument("step", metavar="[STEP]", required=False)
@at_option
@store_option
@json_option
def output(name: str, step: str | None, at: str | None, store: str | None, as_json: bool) -> int:
    """Print what STEP (its number, name or path) returned, or the result of the whole RUN.

    Text as text, bytes as bytes, everything else as JSON. A step that did not finish prints what it had streamed, to
    standard error. --at prints what it was at some moment, as for `perdure show`, also if it was made again since.
    """
    with Client(store) as client:
        found = client.step(name, step, at) if step else None
        payload = found.output if found else client.state(name, at).output
        if payload is None:
            say(_no_output(client, name, found, at), err=True)
            if found and found.partial_text:
                say(f"It had streamed:\n{discreet(found.partial_text)}", err=True)
            return 1
        if as_json:
            body = codec.stored_json(payload, client.blobs(payload))
            write(msgspec.json.encode({"step": found.number if found else None, "output": msgspec.Raw(body)}))
            return OK
        suffix, content = client.readable(payload)
        if sys.stdout.isatty():
            say(content.decode("utf-8", "replace"))
        elif suffix not in (".md", ".json"):
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            write(content)
    return OK


def _no_output(client: Client, name: str, step: Step | None, at: str | None) -> str:
    what = f"Step {step.number} ({step.path})" if step else f"Run {name}"
    if at is not None:
        return f"{what} had no output: it was {step.status if step else client.state(name, at).status}."
    return f"{what} has no output: it is {step.status if step else client.find(name).status}."
