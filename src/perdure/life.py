"""What one process knows of the run it executes: its life, and the cursors in which code asks for steps.

A ``Life`` is shared by all scopes of a run; a ``Cursor`` is one entering of a scope. Cursors give equal requests their
ordinals, and refuse what would make these ambiguous; see replay.py for why that is enough to find every step again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any, Protocol, TypeAlias

import msgspec

from perdure import journal as j
from perdure.book import Recorded
from perdure.codec import Digested, Payload
from perdure.errors import AmbiguousStep, ConfigError, LimitReached
from perdure.fold import State
from perdure.guard import OPEN, Guard
from perdure.limits import MAX_JOURNAL, MAX_SCOPE
from perdure.model import ArgInfo, Usage
from perdure.record import Identity, Step, enclosing
from perdure.redaction import sounds_secret
from perdure.retry import RetryPolicy
from perdure.secret import MASK

_SPARE = MAX_JOURNAL // 8
"""bytes of a journal that are left for what steps add that were begun before"""


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was declared of a step; see ``perdure.step`` for the meaning of each."""

    retry: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    check: Callable[[Any], object] | None = None
    on_refused: str = "fail"
    on_crash: str = "rerun"
    failed: Callable[[Exception], Any] | None = None
    """makes the value that stands, flagged, for a result after the last failed attempt, instead of raising"""
    metered: bool = False
    """each attempt counts as a call in the run's usage"""
    transaction: bool = False
    """its body and its completion are committed together"""
    spoken: bool = False
    """its output is a message of an agent's conversation"""
    cache: float = 0.0
    """for how many seconds the result may be used for equal requests anywhere in the run; 0: never"""
    child: str = ""
    """"role": its scope is numbered when it is called; "name": and it is the only one of its name there"""


class Seen:
    """Arguments as the identity of a call sees them: names, digests, and what tells their beginnings to people."""

    __slots__ = ("_found", "_infos")

    def __init__(self, found: Sequence[tuple[str, Digested | ArgInfo]]) -> None:
        self._found = found
        self._infos: tuple[ArgInfo, ...] | None = None

    @property
    def infos(self) -> tuple[ArgInfo, ...]:
        """As they are recorded. Made when they are first asked for, which a call with a recorded result never does."""
        if self._infos is None:
            self._infos = tuple([_info(name, found) for name, found in self._found])
        return self._infos


def _info(name: str, found: Digested | ArgInfo) -> ArgInfo:
    if isinstance(found, ArgInfo):
        return found
    head = found.head()
    return ArgInfo(name, found.hex, MASK if sounds_secret(name) and head not in _EMPTY else head)


_EMPTY = ("null", "true", "false", '""')


class Request(msgspec.Struct):
    """One call of a step by a flow."""

    name: str
    options: StepOptions
    fingerprint: str = ""
    seen: Seen | None = None
    """the arguments"""
    digest: str = ""
    parts: Mapping[str, str] = {}
    """the code that this is the digest of: name -> text"""
    number: int = 0
    """of the step in its run, once it is known"""
    n: int | None = None
    """claimed beforehand by gather; None: claim when execution begins"""
    look_again: Callable[[], tuple[ArgInfo, ...]] | None = None
    """digests of the arguments as they are now, where a body could have changed them"""

    @property
    def args(self) -> tuple[ArgInfo, ...]:
        """The arguments as they are recorded."""
        return self.seen.infos if self.seen is not None else ()


Place: TypeAlias = Identity | str
"""of a branch: the step that it is the call of, or the path of its scope"""


class Rehearsal(Protocol):
    """What stands between today's code and everything that a life would execute or wait for, where the code is only
    held against the records: see runtime/rehearsal.py."""

    def answer(self, step: Step | None, identity: Identity, request: Request) -> Generator[Any, Any, Any]:
        """A machine for a request; ``step`` is what is recorded under that identity."""

    def begun(self, place: Place) -> None:
        """A branch was made."""

    def ended(self, place: Place) -> None:
        """A branch has come to its end; not if it was dropped, or unwound."""


