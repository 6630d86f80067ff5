"""``perdure tail``: what happens in a run, as it becomes durable; streamed text too."""

from __future__ import annotations

import click
import msgspec

from perdure import journal as j
from perdure import states
from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, write
from perdure.cli.progress import tell
from perdure.cli.words import say
from perdure.clock import SYSTEM
from perdure.fold import State
from perdure.redaction import discreet
from perdure.runtime.client import Client

_PAUSE = 0.2


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--no-follow", is_flag=True, help="Print what is there and stop.")
@store_option
@json_option
def tail(name: str, no_follow: bool, store: str | None, as_json: bool) -> int:
    """Print what happens in RUN, live, streamed text included, until the run ends. Ctrl-C stops watching only."""
    with Client(store) as client:
        key = client.find(name).key
        printer = _Printer(State(key), as_json)
        while True:
            running = client.find(str(key)).status == states.RUNNING
            for entry in client.entries(str(key), printer.state.seq):
                printer.show(entry)
            if no_follow or not running:
                break
            SYSTEM.sleep(_PAUSE)
        status = client.find(str(key)).status
    printer.end(status)
    return OK


class _Printer:
    """Prints entries; text that a step streams stands between lines of its own."""

    def __init__(self, state: State, as_json: bool) -> None:
        self.state = state
        self._json = as_json
        self._streaming = 0

    def show(self, entry: j.Entry) -> None:
        self.state.apply(entry)
        if self._json:
            write(msgspec.json.encode(entry))
            return
        if isinstance(entry, j.StepChunk):
            if entry.step != self._streaming:
                self._line(f"  {entry.step:3d} {self.state.steps[entry.step].path} streams:")
                self._streaming = entry.step
            say(discreet(entry.text), nl=False)
            return
        line = tell(self.state, entry)
        if line:
            self._line(line)

    def _line(self, text: str) -> None:
        if self._streaming:
            say()
            self._streaming = 0
        say(text)

    def end(self, status: str) -> None:
        if not self._json:
            self._line(f"run {self.state.key}: {status}")
