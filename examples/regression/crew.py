"""Two experts review a text, and one step sums up. ``recorded.perdure`` has a run of it: see README.md."""

from functools import partial

import perdure

EXPERTS = ("style", "facts")


@perdure.step
def load(paper: str) -> str:
    return f"All that is known of {paper}: the moon pulls the sea."


@perdure.step
def expert(aspect: str, text: str) -> str:
    return f"The {aspect} of {len(text)} characters is good."  # a call of a model, in real life


@perdure.step
def sum_up(reviews: list[str]) -> str:
    return " ".join(reviews)


@perdure.flow
def review(paper: str) -> str:
    text = load(paper)
    return sum_up(perdure.gather(*(partial(expert, aspect, text) for aspect in EXPERTS)))


if __name__ == "__main__":
    print(perdure.run(review, "tides", goal="tides"))