class Life:
    """One process's work on a run: its state, its policies, and what it has used so far. Shared by all its scopes."""

    def __init__(
        self,
        state: State,
        *,
        durability: str,
        strict: bool,
        same_code: bool,
        emit: Callable[[j.Entry], None],
        tell: Callable[[str], None],
        lock: AbstractContextManager[Any],
        elapsed: Callable[[], float] = lambda: 0.0,
        guard: Guard = OPEN,
        renew: bool = False,
    ) -> None:
        self.state = state
        self.guard = guard
        """what is kept out of its records"""
        self.elapsed = elapsed
        """seconds since this life began"""
        self.durability = durability
        self.strict = strict
        self.same_code = same_code
        self.emit = emit
        self.tell = tell
        self.lock = lock
        self.numbers = itertools.count(state.last_number + 1)
        self.resumed = state.last_number > 0
        """something is recorded already"""
        self.read_ahead: dict[int, Payload] = {}
        """results that were read together with another, by the sequence of the entry where they stand"""
        self.asked: set[int] = set()
        self.used_up: set[tuple[str, str]] = set()
        """(scope, name) of which every record has been asked for"""
        self.renew = renew
        """steps whose code has changed are executed again"""
        self.reused: dict[int, float] = {}
        self.unsaid: list[int] = []
        """steps that were reused, and the journal does not say so yet"""
        self._outdated: list[int] = []
        """those of them whose code has changed"""
        self._outdated_names: set[str] = set()
        self.rehearsal: Rehearsal | None = None
        """nothing is executed in this life, and nothing waited for"""
        self.orphans: list[int] = []
        """steps that wait, and were cut off in that from within: if the run goes on, nobody waits any more"""
        self.diverged = False
        """some step was executed again although it had a record: later inputs may differ, and rightly"""
        self._labels: dict[tuple[str, str], int] = {}
        for parent, name, _, _ in state.scopes:
            self._labels[parent, name] = self._labels.get((parent, name), 0) + 1

    def scope_path(self, identity: Identity) -> str:
        """The path of a child scope: the recorded one, or ``parent/name-k`` with the next free k."""
        with self.lock:
            path = self.state.scopes.get(identity)
            if path is None:
                k = self._labels.get((identity.scope, identity.name), 0)
                self._labels[identity.scope, identity.name] = k + 1
                path = f"{identity.scope}/{identity.name}-{k}" if identity.scope else f"{identity.name}-{k}"
                if len(path) > MAX_SCOPE:
                    raise LimitReached(
                        f"run {self.state.key}: scopes inside one another have a path of more than {MAX_SCOPE:,} "
                        "characters. What finished is kept.",
                        hint="Does something begin itself again and again?",
                    )
                self.emit(
                    j.ScopeOpened(
                        path=path,
                        parent=identity.scope,
                        name=identity.name,
                        fingerprint=identity.fingerprint,
                        n=identity.n,
                    )
                )
            return path

    def reuses(self, step: Step | Recorded, changed: str) -> bool:
        """The recorded result of a step is used; ``changed``: its name, if its code is another now. Whether that is the
        first of its name."""
        number = step.number
        self.reused[number] = step.seconds
        self.unsaid.append(number)
        if not changed:
            return False
        self._outdated.append(number)
        new = changed not in self._outdated_names
        self._outdated_names.add(changed)
        return new

    def say_reused(self) -> tuple[j.StepsReused, ...]:
        """What was reused since this was asked last. Called with the lock held, as what it returns is journaled."""
        steps, self.unsaid = self.unsaid, []
        changed, self._outdated = self._outdated, []
        single, spans = j.spans_of(steps)
        return (j.StepsReused(steps=single, changed=tuple(changed), spans=spans),)

    @property
    def may_skip(self) -> bool:
        """Whether what was done in earlier lives would be gone through just as then, so that it need not be. Not any
        more once something is executed that had been begun: so it is for the outermost of nested agents, mostly."""
        same = self.resumed and self.same_code and not (self.renew or self.diverged or self.state.diverged)
        return same and self.rehearsal is None

    def skip(self, scope: str, before: int) -> bool:
        """Reuse every step of a scope that had begun before the entry of that sequence. False, and nothing is changed,
        if not all of them have a result."""
        with self.lock:
            found = self.state.steps.before(scope, before)
            if any(s.number in found and not s.recorded for s in self.state.steps.uncertain()):
                return False
            self.asked |= found.keys()
            self.reused |= found
            self.unsaid += found
            return True

    def unused(self) -> tuple[int, ...]:
        """Recorded steps that this life did not ask for, and that no step contains whose result it reused."""
        unasked = [n for n in self.state.steps if n not in self.asked]
        inside = self._inside_reused(unasked)
        return tuple([n for n in unasked if n not in inside and self.state.steps[n].recorded])

    def saved_usage(self) -> Usage:
        """What had been used for the results that this life reused."""
        inside = self._inside_reused(n for n in self.state.steps if n not in self.reused)
        with self.lock:
            return self.state.steps.usage(self.reused.keys() | inside)

    def _inside_reused(self, among: Iterable[int]) -> set[int]:
        """Those of the steps that were executed inside a step whose result this life reused."""
        steps = self.state.steps
        scopes = {path for inner, path in self.state.scopes.items() if self._is_reused(inner)}
        return {n for n in among if scopes and any(path in scopes for path in enclosing(steps[n].identity.scope))}

    def _is_reused(self, identity: Identity) -> bool:
        step = self.state.steps.find(identity)
        return step is not None and step.number in self.reused

    def check_budget(self, metered: bool) -> None:
        """Raises LimitReached when the run's budget leaves nothing for another attempt (X6), or its journal is full."""
        if self.state.size > MAX_JOURNAL - _SPARE:
            raise LimitReached(
                f"run {self.state.key}: its journal has {self.state.size:,} bytes, and {MAX_JOURNAL:,} can be read. "
                "What finished is kept.",
                hint="Go on in another run, or episode, and keep large data out of it: in files, say.",
            )
        budget = self.state.budget
        reached = budget.used_up(self.state.usage, self.state.seconds + self.elapsed(), calls=metered) if budget else ""
        if reached:
            raise LimitReached(
                f"run {self.state.key}: its budget is used up ({reached}). What finished is kept.",
                hint="Run it again with a larger budget to go on (--budget on the command line).",
            )


