"""``perdure graph``: a graph as Mermaid, with the states of a run on it."""

from __future__ import annotations

import click
import msgspec

from perdure.cli.listing import json_option, store_option
from perdure.cli.outcome import OK, write
from perdure.cli.target import load_target
from perdure.cli.words import say
from perdure.errors import ConfigError
from perdure.fold import State
from perdure.runners.graph import Graph
from perdure.runners.mermaid import mermaid
from perdure.runtime.client import Client


@click.command()
@click.argument("target")
@click.argument("name", metavar="[RUN]", required=False)
@store_option
@json_option
def graph(target: str, name: str | None, store: str | None, as_json: bool) -> int:
    """Draw the graph TARGET (module:graph or file.py:graph) as Mermaid; with RUN, the state of each node on it.

    \b
      perdure graph report.py:report > report.mmd
      perdure graph report.py:report tides
    """
    drawn = load_target(target)
    if not isinstance(drawn, Graph):
        raise ConfigError(f"{target} is no Graph; its type is {type(drawn).__name__}.", hint="Name a Graph.")
    states: dict[str, str] = {}
    if name is not None:
        with Client(store) as client:
            states = node_states(drawn, client.state(name))
    text = mermaid(drawn, states)
    if as_json:
        edges = [{"source": e.source, "target": e.target, "label": e.label, "limit": e.limit} for e in drawn.edges]
        nodes = [{"name": node, "join": drawn.joins[node], "state": states.get(node)} for node in drawn.tasks]
        write(msgspec.json.encode({"graph": drawn.name, "nodes": nodes, "edges": edges, "mermaid": text}))
        return OK
    say(text)
    return OK


def node_states(drawn: Graph, state: State) -> dict[str, str]:
    """What has become of each node that has started: the state of its latest execution, and how many there were."""
    told = {}
    for node in drawn.tasks:
        steps = [step for step in map(state.steps.__getitem__, state.steps.named("", node)) if not step.unused]
        if steps:
            times = f" x{len(steps)}" if len(steps) > 1 else ""
            told[node] = steps[-1].status + times
    return told
