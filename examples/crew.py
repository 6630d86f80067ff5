"""A crew of eight steps, one after the other, each with a prompt of its own: for editing it, and going on.

    perdure run examples/crew.py:crew --input path=examples/paper.md --goal paper

Edit the prompt of step 6, VERDICT below, and execute what depends on it, and nothing else:

    perdure run examples/crew.py:crew --input path=examples/paper.md --goal paper --rerun changed
    perdure explain paper
"""

import re
from pathlib import Path

import perdure

CLAIMS = "Quote every sentence that claims something for all cases. Look for: always, never, every, all"
NUMBERS = "Quote every sentence with a figure. Look for: percent, times, hours"
HEDGES = "Quote every sentence that says nothing definite. Look for: may, might, perhaps, could"
VERDICT = "Be strict: more than 3 findings are too many."
ADVICE = "Name at most 2 findings."


def ask(prompt: str, text: str) -> str:
    """Stands for a model that is paid for: quotes the sentences that have a word of the prompt."""
    words = set(prompt.partition("Look for: ")[2].split(", "))
    sentences = [" ".join(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+", text)]
    return "\n".join(f"- {s}" for s in sentences if words & set(re.findall(r"\w+", s.lower()))) or "(nothing)"


@perdure.step
def load(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


@perdure.step
def outline(paper: str) -> str:
    return "\n".join(line.strip("# ") for line in paper.splitlines() if line.startswith("#"))


@perdure.step(retries=2)
def claims(paper: str) -> str:
    return ask(CLAIMS, paper)


@perdure.step(retries=2)
def numbers(paper: str) -> str:
    return ask(NUMBERS, paper)


@perdure.step(retries=2)
def hedges(paper: str) -> str:
    return ask(HEDGES, paper)


@perdure.step
def verdict(findings: list[str]) -> str:
    most, count = int(re.findall(r"\d+", VERDICT)[0]), sum(finding.count("- ") for finding in findings)
    return f"{count} findings: {'revise' if count > most else 'accept'}"


@perdure.step
def advice(verdict: str, findings: list[str]) -> str:
    quoted = [line for finding in findings for line in finding.splitlines()]
    return "\n".join([verdict, *quoted[: int(re.findall(r"\d+", ADVICE)[0])]])


@perdure.step
def letter(advice: str, outline: str) -> str:
    return f"Dear authors,\n\non your paper ({outline.splitlines()[0]}):\n\n{advice}\n"


@perdure.flow
def crew(path: str) -> str:
    paper = load(path)
    titles = outline(paper)
    findings = [claims(paper), numbers(paper), hedges(paper)]
    return letter(advice(verdict(findings), findings), titles)
