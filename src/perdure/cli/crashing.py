"""``perdure crashtest``: kill somebody's own flow at every durable point, and say what that does to it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from perdure.cli.counter import Counter
from perdure.cli.outcome import FOUND, OK, write
from perdure.cli.target import load_target, parse_inputs
from perdure.cli.words import say
from perdure.errors import ConfigError
from perdure.runtime.api import sigterm_as_exit

if TYPE_CHECKING:
    from perdure.testing.crashes.report import Report

# perdure.testing is imported below and not here: other commands do without it.

_PROGRAM = "import sys; sys.path[:] = {path}; from perdure.cli.crashing import child; child(sys.argv[1:])"


@click.command()
@click.argument("target")
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="An input; NAME=@FILE reads a file.")
@click.option("--answer", "answers", multiple=True, metavar="STEP=JSON", help="What to answer when the flow asks.")
@click.option("--signal", "signals", multiple=True, metavar="NAME=JSON", help="A signal to send when it waits for it.")
@click.option("--points", default="all", show_default=True, metavar="all|N", help="How many kills, chosen by the seed.")
@click.option(
    "--again", type=click.IntRange(min=0), default=10, show_default=True, help="Runs that are killed a second time."
)
@click.option("--seed", type=click.IntRange(min=0), help="Choose the same points again; it is printed.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs side by side.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds that a life of a run may take.")
@click.option(
    "--store", type=click.Choice(["sqlite", "file"]), default="sqlite", show_default=True, help="Kind of the stores."
)
@click.option("--durability", default="strict", show_default=True, help="As for perdure run.")
@click.option("--allow", multiple=True, metavar="PATTERN", help="A side effect that is meant: 'os.mkdir *'.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object on standard output.")
def crashtest(
    target: str,
    inputs: tuple[str, ...],
    answers: tuple[str, ...],
    signals: tuple[str, ...],
    points: str,
    as_json: bool,
    **options: Any,
) -> int:
    """Kill your flow at every durable point, let it go on, and report what a crash would do to it.

    TARGET is package.module:flow, path/to/file.py:flow or a TOML file. It is executed for real, many times, in child
    processes with stores of their own in a temporary folder: give it inputs and models that may be used so.

    \b
      perdure crashtest review.py:review --input paper=paper.md
      perdure crashtest release.py:release -i topic=tides --answer legal=true
      perdure crashtest review.py:review -i paper=paper.md --points 20 --seed 7

    Exit code 7 if anything was found.
    """
    from perdure.testing.crashes.trial import Options, crash_flow

    if points != "all" and not points.isdecimal():
        raise ConfigError(f"--points {points!r} is neither 'all' nor a number.")
    chosen = Options(
        answers=_values("--answer", answers),
        signals=_values("--signal", signals),
        points=None if points == "all" else int(points),
        **options,
    )
    program = ["-c", _PROGRAM.format(path=sys.path), target, *inputs]
    with sigterm_as_exit(), Counter(quiet=as_json) as counter:
        report = crash_flow(program, chosen, lambda done, total: counter(f"{done} of {total} runs"))
    _tell(report, as_json)
    return OK if report.ok else FOUND


def _values(option: str, words: Sequence[str]) -> dict[str, Any]:
    """What ``NAME=JSON`` words say; a value that is no JSON is text. Raises ConfigError."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {word!r} has no '='.", hint=f"Write {option} NAME=JSON.")
        try:
            values[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            values[name] = text
    return values


def _tell(report: Report, as_json: bool) -> None:
    if as_json:
        write(msgspec.json.encode({"ok": report.ok, **msgspec.structs.asdict(report)}))
    else:
        say(str(report))


def child(words: Sequence[str]) -> None:
    """What the servers of a crash test execute."""
    from perdure.testing.crashes.server import serve

    target, *inputs = words

    def load() -> tuple[Any, Mapping[str, Any]]:
        flow = load_target(target)
        return flow, parse_inputs(flow, inputs)

    serve(load)
