"""``perdure demo``: a review crew that is killed twice, and finishes without doing anything twice.

The crew runs in a child process. This process watches its journal, as any other client could, and sends SIGKILL: once
while experts are at work, once in the middle of the meta-review. Then it lets the run finish, and counts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from perdure import journal as j
from perdure.cli.outcome import CTRL_C, FLOW_FAILED, OK, SIGTERM, command, write
from perdure.cli.progress import tell
from perdure.cli.words import age
from perdure.clock import SYSTEM
from perdure.demo import model
from perdure.errors import ConfigError, FixError, StoreBusy
from perdure.fold import State, fold
from perdure.model import RunKey, head
from perdure.runtime.api import sigterm_as_exit
from perdure.runtime.client import Client
from perdure.runtime.outputs import Outputs

_LOOK = 0.02
"""seconds between two looks at the journal"""
_PATIENCE = 5.0
"""seconds without news after which a line says what is going on"""


class Moment(NamedTuple):
    """When a life is ended, and how that is told."""

    told: str
    ripe: Callable[[State], bool]


_EXPERTS = Moment(
    "while experts are at work",
    lambda state: sum(s.recorded for s in state.steps.values()) >= 6 and any(map(_at_work, state.steps.values())),
)
_META = Moment("in the middle of the meta-review", lambda state: len(_streamed(state)) > 200)


@click.command()
@click.option("--doc", metavar="FILE", help="A text or Markdown file to review. Default: a paper on Perdure itself.")
@click.option("--folder", default="perdure-demo", show_default=True, help="Where the store and the outputs go.")
@click.option("--pace", default=2.0, show_default=True, help="Seconds that slow the experts down; 0 for none.")
@click.option("--json", "as_json", is_flag=True, help="What happened as one JSON object on standard output.")
def demo(doc: str | None, folder: str, pace: float, as_json: bool) -> int:
    """Review a document with eight experts, killing the process twice on the way.

    The experts analyse the text themselves; with PERDURE_MODEL_URL set they ask that model (any OpenAI-compatible
    endpoint; PERDURE_MODEL names the model, PERDURE_MODEL_KEY holds the key). Two experts return nothing at first.
    """
    path = Path(doc) if doc else _paper()
    words = len(_text(path).split())
    if model.configured():
        model.the_model()
    watch = Watch(_made(Path(folder)), path.resolve(), 0.0 if model.configured() else pace)
    click.echo(
        f"Reviewing {path.name} ({words} words) with eight experts. Everything is kept in {watch.place}", err=True
    )
    began = SYSTEM.monotonic()
    try:
        with sigterm_as_exit():
            killed, survived = _lives(watch)
    except (KeyboardInterrupt, SystemExit) as stop:
        click.echo(f"\nStopped. What finished is kept. Go on with:\n  {watch.resume()}", err=True)
        return CTRL_C if isinstance(stop, KeyboardInterrupt) else SIGTERM
    account = _account(watch, survived, killed, SYSTEM.monotonic() - began)
    if as_json:
        write(msgspec.json.encode(account))
    else:
        _print(account, watch)
    return OK if account["status"] == "completed" else FLOW_FAILED


def _lives(watch: Watch) -> tuple[int, str]:
    """Run to the end, killed on the way; (how often it was, the meta-review's text when it was)."""
    killed = watch.life("1", _EXPERTS) + (watch.running and watch.life("2", _META))
    survived = _streamed(watch.state)
    if killed < 2 and watch.state.status == "completed":
        slower = "" if model.configured() else "; a larger --pace slows it down"
        click.echo(f"It was too quick to be killed as planned{slower}.", err=True)
    if watch.running:
        watch.life("3", None)
    return killed, survived


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}.", hint="Give another --folder.") from None
    return folder.resolve()


def _paper() -> Path:
    """The paper as it is installed, or in the repository that this is run from."""
    installed = Path(str(files("perdure.demo"))) / "paper.md"
    return installed if installed.exists() else Path(__file__).parents[3] / "examples" / "paper.md"


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint="Give a text or Markdown file.") from None
    except UnicodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}.", hint="Give a text or Markdown file.") from None
    if "\0" in text:
        raise ConfigError(f"{path} is no text: it contains zero bytes.", hint="Give a text or Markdown file.")
    if not text.strip():
        raise ConfigError(f"{path} is empty: there is nothing to review.", hint="Give a text or Markdown file.")
    return text


