"""The kinds of journal entries: every fact of a run that is kept, and nothing that is not.

Each kind carries its version in its tag (``step_started/1``). A changed kind gets a new tag and a reader for the old
one; a tag this program does not know means that a newer Perdure wrote it, and is refused. A field that says nothing
about the meaning of the others, and whose absence means its default, may be added under the same tag.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from perdure.codec import Payload
from perdure.errors import CodecError, ConfigError, CorruptStore, NewerFormat
from perdure.framing import frame, unframe
from perdure.limits import decoded
from perdure.model import ArgInfo, Attribution, Budget, ErrorInfo, Limits, RunKey, Usage


class SpokenMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of an agent's conversation. A reply, a tool's result and a summary are outputs of ``step``, and are
    not stored again; the content of any other message stands here.
    """

    role: str
    step: int = 0
    content: Payload | None = None
    call_id: str = ""
    """the call that a tool's result belongs to"""
    covers: int = 0
    """a summary: of the messages before it, so many are not shown to the model any more"""


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a question says, as whoever answers sees it."""

    prompt: str
    schema: dict[str, Any] = {}
    """JSON Schema of the answer"""
    to: str = ""
    context: Payload | None = None
    default: Payload | None = None
    """what holds when the deadline passes; None: an error"""


class Entry(msgspec.Struct, omit_defaults=True, kw_only=True, tag_field="kind", gc=False):
    """Base of all kinds. ``seq`` counts from 1 without gaps; ``at`` is seconds since 1970 by the appender's clock."""

    seq: int = 0
    at: float = 0.0


class First(Entry, kw_only=True):
    """Base of the kinds with which a journal begins."""

    run_id: str
    """random; makes idempotency keys unique even when a goal is used again in another store"""
    flow: str
    digest: str = ""
    version: str = ""
    """that the flow was declared with"""
    inputs: Payload | None = None
    args: tuple[ArgInfo, ...] = ()
    attribution: Attribution = Attribution()
    target: str = ""
    """what the command line was given; shown to people, never imported"""
    budget: Budget | None = None


class RunBegan(First, kw_only=True, tag="run_began/1"):
    """A run and its first life."""

    epoch: int
    pid: int
    host: str
    durability: str = "strict"
    outputs: str = ""
    """the folder in which this life keeps outputs as files, if it was given one"""


class RunQueued(First, kw_only=True, tag="run_queued/1"):
    """A run that was submitted, for whichever worker takes it up."""

    queue: str
    priority: int = 0
    wake: float
    """not before this, seconds since 1970"""
    limits: Limits = Limits()
    idempotency_key: str = ""
    """what is submitted once more under it is this run"""


class RunResumed(Entry, tag="run_resumed/1"):
    """Another life of the run begins. Whatever was running is now known to have crashed."""

    epoch: int
    pid: int
    host: str
    digest: str = ""
    inputs: Payload | None = None
    """only when the run goes on with inputs that differ from the recorded ones, as told to"""
    args: tuple[ArgInfo, ...] = ()
    outputs: str = ""
    budget: Budget | None = None
    """only when it was changed"""
    version: str = ""
    """only when it is another than that of the life before"""
    renew: bool = False
    """steps whose code has changed are executed again"""


class RunCompleted(Entry, tag="run_completed/1"):
    output: Payload
    reused: int = 0
    """steps of this life whose recorded results were used"""
    saved: float = 0.0
    """seconds those steps took when they were executed"""
    unused: tuple[int, ...] = ()
    """recorded steps that this life did not ask for: superseded by an edit or other inputs"""
    saved_usage: Usage = Usage()
    """what the reused steps had used when they were executed"""


class RunFailed(Entry, tag="run_failed/1"):
    """An error left the flow. Recovery does not try it again by itself; a person may."""

    error: ErrorInfo


class RunPaused(Entry, tag="run_paused/1"):
    """The run cannot or must not go on by itself; ``by`` names the person who stopped it, if one did."""

    reason: str
    by: str = ""
    crashed: bool = False
    """it was found crashed; nobody executed it"""


class RunSuspended(Entry, tag="run_suspended/1"):
    """Nothing of the run can move before something comes from outside (``input``), or before the date ``wake``."""

    reason: str
    wake: float = 0.0
    input: bool = False


class RunCancelled(Entry, tag="run_cancelled/1"):
    """A person gave the run up, and its clean-ups have ended."""

    reason: str
    by: str = ""


class RunInterrupted(Entry, tag="run_interrupted/1"):
    """The process was told to stop, and stopped in order."""

    reason: str


