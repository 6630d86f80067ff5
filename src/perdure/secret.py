"""Values that are used and never shown: keys, tokens, passwords.

A ``Secret`` holds a text. It takes part in the identity of a step by a *keyed digest*: an HMAC of the value under the
run's own random id. So the same secret is the same input in every life of a run and on every machine, and equal secrets
of two runs cannot be told to be equal. One that ``rotates`` takes part by its name alone, and nothing that is derived
from its value is kept at all.

What is recorded is a placeholder: the name, and the digest. Whoever reads it back gets a Secret without a value. That
comes from the application: given anew when the run is run again, or from the resolver it was configured with. Stored
data never says where to look for a value, only a name that the application may know (rel:S1).

The digest keeps nobody from guessing who has the journal, in which the run's id stands too: a value with few
possibilities (a PIN) is found by trying all of them. Those should rotate, or be kept in an encrypted store.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, NoReturn, TypeAlias
from weakref import WeakValueDictionary

from perdure.errors import CodecError, ConfigError

MASK = "***"
"""what people see in the place of a secret"""
Resolver: TypeAlias = Callable[[str], str | None]
"""from the name of a secret to its value; None, or a LookupError: there is none of that name"""

_MAX_NAME = 200
_SHORTEST = 4
"""characters below which a value is not looked for in texts: every text would have it"""

_alive: WeakValueDictionary[int, Secret] = WeakValueDictionary()
_some = False
"""there was one ever: most programs have none, and to look costs them nothing"""


def _remember(secret: Secret) -> None:
    global _some
    _alive[id(secret)] = secret
    _some = True


class Secret:
    """A text that is never shown: ``reveal()`` gives it, and nothing else does.

    - ``name``: what it is called where it is recorded, and what a resolver (``CheckpointConfig(secrets=...)``) is asked
      for. Not secret itself.
    - ``rotates``: any value of that name is the same secret, so that a new one changes nothing about what is recorded.
      Otherwise the value takes part in the identity of steps, by a keyed digest, and another one is another input.

    Raises ConfigError for anything but a text that says something.
    """

    __slots__ = ("__weakref__", "_forms", "_key", "_mac", "_name", "_resolve", "_rotates", "_value")

    _value: str | None
    _mac: str
    _key: str
    _resolve: Resolver | None
    _forms: tuple[str, ...]

    def __init__(self, value: str, name: str = "", *, rotates: bool = False) -> None:
        if type(value) is not str or not value:
            what = "an empty text" if type(value) is str else f"of type {type(value).__name__}"
            raise ConfigError(f"The value of a Secret is {what}.", hint="Give it a text; encode bytes as base64.")
        self._name, self._rotates = _checked(name), bool(rotates)
        if rotates and not name:
            raise ConfigError("A Secret that rotates needs a name: that is its identity.")
        self._value, self._mac, self._key, self._resolve, self._forms = value, "", "", None, ()
        _remember(self)

    @property
    def name(self) -> str:
        return self._name

    @property
    def rotates(self) -> bool:
        return self._rotates

    def reveal(self) -> str:
        """The value. Raises ConfigError, naming the secret, if it was loaded from a record and nobody provides it; what
        the application's resolver raises."""
        if self._value is None:
            self._value = self._found()
            _remember(self)
        return self._value

    def _found(self) -> str:
        if not self._name:
            raise ConfigError(
                "The value of a Secret without a name is asked for, and the record that it comes from has none.",
                hint="Run the run again with the value; or name it, Secret(value, name=...), to have it resolved.",
            )
        try:
            value = self._resolve(self._name) if self._resolve is not None else None
        except LookupError:
            value = None
        if type(value) is not str or not value:
            raise ConfigError(
                f"The value of the secret {self._name!r} is not here: records hold no more than its name.",
                hint="Provide it by a resolver, CheckpointConfig.secrets, a function from names to values (--secret "
                "NAME on the command line), or run the run again with the value given.",
            )
        if self._mac and not hmac.compare_digest(keyed(self._key, value.encode("utf-8", "surrogatepass")), self._mac):
            raise ConfigError(
                f"The value provided for the secret {self._name!r} is not the one that was recorded.",
                hint="Provide that one; or declare the secret with rotates=True, so that its value does not matter.",
            )
        return value

    def digest(self, key: str) -> str:
        """The keyed digest of the value, under the id of a run; one that was recorded under it needs no value."""
        if self._mac and self._key == key:
            return self._mac
        return keyed(key, self.reveal().encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        return f"Secret({MASK}, name={self._name!r})" if self._name else f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._sameness(), other._sameness())

    def __hash__(self) -> int:
        return hash(self._sameness())

    def _sameness(self) -> bytes:
        """What equality compares: the value; of a recorded one its placeholder, whether it was resolved or not."""
        if self._value is not None and not self._key:
            return b"value:" + self._value.encode("utf-8", "surrogatepass")
        return f"recorded:{self._key}:{self._mac}:{self._name}".encode("utf-8", "surrogatepass")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise CodecError("A Secret is not pickled: its value would leave this process.")

    def shown_as(self) -> tuple[str, ...]:
        """How the value may stand in a text: as it is, and as Python and JSON quote it; of several lines each."""
        if not self._forms and self._value is not None:
            lines = [line.strip() for line in self._value.splitlines() if len(line.strip()) >= 3 * _SHORTEST]
            forms = {self._value, *(lines if len(lines) > 1 else ())}
            forms |= {quoted for form in forms for quoted in _quoted(form)}
            self._forms = tuple(form for form in forms if len(form) >= _SHORTEST)
        return self._forms


def _quoted(text: str) -> Iterator[str]:
    """As Python and JSON quote it, with and without signs that are not ASCII."""
    import json  # most programs have no secrets, and do without it

    for told in (repr(text), ascii(text), json.dumps(text), json.dumps(text, ensure_ascii=False)):
        yield told[1:-1]
    for told in (repr(f"'\"{text}"), ascii(f"'\"{text}")):  # Python escapes one mark of two only
        yield told[1:-1].removeprefix("\\'\"")
    yield repr(text.encode("utf-8", "surrogatepass"))[2:-1]


def recalled(name: str, mac: str, rotates: bool, key: str, resolve: Resolver | None) -> Secret:
    """A Secret as it was recorded in the run of the id ``key``: without its value."""
    made = Secret.__new__(Secret)
    made._name, made._mac, made._rotates = _checked(name), mac, rotates
    made._key, made._resolve, made._value, made._forms = key or "-", resolve, None, ()
    return made


def keyed(key: str, data: bytes) -> str:
    """The keyed digest of ``data``: 32 hexadecimal digits."""
    return hmac.new(key.encode("utf-8", "surrogatepass"), data, sha256).hexdigest()[:32]


def mask_known(text: str) -> str:
    """The text without the values of the Secrets that this process knows at this moment."""
    if not _some:
        return text
    found = {form for known in _alive.valuerefs() if (secret := known()) for form in secret.shown_as() if form in text}
    for form in sorted(found, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def longest_known() -> int:
    """Characters of the longest text that ``mask_known`` masks: so much has to be looked at beyond a cut."""
    if not _some:
        return 0
    alive = [secret for known in _alive.valuerefs() if (secret := known())]
    return max((len(form) for secret in alive for form in secret.shown_as()), default=0)


def _checked(name: object) -> str:
    if not isinstance(name, str) or len(name) > _MAX_NAME or not (name.isprintable() and name == name.strip()):
        raise ConfigError(f"The name of a Secret must be a text of at most {_MAX_NAME} printable characters.")
    return name
