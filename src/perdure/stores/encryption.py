"""Keys for encryption at rest: where they come from, and how they are told apart.

A key has an id, which is stored with whatever was encrypted with it, and 32 random bytes, which are stored nowhere.
As text, a key is ``id=base64``: in ``PERDURE_KEY``, or a line each in the file that ``PERDURE_KEY_FILE`` names. The
first is used for what is written, all of them for what is read. ``perdure key`` prints a new one.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, PerdureError
from perdure.model import OWN, RunKey

KEY_BYTES: Final = 32
MARK: Final = RunKey(f"{OWN}encryption")
"""a run of our own, in which a store says how it is encrypted"""
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,40}")
_MAX_FILE: Final = 65536


class Encryption:
    """How a store is encrypted.

    - ``keys``: the keys by id, 32 bytes each, or a function that is given an id and returns the key (a KMS, say). It is
      called once an id; what it raises ends in ConfigError.
    - ``write``: the id of the key for what is written; by default the first of ``keys``.
    - ``hide_names``: in the rows that listings are made of, also the name of the step that a run is at is unreadable.
      Counts when a store is encrypted for the first time.

    Raises ConfigError for what cannot be a key.
    """

    def __init__(
        self, keys: Mapping[str, bytes] | Callable[[str], bytes], *, write: str = "", hide_names: bool = False
    ) -> None:
        self._keys = keys
        self._fetched: dict[str, bytes] = {}
        if isinstance(keys, Mapping):
            for name, key in keys.items():
                _check_id(name)
                _check_key(name, key)
            write = write or next(iter(keys), "")
            if write not in keys:
                raise ConfigError(f"encryption: there is no key {write!r} to write with.", hint="Name one of keys=.")
        self.write = _check_id(write)
        self.hide_names = hide_names

    def __repr__(self) -> str:
        return f"Encryption(write={self.write!r})"

    def key(self, name: str) -> bytes:
        """The key with this id. Raises ConfigError."""
        if isinstance(self._keys, Mapping):
            found = self._keys.get(name)
            if found is None:
                raise ConfigError(
                    f"The encryption key {name!r} is needed, and was not given. Nothing was changed.",
                    hint=f"Add it: PERDURE_KEY={self.write}=...,{name}=..., or Encryption(keys={{...}}).",
                )
            return found
        if name not in self._fetched:
            try:
                self._fetched[name] = _check_key(name, self._keys(name))
            except PerdureError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"The encryption key {name!r} could not be had: {type(error).__name__}. Nothing was changed.",
                    hint="See to the function that was given as keys=.",
                ) from error
        return self._fetched[name]

    @classmethod
    def from_environment(cls) -> Encryption | None:
        """What ``PERDURE_KEY`` or ``PERDURE_KEY_FILE`` say; None if neither is set. Raises ConfigError."""
        text, path = os.environ.get("PERDURE_KEY", ""), os.environ.get("PERDURE_KEY_FILE", "")
        if text and path:
            raise ConfigError("PERDURE_KEY and PERDURE_KEY_FILE are both set.", hint="Set one of them.")
        if path:
            return cls.parse(_read(Path(path)), f"the key file {path}")
        return cls.parse(text, "PERDURE_KEY") if text else None

    @classmethod
    def parse(cls, text: str, where: str = "the key") -> Encryption:
        """From ``id=base64`` texts, parted by commas or line ends; lines that begin with # are left out. Raises
        ConfigError, and never shows the text."""
        keys: dict[str, bytes] = {}
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        for part in filter(None, (part.strip() for line in lines for part in line.split(","))):
            name, equals, encoded = part.partition("=")
            try:
                if not equals or not _ID.fullmatch(name):
                    raise ValueError
                key = base64.b64decode(encoded, validate=True)
            except (ValueError, binascii.Error):
                raise ConfigError(f"{where} does not hold a key: id=base64.", hint="Make one: perdure key") from None
            if keys.setdefault(name, key) != key:
                raise ConfigError(f"{where} holds two keys with the id {name!r}.", hint="Give each an id of its own.")
        if not keys:
            raise ConfigError(f"{where} holds no key.", hint="Make one: perdure key")
        return cls(keys)


def new_key(name: str) -> str:
    """A new key as text. Raises ConfigError for a name that is no id."""
    return f"{_check_id(name)}={base64.b64encode(SYSTEM.new_key()).decode()}"


def _check_id(name: str) -> str:
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise ConfigError(f"{str(name)[:40]!r} is no id of a key: letters, digits and ._- , up to 40.")
    return name


def _check_key(name: str, key: object) -> bytes:
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        size = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ConfigError(
            f"The encryption key {name!r} is not {KEY_BYTES} bytes but {size}.", hint="Make one: perdure key"
        )
    return key


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE).decode("ascii")
            mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError) as error:
        raise ConfigError(f"The key file {path} cannot be read: {type(error).__name__}.") from None
    if mode & 0o077:
        raise ConfigError(f"The key file {path} can be read by others.", hint=f"chmod 600 {path}")
    return text
