"""The crew that ``perdure demo`` runs: load a paper, outline it, eight experts side by side, a streaming meta-review.

Run it by hand like any flow: ``perdure run perdure.demo.crew:review --input path=paper.md``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import perdure
from perdure.clock import SYSTEM
from perdure.demo import experts, model
from perdure.demo.prose import Prose
from perdure.runners import Crew, Message, Pipeline, Task, quorum

EMPTY_AT_FIRST: Final = ("terms", "references")
"""experts whose first attempt returns nothing in the demo: the incident that this library was asked for"""

_ASPECTS: Final = {
    "structure": "structure and order of sections",
    "readability": "readability",
    "sentences": "sentence length and clarity",
    "claims": "claims that are made without figures or evidence",
    "terms": "undefined terms and acronyms",
    "repetition": "repetition",
    "references": "references and links",
    "numbers": "consistency of numbers",
}


def load(path: str) -> str:
    """The document's text."""
    return Path(path).read_text(encoding="utf-8-sig")


def outline(paper: str) -> str:
    """The document's headings, as Markdown."""
    heads = [f"{'#' * heading.level} {heading.title}" for heading in Prose(paper).headings]
    return "\n".join(heads) or "(no headings)"


def _pace() -> float:
    return float(os.environ.get("PERDURE_DEMO_PACE", "0"))


def _expert(name: str, analyse: Callable[[str], str], place: int, backoff: float) -> Task:
    slowness = 0.5 if name in EMPTY_AT_FIRST else 1.0 + place

    def examine(paper: str) -> str:
        context = perdure.context()
        for part in range(4):  # pacing: the real analysis takes milliseconds
            SYSTEM.sleep(_pace() * slowness / 12)
            context.save({"part": part + 1, "of": 4})
        if os.environ.get("PERDURE_DEMO_EMPTY") and name in EMPTY_AT_FIRST and context.attempt == 1:
            return ""
        if model.configured():
            return model.the_model()(_ask(name, paper)).content
        return analyse(paper)

    return Task(examine, name=name, retries=2, backoff=backoff, timeout=900.0)


def _ask(name: str, paper: str) -> list[Message]:
    return [
        {"role": "system", "content": f"You review papers. Judge only this: {_ASPECTS[name]}. Answer in Markdown."},
        {"role": "user", "content": paper},
    ]


def meta_review(paper: str, reviews: dict[str, str], missing: dict[str, str]) -> str:
    """One review made of all; streams, and goes on from the text that a killed attempt left."""
    context = perdure.context()
    text = context.partial_text
    context.stream(text)
    for chunk in _rest(paper, reviews, missing, text):
        SYSTEM.sleep(_pace() / 40)
        context.stream(chunk)
        text += chunk
    return text


def _rest(paper: str, reviews: dict[str, str], missing: dict[str, str], text: str) -> Iterator[str]:
    if model.configured():
        told = "\n\n".join(f"## {name}\n{review}" for name, review in reviews.items())
        messages: list[Message] = [
            {"role": "system", "content": "Combine these reviews of one paper into a meta-review in Markdown."},
            {"role": "user", "content": f"{told}\n\nMissing: {missing or 'none'}"},
        ]
        if text:
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Continue exactly there."}]
        yield from model.the_model().stream(messages)
        return
    at = 0
    for chunk in experts.meta_review(paper, reviews):
        if at + len(chunk) > len(text):
            yield chunk[max(len(text) - at, 0) :]
        at += len(chunk)


def build(backoff: float = 0.2) -> Pipeline:
    """The pipeline; ``backoff``: seconds before the first retry. ``PERDURE_DEMO_PACE`` (seconds) slows it down so that
    it can be watched and killed, ``PERDURE_DEMO_EMPTY`` lets two experts return nothing at first.
    """
    crew = Crew(
        [_expert(name, analyse, place, backoff) for place, (name, analyse) in enumerate(experts.EXPERTS.items())],
        Task(meta_review, name="meta-review", retries=2, backoff=backoff),
        require=quorum(6),
        name="experts",
    )
    return Pipeline([Task(load, name="paper"), Task(outline, name="outline"), crew], name="review")


review = build(backoff=2.0 if model.configured() else 0.2)
