"""A press release that two people decide on, while no process runs:

    python examples/approval.py                          # drafts it, asks both, and ends: the run waits
    perdure questions                                    # what is asked, of whom, until when
    perdure answer release legal --value yes             # any time later, from anywhere that sees the store
    perdure answer release headline --value 2
    python examples/approval.py                          # goes on: nothing is drafted, asked or mailed again

Without an answer for three days the first headline is taken. ``perdure cancel release`` withdraws the draft.
"""

from datetime import timedelta

import perdure
from perdure.errors import RunCancelled, RunSuspended
from perdure.model import Question


@perdure.step
def draft(topic: str) -> str:
    print("did draft", flush=True)
    return f"Today we present {topic}. It will change how you sleep."


@perdure.step
def publish(headline: str, text: str) -> str:
    print("did publish", flush=True)
    return f"{headline}: {text}"


@perdure.step
def withdraw() -> str:
    print("did withdraw", flush=True)
    return "withdrawn"


def on_cancel(topic: str) -> None:
    """What is done if the run is cancelled on the way."""
    withdraw()


def mail(question: Question) -> None:
    """Called at least once for every question; the receiver drops repeats by its id."""
    print(f"did mail {question.to}: {question.prompt} ({question.id})", flush=True)


@perdure.flow(on_cancel=on_cancel)
def release(topic: str) -> str:
    text = draft(topic)

    def legal() -> bool:
        sound: bool = perdure.ask("Is that true?", answer=bool, to="legal", context=text, name="legal")
        return sound

    def headline() -> str:
        names = [f"{topic} is here", "A good night"]
        late = timedelta(days=3)
        chosen: str = perdure.ask("Which?", choices=names, deadline=late, default=names[0], to="press", name="headline")
        return chosen

    sound, chosen = perdure.gather(legal, headline)
    return publish(str(chosen), text) if sound else "not published: legal said no"


if __name__ == "__main__":
    try:
        config = perdure.CheckpointConfig(on_question=(mail,))
        print(perdure.run(release, "the pillow", goal="release", config=config))
    except (RunSuspended, RunCancelled) as waits:
        print(waits)
