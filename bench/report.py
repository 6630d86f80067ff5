"""RESULTS.md, and the pictures beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import tables
from bench.cast import Contender
from bench.durability import KILLS, Seen
from bench.peers_cast import ABSENT, PACKAGES
from bench.plot import curves
from bench.workload import Table, Workload

__all__ = ["PACKAGES", "Outcome", "write"]


class Outcome(NamedTuple):
    """All that one run of the bench has to tell."""

    facts: Mapping[str, str]
    versions: Mapping[str, str]
    peers: Mapping[str, str]
    """versions in the peers' environment; empty if they did not take part"""
    rounds: int
    workloads: Sequence[Workload]
    measured: Mapping[str, Table]
    seen: Seen
    cast: Mapping[str, Contender]
    """who was looked at, by name"""

    def as_json(self) -> dict[str, Any]:
        """Every sample."""
        lines, missed = tables.judged(self.measured)
        return {
            "facts": self.facts,
            "versions": self.versions,
            "peers": self.peers,
            "workloads": {
                id: [
                    {"contender": name, "size": size, "samples": samples, "problem": table.problems.get((name, size))}
                    for (name, size), samples in table.samples.items()
                ]
                for id, table in self.measured.items()
            },
            "durability": self.seen,
            "aims": [
                dict(zip(("workload", "aim", "bound", "measured", "spread", "met"), line, strict=True))
                for line in lines[1:]
            ],
            "missed": missed,
        }


def write(outcome: Outcome, folder: Path) -> None:
    """RESULTS.md and plots/*.svg in a folder, which is made if it is not there."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, picture in _pictures(outcome).items():
        (folder / "plots" / f"{name}.svg").write_text(picture, "utf-8")
    (folder / "RESULTS.md").write_text(_page(outcome), "utf-8")


_PLOTS = (
    ("w2-bytes", "W2", "bytes", "W2: bytes on disk", "steps", "MB", 1 / 2**20, "Bytes on disk against steps"),
    ("w2-time", "W2", "seconds", "W2: time", "steps", "seconds", 1.0, "Time against steps"),
    (
        "w4-resume",
        "W4",
        "over",
        "W4: resuming",
        "completed steps",
        "seconds over imports",
        1.0,
        "Time to resume against completed steps",
    ),
)


def _pictures(outcome: Outcome) -> dict[str, str]:
    pictures = {}
    for name, workload, key, title, across, up, scale, _ in _PLOTS:
        if workload in outcome.measured:
            pictures[name] = curves(title, across, up, _points(outcome.measured[workload], key, scale))
    return pictures


def _points(table: Table, key: str, scale: float) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, size), samples in table.samples.items():
        values = [sample[key] for sample in samples if sample is not None]
        if values:
            lines.setdefault(name, []).append((size, statistics.median(values) * scale))
    return lines


def _page(outcome: Outcome) -> str:
    aims, missed = tables.judged(outcome.measured)
    parts = [_HEAD, _machine(outcome)]
    parts += ["## Aims", _verdict(len(aims) - 1, missed), tables.markdown(aims)]
    for workload in outcome.workloads:
        parts += _section(workload, outcome.measured[workload.id])
    if outcome.seen:
        parts += ["## What each one's durability really is", _DURABILITY, tables.markdown(_seen(outcome))]
    parts += ["## Who is not there", "\n".join(f"- {name}: {why}" for name, why in ABSENT.items())] if ABSENT else []
    return "\n\n".join(parts) + "\n"


_HEAD = """# What was measured

Written by `make bench`; [docs/performance.md](../docs/performance.md) says what is measured, and how to read it.
Absolute figures are those of one machine at one time. Ratios are of things that were measured in the same round, one
after the other."""

_DURABILITY = f"""`fsync` and `fdatasync` calls a step were counted with strace, in the contender's process or in its
server. *Repeated*: in how many of {len(KILLS)} kills, each right after some step had been reported done to the code
that called it, that step was executed again. A kill is not a power cut: what was written and not synced survives it."""


def _machine(outcome: Outcome) -> str:
    lines = [["", ""], *([name, value] for name, value in outcome.facts.items())]
    lines.append(["versions", ", ".join(f"{name} {value}" for name, value in outcome.versions.items())])
    if outcome.peers:
        lines.append(["peers", ", ".join(f"{name} {value}" for name, value in outcome.peers.items())])
    lines.append(["rounds", f"{outcome.rounds}, interleaved: one of each contender, then the next of each"])
    return tables.markdown(lines).replace("---:", "---")


def _verdict(count: int, missed: Sequence[str]) -> str:
    return f"{count - len(missed)} of {count} are met." + (f" Missed: {'; '.join(missed)}." if missed else "")


def _section(workload: Workload, table: Table) -> list[str]:
    parts = [f"## {workload.id}: {workload.title}", workload.told(), tables.markdown(tables.cells(workload, table))]
    parts += [f"![{alt}](plots/{name}.svg)" for name, id, *_, alt in _PLOTS if id == workload.id]
    return parts


def _seen(outcome: Outcome) -> tables.Cells:
    lines = [["contender", "syncs a step", "repeated", "what it says"]]
    for name, found in outcome.seen.items():
        syncs = f"{found['syncs']:.2f}" if "syncs" in found else "not seen"
        kills = f"{found['repeated']:.0f} of {len(KILLS)}" if "repeated" in found else "-"
        lines.append([name, syncs, kills, outcome.cast[name].about])
    return lines