class RunForked(Entry, kw_only=True, tag="run_forked/1"):
    """What stands before this is what another run had recorded; from here on it is a run of its own. The two share no
    more than that. Stands in the first append of the fork, after its prefix.
    """

    run: str
    """the run that it was forked from, as goal#episode"""
    origin: str
    """the id that the run had at that point"""
    run_id: str
    """random, as that of every run"""
    at_seq: int
    """sequence of the last entry that is shared: the one before this"""
    step: int = 0
    """the step that ends with that entry, if one does"""
    crashed: bool = False
    """nobody executed the run that it was forked from: what was running there is in doubt here too"""
    by: str = ""
    inputs: Payload | None = None
    """only when some of them were changed"""
    args: tuple[ArgInfo, ...] = ()


class StepEdited(Entry, kw_only=True, tag="step_edited/1"):
    """A person gave a step another result than it had. Stands in the first append of a fork only."""

    step: int
    output: Payload
    by: str = ""


class ScopeOpened(Entry, tag="scope_opened/1"):
    """A branch, nested flow or step body got its path: the ``n``-th of this name and inputs in ``parent``."""

    path: str
    name: str
    parent: str = ""
    fingerprint: str = ""
    n: int = 0


class BranchTaken(Entry, tag="branch_taken/1"):
    """``as_completed`` or ``first`` (``fan``: which one, in ``scope``) handed on the result of ``branch``."""

    fan: str
    branch: str
    scope: str = ""


class StepStarted(Entry, kw_only=True, tag="step_started/1"):
    """Durable before the body runs. Identity and arguments stand in the first attempt's entry only."""

    step: int
    attempt: int = 1
    scope: str = ""
    name: str = ""
    fingerprint: str = ""
    n: int = 0
    args: tuple[ArgInfo, ...] = ()
    digest: str = ""
    metered: bool = False
    """this attempt counts as a call in the run's usage"""
    spoken: bool = False
    """its output is a message of a conversation, and gets no file of its own"""
    code: Payload | None = None
    """what ``digest`` is the digest of, name -> text: the first time that the run meets it"""


class StepProgress(Entry, kw_only=True, tag="step_progress/1"):
    """What a running attempt saved for the next one."""

    step: int
    attempt: int = 1
    value: Payload


class StepChunk(Entry, kw_only=True, tag="step_chunk/1"):
    """Text that a running attempt streamed."""

    step: int
    attempt: int = 1
    text: str


class StepUsage(Entry, kw_only=True, tag="step_usage/1"):
    """What a running attempt has used since it last said so."""

    step: int
    attempt: int = 1
    usage: Usage


class StepCompleted(Entry, kw_only=True, tag="step_completed/1"):
    """Durable before the caller has the result. ``flagged`` says why the output is suspect, if it is."""

    step: int
    attempt: int = 1
    output: Payload
    flagged: str = ""
    seconds: float = 0.0
    verified: bool = False
    """found by the step's ``verify`` after a crash; no new attempt was made"""


class StepCopied(Entry, tag="step_copied/1"):
    """A step got the recorded result of an earlier one, ``source``, as its cache allows; nothing was executed."""

    step: int
    source: int
    scope: str = ""
    name: str = ""
    fingerprint: str = ""
    n: int = 0
    args: tuple[ArgInfo, ...] = ()
    digest: str = ""


class StepFailed(Entry, kw_only=True, tag="step_failed/1"):
    """An attempt failed. ``final`` means that the flow was told; else the next attempt is due at ``until``."""

    step: int
    attempt: int = 1
    outcome: str
    """failed, timed_out or refused"""
    error: ErrorInfo
    final: bool = False
    until: float = 0.0
    seconds: float = 0.0


class StepWaiting(Entry, kw_only=True, tag="step_waiting/1"):
    """A rate limit: the next attempt is due at ``until``; the retry policy is not touched."""

    step: int
    attempt: int = 1
    until: float
    error: ErrorInfo
    seconds: float = 0.0


class StepInterrupted(Entry, kw_only=True, tag="step_interrupted/1"):
    """An attempt was cancelled while the run went on or was being stopped."""

    step: int
    attempt: int = 1
    reason: str = ""
    suspended: bool = False
    """something inside it waits: it is not in doubt"""
    until: float = 0.0
    """when that can go on by itself; 0: not by a date"""