class Cursor:
    """One entering of a scope: which ordinals are claimed, and by whom. Entering again (a retry) starts afresh."""

    def __init__(self, life: Life | None, scope: str | Identity) -> None:
        self.life = life
        self._scope = scope
        self._used: dict[tuple[str, str], int] = {}
        self._claims: dict[tuple[str, str], list[Hashable]] = {}
        self._names: set[str] = set()
        """of children that have a name of their own"""
        self._skipped = 0
        """what began before the entry of this sequence is claimed, and has ended"""

    @property
    def scope(self) -> str:
        """The scope's path. A step's inner scope gets one when something is first asked for inside it."""
        if isinstance(self._scope, Identity):
            self._scope = self.life.scope_path(self._scope) if self.life else ""
        return self._scope

    def claim(self, request: Request, by: Hashable) -> int:
        """The next ordinal among equal requests. Raises AmbiguousStep if another task's equal request is under way,
        ConfigError for a second child of one name.
        """
        name, fingerprint = key = (request.name, request.fingerprint)
        if self.life is None:
            return 0
        with self.life.lock:
            if request.options.child == "name":
                if name in self._names:
                    raise ConfigError(
                        f"run {self.life.state.key}, scope {self.scope or 'top'!r}: a second child is started under "
                        f"the name {name!r}. Nothing was lost.",
                        hint="Give each child a name of its own, or leave name= out: then they are numbered.",
                    )
                self._names.add(name)
            others = self._claims.get(key)
            if others is None:
                self._claims[key] = [by]
            elif all(other == by for other in others):
                others.append(by)
            else:
                raise AmbiguousStep(
                    f"run {self.life.state.key}, scope {self.scope or 'top'!r}: two tasks ask for step {name!r} with "
                    "equal inputs at the same time, so after a crash they could receive each other's result. "
                    "Nothing was lost.",
                    hint=f"Start them with perdure.gather (or map), or tell them apart: {name}.options(key=...).",
                )
            n = self._next(key)
            self._used[key] = n + 1
            if request.options.child:
                self.life.scope_path(Identity(self.scope, name, fingerprint, n))
            return n

    def glance(self, request: Request, by: Hashable) -> int | None:
        """The ordinal that ``claim`` would give; None if it would refuse, or do more. Called with the lock held."""
        key = (request.name, request.fingerprint)
        others = self._claims.get(key)
        if request.options.child or (others and any(other != by for other in others)):
            return None
        return self._next(key)

    def _next(self, key: tuple[str, str]) -> int:
        n = self._used.get(key)
        if n is None:
            n = 0
            while self._skipped and self._was_skipped(Identity(self.scope, *key, n)):
                n += 1
        return n

    def _was_skipped(self, identity: Identity) -> bool:
        step = self.life.state.steps.find(identity) if self.life is not None else None
        return step is not None and step.begun < self._skipped

    def skip(self, before: int) -> bool:
        """See Life.skip. Only for a scope in which nothing but steps is asked for: no branches, no nested flows."""
        asked = any(not name.startswith("/") for name, _ in self._used)
        if self.life is None or asked or not self.life.skip(self.scope, before):
            return False
        self._skipped = before
        return True

    def passed(self, request: Request, n: int) -> None:
        """The request has been claimed under that ordinal, and has ended."""
        self._used[request.name, request.fingerprint] = n + 1

    def branch(self, name: str, fingerprint: str) -> Identity:
        """Identity of the next child scope of that name and inputs: a branch or a nested flow."""
        key = ("/" + name, fingerprint)  # no step has a slash in its name, so these ordinals are scopes' own
        n = self._used.get(key, 0)
        self._used[key] = n + 1
        return Identity(self.scope, name, fingerprint, n)

    def fan(self, kind: str) -> str:
        """Name of the next as_completed or first in this scope."""
        return f"{kind}-{self.branch('/' + kind, '').n}"

    def done(self, name: str, fingerprint: str, by: Hashable) -> None:
        """The request made with ``claim`` has ended."""
        if self.life is not None:
            with self.life.lock:
                others = self._claims[name, fingerprint]
                others.remove(by)
                if not others:
                    del self._claims[name, fingerprint]


def idempotency_key(life: Life, identity: Identity, generation: int) -> str:
    """Stable over attempts and lives, different for every step, run and deliberate re-execution (X7)."""
    parts = (life.state.run_id, *map(str, identity), str(generation))
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
