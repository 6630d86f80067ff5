"""What type checkers see of the public API. Checked by ``make check`` (mypy --strict); never executed."""

from typing import assert_type

import perdure


@perdure.step
def count(text: str) -> int:
    return len(text)


@perdure.step(retries=2, on_refused="flag")
async def fetch(url: str, *, limit: int = 3) -> str:
    return url[:limit]


@perdure.flow
async def both(url: str) -> tuple[str, int]:
    text = await fetch(url, limit=4)
    assert_type(text, str)
    texts = await perdure.gather(fetch("a"), fetch("b"))
    assert_type(texts, list[str])
    return text, count(text)


@perdure.flow
def plain(text: str) -> int:
    return count(text)


assert_type(perdure.run(both, "u", goal="g"), tuple[str, int])
assert_type(perdure.run(plain, "t", goal="g"), int)
count(3)  # type: ignore[arg-type]
_ = fetch("u", size=3)  # type: ignore[call-arg]
