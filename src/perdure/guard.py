"""What of the values of one run is kept out of its records: the rules, the key of its digests, and who knows secrets.

One ``Guard`` goes with every run; the codec asks it on the way out, and gives it to the Secrets it makes on the way in.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from perdure.redaction import MARK, Redaction
from perdure.secret import Resolver, keyed

log = logging.getLogger("perdure")
_HELD = 256
"""characters of a stream that are held back: a key that comes in pieces is recognised when it is whole"""
_MOST_HELD = 20_000


class Hidden(NamedTuple):
    """Marks an argument that is hidden because of its name, for the codec."""

    value: object


class Guard:
    """Of the run whose random id is ``key``; without one nothing can be digested, so nothing can be hidden."""

    __slots__ = ("hid", "key", "nameless", "resolve", "rules", "run", "used")

    def __init__(
        self, key: str = "", rules: Redaction | None = None, resolve: Resolver | None = None, run: str = ""
    ) -> None:
        self.key, self.rules, self.resolve, self.run = key, rules, resolve, run
        self.hid: set[str] = set()
        """what was recorded with something hidden in it by the rules"""
        self.nameless = False
        """a Secret without a name was recorded"""
        self.used = False
        """something was digested under the key"""

    def mac(self, data: bytes) -> str:
        self.used = True
        return keyed(self.key, data)

    def hides(self, name: str) -> bool:
        """Whether the rules hide what has this name."""
        return self.rules is not None and self.rules.hides(name)

    def mark(self, data: bytes) -> str:
        """What stands for ``data`` in a record."""
        return f"[redacted:{self.mac(data)[:16]}]" if self.key else "[redacted]"

    def text(self, text: str) -> str:
        """The text with marks in the place of what the rules' patterns match."""
        spans = self.rules.spans(text) if self.rules is not None else ()
        for start, end in reversed(spans):
            text = text[:start] + self.mark(text[start:end].encode("utf-8", "surrogatepass")) + text[end:]
        return text

    def note(self, what: str) -> None:
        """Something of ``what`` was hidden in its record; said once."""
        if what not in self.hid:
            self.hid.add(what)
            if self.run:
                log.warning(
                    "run %s: the rules of redaction hide a part of %s in its records; a later life finds a mark there.",
                    self.run,
                    what,
                )


OPEN = Guard()
"""hides nothing, and refuses Secrets in identities: it has no key"""


def is_mark(value: object) -> bool:
    """Whether a value is a mark already, or an empty text, which hides nothing."""
    return type(value) is str and (not value or MARK.fullmatch(value) is not None)


class Veil:
    """Redacts text that comes in pieces: what may still become part of a match is held back until it cannot."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._held = ""

    def feed(self, text: str) -> str:
        """What can be recorded now of all that came."""
        rules = self._guard.rules
        if rules is None or not rules.compiled:
            return text
        self._held += text
        cut = len(self._held) - _HELD
        if cut <= 0:
            return ""
        near = max(cut - 2 * _HELD, 0)
        blank = max(self._held.rfind(" ", near, cut), self._held.rfind("\n", near, cut))
        cut = blank + 1 if blank > 0 else cut
        for start, end in rules.spans(self._held):
            if start < cut and (end > cut or end == len(self._held)) and len(self._held) - start < _MOST_HELD:
                cut = start
        ready, self._held = self._held[:cut], self._held[cut:]
        return self._guard.text(ready)

    def rest(self) -> str:
        """The rest: nothing more comes."""
        ready, self._held = self._held, ""
        return self._guard.text(ready)