class StepPending(Entry, kw_only=True, tag="step_pending/1"):
    """A question is asked, a signal awaited, or a timer set. Identity and arguments stand in the first attempt's entry
    only. Durable before anybody is notified of it.
    """

    step: int
    attempt: int = 1
    scope: str = ""
    name: str = ""
    fingerprint: str = ""
    n: int = 0
    args: tuple[ArgInfo, ...] = ()
    digest: str = ""
    until: float = 0.0
    """date of a timer, or deadline; 0: none"""
    asked: Asked | None = None
    signal: str = ""
    """name of the signal that is awaited"""


class AnswerRejected(Entry, tag="answer_rejected/1"):
    """The program that asked could not take what came for ``step``; it goes on waiting."""

    step: int
    why: str


class CleanupDeclared(Entry, tag="cleanup_declared/1"):
    """A flow with a clean-up was entered: cancelling the run needs its program."""

    scope: str = ""


class StepsInvalidated(Entry, tag="steps_invalidated/1"):
    """The recorded results of these steps are not used any more: they are executed again when they are asked for."""

    steps: tuple[int, ...]
    why: str
    """code: it has changed, and that was asked for; flagged, forced: a person asked for it; around: they are what
    something was executed inside of that is to be executed again"""


class StepsReused(Entry, tag="steps_reused/1"):
    """Recorded results that this life has used since it last said so. Said with the next thing that it begins, or with
    how it ends."""

    steps: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()
    """those of them whose code has changed since they were executed"""
    spans: tuple[tuple[int, int], ...] = ()
    """first and last of many, one after the other, besides ``steps``"""

    @property
    def numbers(self) -> Iterator[int]:
        """All of them."""
        yield from self.steps
        for first, last in self.spans:
            yield from range(first, last + 1)


