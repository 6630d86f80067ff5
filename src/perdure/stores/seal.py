"""What encrypts and decrypts: one key for each store and key id, and bytes bound to the place where they belong.

AES-256-GCM with a random nonce for every record. The keys that are used are derived (HKDF) from those of the user and
the random id of the store, so that two stores never share one. What is encrypted is bound to its store, kind, run and
number: decrypted anywhere else it fails, so that records cannot be swapped, moved to another run, or to another store.

A key may encrypt 2**32 records (NIST SP 800-38D, 8.3, for random nonces); change it before: ``perdure rekey``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, CorruptStore
from perdure.model import RunKey
from perdure.stores.encryption import KEY_BYTES, Encryption
from perdure.stores.handle import SEALED_BLOB

_NONCE: Final = 12


class Seal:
    """Encryption for the store with the id ``store``. Raises ConfigError where a key is not to be had."""

    def __init__(self, store: str, encryption: Encryption) -> None:
        self.store, self._encryption = store, encryption
        self._ciphers: dict[str, AESGCM] = {}
        self._namers: dict[str, bytes] = {}

    @property
    def write(self) -> str:
        """Id of the key for what is written."""
        return self._encryption.write

    def encrypt(self, kind: str, run: RunKey, number: int, plain: bytes) -> bytes:
        """Nonce and ciphertext."""
        nonce = SYSTEM.new_key()[:_NONCE]
        return nonce + self._cipher(self.write).encrypt(nonce, plain, self._place(kind, run, number))

    def decrypt(self, key: str, kind: str, run: RunKey, number: int, data: bytes) -> bytes:
        """The plain bytes. Raises CorruptStore if they are not those that were encrypted for this place."""
        try:
            return self._cipher(key).decrypt(data[:_NONCE], data[_NONCE:], self._place(kind, run, number))
        except (InvalidTag, ValueError):
            what = f"blob {run.goal}" if kind == "blob" else f"run {run}: {kind} {number or ''}".rstrip()
            raise CorruptStore(
                f"{what} cannot be decrypted with the key {key!r}: it was changed, or it belongs somewhere else. "
                "Nothing was changed.",
                hint="Restore the store from a copy.",
            ) from None

    def name(self, key: str, digest: str) -> str:
        """What a blob is called in the store: nobody can tell from it what the blob holds."""
        if key not in self._namers:
            self._namers[key] = self._derive(key, b"perdure names 1")
        return hmac.digest(self._namers[key], digest.encode(), "sha256").hex()

    def hide(self, text: str) -> str:
        """A name as others see it: the same for the same name, under one key."""
        return f"#{self.name(self.write, text)[:12]}" if text else ""

    def encrypt_blob(self, digest: str, content: bytes) -> bytes:
        """A blob as it is stored, with a checksum that needs no key."""
        body = self.encrypt("blob", RunKey(digest), 0, content)
        sealed = b"".join((SEALED_BLOB, self.write.encode(), b"\n", body))
        return sealed + hashlib.sha256(sealed).digest()

    def decrypt_blob(self, digest: str, sealed: bytes) -> bytes:
        key, _, body = sealed[len(SEALED_BLOB) : -32].partition(b"\n")
        return self.decrypt(key.decode(errors="replace"), "blob", RunKey(digest), 0, body)

    def encrypt_snapshot(self, run: RunKey, seq: int, content: bytes) -> bytes:
        return b"\n".join((self.write.encode(), self.encrypt("snapshot", run, seq, content)))

    def check(self, key: str) -> str:
        """What shows later whether a key is the one that it was, and tells nothing else."""
        return hmac.digest(self._derive(key, b"perdure check 1"), self.store.encode(), "sha256").hex()[:32]

    def sign(self, key: str, data: bytes) -> str:
        return hmac.digest(self._derive(key, b"perdure signature 1"), data, "sha256").hex()

    def _cipher(self, key: str) -> AESGCM:
        if key not in self._ciphers:
            self._ciphers[key] = AESGCM(self._derive(key, b"perdure records 1"))
        return self._ciphers[key]

    def _derive(self, key: str, purpose: bytes) -> bytes:
        hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=self.store.encode(), info=purpose)
        return hkdf.derive(self._encryption.key(key))

    def _place(self, kind: str, run: RunKey, number: int) -> bytes:
        return msgspec.json.encode(["perdure 1", self.store, kind, run.goal, run.episode, number])


def to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_text(text: str) -> bytes:
    """Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def refuse_wrong_key(seal: Seal, key: str, check: str, url: str) -> None:
    """Raises ConfigError unless the key is the one that the store knows under this id."""
    if not hmac.compare_digest(seal.check(key), check):
        raise ConfigError(
            f"The encryption key {key!r} is not the one that {url} was encrypted with. Nothing was changed.",
            hint="Give the key that had this id, or another id to a new key.",
        )
