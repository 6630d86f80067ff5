"""Map and reduce over a folder of documents, killed in between. Run it twice:

    python examples/mapreduce.py docs     # dies when half of the documents are read
    python examples/mapreduce.py docs     # reads the other half, and sums up

Add, remove or rename documents between two runs of one goal: what was read once is found again by its name and content.
"""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import perdure

CRASHED = Path(".perdure/mapreduce-crashed")
READ: list[str] = []


def crash_once() -> None:
    """SIGKILL, the first time."""
    if not CRASHED.exists():
        CRASHED.parent.mkdir(exist_ok=True)
        CRASHED.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@perdure.step(check=False)
def documents(folder: str) -> dict[str, str]:
    """The documents: name and text."""
    print("did list", flush=True)
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.md"))}


@perdure.step
def count(document: tuple[str, str]) -> dict[str, int]:
    """The words of one document that are worth counting."""
    name, text = document
    print(f"did count {name}", flush=True)
    READ.append(name)
    if len(READ) == 3:
        crash_once()
    return dict(Counter(re.findall(r"[a-z]{6,}", text.lower())).most_common(50))


@perdure.step
def total(counts: list[dict[str, int]]) -> str:
    """The most frequent words of all."""
    print("did total", flush=True)
    words: Counter[str] = Counter()
    for found in counts:
        words.update(found)
    return ", ".join(f"{word} {times}" for word, times in words.most_common(5))


@perdure.flow
def frequent(folder: str) -> str:
    """Count each document, two at a time; then sum up."""
    return total(perdure.map(count, documents(folder).items(), limit=2))


if __name__ == "__main__":
    print(perdure.run(frequent, sys.argv[1], goal=f"words of {sys.argv[1]}"))
