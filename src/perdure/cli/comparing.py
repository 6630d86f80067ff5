"""``perdure diff``: two runs side by side, steps by steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import FOUND, OK, write
from perdure.cli.words import SHOWN_LINES, age, plain_table, say, tell_diff
from perdure.errors import RunNotFound
from perdure.record import is_called
from perdure.runtime.client import Client
from perdure.runtime.compare import Comparison, RunFacts, StepPair


@click.command("diff")
@click.argument("a", metavar="RUN")
@click.argument("b", metavar="RUN")
@click.option("--step", metavar="STEP", help="Only this step: its number in the first run, name or path.")
@click.option("--all", "everything", is_flag=True, help="List the steps that are the same too.")
@click.option("--full", is_flag=True, help=f"Every line of every diff; else at most {SHOWN_LINES} of each.")
@click.option("--exit-code", is_flag=True, help=f"Exit code {FOUND} if anything differs.")
@store_option
@json_option
def diff_(
    a: str, b: str, step: str | None, everything: bool, full: bool, exit_code: bool, store: str | None, as_json: bool
) -> int:
    """Compare two runs, steps by steps: which differ in inputs, output, state, attempts or usage, and how.

    Steps are found in each other by scope, name and inputs; what is left by scope and name, in order. Texts are shown
    as a diff, long lines sentence by sentence; other values as a diff of their JSON. Numbers are those of the first
    run / the second. Time is told, and is no difference.

    \b
      perdure diff paper-17#0 paper-17#1
      perdure diff paper-17#0 paper-17#1 --step expert --full
    """
    with Client(store) as client:
        found = client.diff(a, b)
    pairs = found.steps if step is None else _named(found, step)
    if as_json:
        write(msgspec.json.encode({"same": found.same, **msgspec.structs.asdict(found), "steps": pairs}))
    else:
        if step is None:
            _tell_runs(found)
        _tell_table(found, pairs, everything or step is not None)
        _tell_differences(found if step is None else None, pairs, None if full else SHOWN_LINES)
    differs = not found.same if step is None else not all(pair.same for pair in pairs)
    return FOUND if exit_code and differs else OK


def _named(found: Comparison, step: str) -> tuple[StepPair, ...]:
    """The pairs of a step. Raises RunNotFound."""
    pairs = tuple(pair for pair in found.steps if _is_named(pair, step))
    if not pairs:
        paths = ", ".join(dict.fromkeys(pair.path for pair in found.steps)) or "none"
        raise RunNotFound(
            f"neither {found.a.run} nor {found.b.run} has a step {step!r}.", hint=f"Their steps: {paths}."
        )
    return pairs


def _is_named(pair: StepPair, step: str) -> bool:
    """Numbers are those of the first run, if that has it."""
    first, *second = [facts for facts in (pair.a, pair.b) if facts is not None]
    return is_called(step, first.number, first.path) or any(is_called(step, 0, facts.path) for facts in second)


def _tell_runs(found: Comparison) -> None:
    for letter, run in (("a", found.a), ("b", found.b)):
        say(f"{letter}  {_run(run)}")
    for change in found.inputs:
        say(f"input {change.told(100)}")
    for name in found.hidden:
        say(f"input {name} is secret, and cannot be compared")
    if found.result_differs:
        say("result differs")


def _run(run: RunFacts) -> str:
    told = f"run {run.run}: {run.status}, flow {run.flow}, {run.lives} {'life' if run.lives == 1 else 'lives'}"
    told += f", used {run.usage}" if run.usage else ""
    return told + (f", {run.error}" if run.error else "")


def _tell_table(found: Comparison, pairs: Sequence[StepPair], everything: bool) -> None:
    listed = [pair for pair in pairs if everything or not pair.same]
    uses = any(facts.usage for pair in listed for facts in (pair.a, pair.b) if facts is not None)
    cells = [_cells(found, pair, uses) for pair in listed]
    if cells:
        say()
        say(plain_table(("#", "step", "differs in", "attempts", "time", *(("used",) if uses else ())), cells))
    alike = sum(pair.same for pair in pairs)
    hidden = sum(pair.same and bool(pair.hidden) for pair in pairs)
    said = f"; in {hidden} of them secret inputs could not be compared" if hidden else ""
    say(f"{'No' if not alike else f'{alike:,}'} step{' is' if alike == 1 else 's are'} the same{said}.")


def _cells(found: Comparison, pair: StepPair, uses: bool) -> tuple[str, ...]:
    if pair.a is None or pair.b is None:
        differs = f"only in {found.a.run if pair.b is None else found.b.run}"
    else:
        differs = ", ".join(pair.differs) or "nothing"
        differs += "; its code has changed" if pair.code_changed else ""

    def both(what: Iterable[str]) -> str:
        old, *new = what
        return old if not new or [old] == new else f"{old} / {new[0]}"

    facts = [side for side in (pair.a, pair.b) if side is not None]
    path = pair.path if pair.b is None or pair.path == pair.b.path else f"{pair.path} / {pair.b.path}"
    return (
        _numbers(pair),
        path,
        differs,
        both(str(side.attempts) for side in facts),
        both(age(side.seconds) for side in facts),
        *((both(str(side.usage) for side in facts),) if uses else ()),
    )


def _numbers(pair: StepPair) -> str:
    old, new = ("-" if facts is None else str(facts.number) for facts in (pair.a, pair.b))
    return old if old == new else f"{old} / {new}"


def _tell_differences(found: Comparison | None, pairs: Sequence[StepPair], most: int | None) -> None:
    """How each of the steps differs, then the results of the runs ``found``."""
    told: dict[str, str] = {}
    for pair in pairs:
        if pair.a is None or pair.b is None or pair.same:
            continue
        said = _said(pair)
        if said or pair.diff:
            say(f"\nstep {_numbers(pair)} ({pair.path})")
        for line in said:
            say(f"  {line}")
        tell_diff(pair.diff, most)
        told.setdefault(_body(pair.diff), pair.path)
    if found is not None and found.result_differs:
        same = told.get(_body(found.result_diff))
        say("\nresult" + (f": differs as the output of {same} does" if same is not None else ""))
        if same is None:
            tell_diff(found.result_diff, most)


def _said(pair: StepPair) -> list[str]:
    """Lines about what no diff shows."""
    assert pair.a is not None and pair.b is not None
    told = [f"input {change.told(100)}" for change in pair.inputs]
    if "inputs" in pair.differs and not pair.inputs:
        told.append("inputs: it was asked for with another key")
    told += [f"input {name} is secret, and cannot be compared" for name in pair.hidden]
    if "state" in pair.differs:
        told += [
            f"{letter}: {facts.state}" + "".join(f", {said}" for said in (facts.flagged, facts.error) if said)
            for letter, facts in (("a", pair.a), ("b", pair.b))
        ]
    return told


def _body(diff: str) -> str:
    """A diff without the two lines that name what is compared."""
    return diff.split("\n", 2)[-1]
