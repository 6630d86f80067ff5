"""Frozen records that every layer shares: what a run is called, who holds it, what a listing shows."""

from __future__ import annotations

import mimetypes
import re
import unicodedata
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import ConfigError, CorruptStore
from perdure.redaction import discreet_part

OWN = "\x1f"
"""With this begin names of what is kept like a run and is none: the lock of a queue, a worker. No user can give one."""

MAX_NAME = 512
"""Longest goal, scope or step name, in characters: long enough for a title, short enough for every store's index."""


def check_name(what: str, text: str, *, path_like: bool = False) -> str:
    """Return ``text`` if it may name a run, a step or a tag; else raise ConfigError (rel:B6).

    Any printable Unicode text of 1 to 512 characters will do. Control characters, lone surrogates, blank ends and, in
    names that may be taken for paths, a component ``..`` are refused.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be text, not {type(text).__name__}.")
    if not text.strip():
        raise ConfigError(f"{what} is empty.", hint="Give it a name of 1 to 512 characters.")
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    if len(text) > MAX_NAME:
        raise ConfigError(
            f"{what} {shown!r} has {len(text):,} characters; the limit is {MAX_NAME}.",
            hint="Name the task briefly and pass long text as an input.",
        )
    if text != text.strip() or not printable(text):
        raise ConfigError(
            f"{what} {shown!r} has blank ends, control characters or broken Unicode.",
            hint="Use printable characters without leading or trailing blanks.",
        )
    if path_like and ".." in re.split(r"[/\\]", text):
        raise ConfigError(
            f"{what} {shown!r} contains the path component '..'.",
            hint="Names are not paths: choose one without '..'; nothing was written.",
        )
    return text


_MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""what moves a terminal's cursor, makes it do things, or shows letters in another order than they stand in"""


def plain(text: str) -> str:
    """``text`` as a terminal may be given it, whoever wrote it: lines and tabs stay, other control characters are told
    as escapes."""
    return _MOVES.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def head(text: str, width: int) -> str:
    """The beginning of a text on one line, for people, as a terminal may be given it."""
    most = 16 * width
    line = " ".join(discreet_part(text, most).split())
    shown = plain(line[:width])
    return shown if len(line) <= width and len(text) <= most else shown[: width - 3] + "..."


def printable(text: str) -> bool:
    """Whether a text can be shown and stored as it is: no control characters, no broken Unicode."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


class RunKey(msgspec.Struct, frozen=True, order=True):
    """Which run: the task (``goal``) and which attempt at the task (``episode``, 0 for the first)."""

    goal: str
    episode: int = 0

    def __str__(self) -> str:
        return f"{self.goal}#{self.episode}"

    @classmethod
    def of(cls, goal: str, episode: int = 0) -> RunKey:
        """A checked key. Raises ConfigError for a goal or episode that cannot name a run."""
        check_name("goal", goal, path_like=True)
        if not isinstance(episode, int) or isinstance(episode, bool) or not 0 <= episode < 2**31:
            raise ConfigError(f"episode must be a whole number from 0, not {episode!r}.")
        return cls(goal, episode)


def key_named(name: str) -> RunKey | None:
    """The run that ``goal#episode`` names; None if the text has no such form."""
    goal, _, episode = name.rpartition("#")
    if not goal or not episode.isdecimal() or len(episode) > 10:
        return None
    return RunKey(goal, int(episode)) if int(episode) < 2**31 else None


class Lease(msgspec.Struct, frozen=True):
    """The right to append to one run. ``epoch`` is the fencing token: every grant has a larger one."""

    key: RunKey
    epoch: int
    owner: str
    """random name of the store handle that holds it"""
    pid: int
    host: str
    since: float
    """when it was granted, seconds since 1970 by the store's clock"""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """What calls of models used, as far as they say (X6). Usages add up with ``+``."""

    calls: int = 0
    """attempts of metered steps, crashed ones included; not those that a rate limit turned away"""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """in whatever currency the reporter counts in"""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost=round(self.cost + other.cost, 9),
        )

    def __bool__(self) -> bool:
        return bool(self.calls or self.tokens or self.cost)

    def __str__(self) -> str:
        told = [f"{self.calls} call{'s' if self.calls > 1 else ''}"] if self.calls else []
        told += [f"{self.tokens:,} tokens"] if self.tokens else []
        told += [f"cost {self.cost:.4f}"] if self.cost else []
        return ", ".join(told) or "nothing"


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that a run asks people. In listings the prompt is cut, and ``schema`` and ``context`` are left out."""

    run: str
    """goal#episode"""
    step: int
    """number of the step that asks"""
    path: str
    """scope and name of that step"""
    id: str
    """the same in every life of the run, and another one if it is asked again; what a notified receiver can drop
    repeats by"""
    prompt: str
    to: str = ""
    """who is asked; free text"""
    asked: float = 0.0
    """seconds since 1970"""
    until: float = 0.0
    """deadline, seconds since 1970; 0: none"""
    otherwise: str = ""
    """what holds when the deadline passes: the default as text; "" for an error"""
    schema: dict[str, Any] = {}
    """JSON Schema of the answer"""
    context: str = ""
    """what was given to decide on, as text"""
    refused: str = ""
    """why the last answer was not taken by the program that asked"""

    @property
    def key(self) -> RunKey:
        key = key_named(self.run)
        if key is None:
            raise CorruptStore(f"A stored question says that it is of run {self.run[:80]!r}. Nothing was changed.")
        return key


