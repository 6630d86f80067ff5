"""``perdure demo``: a review crew that is killed twice, and finishes without doing anything twice.

The crew runs in a child process. This process watches its journal, as any other client could, and sends SIGKILL: once
while experts are at work, once in the middle of the meta-review. Then it lets the run finish and counts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import click

from perdure.clock import SYSTEM
from perdure.errors import RunNotFound
from perdure.fold import State, Step
from perdure.runtime.client import Client

_PATIENCE = 300.0


@click.command()
@click.option("--doc", type=click.Path(exists=True, dir_okay=False), help="A text or Markdown file to review.")
@click.option("--folder", default="perdure-demo", show_default=True, help="Where the store and the outputs go.")
@click.option(
    "--pace", default=2.0, show_default=True, help="Seconds that slow the experts down, so that one can watch."
)
def demo(doc: str | None, folder: str, pace: float) -> None:
    """Review a document with eight experts, killing the process twice on the way.

    Without --doc a paper on Perdure's own design is reviewed. With PERDURE_MODEL_URL set the experts ask that model.
    """
    path = Path(doc).resolve() if doc else Path(str(files("perdure.demo") / "paper.md"))
    place = Path(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:{place / 'runs.db'}"
    goal = f"review of {path.name}"
    began = SYSTEM.monotonic()
    click.echo(f"Reviewing {path.name} with eight experts; store {store}")
    episode = _next_episode(store, goal)
    watch = Watch(store, goal, episode, path, place, pace)
    watch.life("1", "while experts are at work", lambda s: _done(s) >= 5 and _busy_expert(s))
    watch.life("2", "in the middle of the meta-review", lambda s: len(_partial(s)) > 200)
    survived = _partial(watch.state())
    watch.life("3", "", None)
    _account(watch.state(), survived, place, SYSTEM.monotonic() - began)


class Watch:
    """Starts lives of the run in child processes, and kills them when its journal shows the moment."""

    def __init__(self, store: str, goal: str, episode: int, path: Path, place: Path, pace: float) -> None:
        self.store, self.goal, self.episode = store, goal, episode
        self.command = [sys.executable, "-m", "perdure.demo.child", store, goal, str(episode), str(path), str(place)]
        self.environment = {**os.environ, "PERDURE_DEMO_PACE": str(pace)}

    def state(self) -> State:
        with Client(self.store) as client:
            return client.state(f"{self.goal}#{self.episode}")

    def life(self, number: str, moment: str, ripe: Callable[[State], object] | None) -> None:
        """One process; SIGKILLed when ``ripe``, or left to finish."""
        click.echo(f"\nLife {number}: " + (f"will be killed {moment}" if ripe else "left to finish"))
        child = subprocess.Popen(self.command, env=self.environment, stderr=subprocess.PIPE, text=True)
        killed = False
        deadline = SYSTEM.monotonic() + _PATIENCE
        while child.poll() is None and SYSTEM.monotonic() < deadline:
            if ripe is not None and self._is(ripe):
                child.send_signal(signal.SIGKILL)
                killed = True
                break
            SYSTEM.sleep(0.02)
        if not killed and child.poll() is None:
            child.kill()
            raise click.ClickException(f"The crew did not end within {_PATIENCE:g} s; look at it with: perdure ls")
        _, errors = child.communicate()
        if ripe is not None and not killed:
            raise click.ClickException(
                f"The crew ended before it could be killed {moment}; try a larger --pace. {errors}"
            )
        if not killed and child.returncode != 0:
            raise click.ClickException(f"The crew failed: {errors.strip()}")
        _table(self.state())
        if killed:
            click.echo(f"  SIGKILL {moment}. Nothing was told to anybody; the journal has what you see.")

    def _is(self, ripe: Callable[[State], object]) -> bool:
        try:
            return bool(ripe(self.state()))
        except RunNotFound:
            return False


def _next_episode(store: str, goal: str) -> int:
    if not Path(store.partition(":")[2]).exists():
        return 0
    with Client(store) as client:
        return max((row.episode for row in client.runs(goal)), default=-1) + 1


def _done(state: State) -> int:
    return sum(step.recorded for step in state.steps.values())


def _busy_expert(state: State) -> bool:
    return any(step.status == "running" and step.progress for step in state.steps.values())


def _partial(state: State) -> str:
    return next((s.partial_text for s in state.steps.values() if s.name == "meta-review" and not s.recorded), "")


def _table(state: State) -> None:
    for step in sorted(state.steps.values(), key=lambda s: s.number):
        click.echo(f"  {step.number:2d}  {step.name:<14}{_word(step):<12}{_history(step)}")


def _word(step: Step) -> str:
    return "crashed" if step.status in ("running", "interrupted") else step.status


def _history(step: Step) -> str:
    words = [a.outcome for a in step.attempts]
    if words == ["completed"]:
        return f"{step.seconds:5.1f} s"
    return f"{step.seconds:5.1f} s, attempts: {', '.join('crashed' if w == 'running' else w for w in words)}"


def _account(state: State, survived: str, place: Path, elapsed: float) -> None:
    repeated = [s for s in state.steps.values() if [a.outcome for a in s.attempts].count("completed") > 1]
    crashed = [s.name for s in state.steps.values() if any(a.outcome == "crashed" for a in s.attempts)]
    refused = [s.name for s in state.steps.values() if any(a.outcome == "refused" for a in s.attempts)]
    lost = sum(a.seconds for s in state.steps.values() for a in s.attempts if a.outcome == "crashed")
    kept = sum(s.seconds for s in state.steps.values() if s.recorded)
    click.echo("\nWhat happened")
    click.echo(f"  status               {state.status}, in {state.lives} lives, {elapsed:.1f} s")
    click.echo(f"  reused in life 3     {state.reused} steps, {state.saved:.1f} s saved by not doing them again")
    click.echo(f"  executed again       {', '.join(crashed) or 'none'} (they were running when the process died)")
    click.echo(f"  empty output retried {', '.join(refused) or 'none'}")
    click.echo(f"  completed twice      {len(repeated)}")
    click.echo(f"  work                 {kept:.1f} s kept, {lost:.1f} s lost in crashes")
    click.echo(f"  text that survived   {len(survived)} characters of the meta-review: {survived[:60]!r}...")
    click.echo(f"  outputs              {place / 'outputs'}")
    click.echo(f"\nLook around: perdure show {state.key.goal!r} --store sqlite:{place / 'runs.db'}")
