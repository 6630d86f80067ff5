"""What a person sees while a run goes on: a live table on a terminal, a line an event anywhere else.

Both are observers: they show nothing that is not durable.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from perdure import journal as j
from perdure import states
from perdure.cli.words import age, error_text, inputs_text, moment, say, step_word
from perdure.clock import SYSTEM
from perdure.fold import State
from perdure.model import RunKey, head
from perdure.record import Step
from perdure.runtime.client import Client

if TYPE_CHECKING:
    from rich.table import Table


class Follower:
    """Keeps the states of the runs that this process executes, entry by entry: one, and the attempts that it makes as
    runs of their own. An Observer.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self.lock = threading.Lock()
        self.states: dict[RunKey, State] = {}

    @property
    def state(self) -> State | None:
        """Of the run that was begun first."""
        return next(iter(self.states.values()), None)

    def notify(self, key: RunKey, entry: j.Entry) -> None:
        with self.lock:
            state = self.states.get(key)
            if isinstance(entry, j.RunBegan):
                state = State(key)
            elif state is None:  # it goes on: what it did in earlier lives stands in the store
                with Client(self._store) as client:
                    state = client.state(str(key))
            self.states[key] = state
            if entry.seq > state.seq:
                state.apply(entry)
        self.show(state, entry)

    def show(self, state: State, entry: j.Entry) -> None:
        """Something happened."""


class Lines(Follower):
    """A plain line on stderr for what happens to steps."""

    def show(self, state: State, entry: j.Entry) -> None:
        line = tell(state, entry)
        if line:
            say(f"[{state.key}] {line}" if state is not self.state else line, err=True)


def tell(state: State, entry: j.Entry, inputs: bool = True) -> str:
    """One line about an entry, or "" for those that say nothing to people; ``inputs``: with those of a step."""
    match entry:
        case j.RunBegan():
            return f"run {state.key} begins"
        case j.RunResumed():
            recorded = sum(step.recorded for step in state.steps.values())
            return f"run {state.key} goes on: {recorded} steps are recorded"
        case j.RunCompleted():
            used = f"; used {state.paid}, saved {entry.saved_usage}" if state.usage else ""
            return f"run {state.key} completed; {entry.reused} steps reused, {entry.saved:.1f} s saved{used}"
        case j.RunFailed():
            return f"run {state.key} failed: {error_text(entry.error, 200)}"
        case j.RunPaused():
            return f"run {state.key} is paused: {head(entry.reason, 200)}"
        case j.RunSuspended():
            return f"run {state.key} is suspended: {head(entry.reason, 200)}"
        case j.RunCancelled():
            return f"run {state.key} is cancelled by {entry.by}: {head(entry.reason, 200)}"
        case j.StopRequested():
            return f"run {state.key} is to be {'cancelled' if entry.cancel else 'paused'}, says {entry.by}"
        case j.RunReleased():
            return f"run {state.key} may go on, says {entry.by}"
        case j.RunPinned():
            return f"run {state.key} is {'kept' if entry.pinned else 'not kept any more'}, says {entry.by}"
        case j.StepPending():
            what = f"asks: {head(entry.asked.prompt, 100)}" if entry.asked else "waits"
            due = f" until {moment(entry.until)}" if entry.until else ""
            return f"  {_label(state, entry.step)} {what}{due}"
        case j.QuestionAnswered():
            return f"  {_label(state, entry.step)} was answered by {entry.by}: {head(bytes(entry.value).decode(), 80)}"
        case j.QuestionClosed():
            return (
                f"  {_label(state, entry.step)} {'reached its deadline' if entry.expired else 'is not needed any more'}"
            )
        case j.AnswerRejected():
            return f"  {_label(state, entry.step)} could not take what came: {head(entry.why, 120)}"
        case j.SignalReceived():
            return f"  signal {entry.name} came{f' from {entry.by}' if entry.by else ''}"
        case j.RunInterrupted():
            return f"run {state.key} is interrupted ({entry.reason})"
        case j.StepStarted():
            again = f", attempt {entry.attempt}" if entry.attempt > 1 else ""
            given = f"({inputs_text(state.steps[entry.step])})" if inputs else ""
            return f"  {_label(state, entry.step)}{given} started{again}"
        case j.StepCompleted():
            word = f"flagged: {entry.flagged}" if entry.flagged else "completed"
            return f"  {_label(state, entry.step)} {word} ({entry.seconds:.1f} s)"
        case j.StepCopied():
            return f"  {_label(state, entry.step)} has the result of step {entry.source}, from the cache"
        case j.StepFailed():
            then = "" if entry.final else f"; next attempt in {max(entry.until - entry.at, 0):.1f} s"
            said = error_text(entry.error)
            return f"  {_label(state, entry.step)} {entry.outcome.replace('_', ' ')}: {said}{then}"
        case j.StepWaiting():
            return f"  {_label(state, entry.step)} waits {max(entry.until - entry.at, 0):.1f} s: {entry.error.message}"
        case j.StepInterrupted():
            return f"  {_label(state, entry.step)} interrupted"
        case j.RunForked():
            return f"run {state.key} is {head(state.reason, 200)}{f', by {entry.by}' if entry.by else ''}"
        case j.StepEdited():
            return f"  {_label(state, entry.step)} is given another result by {entry.by}"
        case j.StepsInvalidated():
            why = {"code": "code changed", "around": "something inside is"}.get(entry.why, entry.why)
            return f"  steps {', '.join(map(str, entry.steps))} will be executed again ({why})"
    return ""


