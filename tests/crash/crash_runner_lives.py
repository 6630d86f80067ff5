"""A life of a shape of crash_runners, in a child of the zygote, and what can be seen of what one has left."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any

import crash_crew as crew
from crash_lives import KillingStore, url
from crash_runners import MORE, SHAPES

import perdure
from perdure import errors
from perdure import journal as j
from perdure.fold import State
from perdure.model import RunKey
from perdure.stores import open_store


def live(root: str, store: str, shape: str, life: int, at: int, when: str) -> Any:
    """One life; dies at append ``at``. Notes what was durable when it began; returns what a survivor ended with."""
    before = durable(root, store)
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    opened = KillingStore(open_store(url(root, store)), at, when)
    Path(f"{root}.before{life}").write_text("\n".join(before))
    told = Told()
    logging.getLogger("perdure").addHandler(told)
    return {"result": run(root, store, shape, opened), "warnings": told.messages, **ended(root, store)}


class Reporter:
    """Says which steps were reported to be completed."""

    def notify(self, key: RunKey, entry: j.Entry) -> None:
        if isinstance(entry, j.StepCompleted):
            crew.say("reported", f"{key}:{entry.step}")


def run(root: str, store: str, shape: str, opened: Any = None) -> str:
    flow, inputs = (SHAPES | MORE)[shape]
    return repr(perdure.run(flow, goal="shape", store=opened or url(root, store), observers=(Reporter(),), **inputs))


def resume(root: str, store: str, shape: str, life: int) -> dict[str, Any]:
    """Look at a copy of what is left, then resume the run where it is, run it again, and look again."""
    before = left(root, store)
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    told = Told()
    logging.getLogger("perdure").addHandler(told)
    result = run(root, store, shape)
    crew.listen(f"{root}.witness", life + 1)
    again = run(root, store, shape)  # rel:R3
    after = {"warnings": told.messages, "lives": max(left(root, store)["lives"]), **ended(root, store)}
    return {"before": before, "result": result, "again": again, **after}


def without(shape: str) -> str:
    """The result with no store at all."""
    flow, inputs = SHAPES[shape]
    result = flow(**inputs)
    return repr(asyncio.run(result) if asyncio.iscoroutine(result) else result)


class Told(logging.Handler):
    """Keeps warnings: nothing here is nondeterministic, and no life should say so."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def durable(root: str, store: str) -> list[str]:
    """The completed steps of all runs, as bodies call them."""
    return list(left(root, store)["durable"])


def left(root: str, store: str) -> dict[str, Any]:
    """What a copy of the store shows: which steps of all runs were begun, completed and failed, as bodies call them."""
    found = _states(root, store)
    steps = [(f"{state.key}:{step.number}", step) for state in found for step in state.steps.values()]
    return {
        "begun": [name for name, _ in steps],
        "durable": [name for name, step in steps if step.recorded],
        "failed": [name for name, step in steps if {"failed", "timed_out"} & {a.outcome for a in step.attempts}],
        "statuses": sorted({state.status for state in found}),
        "lives": [state.lives for state in found],
    }


def _states(root: str, store: str) -> list[State]:
    if not Path(root).is_dir():
        return []
    copy = f"{root}.copy"
    shutil.copytree(root, copy)
    try:
        with perdure.Client(url(copy, store)) as client:
            return [client.state(str(row.key)) for row in client.runs()]
    except errors.ConfigError:  # nothing there yet
        return []
    finally:
        shutil.rmtree(copy)


def ended(root: str, store: str) -> dict[str, Any]:
    """Every run's steps and conversations, without what a crash may change: numbers and counts of attempts."""
    with perdure.Client(url(root, store)) as client:
        states = [client.state(str(row.key)) for row in client.runs()]
        steps = sorted(
            f"{state.key} {step.path} {step.identity.fingerprint} {step.identity.n} {step.status}"
            f" {step.attempts[-1].outcome if step.attempts[-1].outcome == 'copied' else ''}"
            for state in states
            for step in state.steps.values()
            if state.status == "completed" and step.recorded
        )
        said = [
            f"{state.key} {scope} {message.role} {message.call_id} {message.covers} "
            + repr(client.value(message.content or state.steps[message.step].output))  # type: ignore[arg-type]
            for state in states
            for scope, messages in state.conversations.items()
            for message in messages
        ]
    return {"steps": steps, "said": said}
