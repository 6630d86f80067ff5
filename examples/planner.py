"""A planner with workers two levels deep, killed while they work. Run it twice:

    python examples/planner.py        # dies when one reader has died with the process
    python examples/planner.py        # finished readers are reused, the others go on, the planner goes on once
    perdure show "survey"             # survey-0/... are the scopes of the children

A topic that nobody can read fails alone: its parent is told, its siblings are not.
"""

import asyncio
import os
import signal
from pathlib import Path

import perdure

LIBRARY = {
    "tides": ["The moon pulls the sea.", "Spring tides follow a new moon."],
    "waves": ["Wind makes waves.", "A swell outlives its storm."],
    "salt": [],
}
CRASHED = Path(".perdure/planner-crashed")


def crash_once() -> None:
    """SIGKILL, the first time."""
    if not CRASHED.exists():
        CRASHED.parent.mkdir(exist_ok=True)
        CRASHED.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@perdure.step
async def read(topic: str, place: int) -> str:
    """Read one text; an agent's call of a model in real life."""
    print(f"did read {topic} {place}", flush=True)
    if (topic, place) == ("waves", 1):
        await asyncio.sleep(0.5)  # the others have ended by then
        crash_once()
    return LIBRARY[topic][place]


@perdure.flow
async def reader(topic: str, place: int) -> str:
    """The second level: one text."""
    return (await read(topic, place)).rstrip(".")


@perdure.flow
async def worker(topic: str) -> str:
    """The first level: all texts on a topic."""
    if not LIBRARY[topic]:
        raise LookupError(f"there is nothing on {topic}")
    child = perdure.child(reader)
    found = await perdure.gather(*(child(topic, place) for place in range(len(LIBRARY[topic]))))
    return f"{topic}: {'; '.join(found)}"


@perdure.step
async def conclude(reports: list[str], missing: list[str]) -> str:
    """One report of all."""
    print("did conclude", flush=True)
    return "\n".join([*reports, *(f"missing: {why}" for why in missing)])


@perdure.flow
async def survey(topics: list[str]) -> str:
    """The planner: a worker for each topic, side by side."""
    child = perdure.child(worker, on_error="return")
    outcomes = await perdure.gather(*(child(topic) for topic in topics))
    reports = [outcome for outcome in outcomes if isinstance(outcome, str)]
    return await conclude(reports, [str(outcome.error) for outcome in outcomes if not isinstance(outcome, str)])


if __name__ == "__main__":
    print(perdure.run(survey, ["tides", "waves", "salt"], goal="survey"))
