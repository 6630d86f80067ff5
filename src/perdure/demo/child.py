"""The process that ``perdure demo`` kills: runs the crew and nothing else."""

from __future__ import annotations

import sys

import perdure
from perdure.demo.crew import review


def main(store: str, goal: str, episode: str, path: str, place: str) -> None:
    """Run (or resume) one episode of the review."""
    config = perdure.CheckpointConfig(outputs=f"{place}/outputs")
    perdure.run(review, goal=goal, episode=int(episode), store=store, config=config, path=path)


if __name__ == "__main__":
    main(*sys.argv[1:])
