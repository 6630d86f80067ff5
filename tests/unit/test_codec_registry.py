"""Which classes may stand in a journal, and under which names (W8, rel:S1)."""

from __future__ import annotations

import enum
import functools
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import pydantic
import pytest

from perdure.codec import Payload, declare, digest, dumps, learn, loads, register
from perdure.errors import CodecError, ConfigError


@register
@dataclass
class Report:
    expert: str


@register
@dataclass(frozen=True)
class Spot:
    x: Any


class Plain:
    pass


def _raw(text: str) -> Payload:
    return Payload(1, msgspec.Raw(text.encode()))


def trip(value: Any) -> Any:
    return loads(*dumps(value))


def test_adapters_carry_foreign_types() -> None:
    register(SimpleNamespace, encode=vars, decode=lambda state: SimpleNamespace(**state), name="namespace")
    assert trip([SimpleNamespace(a=(1,))]) == [SimpleNamespace(a=(1,))]
    assert b'"custom","type":"namespace"' in bytes(dumps(SimpleNamespace())[0].value)


def test_a_failing_adapter_is_a_codec_error_with_the_path() -> None:
    class Bad:
        pass

    register(Bad, encode=lambda value: 1 / 0, decode=lambda stored: Bad())
    with pytest.raises(CodecError, match=r"x\[0\]: .*Bad could not be taken apart \(ZeroDivisionError\)"):
        dumps([Bad()], "x")


@pytest.mark.parametrize("wrong", [lambda: register(Plain), lambda: register(dict), lambda: register(3)])  # type: ignore[call-overload]
def test_register_refuses_what_it_cannot_handle(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_a_taken_name_is_refused() -> None:
    register(Report, name="review")
    with pytest.raises(ConfigError, match="'review' already belongs to"):
        register(Spot, name="review")
    assert b'"type":"review"' in bytes(dumps(Report("x"))[0].value)
    assert loads(_raw(f'{{"~":"data","type":"{__name__}:Report","fields":{{"expert":"x"}}}}')).expert == "x"


def test_a_moved_class_is_found_by_its_name_if_there_is_only_one() -> None:
    assert loads(_raw('{"~":"data","type":"old.place:Spot","fields":{"x":1}}')) == Spot(1)
    with pytest.raises(CodecError, match="'old:Nobody', which this program has not registered"):
        loads(_raw('{"~":"data","type":"old:Nobody","fields":{}}'))


def test_of_several_moved_classes_the_one_of_the_same_module_is_meant() -> None:
    for module in ("crew", "shop"):
        register(dataclass(type("Item", (), {"__module__": f"package.{module}", "__annotations__": {}})))
    found = loads(_raw('{"~":"data","type":"crew:Item","fields":{}}'))  # saved by ``python package/crew.py``
    assert type(found).__module__ == "package.crew"
    with pytest.raises(CodecError, match="there are 2 registered classes called 'Item'"):
        loads(_raw('{"~":"data","type":"old:Item","fields":{}}'))


class Ruling(msgspec.Struct):
    good: bool


def test_a_stored_type_is_learned_from_a_step_that_was_never_called() -> None:  # rel:R3
    def step() -> list[Ruling]: ...

    stored = _raw(f'{{"~":"struct","type":"{__name__}:Ruling","fields":{{"good":true}}}}')
    with pytest.raises(CodecError, match="Annotate the step's return type"):
        loads(stored)
    for odd in (step, len, functools.partial(step), [].append):
        declare(odd)
    assert loads(stored) == Ruling(True)


def test_classes_of_a_script_are_stored_under_the_scripts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None, raising=False)
    monkeypatch.setattr(main, "__file__", "/somewhere/crew.py", raising=False)
    cls = register(dataclass(type("Mine", (), {"__module__": "__main__", "__annotations__": {}})))
    assert b'"crew:Mine"' in bytes(dumps(cls())[0].value)
    monkeypatch.setattr(main, "__spec__", SimpleNamespace(name="team.crew"), raising=False)
    first = digest(cls(), "v")
    register(cls)
    assert b'"team.crew:Mine"' in bytes(dumps(cls())[0].value) and digest(cls(), "v") == first


@dataclass
class Leaf:
    n: int


@dataclass
class Branch:
    leaves: dict[str, tuple[Leaf, ...]]
    parent: Branch | None = None
    lost: NoSuchType | None = None  # type: ignore[name-defined]  # noqa: F821


class Mood(enum.Enum):
    GOOD = 1


class Answer(pydantic.BaseModel):
    mood: Mood


class Options(typing.TypedDict):
    answer: typing.NotRequired[Answer]


def test_learn_registers_what_annotations_reach() -> None:
    def step(
        a: typing.Annotated[Branch | None, "x"],
        b: typing.Callable[[int], Options],
        c: Missing,  # type: ignore[name-defined]  # noqa: F821
    ) -> None: ...

    with pytest.raises(CodecError, match="Annotate"):
        dumps(Leaf(1))
    for _ in range(5):
        learn(step)
    assert trip([Branch({"a": (Leaf(1),)}), Answer(mood=Mood.GOOD)]) == [
        Branch({"a": (Leaf(1),)}),
        Answer(mood=Mood.GOOD),
    ]
    for odd in (len, print, functools.partial(step, 1), Plain, SimpleNamespace, (lambda: 1), "".join):
        learn(odd)
