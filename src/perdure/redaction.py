"""What must not be shown, found by its name or its form; in texts for people, and in values by rules.

Texts for people (heads of arguments, messages and tracebacks of errors, lines of the log, what the command prints) are
always made ``discreet``: values of Secrets that the process knows, what stands behind a name such as ``api_key``, and
what has the form of a well-known key are masked. A mask too many does no harm there.

Recorded values are another matter: a result that was changed behind the program's back would break its next life. So
these are changed only by the rules that the application declares (``Redaction``), and in a way that the next life
finds its steps again: a *mark* stands for what is hidden, ``[redacted:3f2a...]``, with a keyed digest in it, and the
identity of a value is that of its redacted form. Redacting twice is the same as redacting once.

Every expression here takes time proportional to the text: none has a choice of how to repeat something.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from traceback import format_exception
from typing import Final
from weakref import ref

from perdure.errors import ConfigError
from perdure.secret import MASK, longest_known, mask_known

DEFAULT_NAMES: Final = (
    *("password", "passwd", "passphrase", "secret", "secrets", "token", "api_key", "apikey", "access_key"),
    *("private_key", "authorization", "auth", "cookie", "cookies", "credential", "credentials"),
)
"""Names are compared word by word, whatever their style: ``X-Api-Key`` and ``openaiApiKey`` have the words of
``api_key``; ``tokens`` and ``secretary`` have none of these."""

_PEM = r"[A-Z ]{0,40}PRIVATE KEY-----"
DEFAULT_PATTERNS: Final = (
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,512}",
    r"(?<![A-Za-z0-9])(?:sk|rk|whsec)_[A-Za-z0-9_]{16,512}",
    r"(?<![A-Za-z0-9])(?:gh[oprsu]_|github_pat_|glpat-|hf_|npm_|pypi-)[A-Za-z0-9_-]{16,512}",
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,512}",
    r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,100}",
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,8192}+\.[A-Za-z0-9_-]{8,8192}+(?:\.[A-Za-z0-9_-]{0,8192}+)?",
    r"(?<![A-Za-z0-9])[Bb][Ee][Aa][Rr][Ee][Rr]\s{1,4}+[A-Za-z0-9._~+/=-]{16,4096}",
    r"://[^\s/:@]{0,100}+:(?P<hidden>[^\s/@]{1,200}+)@",
    rf"-----BEGIN {_PEM}[^-]{{0,16384}}+(?:-(?!----END)[^-]{{0,16384}}+){{0,8}}(?:-----END {_PEM})?",
)
"""Forms of well-known keys: of model providers, payment, hosting and cloud, JWT, bearer tokens, passwords in URLs,
private keys in PEM."""

_HINTS: Final = (
    *("sk-", "sk_", "rk_", "whsec_", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_", "glpat-", "hf_", "npm_"),
    *("pypi-", "AKIA", "ASIA", "xox", "AIza", "eyJ", "earer", "EARER", "://", "-----BEGIN"),
)
"""a text in which none of these stands has none of those forms"""
_NAMED = re.compile(r"(?<![A-Za-z0-9_-])([A-Za-z_][A-Za-z0-9_-]{1,80}+)(\\?[\"'])?\s{0,3}+[:=](?![:=/])\s{0,3}+")
_BEHIND = re.compile(
    r"\\\"[^\"\\]{1,4096}+(?:\\\")?"
    r'|"(?:[^"\\\n]|\\.){1,4096}+"?'
    r"|'(?:[^'\\\n]|\\.){1,4096}+'?"
    r"|[(\[{][^)\]}\n]{1,4096}+[)\]}]?"
    r"|(?:(?i:bearer|basic|token|digest|apikey) {1,3}+)?[^\s,;&)\]}\"'<>\\]{1,4096}+"
)
_SAYS_NOTHING: Final = frozenset(
    ("None", "null", "True", "true", "False", "false", "str", "int", "bool", "bytes", "Secret", "TEXT", "SECRET", MASK)
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
MARK = re.compile(r"\[redacted(?::[0-9a-f]{16})?\]")
"""what stands in a recorded text for what was hidden"""


_MANY: Final = 10_000
"""names of which it is remembered whether they are hidden"""


@cache
def _shapes() -> re.Pattern[str]:
    """The default patterns as one. Compiled when a text may have one of them: that takes as long as all of importing
    this module."""
    return re.compile("|".join(DEFAULT_PATTERNS))


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORDS.findall(name))


def _has(words: tuple[str, ...], rule: tuple[str, ...]) -> bool:
    return any(words[k : k + len(rule)] == rule for k in range(len(words) - len(rule) + 1))


@dataclass(frozen=True, eq=False)
class Redaction:
    """Rules for what is kept out of recorded values too: inputs, results, progress, streamed text, conversations.

    - ``names``: of arguments, dict keys and fields; what stands there is hidden whole, whatever it is.
    - ``types``: classes; their objects, and those of subclasses, are hidden whole.
    - ``patterns``: regular expressions for texts; what they match is hidden, or of that the group called ``hidden``.
      They see each text of a value by itself, and must not take long: each recorded text is searched.

    What is hidden is replaced by a text, ``[redacted:3f2a9c0d1e2f3a4b]``, also where it is a result that a later life
    is given. It takes part in the identity of steps by that keyed digest. ``Redaction()`` has the default names and
    patterns. Raises ConfigError for what is no rule.
    """

    names: Sequence[str] = DEFAULT_NAMES
    types: tuple[type, ...] = ()
    patterns: Sequence[str | re.Pattern[str]] = DEFAULT_PATTERNS
    compiled: tuple[re.Pattern[str], ...] = field(default=(), init=False, repr=False)
    _rules: tuple[tuple[str, ...], ...] = field(default=(), init=False, repr=False)
    _stems: tuple[str, ...] = field(default=(), init=False, repr=False)
    _seen: dict[str, bool] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for what, listed in (("names", self.names), ("patterns", self.patterns), ("types", self.types)):
            if isinstance(listed, str) or not isinstance(listed, list | tuple):
                raise ConfigError(f"Redaction: {what} must be a list or tuple, not {type(listed).__name__}.")
        if not all(isinstance(name, str) and _words(name) for name in self.names):
            raise ConfigError("Redaction: names must be texts with letters or digits in them.")
        if not all(isinstance(cls, type) for cls in self.types):
            raise ConfigError("Redaction: types must be classes.")
        try:
            compiled = tuple(re.compile(pattern) for pattern in self.patterns)
        except (TypeError, re.error) as problem:
            raise ConfigError(f"Redaction: a pattern is no regular expression ({problem}).") from None
        if any(pattern.match("") for pattern in compiled):
            raise ConfigError("Redaction: a pattern matches the empty text, so it would match everywhere.")
        object.__setattr__(self, "types", tuple(self.types))
        object.__setattr__(self, "compiled", compiled)
        rules = tuple(dict.fromkeys(map(_words, self.names)))
        longest = sorted({max(rule, key=len) for rule in rules}, key=len)
        stems = [word for k, word in enumerate(longest) if not any(other in word for other in longest[:k])]
        object.__setattr__(self, "_rules", rules)
        object.__setattr__(self, "_stems", tuple(stems))
        _declare(self)

    def hides(self, name: str) -> bool:
        """Whether what has this name is hidden."""
        known = self._seen.get(name)
        if known is None:
            words = _words(name)
            known = any(_has(words, rule) for rule in self._rules)
            if len(self._seen) < _MANY:
                self._seen[name] = known
        return known

    def may_name(self, text: str) -> bool:
        """Whether some name in a text can be hidden at all; quickly, ``text`` is in lower case."""
        for stem in self._stems:  # not any(): this is asked for each argument of each step
            if stem in text:
                return True
        return False

    def spans(self, text: str) -> list[tuple[int, int]]:
        """What the patterns match, overlapping matches as one; marks stay what they are."""
        found = sorted(_span(match) for pattern in self.compiled for match in pattern.finditer(text))
        merged: list[tuple[int, int]] = []
        for start, end in found:
            if start == end:
                continue
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return [span for span in merged if not _is_marked(text, *span)] if "[redacted" in text else merged


_declared: tuple[ref[Redaction], ...] = ()
"""rules of the application, as long as it has them; replaced, never changed, as any thread may look"""


def _declare(rules: Redaction) -> None:
    global _declared
    _declared = (*(known for known in _declared if known() is not None), ref(rules))


def _rules() -> tuple[Redaction, ...]:
    """What texts for people follow: our names and the rules of the application."""
    if not _declared:
        return _ONLY_OURS
    return (*_ONLY_OURS, *(rules for known in _declared if (rules := known()) is not None))


_ONLY_OURS = (Redaction(patterns=()),)
_declared = ()


def _span(match: re.Match[str]) -> tuple[int, int]:
    """What of a match is hidden: all, or its group of that name."""
    return match.span("hidden" if match.groupdict().get("hidden") is not None else 0)


def _masked(match: re.Match[str]) -> str:
    start, end = _span(match)
    return match.string[match.start() : start] + MASK + match.string[end : match.end()]


def _is_marked(text: str, start: int, end: int) -> bool:
    """Whether a match is a mark, or lies within one."""
    near = text[max(start - 32, 0) : end + 32]
    shift = max(start - 32, 0)
    return any(m.start() + shift <= start and end <= m.end() + shift for m in MARK.finditer(near))


def sounds_secret(name: str) -> bool:
    """Whether the name says that what it names is not to be shown to people."""
    for rules in _rules():
        if rules.hides(name):
            return True
    return False


def discreet(text: str, *, names: bool = True) -> str:
    """A text for people, with what must not be shown masked; ``names``: also what stands behind a name that says so
    (``password=...``, ``"token": "..."``, ``Authorization: ...``)."""
    text = mask_known(text)
    if not _declared and text.isdigit():  # as many arguments are
        return text
    for hint in _HINTS:
        if hint in text:
            text = _shapes().sub(_masked, text)
            break
    for rules in _rules():
        if rules.compiled and rules.patterns is not DEFAULT_PATTERNS:
            for start, end in reversed(rules.spans(text)):
                text = text[:start] + MASK + text[end:]
    return _mask_named(text) if names and (":" in text or "=" in text) else text


def _mask_named(text: str) -> str:
    lower = text.lower()
    if not any(rules.may_name(lower) for rules in _rules()):
        return text
    done, end = [], 0
    for match in _NAMED.finditer(text):
        if match.start() < end or not sounds_secret(match[1]):
            continue
        behind = _BEHIND.match(text, match.end())
        if behind is None or behind[0].strip("\"'\\") in _SAYS_NOTHING or behind[0].startswith("Secret("):
            continue
        quote = behind[0][0] if behind[0][0] in "\"'" else ""
        done += [text[end : match.end()], quote, MASK, quote]
        end = behind.end()
    return "".join([*done, text[end:]]) if done else text


def discreet_part(text: str, length: int) -> str:
    """The beginning of a text for people; what is masked is found also if it does not end there."""
    window = text[: length + _MARGIN + longest_known()]
    told = discreet(window)
    return (told[: -_MARGIN // 2] if len(window) < len(text) and len(told) > _MARGIN // 2 else told)[:length]


def discreet_end(text: str, length: int) -> str:
    """The same of its end."""
    text = mask_known(text)
    window = text[-(length + _LONG_MARGIN) :]
    told = discreet(window)
    if len(window) < len(text):
        told = told[min(_LONG_MARGIN, len(told) // 2) :]
    return told


_MARGIN = 320
_LONG_MARGIN = 8192
"""characters beyond a cut that are looked at: a key that is cut in two is not recognised, and these are dropped"""


def _discreet_record(record: logging.LogRecord) -> bool:
    """Everything that Perdure logs goes through here."""
    try:
        said = record.getMessage()
    except Exception:  # the handler says what is wrong with it
        return True
    told = discreet(said)
    if told != said:
        record.msg, record.args = told, ()
    if record.exc_info and record.exc_info[0] is not None:
        shown = "".join(format_exception(*record.exc_info))
        masked = discreet(shown)
        if masked != shown:
            record.exc_text, record.exc_info = masked.rstrip("\n"), None
    return True


logging.getLogger("perdure").addFilter(_discreet_record)