class Watch:
    """Starts lives of one run in child processes, follows its journal, and kills them at the moment wanted."""

    def __init__(self, place: Path, doc: Path, pace: float) -> None:
        self.place = place
        self.store = f"sqlite:{place / 'runs.db'}"
        self.goal = f"review of {doc.name}"
        self.key = RunKey.of(self.goal, self._next_episode())
        self.state = State(self.key)
        self.reused: set[int] = set()
        """numbers of steps that were recorded when a later life began"""
        self.saved = 0.0
        """seconds of recorded work that later lives did not do again"""
        self._words = [
            sys.executable,
            "-m",
            "perdure.demo.child",
            self.store,
            self.goal,
            str(self.key.episode),
            str(doc),
        ]
        self._told = SYSTEM.monotonic()
        self._environment = {**os.environ, "PERDURE_DEMO_PACE": str(pace), "PERDURE_DEMO_EMPTY": "1"}

    def _next_episode(self) -> int:
        if not Path(self.store.partition(":")[2]).exists():
            return 0
        with Client(self.store) as client:
            return max((row.episode for row in client.runs(self.goal)), default=-1) + 1

    @property
    def running(self) -> bool:
        """Whether there is something left to do."""
        return self.state.status not in ("completed", "failed")

    def resume(self) -> str:
        """The command that goes on with this run."""
        outputs = str(self.place / "outputs")
        return command(
            *("resume", str(self.key), "--app", "perdure.demo.crew:review"),
            *("--outputs", outputs, "--store", self.store),
        )

    def show(self) -> str:
        """The command that shows this run."""
        return command("show", str(self.key), "--store", self.store)

    def life(self, number: str, moment: Moment | None) -> bool:
        """One process; SIGKILLed at the moment, or left to finish. Returns whether it was killed."""
        recorded = [step for step in self.state.steps.values() if step.recorded]
        self.saved += sum(step.seconds for step in recorded)
        self.reused.update(step.number for step in recorded)
        plan = f"will be killed {moment.told}" if moment else "left to finish"
        kept = f"; {len(recorded)} steps are recorded" if recorded else ""
        click.secho(f"\nLife {number}: {plan}{kept}", bold=True, err=True)
        with (self.place / "child.log").open("ab") as log:
            child = subprocess.Popen([*self._words, str(self.place)], env=self._environment, stderr=log)
        try:
            while child.poll() is None:
                self.look()
                if moment is not None and moment.ripe(self.state):
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    self.look()
                    click.secho(f"  SIGKILL to pid {child.pid}, {moment.told}", fg="red", err=True)
                    return True
                SYSTEM.sleep(_LOOK)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        self.look()
        if child.returncode != 0 and self.state.status != "failed":
            log_file = self.place / "child.log"
            last = [line for line in log_file.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise ConfigError(f"The crew could not run: {''.join(last)} (see {log_file})")
        return False

    def look(self) -> None:
        """Take what has become durable since the last look, and tell of it."""
        try:
            with Client(self.store) as client:
                entries = client.entries(str(self.key), self.state.seq)
        except (FixError, StoreBusy):  # the child has not begun yet, or is making the store
            return
        for entry in entries:
            self.state.apply(entry)
            line = tell(self.state, entry, inputs=False)
            if line and not isinstance(entry, j.RunBegan | j.RunResumed | j.RunCompleted):
                click.echo(line, err=True)
                self._told = SYSTEM.monotonic()
        if SYSTEM.monotonic() - self._told > _PATIENCE:
            click.echo(f"    ... {_doing(self.state)}", err=True)
            self._told = SYSTEM.monotonic()

    def final(self) -> State:
        """The run as its journal tells it, read once more."""
        with Client(self.store) as client:
            return fold(self.key, [j.encode(self.key, entry) for entry in client.entries(str(self.key))])


def _doing(state: State) -> str:
    """What a run is at, for those who wait for it."""
    text = _streamed(state)
    if text:
        return f"{len(text):,} characters of the meta-review: ...{head(text[-60:], 60)}"
    busy = [step.name for step in state.steps.values() if not step.recorded]
    return f"{', '.join(busy) or 'the crew'} at work"


def _at_work(step: Any) -> bool:
    return bool(step.status == "running" and step.progress is not None)


def _streamed(state: State) -> str:
    return next((s.partial_text for s in state.steps.values() if s.name == "meta-review" and not s.recorded), "")


def _account(watch: Watch, survived: str, killed: int, elapsed: float) -> dict[str, Any]:
    state = watch.final()
    steps = sorted(state.steps.values(), key=lambda s: s.number)
    outcomes = {step.name: [attempt.outcome for attempt in step.attempts] for step in steps}
    crashed = [a for step in steps for a in step.attempts if a.outcome == "crashed"]
    return {
        "run": str(state.key),
        "status": state.status,
        "lives": state.lives,
        "killed": killed,
        "seconds": round(elapsed, 3),
        "seconds_saved": round(watch.saved, 3),
        "seconds_lost": round(sum(a.seconds for a in crashed), 3),
        "reused": [s.name for s in steps if s.number in watch.reused and "crashed" not in outcomes[s.name]],
        "executed_again": [name for name, seen in outcomes.items() if "crashed" in seen],
        "empty_and_retried": [name for name, seen in outcomes.items() if "refused" in seen],
        "completed_twice": [name for name, seen in outcomes.items() if seen.count("completed") > 1],
        "text_that_survived": survived,
        "outputs": state.outputs,
        "files": {s.name: str(path) for s in steps if (path := Outputs(Path(state.outputs)).find(s))},
    }


def _print(account: dict[str, Any], watch: Watch) -> None:
    survived, again = account["text_that_survived"], ", ".join(account["executed_again"])
    lives = "1 life" if account["lives"] == 1 else f"{account['lives']} lives"
    rows = {
        "status": f"{account['status']} in {lives} and {age(account['seconds'])}",
        "reused": ", ".join(account["reused"]) or "nothing",
        "executed again": f"{again} (at work when the process died)" if again else "nothing",
        "completed twice": ", ".join(account["completed_twice"]) or "nothing",
        "empty at first": f"{', '.join(account['empty_and_retried']) or 'none'} (retried, never taken for a result)",
        "text that survived": f"{len(survived)} characters of the meta-review, up to: ...{head(survived[-50:], 50)}"
        if survived
        else "none was at stake",
        "saved": f"{age(account['seconds_saved'])} of work not done again; {age(account['seconds_lost'])} lost",
        "outputs": account["outputs"],
    }
    click.secho("\nWhat happened", bold=True)
    for title, text in rows.items():
        click.echo(f"  {title:<19} {text}")
    click.echo(f"\nEvery step:      {watch.show()}")
    if account["status"] == "completed":
        click.echo(f"The meta-review: {command('output', account['run'], 'meta-review', '--store', watch.store)}")
    else:
        click.echo(f"To try again:    {watch.resume()}")
