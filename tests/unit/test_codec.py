"""Values keep their types through a save, or are refused with the path and the type (W8, rel:R10 B1 B2 B4 S1 S2 S3)."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import pathlib
import uuid
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.codec import BLOB_THRESHOLD, Payload, digest, dumps, loads, register
from perdure.errors import CodecError, RateLimited


@register
class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@register
class Size(enum.IntEnum):
    S = 1
    L = 2


@register
class Word(enum.StrEnum):
    YES = "yes"


@register
class Right(enum.Flag):
    READ = 1
    WRITE = 2


@register
@dataclass
class Review:
    expert: str
    score: float | None = None
    tags: list[Any] = field(default_factory=list)
    seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.seen += 1


@register
@dataclass(frozen=True, slots=True)
class Coordinate:
    x: Any
    y: Any = 0


class Pair(NamedTuple):
    left: Any
    right: Any = None


class Note(msgspec.Struct, frozen=True):
    text: str
    n: int = 1


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str
    when: datetime | None = None
    _secret: int = pydantic.PrivateAttr(default=7)

    @pydantic.field_validator("name")
    @classmethod
    def no_blank(cls, name: str) -> str:
        assert name
        return name


@register
class Refusal(Exception):
    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code


class Plain:
    pass


for _cls in (Pair, Note, Open):
    register(_cls)


def trip(value: Any) -> Any:
    payload, blobs = dumps(value)
    assert set(payload.refs) == set(blobs)
    line = msgspec.json.encode(payload)
    assert b"\n" not in line
    return loads(msgspec.json.decode(line, type=Payload), blobs)


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type, all the way down; nan is nan, and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b)) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
    if isinstance(a, dict):
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if isinstance(a, Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, datetime | time):
        zones = type(a.tzinfo) is type(b.tzinfo) and str(a.tzinfo) == str(b.tzinfo)
        return zones and a.fold == b.fold and a.replace(tzinfo=None) == b.replace(tzinfo=None)
    if isinstance(a, set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
zones = st.none() | st.just(UTC) | offsets | st.sampled_from(["Europe/Berlin", "America/New_York"]).map(ZoneInfo)
texts = st.text(st.characters(codec=None)) | st.sampled_from(["~", "", "type", "\ud800\udc00", "é" * 9000])
hashable = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary() | st.uuids() | st.dates()
    | st.sampled_from([*Colour, *Size, *Word, *Right, Right.READ | Right.WRITE, Right(0)])
    | st.decimals() | st.fractions() | st.timedeltas() | st.complex_numbers()
)  # fmt: skip
keys = hashable.filter(lambda v: not (isinstance(v, Decimal) and v.is_nan()) and v == v)
atoms = hashable | st.datetimes(timezones=zones) | st.times(timezones=st.none() | offsets) | zones
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 9))
        | st.dictionaries(texts, inner)
        | st.dictionaries(keys | st.tuples(keys, keys), inner)
        | st.builds(Review, st.text(), st.none(), st.lists(inner))
        | st.builds(Coordinate, inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(values)
def test_values_come_back_with_their_exact_types(value: Any) -> None:  # W8, rel:R10
    assert same(trip(value), value)


@settings(max_examples=100)
@given(st.sets(keys), st.randoms())
def test_sets_come_back_and_their_order_has_no_influence(value: set[Any], random: Any) -> None:  # W8
    shuffled = list(value)
    random.shuffle(shuffled)
    assert same(trip(value), value) and same(trip(frozenset(value)), frozenset(value))
    assert dumps(value) == dumps(set(shuffled))
    assert digest(value, "v") == digest(set(shuffled), "v")


@settings(max_examples=100)
@given(st.dictionaries(keys, values, max_size=5))
def test_digest_ignores_the_order_of_keys(value: dict[Any, Any]) -> None:
    assert digest(value, "v") == digest(dict(reversed(value.items())), "v")


@settings(max_examples=100)
@given(
    st.recursive(
        texts | st.integers(), lambda inner: st.dictionaries(st.sampled_from(["~", "v", "type", "b64"]), inner)
    )
)
def test_dicts_that_look_like_our_tags_are_data(value: Any) -> None:  # rel:S3
    assert same(trip(value), value)


SINGLE = [
    -0.0, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**5000, float("-inf"), 5e-324, 1e22,
    Decimal("sNaN12"), Decimal("-0E+999"), Decimal("Infinity"), bytearray(b"x"), bytearray(9000), range(2**70, 0, -3),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    time(1, 2, tzinfo=timezone(timedelta(hours=1), "CET")),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(microseconds=-1))), time(3, fold=1), date.max, uuid.UUID(int=5),
    pathlib.Path("/a/b"), pathlib.PurePosixPath("x\udcff"), pathlib.PureWindowsPath("c:\\x"), msgspec.UNSET,
    {1: {2: 3}, (1, 2): 4, "~": 5}, {"\ud800": 1}, {True: 1}, Note("x"), [Note("x", 3)], Pair(1), Review("a"),
]  # fmt: skip


@pytest.mark.parametrize("value", SINGLE, ids=lambda v: type(v).__name__)
def test_each_listed_form_comes_back(value: Any) -> None:  # W8, rel:R10
    assert same(trip(value), value)


def test_objects_are_rebuilt_without_running_their_code() -> None:
    review = Review("a")
    review.seen = 5
    review.extra = (1,)  # type: ignore[attr-defined]
    back = trip(review)
    assert back == review and back.seen == 5 and back.extra == (1,)


def test_new_fields_get_their_default_and_lost_ones_are_an_error() -> None:
    body = '{"~":"data","type":"%s:Review","fields":{%s}}'
    name = Review.__module__
    old = loads(_raw(body % (name, '"expert":"x"')))
    assert old == dataclasses.replace(old) or (old.score, old.tags, old.seen) == (None, [], 0)
    with pytest.raises(CodecError, match="no longer has: gone"):
        loads(_raw(body % (name, '"expert":"x","gone":1')))
    with pytest.raises(CodecError, match="requires: expert"):
        loads(_raw(body % (name, "")))


def test_cached_properties_are_left_to_be_computed_again() -> None:
    @register
    @dataclass
    class Lazy:
        n: int

        @functools.cached_property
        def plain(self) -> object:
            return Plain()

    lazy = Lazy(1)
    assert lazy.plain and "plain" not in trip(lazy).__dict__


def test_pydantic_models_keep_set_extra_and_private_state() -> None:  # W8
    model = Open(name="n", more=(1, 2))  # type: ignore[call-arg]
    model._secret = 9
    back = trip([model])[0]
    assert back == model and back._secret == 9 and back.more == (1, 2)
    assert back.model_fields_set == {"name", "more"} and back.when is None
    assert trip(Open.model_construct(name="")).name == ""  # validators do not run again


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3), np.array(5), np.zeros((0, 3), ">i2"), np.array(["a", "bcd"]), np.array([True]),
        np.array(["2026-01-01"], "M8[D]"), np.zeros(2, [("a", "<i4"), ("b", "<f8", (2,))]), np.zeros(5000, "c16"),
    ],
    ids=lambda a: str(a.dtype),
)  # fmt: skip
def test_numpy_arrays_keep_dtype_and_shape(array: Any) -> None:  # W8
    back = trip(array)
    assert back.dtype == array.dtype and back.shape == array.shape and (back == array).all() and back.flags.writeable


@pytest.mark.parametrize(
    "scalar", [np.float32(1.5), np.int64(-3), np.str_("x"), np.str_(""), np.bool_(True), np.longlong(3)]
)
def test_numpy_scalars_stay_scalars(scalar: Any) -> None:  # W8
    assert type(trip(scalar)) is type(scalar) and trip(scalar) == scalar


def test_exceptions_come_back_as_data_with_their_traceback() -> None:  # W8
    try:
        raise RateLimited("slow down", retry_after=3)
    except RateLimited as error:
        error.add_note("twice")
        back = trip(error)
    assert type(back) is RateLimited and back.retry_after == 3.0 and back.__notes__ == ["twice"]
    assert "raise RateLimited" in back.recorded_traceback and back.__traceback__ is None
    assert trip(back).recorded_traceback == back.recorded_traceback
    assert trip(Refusal("x", code=4)).code == 4 and str(trip(Refusal("x", code=4))) == "x (4)"


@pytest.mark.parametrize(
    "error",
    [
        KeyError(("a", 1)), FileNotFoundError(2, "none", "f.txt"), OSError("x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("m", name="n"), ExceptionGroup("g", [ValueError(1), TypeError("t")]),
        StopIteration(3), SystemExit(2),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_builtin_exceptions_keep_what_they_know(error: BaseException) -> None:  # W8
    back: Any = trip(error)
    assert type(back) is type(error) and str(back) == str(error) and repr(back.args) == repr(error.args)
    for name in ("filename", "errno", "name", "value", "code", "reason"):
        assert getattr(back, name, None) == getattr(error, name, None)


class MyStr(str):
    pass


class Unknown(Exception):
    pass


class Unlearned(NamedTuple):
    n: int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3, Review("x", tags=[Plain()])], r"reviews\[3\]\.tags\[0\]: .*test_codec\.Plain cannot be stored"),
        ({"k": {3: Plain()}}, r"reviews\['k'\]\[value 0\]: .*Plain"),
        ({(1, Plain()): 1}, r"reviews\[key 0\]\[1\]: .*Plain"),
        (MyStr("x"), r"reviews: .*MyStr .*a subclass of str would"),
        (OrderedDict(a=1), r"reviews: collections\.OrderedDict .*subclass of dict"),
        (defaultdict(list), "defaultdict"),
        ([Unknown("x")], r"reviews\[0\]: .*Unknown cannot be stored.*annotate|reviews\[0\]: .*Annotate"),
        (ValueError(Plain()), r"reviews\.args\[0\]: .*Plain"),
        (Unlearned(1), r"Unlearned cannot be stored.*Annotate the step's return type"),  # not "convert it to a tuple"
        (lambda: 1, "function"),
        (memoryview(b"x"), "memoryview"),
        (np.array([Plain()]), "dtype object"),
        (np.ma.masked_array([1], [True]), "MaskedArray"),
        (
            datetime(2026, 1, 1, tzinfo=type("Zone", (tzinfo,), {})()),
            "tzinfo",
        ),
        (Plain, "type"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_path_and_type(value: Any, message: str) -> None:  # W8, rel:B2
    for refuse in (dumps, digest):
        with pytest.raises(CodecError, match=message):
            refuse(value, "reviews")


def test_large_leaves_become_blobs_stored_once() -> None:
    text = "x" * (BLOB_THRESHOLD + 1)
    payload, blobs = dumps([text, text, text.encode()])
    assert len(payload.refs) == len(blobs) == 1 and not payload.whole  # the same bytes, text or not
    assert loads(payload, blobs) == [text, text, text.encode()]
    assert dumps("x" * BLOB_THRESHOLD)[1] == {}
    with pytest.raises(CodecError, match="missing"):
        loads(payload)


def test_a_large_rest_becomes_one_blob() -> None:
    value = [["y" * 1000] * 60, "x" * 9000]
    payload, blobs = dumps(value)
    assert payload.whole and len(blobs) == 2 and loads(payload, blobs) == value
    assert msgspec.json.encode(payload).startswith(b'{"refs":')
    with pytest.raises(CodecError, match="missing"):
        loads(payload, {})


def _raw(text: str | bytes, codec_version: int = 1) -> Payload:
    return Payload(codec_version, msgspec.Raw(text if isinstance(text, bytes) else text.encode()))


def test_fractions_are_rebuilt_from_whole_numbers() -> None:
    assert trip(Fraction(2**80, 3)) == Fraction(2**80, 3)