def _label(state: State, number: int) -> str:
    return f"{number:3d} {state.steps[number].path}"


@contextmanager
def live_table(follower: Follower) -> Iterator[None]:
    """Show a table of the run on the terminal while the block runs."""
    from rich.console import Console
    from rich.live import Live

    with Live(
        console=Console(stderr=True), get_renderable=lambda: _table(follower), refresh_per_second=8, transient=False
    ):
        yield


def _table(follower: Follower) -> Table:
    from rich.table import Table
    from rich.text import Text

    colours = {
        "completed": "green",
        "running": "cyan",
        "flagged": "yellow",
        "failed": "red",
        "retrying": "yellow",
        "waiting": "yellow",
        "pending": "yellow",
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("#", "step", "inputs", "state", "attempt", "time", "progress"):
        table.add_column(title, justify="right" if title in ("#", "attempt", "time") else "left", no_wrap=True)
    with follower.lock:
        first = follower.state
        if first is None:
            return table
        now = SYSTEM.now()
        table.title, table.title_justify = f"{first.key}  {first.status}  {age(now - first.created)}", "left"
        steps = [(state, step) for state in follower.states.values() for step in state.steps.values()]
        shown = steps[-max(shutil.get_terminal_size().lines - 4, 5) :]  # an agent's loop is longer than any screen
        if len(shown) < len(steps):
            table.title += f"  ({len(steps) - len(shown)} earlier steps not shown)"
        for state, step in shown:
            table.add_row(
                str(step.number),
                Text(step.path if state is first else f"[{state.key}] {step.path}"),
                Text(inputs_text(step), "dim"),
                Text(step_word(step), colours.get(step.status, "")),
                str(len(step.attempts)),
                age(elapsed(step, now)),
                Text(progress(step), overflow="ellipsis"),
            )
    return table


def elapsed(step: Step, now: float) -> float:
    """Seconds of the attempt that runs, or of the one that gave the result."""
    if step.status in (states.RUNNING, states.PENDING) and step.attempts:
        return max(now - step.attempts[-1].started, 0.0)
    return step.seconds


def progress(step: Step) -> str:
    """How far a step is, in a few words: streamed text, saved progress, or why it failed."""
    if step.status == states.RUNNING:
        text = step.attempts[-1].text
        if text:
            return f"{sum(map(len, text)):,} characters: ...{head(''.join(text[-5:])[-40:], 40)}"
        return head(bytes(step.progress.value).decode(), 60) if step.progress is not None else ""
    if step.status == states.PENDING:
        return f"until {moment(step.until)}" if step.until else "waits"
    if step.flagged:
        return head(step.flagged, 60)
    return error_text(step.error, 60) if step.error is not None else ""