class Limits(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a queue allows, as told with each run that was submitted to it; 0: no limit.

    Raises ConfigError for a limit that is not a number above 0, and for one half of a rate.
    """

    concurrency: int = 0
    """runs of the queue that are executed at a time, by all workers together"""
    rate: int = 0
    """runs of the queue that begin, or are taken up again, within ``per`` seconds"""
    per: float = 0.0

    def __post_init__(self) -> None:
        whole = (("concurrency", self.concurrency), ("rate", self.rate))
        for name, limit in whole:
            if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
                raise ConfigError(f"{name} must be a whole number above 0, not {limit!r}.")
        if isinstance(self.per, bool) or not isinstance(self.per, int | float) or not 0 <= self.per < 1e9:
            raise ConfigError(f"the seconds of a rate must be a number above 0, not {self.per!r}.")
        if bool(self.rate) != bool(self.per):
            raise ConfigError(f"a rate is (runs, seconds), both above 0, not ({self.rate!r}, {self.per!r}).")

    def __bool__(self) -> bool:
        return bool(self.concurrency or self.rate)


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a fork comes from."""

    run: str
    """the run whose records it shares, as goal#episode; it may be gone by now"""
    seq: int
    """the last of these records"""
    step: int = 0
    """the step that ends with it; 0: none does"""
    path: str = ""
    """of that step"""
    by: str = ""

    @property
    def place(self) -> str:
        """How far it shares them, for people."""
        return f"after step {self.step} ({self.path})" if self.step else f"after entry {self.seq}"

    def __str__(self) -> str:
        return f"{self.run} {self.place}"


class RunMeta(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a listing. Derived from the journal, kept beside it so that listings need no fold."""

    goal: str
    episode: int
    status: str
    """a run status of states.py"""
    flow: str = ""
    reason: str = ""
    """why it failed, paused or was interrupted"""
    created: float = 0.0
    updated: float = 0.0
    seq: int = 0
    """sequence of the last record"""
    completed: int = 0
    failed: int = 0
    flagged: int = 0
    running: int = 0
    """steps started and not ended; crashed ones if nobody holds the run"""
    current: str = ""
    """name of the step started last"""
    tags: dict[str, str] = {}
    used: Usage = Usage()
    """what all its lives used, crashed attempts included"""
    paid: Usage = Usage()
    """what its latest life used"""
    saved: Usage = Usage()
    """what the results that its completing life reused had used"""
    parent: str = ""
    """the run that started this one, as goal#episode"""
    forked: Origin | None = None
    """the run that this one shares its first records with"""
    wake: float = 0.0
    """from when on it may be taken up if nobody holds it, seconds since 1970; 0: not by a date"""
    begun: float = 0.0
    """when its latest life began; 0: it never did"""
    crashes: int = 0
    """lives in a row, before the latest, that ended in a crash before they completed any step"""
    queue: str = ""
    """that it was submitted to; "": it was not submitted"""
    priority: int = 0
    limits: Limits = Limits()
    idempotency_key: str = ""
    """that it was submitted under"""
    version: str = ""
    """that its flow was declared with"""
    asking: int = 0
    """how many of its questions nobody has answered yet"""
    questions: tuple[Question, ...] = ()
    """the oldest of them"""
    posts: int = 0
    """posts of its inbox that stand in the journal"""
    pinned: bool = False
    """somebody wants it to be kept, whatever retention says"""
    unread: int = 0
    """posts that do not yet; filled in by the store"""
    size: int = 0
    """bytes of its records and of the blobs that came with them, not of its snapshot; filled in by the store"""
    sealed: str = ""
    """in a store that is encrypted: all of it, for those who have the key"""
    holder: Lease | None = None
    """whoever holds the run at the moment of listing; filled in by the store, never stored in the row"""

    @property
    def key(self) -> RunKey:
        return RunKey(self.goal, self.episode)


class ErrorInfo(msgspec.Struct, frozen=True):
    """A recorded exception: data, never an object to be revived."""

    type: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class ArgInfo(msgspec.Struct, frozen=True, gc=False):
    """One argument of a step as its identity sees it: digest of the encoded value, and its first characters."""

    name: str
    digest: str
    head: str


class Attribution(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Who and what a run is for (B6); free text, kept with the run and shown in listings."""

    agent: str = ""
    caller: str = ""
    channel: str = ""
    """or tenant"""
    prompt: str = ""
    model: str = ""
    """model or model tier"""
    parent: str = ""
    """the run that started this one, as goal#episode"""
    tags: dict[str, str] = {}


MAX_ATTRIBUTION = 2**16
"""Characters of all that is said of who and what a run is for: it is written again with every append."""


def check_attribution(said: Attribution) -> Attribution:
    """The same. Raises ConfigError for what is no text, for too much of it, and for tags that have no name (rel:B6)."""
    if not isinstance(said, Attribution) or not isinstance(said.tags, dict):
        raise ConfigError(f"attribution must be an Attribution, not {type(said).__name__}.")
    texts = {field: getattr(said, field) for field in said.__struct_fields__ if field != "tags"}
    for name, value in said.tags.items():
        texts[f"tag {check_name('the name of a tag', name)!r}"] = value
    for name, text in texts.items():
        if not isinstance(text, str) or any(unicodedata.category(c) == "Cs" for c in text):
            raise ConfigError(f"attribution: {name} must be text, without broken Unicode, not {text!r:.60}.")
    size = sum(map(len, texts.values())) + sum(map(len, said.tags))
    if size > MAX_ATTRIBUTION:
        raise ConfigError(
            f"attribution: it has {size:,} characters; the limit is {MAX_ATTRIBUTION:,}.",
            hint="Pass long text as an input, and name it here.",
        )
    return said


class Budget(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Caps on what a run may use over all its lives; None: no cap. Checked before every attempt of a step (``calls``:
    of a metered one): when a cap is reached the run is PAUSED, and goes on when it is run again with a larger one (X6).

    Raises ConfigError for a cap that is not a number above 0.
    """

    cost: float | None = None
    tokens: int | None = None
    calls: int | None = None
    """attempts of metered steps: an agent's calls of its model, and steps declared ``metered=True``"""
    seconds: float | None = None
    """time during which some process executed the run"""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            cap = getattr(self, field)
            if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int | float) or not cap > 0):
                raise ConfigError(f"budget: {field} must be a number above 0, not {cap!r}.")

    def over(self, other: Budget | None) -> Budget:
        """These caps, and those of ``other`` that are not among them."""
        if other is None:
            return self
        mine = {field: getattr(self, field) for field in self.__struct_fields__}
        return Budget(**{field: getattr(other, field) if cap is None else cap for field, cap in mine.items()})

    def used_up(self, usage: Usage, seconds: float, *, calls: bool = True) -> str:
        """Which cap is reached, for people; "" if none is. ``calls``: whether that cap matters."""
        used = {"cost": usage.cost, "tokens": usage.tokens, "calls": usage.calls if calls else 0, "seconds": seconds}
        reached = [f for f in self.__struct_fields__ if getattr(self, f) is not None and used[f] >= getattr(self, f)]
        return "; ".join(f"{field}: {used[field]:g} of {getattr(self, field):g}" for field in reached)


class File(msgspec.Struct, frozen=True):
    """A file that a step made, kept whole: its name, content and media type (W6). Large contents are stored once."""

    name: str
    content: bytes
    type: str = "application/octet-stream"

    def __post_init__(self) -> None:
        check_name("file name", self.name)
        if "/" in self.name or "\\" in self.name or self.name.startswith("."):
            raise ConfigError(f"A file's name is no path: {self.name!r}.", hint="Give the last part only.")

    @classmethod
    def read(cls, path: Path, type: str = "") -> File:
        """The file at ``path``; its media type is guessed from its name. Raises OSError."""
        return cls(path.name, path.read_bytes(), type or mimetypes.guess_type(path.name)[0] or cls.type)

    def __repr__(self) -> str:
        return f"File({self.name!r}, {self.type!r}, {len(self.content):,} bytes)"
