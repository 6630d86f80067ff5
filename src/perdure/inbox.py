"""The inbox of a run: the one way in which others than its holder change it.

Outsiders never append to a run. They *post*: a post is a journal entry without a place, appended to the run's inbox,
which is a numbered sequence of its own. Whoever holds the run moves posts into its journal, in order; the entry carries
the post's number, so that no crash moves one twice. A post is accepted under a number that nobody has used
(``Store.post``), so two people who answer at once are told apart there: the second reads what the first said, and is
refused. What would contradict posts, the end of a question's deadline, goes the same way.

This module is the rule of what may be posted to a run in which state. It stands once: the poster asks it about the
journal and the posts before, and is refused with a reason; the holder asks it again when it moves a post.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from perdure import journal as j
from perdure import states
from perdure.errors import AnswerRefused, ConfigError, CorruptStore, RunNotFound
from perdure.fold import State
from perdure.model import Question

MAX_POST = 1 << 20
"""bytes of one post at most (rel:B1): a question is answered with a decision; large data belongs to a step"""


def check(state: State, post: j.Posted) -> None:
    """Raises AnswerRefused if the run, as far as ``state`` tells, cannot take ``post``."""
    if isinstance(post, j.RunPinned):
        return
    if isinstance(post, j.QuestionAnswered):
        _check_answer(state, post)
    elif isinstance(post, j.QuestionClosed):
        if post.step not in state.waits.steps or post.step in state.waits.arrived:
            raise AnswerRefused(f"run {state.key}: step {post.step} waits for nothing any more.")
    elif state.status in states.RUN_OVER:
        raise AnswerRefused(f"run {state.key} is {state.status}; nothing was changed.")
    elif (
        isinstance(post, j.RunReleased)
        and state.status not in (states.PAUSED, states.FAILED)
        and (state.stop is None or state.stop.cancel)
    ):
        raise AnswerRefused(f"run {state.key} is not paused: it is {state.status}. Nothing was changed.")
    elif isinstance(post, j.StopRequested) and state.stop is not None and state.stop.cancel:
        raise AnswerRefused(f"run {state.key} is being cancelled already, by {state.stop.by}. Nothing was changed.")


def _check_answer(state: State, post: j.QuestionAnswered) -> None:
    decided = state.waits.decided.get(post.question)
    if isinstance(decided, j.QuestionAnswered):
        raise AnswerRefused(
            f"run {state.key}: question {post.step} was answered already, by {decided.by} at {when(decided.posted)}. "
            "Nothing was changed."
        )
    if decided is not None and decided.expired:
        raise AnswerRefused(f"run {state.key}: the deadline of question {post.step} has passed. Nothing was changed.")
    pending = state.waits.steps.get(post.step)
    if decided is not None or pending is None or state.waits.question_id(post.step) != post.question:
        raise AnswerRefused(
            f"run {state.key} does not ask question {post.step} any more: nobody needs the answer. Nothing was changed."
        )
    if not post.post and passed(state, pending.until, post.posted):
        raise AnswerRefused(
            f"run {state.key}: the deadline of question {post.step} passed at {when(pending.until)}. "
            "Nothing was changed."
        )


def passed(state: State, until: float, now: float) -> bool:
    """Whether a deadline has passed (0: there is none). Time in a run does not go backwards: a clock that says less
    than the run's last entry was set back."""
    return 0 < until <= max(now, state.updated)


def open_question(state: State, question: str | int | None) -> Question:
    """What a run asks under that number, name, path or id; or the only thing that it asks. Raises RunNotFound,
    ConfigError if it asks several things and none is named, AnswerRefused for what is closed."""
    open_ = state.waits.questions()
    if question is None:
        if len(open_) == 1:
            return open_[0]
        if open_:
            told = "; ".join(f"{q.step} ({q.prompt[:60]})" for q in open_)
            raise ConfigError(f"run {state.key} asks {len(open_)} questions: {told}.", hint="Name one by its number.")
    named = str(question)
    for found in reversed(open_):
        if is_called(found, named):
            return found
    refuse_closed(state, None if question is None else named)
    raise RunNotFound(
        f"run {state.key} asks no question{'' if question is None else f' {named!r}'}; it is {state.status}.",
        hint="List what is asked: perdure questions",
    )


def is_called(question: Question, named: str) -> bool:
    """Whether a question has that number, name, path or id."""
    return named in (question.id, str(question.step), question.path, question.path.rpartition("/")[2])


def refuse_closed(state: State, named: str | None) -> None:
    """Raises AnswerRefused, saying what became of it, if that names (None: any) a question that is closed."""
    for question, decided in reversed(state.waits.decided.items()):
        path = state.steps[decided.step].path
        if named in (None, question, str(decided.step), path, path.rpartition("/")[2]):
            value = msgspec.Raw(b"null")
            check(state, j.QuestionAnswered(step=decided.step, question=question, value=value, posted=state.updated))


def when(at: float) -> str:
    """A time for people: in UTC, to the second."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # stored data may say anything
        return f"second {at:g}"


def moved(state: State, posts: Iterable[bytes]) -> Iterator[j.Entry]:
    """The entries with which the posts after the last one taken go into the journal; the caller applies each to
    ``state`` before it asks for the next.

    Raises CorruptStore for a damaged post, NewerFormat.
    """
    for record in posts:
        number = state.posts + 1
        post = decode(state, record, number)
        try:
            check(state, post)
        except AnswerRefused as late:
            yield j.PostDropped(post=number, why=late.args[0])
        else:
            yield post


def encode(state: State, post: j.Posted) -> bytes:
    """A post as a record. Raises AnswerRefused for one that is too large."""
    record = j.encode(state.key, post)
    if len(record) > MAX_POST:
        raise AnswerRefused(
            f"run {state.key}: {len(record):,} bytes are too much for one answer or signal; the limit is "
            f"{MAX_POST:,}. Nothing was written.",
            hint="Put the data where the run can fetch it, and send its place.",
        )
    return record


def decode(state: State, record: bytes, number: int) -> j.Posted:
    """One post. Raises CorruptStore for a damaged one, NewerFormat."""
    if len(record) > MAX_POST:
        raise j.damaged_post(state.key, number, f"it has {len(record):,} bytes, and the limit is {MAX_POST:,}")
    try:
        post = j.decode(state.key, record, 0)
    except CorruptStore as problem:
        raise j.damaged_post(state.key, number, problem.__cause__ or problem) from problem
    if not isinstance(post, j.Posted):
        raise j.damaged_post(state.key, number, "it is an entry that only the holder of a run writes")
    post.post = number
    return post


def consequences(state: State) -> Iterator[j.Entry]:
    """What follows for a run that nobody executes, when its posts have been taken."""
    stop = state.stop
    if stop is None or state.status in states.RUN_OVER:
        return
    if not stop.cancel:
        yield j.RunPaused(reason=stop.reason, by=stop.by)
    elif not state.cleanups:
        yield j.RunCancelled(reason=stop.reason, by=stop.by)
