"""The identity of a value, and what is kept of an exception (digest, describe_error)."""

from __future__ import annotations

import enum
from decimal import Decimal

import msgspec

from perdure.codec import describe_error, digest, register
from perdure.errors import RateLimited


@register
class Grade(enum.IntEnum):
    A = 1


def test_digest_tells_types_apart_and_shows_the_head() -> None:
    alike = [
        1,
        1.0,
        True,
        "1",
        b"1",
        [1],
        (1,),
        {1},
        None,
        "null",
        Decimal(1),
        Decimal("1.0"),
        {"a": 1},
        {1: 1},
        Grade.A,
    ]
    assert len({digest(value, "v")[0] for value in alike}) == len(alike)
    name, head = digest("ab" * 100_000, "v")
    assert len(name) == 32 and head == '"' + ("ab" * 60)[:119]
    assert digest({"b": 1, "a": "é"}, "v")[1] == '{"a":"é","b":1}'
    assert len(digest("\ud800" * 9000, "v")[1]) == 120


def test_digest_of_an_exception_does_not_depend_on_line_numbers() -> None:
    def raised() -> BaseException:
        try:
            raise ValueError("x")
        except ValueError as error:
            return error

    assert digest(raised(), "v") == digest(ValueError("x"), "v")


def test_describe_error_never_raises() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    try:
        raise Nasty
    except Nasty as error:
        info = describe_error(error)
    assert info.type.endswith("Nasty") and "RuntimeError" in info.message and "raise Nasty" in info.traceback
    info = describe_error(ValueError("a\ud800" + "b" * 50_000))
    assert info.type == "ValueError" and len(info.message) < 21_000 and info.traceback == ""
    msgspec.json.encode([info, describe_error(KeyError("\udcff"))])
    assert describe_error(RateLimited(retry_after=1)).type == "perdure.errors.RateLimited"
