"""A graph as text that Mermaid draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from perdure import states
from perdure.runners.graph import Graph

_COLOURS: Final = {
    states.COMPLETED: "fill:#d5f0d8,stroke:#2e7d32",
    states.RUNNING: "fill:#d6ebff,stroke:#1565c0",
    states.FAILED: "fill:#ffd9d6,stroke:#c62828",
    states.CRASHED: "fill:#ffd9d6,stroke:#c62828,stroke-dasharray:4",
    states.FLAGGED: "fill:#fff3cd,stroke:#b58900",
    states.RETRYING: "fill:#fff3cd,stroke:#b58900",
    states.WAITING: "fill:#fff3cd,stroke:#b58900",
    states.INTERRUPTED: "fill:#eeeeee,stroke:#616161,stroke-dasharray:4",
}


def mermaid(graph: Graph, told: Mapping[str, str] = {}) -> str:
    """``graph`` as a Mermaid flowchart; ``told`` is the state of each node that has started, by name."""
    ids = {name: f"n{place}" for place, name in enumerate(graph.tasks)}
    lines = ["flowchart TD"]
    for name in graph.tasks:
        label = _safe(name) + (f"<br/>{_safe(told[name])}" if name in told else "")
        label += "<br/>(any)" if graph.joins[name] == "any" else ""
        opening, closing = ("([", "])") if name in graph.drawn.first else ("[", "]")
        lines.append(f'    {ids[name]}{opening}"{label}"{closing}')
    for edge in graph.edges:
        said = [_safe(edge.label)] if edge.label else []
        said += [f"at most {edge.limit}x"] if edge.limit is not None else []
        arrow = "-.->" if edge.limit is not None else "-->"
        middle = f'|"{", ".join(said)}"|' if said else ""
        lines.append(f"    {ids[edge.source]} {arrow}{middle} {ids[edge.target]}")
    for state, colour in _COLOURS.items():
        nodes = [ids[name] for name, word in told.items() if word.split(" ")[0] == state and name in ids]
        if nodes:
            lines += [f"    classDef {state} {colour}", f"    class {','.join(nodes)} {state}"]
    return "\n".join(lines)


def _safe(text: str) -> str:
    """Text inside quotes, as Mermaid wants it."""
    return (
        text.replace("&", "&amp;").replace('"', "#quot;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    )
