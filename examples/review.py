"""A small review crew: three experts side by side, and one step that makes one text of their findings, and streams it.

    python examples/review.py examples/paper.md

Kill it at any moment and run it again: finished experts are not executed twice.
"""

import asyncio
import re
import sys
from pathlib import Path

import perdure


@perdure.step
def load(path: str) -> str:
    """The paper's text."""
    return Path(path).read_text(encoding="utf-8")


@perdure.step(retries=2, timeout=60)
async def expert(question: str, paper: str) -> str:
    """Stands for a call of a model: takes a second, and answers by counting."""
    await asyncio.sleep(1)
    found = re.findall(question, paper, re.IGNORECASE)
    return f"{question!r} occurs {len(found)} times."


@perdure.step
async def combine(findings: list[str]) -> str:
    """One text of all; readers see it grow (perdure tail), and a crash leaves what was written so far."""
    context = perdure.context()
    text = context.partial_text
    for finding in findings:
        line = f"- {finding}\n"
        if line not in text:
            await asyncio.sleep(0.5)
            context.stream(line)
            text += line
    return text


@perdure.flow
async def review(path: str) -> str:
    """Load, three experts at a time, combine."""
    paper = load(path)
    findings = await perdure.gather(*(expert(question, paper) for question in ("always", "never", r"\d+ percent")))
    return await combine(findings)


# The same functions as stages of a pipeline: see review.toml.


def count_words(paper: str) -> int:
    """Words of the paper."""
    return len(paper.split())


def count_headings(paper: str) -> int:
    """Headings of the paper."""
    return len(re.findall(r"^#+ ", paper, re.MULTILINE))


def report(counts: dict[str, int], missing: dict[str, str]) -> str:
    """What the counters found, and which did not deliver."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) + (f" without {missing}" if missing else "")


if __name__ == "__main__":
    print(perdure.run(review, sys.argv[1], goal=f"review {sys.argv[1]}"))
