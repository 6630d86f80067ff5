"""Secrets and rules of redaction by themselves: what shows them, what is recorded of them, what identifies them."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perdure
from perdure import Secret
from perdure.codec import describe_error, digest, dumps, load, loads, register
from perdure.errors import CodecError, ConfigError
from perdure.guard import Guard, Hidden, Veil
from perdure.model import head
from perdure.redaction import Redaction, discreet, sounds_secret

CANARY = "canary-7QzX-hunter2"
RUN = Guard("a1" * 16)


@register
@dataclasses.dataclass(frozen=True)
class Login:
    user: str
    password: object = None


@register
@dataclasses.dataclass(frozen=True)
class Handle:
    key: object


# ---- the object


@pytest.mark.parametrize("made", [Secret(CANARY), Secret(CANARY, "openai"), Secret(CANARY, "openai", rotates=True)])
def test_nothing_but_reveal_shows_a_secret(made: Secret) -> None:  # rel:S8
    assert made.reveal() == CANARY
    shown = [repr(made), str(made), f"{made}", f"{made:>40}", f"{made!r}", "%s" % made, "{}".format(made)]  # noqa: UP031, UP032
    assert all(CANARY not in text and "***" in text for text in shown), shown
    assert CANARY not in repr([made, {"k": made}, Login("ann", made), (made,)])
    for refused in (
        lambda: "Bearer " + made,  # type: ignore[operator]
        lambda: "".join([made]),  # type: ignore[list-item]
        lambda: list(made),  # type: ignore[call-overload]
        lambda: len(made),  # type: ignore[arg-type]
        lambda: json.dumps({"k": made}),
        lambda: msgspec.json.encode([made]),
        lambda: pickle.dumps(made),
        lambda: vars(made),
    ):
        with pytest.raises(TypeError) as problem:
            refused()
        assert CANARY not in str(problem.value)
    assert copy.deepcopy({"k": made})["k"] is made
    assert dataclasses.asdict(Login("ann", made))["password"] is made


def test_secrets_are_equal_by_value_and_may_be_keys() -> None:
    assert Secret("a") == Secret("a", "named") != Secret("b")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != "a"


@pytest.mark.parametrize(
    "wrong", [lambda: Secret(""), lambda: Secret(b"x"), lambda: Secret("x", rotates=True), lambda: Secret("x", "a\nb")]
)
def test_a_wrong_secret_is_refused_without_being_shown(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


# ---- what is recorded


def test_a_record_has_the_name_and_a_digest_under_the_runs_id() -> None:  # rel:S8
    stored = json.loads(bytes(dumps(Secret(CANARY, "openai"), guard=RUN)[0].value))
    assert stored == {"~": "secret", "name": "openai", "mac": stored["mac"]}
    assert re.fullmatch("[0-9a-f]{32}", stored["mac"])
    other = json.loads(bytes(dumps(Secret(CANARY, "openai"), guard=Guard("b2" * 16))[0].value))
    assert other["mac"] != stored["mac"], "the same secret in two runs cannot be told to be the same"
    assert bytes(dumps(Secret(CANARY, "openai"))[0].value) == b'{"~":"secret","name":"openai"}', "nothing without a key"
    rotating = bytes(dumps(Secret(CANARY, "openai", rotates=True), guard=RUN)[0].value)
    assert json.loads(rotating) == {"~": "secret", "name": "openai", "rotates": True}


def test_a_recorded_secret_has_its_value_from_the_application_only() -> None:
    payload, _ = dumps({"key": Secret(CANARY, "openai")}, guard=RUN)

    def recorded(resolve: Any = None) -> Secret:
        found = loads(payload, guard=Guard(RUN.key, resolve=resolve))["key"]
        assert isinstance(found, Secret)
        return found

    assert recorded({"openai": CANARY}.get).reveal() == CANARY
    assert recorded().name == "openai"
    for resolve in (None, {}.get, {}.__getitem__, lambda name: "", lambda name: 7):
        with pytest.raises(ConfigError, match=r"'openai' is not here.*CheckpointConfig\.secrets"):
            recorded(resolve).reveal()
    with pytest.raises(ConfigError, match=r"not the one that was recorded.*rotates=True") as problem:
        recorded({"openai": "another"}.get).reveal()
    assert "another" not in str(problem.value)
    rotating, _ = dumps(Secret(CANARY, "openai", rotates=True), guard=RUN)
    assert loads(rotating, guard=Guard(RUN.key, resolve=lambda name: "new")).reveal() == "new"
    nameless, _ = dumps(Secret(CANARY), guard=RUN)
    with pytest.raises(ConfigError, match="without a name"):
        loads(nameless, guard=Guard(RUN.key, resolve=lambda name: CANARY)).reveal()


@pytest.mark.parametrize(
    "stored",
    [
        b'{"~":"secret"}',
        b'{"~":"secret","name":7}',
        b'{"~":"secret","name":"a","value":"b"}',
        b'{"~":"secret","name":"a","mac":"zz"}',
        b'{"~":"secret","name":"","rotates":true}',
        b'{"~":"secret","name":"a\\nb"}',
        b'{"~":"redacted","v":7}',
        b'{"~":"redacted"}',
    ],
)
def test_a_record_of_another_form_is_refused(stored: bytes) -> None:  # rel:S2 B3
    payload = msgspec.structs.replace(dumps(None)[0], value=msgspec.Raw(stored))
    with pytest.raises(CodecError):
        loads(payload)


def test_the_identity_of_a_secret_is_keyed_and_survives_its_recording() -> None:
    value = {"conf": [Secret(CANARY, "openai")], "n": 1}
    told, shown = digest(value, "conf", RUN)
    assert shown == '{"conf":[***],"n":1}'
    assert digest({"n": 1, "conf": [Secret(CANARY, "renamed")]}, "conf", RUN)[0] == told, "the value, not its name"
    assert digest({"n": 1, "conf": [Secret("other", "openai")]}, "conf", RUN)[0] != told
    assert digest(value, "conf", Guard("b2" * 16))[0] != told
    again = loads(*dumps(value, guard=RUN), Guard(RUN.key))
    assert digest(again, "conf", RUN)[0] == told, "although its value is not there"
    with pytest.raises(CodecError, match=r"conf\['conf'\]\[0\] is a Secret, which has no identity outside of a run"):
        digest(value, "conf")
    with pytest.raises(CodecError, match="is not here"):
        digest(again, "conf", Guard("b2" * 16))


def test_one_that_rotates_takes_part_by_its_name_alone() -> None:
    def told(secret: Secret) -> str:
        return digest([secret], "key", RUN)[0]

    assert told(Secret("a", "openai", rotates=True)) == told(Secret("b", "openai", rotates=True))
    assert told(Secret("a", "openai", rotates=True)) != told(Secret("a", "other", rotates=True))
    assert told(Secret("a", "openai", rotates=True)) != told(Secret("a", "openai"))


canaries = st.builds(Secret, st.just(CANARY), st.sampled_from(["", "openai"]))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | canaries,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers() | canaries, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Login, st.text(max_size=3), inner)
        | st.builds(ValueError, inner, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(value=anything, rules=st.sampled_from([None, Redaction()]))
def test_no_value_shows_the_secrets_in_it(value: Any, rules: Redaction | None) -> None:  # rel:S8
    guard = Guard(RUN.key, rules)
    payload, blobs = dumps(value, "it", guard)
    told = [bytes(payload.value), *blobs.values(), repr(value).encode(), "".join(digest(value, "it", guard)).encode()]
    try:
        raise RuntimeError("it failed", value)
    except RuntimeError as error:
        told.append(msgspec.json.encode(describe_error(error)))
    assert all(CANARY.encode() not in text for text in told)
    again = load(payload, blobs, Guard(RUN.key))
    assert digest(again.value, "it", guard)[0] == digest(value, "it", guard)[0]


# ---- texts for people


@pytest.mark.parametrize(
    "name", ["api_key", "API_KEY", "openaiApiKey", "X-Api-Key", "password", "db_password", "accessToken", "cookies"]
)
def test_names_that_say_so_are_recognised_word_by_word(name: str) -> None:
    assert sounds_secret(name)


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "secretary", "monkey", "keynote", "author", "passenger", "n"])
def test_and_names_that_only_look_alike_are_not(name: str) -> None:
    assert not sounds_secret(name)


KEYS = [
    "sk-proj-abcdefghijklmnop1234",
    "sk_live_abcdefghijklmnop",
    "ghp_abcdefghijklmnopqrstuvwxyz012345",
    "github_pat_abcdefghijklmnopqrstuvw",
    "AKIAABCDEFGHIJKLMNOP",
    "xoxb-123456789012-abcdef",
    "AIzaSyA1234567890abcdefghijklmnopqrs",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    "Bearer abcdefghijklmnop.qrst",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("key", KEYS)
def test_well_known_forms_of_keys_are_masked_wherever_they_stand(key: str) -> None:  # rel:S8
    for text in (key, f"it said: {key}.", f'{{"value": "{key}"}}', f"/path?x={key}&y=1", f"\n{key}\n"):
        assert key.removeprefix("Bearer ")[:24] not in discreet(text), discreet(text)
    assert discreet(f"before {key} after") == "before *** after"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("Authorization: Basic dXNlcjpodW50ZXIy", "Authorization: ***"),
        ("{'password': 'hunter two', 'n': 1}", "{'password': '***', 'n': 1}"),
        ('{"api_key":"a\\"b","max_tokens":4}', '{"api_key":"***","max_tokens":4}'),
        ('Client(api_key="x", retries=2)', 'Client(api_key="***", retries=2)'),
        ("OPENAI_API_KEY=abc PATH=/bin", "OPENAI_API_KEY=*** PATH=/bin"),
        ("postgresql://ann:pw@host/db", "postgresql://ann:***@host/db"),
        ('{\\"password\\": \\"abc\\"}', '{\\"password\\": ***}'),
        ("https://host/a:b", "https://host/a:b"),
        ("def f(token: str, password: str = None)", "def f(token: str, password: str = None)"),
        ("tokens=5, secretary: ann", "tokens=5, secretary: ann"),
    ],
)
def test_what_stands_behind_a_name_that_says_so_is_masked(text: str, told: str) -> None:
    assert discreet(text) == told


def test_values_of_secrets_in_use_are_masked_in_any_text_for_people() -> None:  # rel:S8
    value = 'pa"ss\nwörd with\\blanks'
    held = Secret(value)
    try:
        raise ValueError(f"could not log in with {held.reveal()}", held.reveal(), {"k": held.reveal()})
    except ValueError as error:
        told = describe_error(error)
    assert not re.search("ss.{0,3}wörd", str(told) + told.traceback)
    assert discreet(json.dumps({"k": value}, ensure_ascii=False)) == '{"k": "***"}'
    assert discreet(f"x{value}y") == "x***y"
    assert discreet("abc") == "abc", "too short a value is in every text"


@pytest.mark.parametrize(
    "value", ["p\u00e4ssw\u00f6rd", "tab\there", "a\r\x01bc", 'it\'s "both"', "back\\slash", "two  blanks"]
)
def test_they_are_masked_however_python_and_json_quote_them(value: str) -> None:  # rel:S8
    kept = Secret(value)
    quoted = (repr(value), ascii(value), json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value.encode()))
    for text in (*quoted, repr(f"'{value}"), repr(f'"{value}')):
        assert "***" in discreet(text) and len(discreet(text)) <= len("b'\\'***'"), text
    assert head(f"in {value} stands", 80) == "in *** stands"
    assert kept.reveal() == value


@pytest.mark.parametrize("length", [100, 1_000, 10_000])
def test_no_part_of_a_long_one_is_shown_where_a_text_is_cut(length: int) -> None:  # rel:S8
    value = "".join(f"{n:x}" for n in range(length))[:length]
    kept = Secret(value)
    text = f"the key is {value}, " + "and so on " * 20_000
    short = (
        f"the key is {value[:1_000]}, and so on" if length <= 1_000 else text
    )  # a longer one stands beside the value
    told = (head(text, 60), head(text[::-1][:60] + text, 99), digest(text, "text")[1], digest([short], "value")[1])
    for shown in (*told, describe_error(ValueError("x" * 9_000 + value + "y" * (20_000 - length // 2))).message):
        assert not any(value[at : at + 12] in shown for at in range(length - 12))
    assert all("***" in shown for shown in told if "sha256" not in shown) and kept.reveal() == value


def test_a_key_that_a_cut_goes_through_is_not_shown_in_part() -> None:
    for place in range(0, 400, 7):
        text = "x" * place + " " + KEYS[0] + " y" * 400
        assert "sk-proj" not in head(text, 120)
        assert "sk-proj" not in digest(text, "it")[1]
        assert "sk-proj" not in digest(text * 20, "it")[1]
    try:
        raise ValueError("a" * 30_000 + f" password='{'b' * 3000}' " + "c" * 19_000)
    except ValueError as error:
        told = describe_error(error)
    assert "bb" not in told.message and "bb" not in told.traceback


def test_the_log_of_perdure_masks_messages_arguments_and_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    held = Secret(CANARY)
    log = logging.getLogger("perdure")
    with caplog.at_level(logging.DEBUG, "perdure"):
        log.info("run %s: %s", "a#0", ValueError(held.reveal()))
        try:
            raise ValueError(f"token={CANARY}")
        except ValueError:
            log.exception("an observer failed")
        log.debug("nothing to hide: 100%")
    assert CANARY not in caplog.text and caplog.text.count("***") >= 2 and "100%" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "eyJ" * 40_000,
        "-eyJa" * 30_000,
        "password='" * 15_000,
        'secret:\\"' * 15_000,
        "-----BEGIN PRIVATE KEY-----" * 5_000,
        "bearer          " * 8_000,
        "://a:" * 30_000,
        "a_" * 60_000,
        "auth: aaaa " * 12_000,
        "[redacted:" * 12_000,
    ],
    ids=lambda text: text[:12],
)
def test_no_text_takes_more_than_its_length_to_look_through(text: str) -> None:
    # a hundred times what was measured; what is not linear takes a thousand times that
    began = time.perf_counter()
    discreet(text)
    Guard(RUN.key, Redaction()).text(text)
    assert time.perf_counter() - began < 5


# ---- rules for values

RULES = Guard(RUN.key, Redaction(types=(Handle,), patterns=(re.compile(r"cust-[0-9]+"), r"(?<=pin )\S+")))


def test_rules_hide_by_name_type_and_pattern_and_leave_the_rest() -> None:  # rel:S8
    value = {
        "api_key": CANARY,
        "X-Password": [CANARY],
        "login": Login("ann", CANARY),
        "handle": Handle(CANARY),
        "text": f"cust-17 has pin {CANARY}",
        "cust-18": 1,
        "max_tokens": 5,
        "token": None,
        7: "cust-19",
    }
    payload, blobs = dumps(value, "it", RULES)
    assert not any(word in bytes(payload.value) for word in (CANARY.encode(), b"cust-"))
    found = load(payload, blobs)
    assert found.redacted
    mark = r"\[redacted:[0-9a-f]{16}\]"
    assert re.fullmatch(mark, found.value["api_key"]) and re.fullmatch(mark, found.value["handle"])
    assert re.fullmatch(mark, found.value["X-Password"])
    assert found.value["login"].user == "ann" and re.fullmatch(mark, found.value["login"].password)
    assert re.fullmatch(f"{mark} has pin {mark}", found.value["text"])
    assert (found.value["max_tokens"], found.value["token"]) == (5, None)
    assert digest(value, "it", RULES) == digest(found.value, "it", RULES), "and it is the same value to its steps"
    assert "***" in digest(value, "it", RULES)[1] and "[redacted" not in digest(value, "it", RULES)[1]
    changed = {**value, "api_key": "another"}
    assert digest(changed, "it", RULES)[0] != digest(value, "it", RULES)[0], "what is hidden takes part"
    assert dumps({"n": 1}, "it", RULES) == dumps({"n": 1}), "nothing hidden: as without rules"


def test_an_argument_whose_name_is_hidden_takes_part_by_a_keyed_digest() -> None:
    @perdure.step
    def find(ssn: str, *tokens: str, n: int = 1) -> str:
        return ssn

    hidden = Redaction(names=("ssn",))

    def seen(key: str, ssn: str) -> Any:
        return find.identify((ssn,), {}, Guard(key, hidden))

    fingerprint, arguments = seen("a1", "12-34")
    ssn = arguments.infos[0]
    assert (ssn.name, ssn.head) == ("ssn", "***")
    assert seen("a1", "12-34")[0] == fingerprint
    assert seen("a1", "56-78")[0] != fingerprint != seen("b2", "12-34")[0]
    rules = Guard("a1", Redaction(names=("tokens",)))
    given, _ = find.as_recorded(("12-34", "a", "b"), {"n": 2}, rules)
    assert [isinstance(value, Hidden) for value in given] == [False, True, True]


texts = st.sampled_from(["cust-1", "cust-22 and cust-3", "pin 1234", "x", KEYS[0], f"a {KEYS[1]} b", "[redacted:", ""])
ruled = st.recursive(
    texts | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["api_key", "name", "cust-4"]), inner, max_size=3)
        | st.builds(Login, texts, inner)
        | st.builds(Handle, inner)
    ),
    max_leaves=10,
)


@settings(max_examples=50)
@given(value=ruled)
def test_redacting_what_was_redacted_changes_nothing(value: Any) -> None:
    for guard in (RULES, Guard(RUN.key, Redaction())):
        once = loads(*dumps(value, "it", guard))
        assert digest(once, "it", guard)[0] == digest(value, "it", guard)[0]
        assert loads(*dumps(once, "it", guard)) == once


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": "password"},
        {"names": ["--"]},
        {"types": ("Login",)},
        {"patterns": ["("]},
        {"patterns": ["a*"]},
        {"patterns": [7]},
    ],
)
def test_what_is_no_rule_is_refused(wrong: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Redaction"):
        Redaction(**wrong)


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(0, 2000), max_size=6), place=st.integers(0, 900), key=st.sampled_from(KEYS))
def test_a_key_that_is_streamed_in_pieces_is_hidden(cuts: list[int], place: int, key: str) -> None:
    text = "word " * (place // 5) + key + " and so on" * 80
    guard = Guard(RUN.key, Redaction())
    veil, told, start = Veil(guard), "", 0
    for cut in sorted(cuts):
        told += veil.feed(text[start:cut])
        start = max(start, cut)
    told += veil.feed(text[start:]) + veil.rest()
    assert told == guard.text(text)
    assert len(text) < 600 or len(veil.feed(text)) > 0, "what cannot become part of a key is not held back"