def spans_of(numbers: Iterable[int]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Numbers as ``steps`` and ``spans`` of StepsReused; each stands in one of them once."""
    single, spans = list[int](), list[tuple[int, int]]()
    listed = sorted(set(numbers))
    at = 0
    while at < len(listed):
        end = at + 1
        while end < len(listed) and listed[end] == listed[at] + end - at:
            if end - at >= _SPAN:  # to look at each of a hundred thousand takes long
                end = bisect(range(len(listed)), listed[at] - at, end, key=lambda place: listed[place] - place)
                spans.append((listed[at], listed[end - 1]))
                break
            end += 1
        else:
            single += listed[at:end]
        at = end
    return tuple(single), tuple(spans)


_SPAN = 8
"""numbers that follow one another, from which on two say all of them"""


class MessagesAdded(Entry, tag="messages_added/1"):
    """The conversation of the agent in ``scope`` goes on at ``place``; what stood there and after is replaced."""

    scope: str
    place: int
    messages: tuple[SpokenMessage, ...]


class Posted(Entry, kw_only=True):
    """Base of what others than the holder of a run say to it, by way of its inbox. ``post`` is its number there."""

    post: int = 0
    by: str = ""
    posted: float = 0.0
    """when, seconds since 1970 by the sender's clock"""


class QuestionAnswered(Posted, tag="question_answered/1"):
    """The first answer to a question: plain JSON, in which its schema found no fault. One that a run was forked with
    came by no inbox, and has no number there (``post`` 0)."""

    step: int
    question: str
    value: msgspec.Raw


class QuestionClosed(Posted, tag="question_closed/1"):
    """The holder of the run lets a question, or the wait for a signal, end without an answer. By way of the inbox, so
    that an answer is either before this, or refused."""

    step: int
    question: str
    expired: bool = False
    """its deadline passed; else nobody needs the answer any more"""


class SignalReceived(Posted, tag="signal_received/1"):
    name: str
    value: msgspec.Raw = msgspec.Raw(b"null")


class StopRequested(Posted, tag="stop_requested/1"):
    """Somebody wants the run to be paused, or cancelled."""

    cancel: bool = False
    reason: str = ""


class RunReleased(Posted, tag="run_released/1"):
    """Somebody lets a paused run, or a failed one, go on. What it has crashed so far is forgiven."""


class RunWoken(Posted, tag="run_woken/1"):
    """Something that the run waits for elsewhere has moved: a run that it began."""

    why: str = ""


class RunPinned(Posted, tag="run_pinned/1"):
    """Somebody wants the run to be kept, whatever retention says; or does not any more."""

    pinned: bool = True


class PostDropped(Entry, tag="post_dropped/1"):
    """A post that the run could not take any more."""

    post: int
    why: str


POSTS: tuple[type[Posted], ...] = (
    QuestionAnswered,
    QuestionClosed,
    SignalReceived,
    StopRequested,
    RunReleased,
    RunWoken,
    RunPinned,
)
KINDS: tuple[type[Entry], ...] = (
    RunBegan,
    RunQueued,
    RunResumed,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunSuspended,
    RunCancelled,
    RunInterrupted,
    RunForked,
    ScopeOpened,
    BranchTaken,
    StepStarted,
    StepProgress,
    StepChunk,
    StepUsage,
    StepCompleted,
    StepCopied,
    StepFailed,
    StepWaiting,
    StepInterrupted,
    StepPending,
    AnswerRejected,
    CleanupDeclared,
    StepsInvalidated,
    StepsReused,
    StepEdited,
    MessagesAdded,
    *POSTS,
    PostDropped,
)
_NAMES = {kind: str(kind.__struct_config__.tag).partition("/")[0] for kind in KINDS}
_TAGS = {str(kind.__struct_config__.tag): kind for kind in KINDS}
_T = TypeVar("_T")


class _Tag(msgspec.Struct):
    kind: str = ""


def _decoder() -> msgspec.json.Decoder[Entry]:
    union: type = KINDS[0]
    for kind in KINDS[1:]:
        union = union | kind  # type: ignore[assignment]
    return msgspec.json.Decoder(union)


_DECODER = _decoder()
_TAG_DECODER = msgspec.json.Decoder(_Tag)
_ENCODER = msgspec.json.Encoder()


def name_of(kind: type[Entry]) -> str:
    """Name of a kind without its version: ``step_started``."""
    return _NAMES[kind]


def kind_of(entry: Entry) -> str:
    """Name of the kind of an entry."""
    return _NAMES[type(entry)]


def refs(entry: Entry) -> tuple[str, ...]:
    """sha256 of every blob that the values in an entry need, each once: what has to be kept and moved with it."""
    return tuple(dict.fromkeys(ref for payload in payloads(entry) for ref in payload.refs))


def payloads(part: object) -> Iterator[Payload]:
    """The values in an entry, wherever they stand: a kind that is made later needs nothing here."""
    if isinstance(part, Payload):
        yield part
    elif isinstance(part, msgspec.Struct):
        for field in part.__struct_fields__:
            yield from payloads(getattr(part, field))
    elif isinstance(part, tuple):
        for item in part:
            yield from payloads(item)


def encode(key: RunKey, entry: Entry) -> bytes:
    """``entry`` as one framed record of run ``key``. Raises CodecError for text with broken Unicode, and for an entry
    that is too large."""
    try:
        body = _ENCODER.encode(entry)
    except (ValueError, OverflowError, RecursionError) as problem:
        raise CodecError(
            f"run {key}: an entry {kind_of(entry)} cannot be written down ({problem}). Nothing was written.",
            hint="Is some text of it broken Unicode, or a number far too large?",
        ) from None
    return frame(key, body)


def damaged_post(key: RunKey, number: int, problem: object) -> CorruptStore:
    return CorruptStore(
        f"run {key}: post {number} of its inbox is damaged ({problem}). Nothing was changed.",
        hint="Restore the store from a copy; the journal is intact.",
    )


def decode(key: RunKey, line: bytes, expected_seq: int) -> Entry:
    """The entry in a record. Raises CorruptStore (damage, a gap) or NewerFormat (a kind we do not know)."""
    try:
        body = unframe(key, line)
        entry = decoded(body, _DECODER.decode)
    except ValueError as problem:
        _refuse_newer(key, line, expected_seq)
        raise CorruptStore(
            f"run {key}: record {expected_seq} is damaged ({problem}). Nothing was changed.",
            hint="Restore the store from a copy; the records before this one are intact.",
        ) from problem
    if entry.seq != expected_seq:
        raise CorruptStore(
            f"run {key}: record {expected_seq} says it is number {entry.seq}; records are missing or out of order. "
            "Nothing was changed.",
            hint="Restore the store from a copy.",
        )
    return entry


def _refuse_newer(key: RunKey, line: bytes, seq: int) -> None:
    try:
        tag = decoded(unframe(key, line), _TAG_DECODER.decode).kind
    except ValueError:
        return
    if tag.startswith("sealed/"):
        raise ConfigError(
            f"run {key}: record {seq} is encrypted, and no key was given. Nothing was changed.",
            hint="Set PERDURE_KEY or PERDURE_KEY_FILE, or pass encryption=.",
        )
    if tag and tag not in _TAGS:
        raise NewerFormat(
            f"run {key}: record {seq} is of kind {tag!r}, which this version of Perdure does not know.",
            hint="Open it with the newer Perdure that wrote it; nothing was changed.",
        )
