"""The past of a run: which moment somebody means, and the state as it was then.

A run's state is a fold over its journal, so what it was is the fold over the first entries, and nothing has to be kept
for it. A moment is the entry after which the fold stops; it is named, in this order of preference, by

    17                    its number: right after entry 17
    #6                    a step: right after its latest end (a result, or a failure that the flow was told)
    expert                the same for a step's name or path; of several steps, the one that ended last
    2026-11-20T10:03      a date or time, of this machine's zone unless it has one: what was known then
    10m                   an age: so long ago

Dates and ages as people write them are read here too, for whoever else is told one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from perdure import journal as j
from perdure.errors import ConfigError
from perdure.fold import State, fold
from perdure.inbox import when
from perdure.model import RunKey, head

At: TypeAlias = int | str | datetime
"""how somebody names a moment: the number of an entry, a date, or a text as above"""

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_ENDS: Final = (j.StepCompleted, j.StepCopied, j.StepFailed)
_SHOWN: Final = 20
"""names of steps that an error lists"""


def duration(text: str) -> timedelta:
    """``30d``, ``12h``, ``2w``: a day is 24 hours, whatever clocks do in it. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", text)
    if found is None:
        raise ConfigError(f"{text[:40]!r} is no duration.", hint="Write a number and s, m, h, d or w: 30d.")
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def date(text: str) -> float:
    """Seconds since 1970 of an ISO date or time; of a place without a zone by the clocks here. Raises ConfigError."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"{text[:40]!r} is no date.", hint="Write 2026-11-21, or 2026-11-21T08:00+01:00.") from None


def state_at(key: RunKey, lines: Sequence[bytes], at: At, now: float) -> State:
    """The state of a run with these records at a moment; ``seq`` says right after which entry that is.

    Raises ConfigError, which says what there is, for what is no moment of the run; CorruptStore, NewerFormat.
    """
    if not isinstance(at, datetime) and str(at).isdecimal():
        return fold(key, lines[: _numbered(key, lines, str(at))])
    entries = [j.decode(key, line, seq) for seq, line in enumerate(lines, 1)]
    seq = None if isinstance(at, datetime) else _ended(fold(key, lines), entries, str(at))
    if seq is None:
        seq = _known_at(key, lines, entries, at, now)
    return fold(key, lines[:seq])


def _numbered(key: RunKey, lines: Sequence[bytes], text: str) -> int:
    if not 1 <= len(text) <= 18 or not 1 <= int(text) <= len(lines):
        raise _unknown(key, lines, f"it has no entry {text[:40]}")
    return int(text)


def _ended(state: State, entries: Sequence[j.Entry], text: str) -> int | None:
    """Right after which entry the step that is named so had ended; None if no step is."""
    named = text[1:] if text.startswith("#") and text[1:].isdecimal() else None
    called = [s for s in state.steps.values() if named == str(s.number) or text in (s.name, s.path)]
    if not called:
        return None
    numbers = {s.number for s in called if not s.unused} or {s.number for s in called}
    ends = [entry.seq for entry in entries if isinstance(entry, _ENDS) and entry.step in numbers and _is_told(entry)]
    if not ends:
        step = state.steps[max(numbers)]
        raise ConfigError(
            f"run {state.key}: step {step.number} ({step.path}) has not ended: it is {step.status}.",
            hint=_what_there_is(state, len(entries)),
        )
    return ends[-1]


def _is_told(end: j.StepCompleted | j.StepCopied | j.StepFailed) -> bool:
    """Whether the flow was told of the end; else there is going to be another attempt."""
    return not isinstance(end, j.StepFailed) or end.final


def _known_at(key: RunKey, lines: Sequence[bytes], entries: Sequence[j.Entry], at: At, now: float) -> int:
    """The last entry of that time. A clock may be set back, and time in a run does not go with it."""
    until = at.timestamp() if isinstance(at, datetime) else _date_or_age(str(at), now)
    if until is None:
        raise _unknown(key, lines, f"{head(str(at), 60)!r} is no moment of it")
    later = next((n for n, entry in enumerate(entries) if entry.at > until), len(entries))
    if later == 0:
        raise _unknown(key, lines, f"at {when(until)} it had not begun")
    return later


def _date_or_age(text: str, now: float) -> float | None:
    try:
        return now - duration(text).total_seconds()
    except ConfigError:
        pass
    try:
        return date(text)
    except ConfigError:
        return None


def _unknown(key: RunKey, lines: Sequence[bytes], why: str) -> ConfigError:
    state = fold(key, lines)
    return ConfigError(f"run {key}: {why}.", hint=_what_there_is(state, len(lines)))


def _what_there_is(state: State, entries: int) -> str:
    paths = list(dict.fromkeys(head(step.path, 60) for step in state.steps.values()))
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    steps = f"steps {', '.join(paths[:_SHOWN])}{more}" if paths else "no steps"
    return (
        f"It has entries 1 to {entries}, from {when(state.created)} to {when(state.updated)}, and {steps}. "
        "Write an entry's number; '#6' or a step's name, for when that had ended; a date; or an age: 10m."
    )
