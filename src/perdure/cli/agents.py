"""``perdure transcript`` and ``perdure files``: what agents said, and what tools made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from perdure.cli.listing import at_option, json_option, store_option
from perdure.cli.outcome import OK, write
from perdure.cli.words import plain_table, say
from perdure.errors import CodecError, ConfigError
from perdure.model import File
from perdure.record import Step
from perdure.redaction import discreet
from perdure.runners.transcript import Line, transcript
from perdure.runtime.client import Client


@click.command("transcript")
@click.argument("name", metavar="RUN")
@click.option("--scope", help="Only of the agent in this scope; perdure show RUN lists scopes.")
@at_option
@store_option
@json_option
def show_transcript(name: str, scope: str | None, at: str | None, store: str | None, as_json: bool) -> int:
    """Print what the agents of RUN and their models said to each other, message by message.

    Of a run that goes on or has crashed too: every message that is durable is there, once. --at prints what had been
    said at some moment, as for `perdure show`.
    """
    with Client(store) as client:
        lines = transcript(client, name, scope, at)
    if as_json:
        write(msgspec.json.encode(lines))
        return OK
    if not lines:
        say("No agent has said anything in this run.")
    shown = None
    for line in lines:
        if line.scope != shown:
            shown = line.scope
            say(f"=== agent in scope {shown or '(top)'} ===")
        say(f"--- {_head(line)}")
        if line.content:
            say(discreet(line.content))
        for call in line.calls:
            say(f"-> {discreet(call)}")
    return OK


def _head(line: Line) -> str:
    told = line.role
    told += f" ({line.call_id})" if line.call_id else ""
    told += f" step {line.step}" if line.step else ""
    return told + (f", in the place of {line.covers} messages for the model" if line.covers else "")


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Write them into this folder.")
@store_option
@json_option
def files(name: str, folder: Path | None, store: str | None, as_json: bool) -> int:
    """List the files that steps of RUN made (values of type File), or write them to a folder.

    Of two files with one name both are written, the second under its step's number: 12-report.csv.
    """
    with Client(store) as client:
        state = client.state(name)
        found = [(step, file) for step in state.steps.values() for file in _files(client, step)]
    if folder is not None:
        _write(found, folder)
    rows = [_row(step, file) for step, file in found]
    if as_json:
        write(msgspec.json.encode(rows))
    elif not rows:
        say("No step of this run has made a file.")
    else:
        cells = [tuple(map(str, row.values())) for row in rows]
        say(plain_table(("#", "step", "file", "type", "bytes"), cells))
    return OK


def _write(found: list[tuple[Step, File]], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        for step, file in found:
            name = file.name if file.name not in taken else f"{step.number}-{file.name}"
            taken.add(file.name)
            (folder / name).write_bytes(file.content)
    except OSError as error:
        raise ConfigError(f"The files cannot be written to {folder}: {error}.") from None


def _files(client: Client, step: Step) -> Iterator[File]:
    if step.output is None:
        return
    try:
        yield from _inside(client.value(step.output))
    except CodecError:  # of a type that this program does not know
        return


def _inside(value: Any) -> Iterator[File]:
    """The files in a value, in lists and dicts too."""
    if isinstance(value, File):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _inside(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inside(item)


def _row(step: Step, file: File) -> dict[str, Any]:
    return {"step": step.number, "path": step.path, "name": file.name, "type": file.type, "bytes": len(file.content)}
