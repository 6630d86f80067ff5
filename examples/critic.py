"""A writer and a critic in a cycle, as a graph, killed in its second round. Run it twice:

    python examples/critic.py                                     # dies while the critic reads the second draft
    python examples/critic.py                                     # goes on with that second draft
    perdure graph examples/critic.py:article "article on tides"   # the graph as Mermaid, with the states of the run

The cycle is bounded: after three rounds the draft is taken as it is.
"""

import os
import signal
from pathlib import Path

from perdure.runners import Edge, Graph, Runner

FACTS = ["The moon pulls the sea.", "Spring tides follow a new moon.", "The sun helps a little."]
CRASHED = Path(".perdure/critic-crashed")


def crash_once() -> None:
    """SIGKILL, the first time."""
    if not CRASHED.exists():
        CRASHED.parent.mkdir(exist_ok=True)
        CRASHED.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Writer:
    """Writes a draft, longer with each round; its state is what it has used already."""

    state_version = 1

    def __init__(self) -> None:
        self.used: list[str] = []

    def __call__(self, topic: str, critic: str = "") -> str:
        print(f"did write draft {len(self.used) + 1}", flush=True)
        self.used.append(FACTS[len(self.used)])
        return f"# {topic.title()}\n\n" + " ".join(self.used)

    def save_state(self) -> list[str]:
        return self.used

    def restore_state(self, state: list[str], version: int) -> None:
        self.used = list(state)


def critic(writer: str) -> str:
    """A verdict on a draft."""
    words = len(writer.split())
    print(f"did criticise {words} words", flush=True)
    if words > 8:
        crash_once()
    return "good" if words >= 15 else f"{words} words are too few"


def publish(writer: str, critic: str) -> str:
    """The article."""
    print("did publish", flush=True)
    return f"{writer}\n\n({critic})"


article = Graph(
    nodes={"writer": Writer, "critic": critic, "publish": publish},
    edges=[
        ("writer", "critic"),
        Edge("critic", "writer", when=lambda verdict: verdict != "good", limit=2),
        Edge("critic", "publish", otherwise=True),
    ],
    inputs=["topic"],
    name="article",
)

if __name__ == "__main__":
    with Runner() as runner:
        result = runner.execute_sync(article, "article on tides", {"topic": "tides"})
    print(result.value())
    print(f"path: {' '.join(result.path)}; reused: {len(result.reused)} steps")
