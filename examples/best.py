"""The best of three attempts, killed in the second. Run it twice:

    python examples/best.py      # dies inside the second attempt
    python examples/best.py      # the first is not made again, the second goes on inside itself
    perdure ls                   # each attempt is a run of its own: "slogan/best" with episodes 0, 1 and 2

What the attempts cost is counted for the run that judges them, and a budget could stop it (--budget cost=2).
"""

import os
import signal
from pathlib import Path

import perdure
from perdure.runners import Best, Score

WORDS = [["Sea", "salt"], ["Salt", "of", "the", "sea"], ["Salty", "as", "ever"]]
CRASHED = Path(".perdure/best-crashed")


def crash_once() -> None:
    """SIGKILL, the first time."""
    if not CRASHED.exists():
        CRASHED.parent.mkdir(exist_ok=True)
        CRASHED.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@perdure.step(metered=True)
def think(topic: str, line: str) -> str:
    """One more word; stands for a call of a model that costs half a coin."""
    context = perdure.context()
    attempt = context.run.episode if context.run else 0
    word = WORDS[attempt][len(line.split())]
    print(f"did think of {word} in attempt {attempt}", flush=True)
    context.spent(output_tokens=1, cost=0.5)
    if word == "the":
        crash_once()
    return f"{line} {word}".strip()


@perdure.flow
def slogan(topic: str) -> str:
    """One attempt: word after word."""
    line = ""
    while len(line.split()) < 2 or not line.endswith(("salt", "sea", "ever")):
        line = think(topic, line)
    return line


def judge(output: str, topic: str) -> Score:
    """The longer the better; one that names the topic is enough."""
    print(f"did judge {output!r}", flush=True)
    return Score(len(output.split()), f"{len(output.split())} words", enough=output.endswith(topic))


best = perdure.best_of(3, slogan, judge=judge)

if __name__ == "__main__":
    found: Best[str] = perdure.run(best, "sea", goal="slogan")
    print(f"{found.output!r}, because {found.reason}")
