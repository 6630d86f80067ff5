"""``perdure run`` and ``perdure resume``: execute a flow, show how it goes, and say how to go on if it stops."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar, get_args

import click
import msgspec

from perdure import codec
from perdure.cli.outcome import CTRL_C, OK, STOPPED, command, report, write
from perdure.cli.progress import Follower, Lines, live_table
from perdure.cli.target import load_rules, load_target, named_after, parse_inputs, read_secrets, resolver
from perdure.cli.words import moment, say
from perdure.errors import ConfigError, RunSuspended
from perdure.guard import Guard
from perdure.model import Budget, RunKey, RunMeta, head
from perdure.redaction import Redaction
from perdure.runtime.api import run as perdure_run
from perdure.runtime.client import Client
from perdure.runtime.config import CheckpointConfig, Durability, default_store
from perdure.runtime.outputs import readable
from perdure.runtime.recorded import recall
from perdure.runtime.steps import Function

C = TypeVar("C", bound=Callable[..., Any])
_RERUN = "Execute again what is changed (steps whose code is), failed or flagged, or a STEP; and what depends on it."


def with_secrets(fn: C) -> C:
    """Options about what must not be shown, for whatever executes runs or writes them down."""
    rules = "Keep what these rules hide out of records: default, or module:NAME of a Redaction."
    fn = click.option("--redact", metavar="RULES", help=rules)(fn)
    said = "Value of the secret NAME, from the environment; an input of that name is given it."
    return click.option("--secret", "secrets", multiple=True, metavar="NAME[=VARIABLE]", help=said)(fn)


def execution_options(fn: C) -> C:
    """Options that ``run`` and ``resume`` share."""
    for option in reversed(
        (
            click.option("--store", help="Where the journal is: sqlite:PATH, file:DIR or memory:. [PERDURE_STORE]"),
            with_secrets,
            click.option("--outputs", type=click.Path(file_okay=False), help="Keep every output as a file in DIR."),
            click.option("--durability", type=click.Choice(get_args(Durability)), default="strict", show_default=True),
            click.option("--rerun", multiple=True, metavar="WHAT", help=_RERUN),
            click.option(
                "--budget",
                multiple=True,
                metavar="CAP=NUMBER",
                help="cost, tokens, calls or seconds that all lives of the run may use; raise it to go on.",
            ),
            click.option(
                "--wait",
                is_flag=True,
                help="Stay while the run waits for an answer, a signal or a date, or another process executes it.",
            ),
            click.option("--json", "as_json", is_flag=True, help="The outcome as one JSON object on standard output."),
            click.option("--quiet", is_flag=True, help="No progress, only the result."),
            click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error arose."),
        )
    ):
        fn = option(fn)
    return fn


class Execution(NamedTuple):
    """The options of ``execution_options``, as click hands them over."""

    store: str | None
    secrets: tuple[str, ...]
    redact: str | None
    outputs: str | None
    durability: Any
    rerun: tuple[str, ...]
    budget: tuple[str, ...]
    wait: bool
    as_json: bool
    quiet: bool
    show_traceback: bool


@click.command()
@click.argument("target")
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="An input; NAME=@FILE reads a file.")
@click.option("--goal", help="Name of the task. Default: made of the target and its inputs.")
@click.option("--episode", type=click.IntRange(min=0), help="Which attempt at the task. Default: the latest.")
@click.option("--new", is_flag=True, help="Begin the next episode instead of going on with the latest.")
@click.option("--adopt-input", is_flag=True, help="Go on although the inputs differ from the recorded ones.")
@execution_options
def run(
    target: str,
    inputs: tuple[str, ...],
    goal: str | None,
    episode: int | None,
    new: bool,
    adopt_input: bool,
    **options: Any,
) -> int:
    """Run a flow, or go on with it: the same command again executes only what is not finished.

    TARGET is package.module:flow, path/to/file.py:flow or a TOML file that describes a pipeline.

    \b
      perdure run review.py:review --input paper=paper.md
      perdure run review.toml --input paper=paper.md --goal paper-17
      perdure run review.py:review --goal paper-17 --rerun flagged
    """
    execution = Execution(**options)
    flow = load_target(target)
    values = parse_inputs(flow, inputs, read_secrets(execution.secrets))
    named = target.rpartition(":")[2] if ":" in target else flow.name  # graphs and agents are often left unnamed
    chosen = goal if goal is not None else " ".join([named, *named_after(flow, inputs)])
    if goal is None and len(chosen) > 200:
        raise ConfigError("The inputs are too long to name the task.", hint="Name it with --goal.")
    return execute(
        flow, (), values, execution, goal=chosen, episode=episode, new=new, adopt_input=adopt_input, target=target
    )


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--app", metavar="TARGET", help="The program: module:flow, file.py:flow or file.toml.")
@click.option("--stopped", is_flag=True, help="Let a run go on that a person has paused, as perdure unpause does.")
@execution_options
def resume(name: str, app: str | None, stopped: bool, **options: Any) -> int:
    """Go on with a run: GOAL (its latest episode) or GOAL#EPISODE, with the inputs it was begun with.

    The program must be named with --app: Perdure never imports what stored data names.

    \b
      perdure resume paper-17 --app review.py:review
    """
    execution = Execution(**options)
    with Client(execution.store) as client:
        state = client.state(name)
        key = state.key
        if app is None:
            known = state.target or "TARGET"
            raise ConfigError(
                f"Which program is run {key} of? It was begun with {state.target or 'no target'}.",
                hint="Nothing is imported because stored data names it; say it yourself:\n  "
                + command("resume", str(key), "--app", known, store=execution.store),
            )
        flow = load_target(app)
        if flow.name != state.flow:
            raise ConfigError(f"Run {key} is of flow {state.flow!r}, and {app} is {flow.name!r}.", hint="Check --app.")
        _ = flow.signature  # makes the types of its inputs known
        guard = Guard(state.keyed_by, resolve=resolver(execution.secrets))
        recalled = recall(state, client.blobs(state.inputs) if state.inputs is not None else {}, guard)
        recalled.resolve()
        args, kwargs = recalled.inputs
    return execute(
        flow, args, kwargs, execution, goal=key.goal, episode=key.episode, resume_stopped=stopped, target=app
    )


def execute(
    flow: Function[..., Any], args: Sequence[Any], inputs: dict[str, Any], options: Execution, **start: Any
) -> int:
    """Run the flow with a display, and turn every way in which it can end into words and an exit code."""
    store = options.store or default_store()
    table = sys.stderr.isatty() and not (options.quiet or options.as_json)
    follower = Follower(store) if table or options.quiet else Lines(store)
    config = CheckpointConfig(
        durability=options.durability,
        outputs=options.outputs,
        secrets=resolver(options.secrets),
        redact=load_rules(options.redact),
    )
    RunKey.of(start["goal"])
    clash = inputs.keys() & inspect.signature(perdure_run).parameters.keys()
    if clash:
        raise ConfigError(f"{flow.name}: its inputs {sorted(clash)} have names of options.", hint="Rename them.")
    again = _again(options, start)
    try:
        with live_table(follower) if table else nullcontext():
            value = perdure_run(
                flow,
                *args,
                store=store,
                config=config,
                rerun=options.rerun,
                budget=_budget(options.budget),
                wait=options.wait,
                observers=(follower,),
                **start,
                **inputs,
            )
    except (KeyboardInterrupt, SystemExit) as stop:
        code = CTRL_C if isinstance(stop, KeyboardInterrupt) else _code(stop)
        return _stopped(follower, again(follower), options.as_json, code)
    except RunSuspended as suspended:
        return _suspended(suspended, again(follower), store, options)
    except Exception as error:
        run_name = str(follower.state.key) if follower.state is not None else ""
        return report(
            error,
            as_json=options.as_json,
            run=run_name,
            resume=again(follower) if run_name else "",
            show_traceback=options.show_traceback,
        )
    _tell_result(value, follower, config.redact, options, start["goal"])
    return OK


def _budget(words: Sequence[str]) -> Budget | None:
    """The caps of ``--budget NAME=NUMBER`` words. Raises ConfigError."""
    caps: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if name not in Budget.__struct_fields__ or not number > 0:
            raise ConfigError(
                f"--budget {word!r} is no cap.", hint=f"Write NAME=NUMBER with {', '.join(Budget.__struct_fields__)}."
            )
        caps[name] = number if name in ("cost", "seconds") else int(number)
    return Budget(**caps) if caps else None  # type: ignore[arg-type]


def _suspended(why: RunSuspended, again: str, store: str, options: Execution) -> int:
    """The run waits in no process: say for what, and what to do. What runs ask that it began is its concern too."""
    say(f"Waiting: {why.args[0]}", err=True)
    with Client(store) as client:
        rows = {str(row.key): row for row in client.runs()}
        asked = [question for question in client.questions() if why.run in _ancestry(rows, question.run)]
    for question in asked:
        answer = command("answer", question.run, str(question.step), store=options.store)
        say(f"  {question.step:3d} {head(question.prompt, 60)}\n      {answer}", err=True)
    say(f"Then go on with:\n  {again}", err=True)
    if options.as_json:
        told = {
            "run": why.run,
            "status": rows[why.run].status if why.run in rows else "waiting",
            "questions": [{"run": q.run, "step": q.step, "id": q.id, "prompt": q.prompt, "to": q.to} for q in asked],
            "until": moment(why.until) or None,
            "resume": again,
        }
        write(msgspec.json.encode(told))
    return STOPPED


def _ancestry(rows: Mapping[str, RunMeta], name: str) -> list[str]:
    """A run, the run that began it, and so on."""
    found = [name]
    while (parent := rows[found[-1]].parent if found[-1] in rows else "") and parent not in found:
        found.append(parent)
    return found


def _code(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else 1


def _stopped(follower: Follower, again: str, as_json: bool, code: int) -> int:
    done = sum(step.recorded for step in follower.state.steps.values()) if follower.state is not None else 0
    say(f"\nStopped; {done} finished steps are kept. Go on with:\n  {again}", err=True)
    if as_json:
        name = str(follower.state.key) if follower.state is not None else ""
        told = {
            "type": "Interrupted",
            "message": "stopped by a signal",
            "exit_code": code,
            "run": name,
            "resume": again,
        }
        write(msgspec.json.encode({"error": told}))
    return code


def _tell_result(value: Any, follower: Follower, rules: Redaction | None, options: Execution, goal: str) -> None:
    state = follower.state
    payload, blobs = codec.dumps(value, "result", Guard(state.keyed_by if state is not None else "", rules))
    _, content = readable(payload, blobs)
    if options.as_json:
        body = codec.stored_json(payload, blobs)
        told = {
            "run": str(state.key) if state is not None else goal,
            "status": "completed",
            "steps": len(state.steps) if state is not None else None,
            "reused": state.reused if state is not None else None,
            "seconds_saved": state.saved if state is not None else None,
            "used": state.usage if state is not None else None,
            "paid": state.paid if state is not None else None,
            "saved": state.saved_usage if state is not None else None,
            "result": msgspec.Raw(body),
        }
        write(msgspec.json.encode(told))
        return
    if state is None and not options.quiet:
        say("This run had completed; here is its recorded result. Run it afresh with --new.", err=True)
    if value is not None:
        write(content)
    if state is not None and options.rerun and not options.quiet:
        how = command("explain", str(state.key), store=options.store)
        say(f"Why each step was executed or reused: {how}", err=True)


def _again(options: Execution, start: dict[str, Any]) -> Callable[[Follower], str]:
    """The command that goes on with this run, once it is known which run it is."""

    def words(follower: Follower) -> str:
        key = follower.state.key if follower.state is not None else RunKey(start["goal"], start.get("episode") or 0)
        more: list[str] = []
        if options.outputs:
            more += ["--outputs", options.outputs]
        if options.durability != "strict":
            more += ["--durability", options.durability]
        for secret in options.secrets:
            more += ["--secret", secret]
        if options.redact:
            more += ["--redact", options.redact]
        return command("resume", str(key), "--app", start["target"], *more, store=options.store)

    return words
