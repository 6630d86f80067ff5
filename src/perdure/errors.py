"""Every error Perdure raises, drawn as a tree; the branch says what to do.

    PerdureError
    ├── RetryError            try again; nothing is wrong with your code
    │   ├── StoreBusy         another process kept the store locked for too long
    │   └── RateLimited       raise it in a step: waited out durably, not counted as a failed attempt
    ├── FixError              change something, then run again; what finished is kept
    │   ├── ConfigError       a wrong setting, URL, goal, declaration or file
    │   ├── CodecError        a value that cannot be stored, or stored data this program has no type for
    │   ├── InputMismatch     the run was begun with other inputs
    │   ├── AmbiguousStep     two tasks asked for one step with equal inputs at the same time
    │   ├── Nondeterminism    strict mode: a step was asked for with inputs no record has
    │   ├── OutputRefused     a step's output is empty or its check refused it
    │   ├── StepTimeout       an attempt ran longer than the step's timeout
    │   ├── DeadlinePassed    nobody answered, or no signal came, before the deadline, and there is no default
    │   ├── MutatedInput      a step's body changed one of its arguments
    │   ├── RunPaused         the run cannot go on by itself; it is paused, and goes on when somebody has decided
    │   │   ├── InDoubt       a step may have had its effect and is declared on_crash="fail"
    │   │   └── LimitReached  a budget, the bound of a cycle, an agent's iterations or its transcript are used up
    │   ├── IncompleteCrew    fewer experts or attempts delivered than required
    │   ├── RunFailed         the recorded failure of a run, told to somebody who waited for it
    │   ├── RunStopped        a person stopped this run; it stays stopped until a person lets it go on
    │   ├── RunCancelled      the run was cancelled, and stays so
    │   ├── AnswerRefused     an answer that cannot be taken: not what was asked for, too late, or already answered
    │   ├── RunNotFound       no run of that name in this store
    │   └── NewerFormat       the store or a record was written by a newer Perdure
    ├── RunSuspended          nothing is wrong: the run waits, for an answer, a signal or a date, in no process
    ├── FencedError           somebody else holds the run
    │   ├── LeaseHeld         it is running elsewhere: pid, host, since when
    │   └── LeaseLost         it was ours; another process took it over, nothing of ours was kept since
    ├── StoreError            the store failed (disk full, I/O error); never recorded as a run's outcome
    │   └── CorruptStore      stored bytes are damaged: run, record and offset; nothing was changed
    └── Bug                   Perdure broke its own rule; please report it

Messages say what happened to which run and step, whether anything was lost, and what to do next.
"""

from __future__ import annotations


class PerdureError(Exception):
    """Base of all errors of this library. ``hint`` is the next action, shown after the message; ``where`` the run and
    the step in which it arose, if it was raised out of a step (other exceptions get that as a note).
    """

    hint: str = ""
    where: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return " ".join(part for part in (message, self.where and f"({self.where})", self.hint) if part)


class RetryError(PerdureError):
    """Try again; nothing is wrong with the program."""


class StoreBusy(RetryError):
    """Another process kept the store locked for longer than we wait."""


class RateLimited(RetryError):
    """Raise this in a step to wait ``retry_after`` seconds durably; it does not use up a retry (C10).

    Any exception that has a numeric ``retry_after`` attribute is treated in the same way.
    """

    def __init__(self, message: str = "rate limited", *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = float(retry_after)


class FixError(PerdureError):
    """Change something, then run again; what finished is kept."""


class ConfigError(FixError, ValueError):
    """A wrong setting, URL, goal, declaration or file; the message names the field."""


class CodecError(FixError, TypeError):
    """A value cannot be stored, or stored data names a type this program has not registered."""


class InputMismatch(FixError):
    """The run was begun with other inputs than it is asked to go on with."""


class AmbiguousStep(FixError):
    """Two tasks asked for one step with equal inputs at once, so that their results could be exchanged."""


class Nondeterminism(FixError):
    """Strict mode only: a step was asked for with inputs that no record has, under unchanged code."""


class OutputRefused(FixError):
    """A step's output is empty, or its own check refused it."""


class StepTimeout(FixError, TimeoutError):
    """An attempt ran longer than the step's ``timeout``."""


class MutatedInput(FixError):
    """A step's body changed one of its arguments, which no later life of the run would see."""


class RunPaused(FixError):
    """The run cannot go on by itself. It is recorded as paused, and goes on when it is run again."""


class InDoubt(RunPaused):
    """A step was started, crashed, may have had its effect, and is declared ``on_crash="fail"``."""


class LimitReached(RunPaused):
    """A declared limit is used up. What finished is kept; raise the limit and run it again."""


class IncompleteCrew(FixError):
    """Fewer experts, or attempts, delivered than required; ``missing`` maps each name to the reason."""

    def __init__(self, message: str, *, missing: dict[str, str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.missing = missing


class RunFailed(FixError):
    """The recorded failure of a run that another process executed."""


class RunStopped(FixError):
    """A person stopped this run; it stays stopped until a person lets it go on (B9)."""


class RunCancelled(FixError):
    """The run was cancelled: what finished is kept to look at, and it is not going on."""


class DeadlinePassed(FixError, TimeoutError):
    """The deadline of a question or signal passed, and no default was declared."""


class AnswerRefused(FixError):
    """An answer, signal or order to a run that it cannot take. Nothing was written."""


class RunNotFound(FixError, LookupError):
    """No run of that name in this store."""


class NewerFormat(FixError):
    """The store or a record was written by a newer Perdure; it was not touched."""


class RunSuspended(PerdureError):
    """The run waits for something from outside and nothing else of it can move, so it was suspended. Run it again when
    that is there. ``run`` is its name; ``questions`` are the ids of those that are open; ``until`` is when the next
    date is due, in seconds since 1970 (0: no date is).
    """

    def __init__(
        self, message: str, *, run: str = "", questions: tuple[str, ...] = (), until: float = 0.0, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.run = run
        self.questions = questions
        self.until = until


class Halted(BaseException):
    """Not an error, and not for users to catch: it unwinds the code of a run that is suspended, stopped or cancelled,
    as KeyboardInterrupt unwinds a program."""


class FencedError(PerdureError):
    """Somebody else holds the run."""


class LeaseHeld(FencedError):
    """The run is executed by another holder at this moment. ``since``: when that was granted, seconds since 1970."""

    since: float = 0.0


class LeaseLost(FencedError):
    """The run was taken over by another process; nothing we wrote since was kept."""


class StoreError(PerdureError):
    """The store failed. It is closed, and never recorded as the outcome of a step or run."""


class CorruptStore(StoreError):
    """Stored bytes are damaged. Nothing was changed; the message names run, record and offset."""


class Bug(PerdureError):
    """Perdure broke a rule of its own."""

    hint = "This is a fault in Perdure itself; please report it with this message."
