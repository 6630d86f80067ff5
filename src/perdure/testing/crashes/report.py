"""What a crash test has found, for people and for programs."""

from __future__ import annotations

import textwrap
from typing import Final, Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal[
    "repeated", "way", "result", "nondeterminism", "effect", "failed", "stuck", "lost", "undurable"
]

TITLES: Final[dict[Kind, str]] = {
    "repeated": "A completed step is executed again",
    "way": "The flow goes another way",
    "result": "The result differs",
    "nondeterminism": "Two runs differ, without any crash",
    "effect": "A side effect outside of steps",
    "failed": "The run fails when it goes on",
    "stuck": "The run does not end when it goes on",
    "lost": "Records are lost",
    "undurable": "A step is executed without durability",
}
"""every kind of finding, as a heading"""

HINTS: Final[dict[Kind, str]] = {
    "repeated": "Each life computes that argument anew. Compute it in a step, pass it to the flow as an "
    "input, or name the step with key=.",
    "way": "Something outside of the steps decides it: the clock, chance, or the order of a set. Compute it in a step, "
    "or pass it to the flow as an input.",
    "result": "Something outside of the steps decides it: the clock, chance, the order of a set, or what a step left "
    "in a global. Return it from a step.",
    "nondeterminism": "Something outside of the steps decides it: the clock, chance, or the order of a set. Compute it "
    "in a step, or pass it to the flow as an input.",
    "effect": "It happens once more in every life. Do it in a step.",
    "failed": "A new process has only what steps returned: no globals that a step has set, no files or connections "
    "that the flow had opened.",
    "stuck": "A life that goes on waits for something, or hangs, where one that was not killed did not.",
    "lost": "This is a fault in Perdure itself, or in its store; please report it with this text.",
    "undurable": "Threads and executors of your own do not know the run: use perdure.gather or perdure.map.",
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a crash would do to the flow."""

    kind: Kind
    what: str
    """which step, place or result, and how"""
    kills: tuple[str, ...] = ()
    """after which kills it was seen; none: it needs no crash"""
    hint: str = ""

    def __str__(self) -> str:
        lines = [f"{TITLES[self.kind]}: {self.what}"]
        if self.kills:
            more = f", and at {len(self.kills) - 1} more" if len(self.kills) > 1 else ""
            lines.append(f"seen when it was killed {self.kills[0]}{more}")
        lines.append(self.hint)
        return "\n".join(lines)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a flow stood its crash test."""

    flow: str
    steps: int
    """of a run that is not killed"""
    points: int
    """changes of the store in such a run; it can be killed before and after each"""
    kills: int
    """runs that were killed and went on"""
    kills_again: int
    """how many of them were killed once more while they went on"""
    seed: int
    """what chose the points, if not all were tried, and the order of sets"""
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """what to know, and is nobody's fault"""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def assert_ok(self) -> None:
        """Raises AssertionError with the whole report if anything was found."""
        if self.findings:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        again = f", {self.kills_again} of them killed again while they went on" if self.kills_again else ""
        counts = f"{_count(self.steps, 'step')}, {_count(self.points, 'durable point')}; "
        counts += f"{_count(self.kills, 'run')} killed{again}"
        lines = [f"{self.flow}: {counts} (seed {self.seed})"]
        for place, finding in enumerate(self.findings, 1):
            told = [textwrap.fill(line, 110, break_long_words=False) for line in str(finding).splitlines()]
            lines += ["", textwrap.indent("\n".join(told), "   ").replace("   ", f"{place}. ", 1)]
        if self.notes:
            lines += ["", *(f"Note: {note}" for note in self.notes)]
        lines += ["", f"{len(self.findings)} found." if self.findings else "Nothing was found."]
        return "\n".join(lines)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
