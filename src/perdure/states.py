"""Every state of a run and of a step, and what may follow what, as two tables.

Keys are (state, kind of journal entry); the value is the next state. The fold refuses whatever is not here, so an
impossible history is told as damage instead of being interpreted. ``None`` is the state before the first entry.

Two states are never stored, because a dead process cannot write: a run that is *running* while no live process holds
it is shown as ``crashed``, and so are its running steps. ``run_resumed`` makes that a fact of the journal.
"""

from __future__ import annotations

from typing import Final

RUNNING: Final = "running"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
PAUSED: Final = "paused"
INTERRUPTED: Final = "interrupted"
PENDING_INPUT: Final = "pending_input"
READY: Final = "ready"
QUEUED: Final = "queued"
CANCELLED: Final = "cancelled"
CRASHED: Final = "crashed"
FLAGGED: Final = "flagged"
RETRYING: Final = "retrying"
WAITING: Final = "waiting"
PENDING: Final = "pending"
INVALIDATED: Final = "invalidated"

RUN: Final[dict[tuple[str | None, str], str]] = {
    (None, "run_began"): RUNNING,
    (None, "run_queued"): QUEUED,
    (QUEUED, "run_resumed"): RUNNING,
    (QUEUED, "run_paused"): PAUSED,
    (RUNNING, "run_completed"): COMPLETED,
    (RUNNING, "run_failed"): FAILED,
    (RUNNING, "run_paused"): PAUSED,
    (RUNNING, "run_interrupted"): INTERRUPTED,
    (RUNNING, "run_resumed"): RUNNING,
    (COMPLETED, "run_resumed"): RUNNING,
    (FAILED, "run_resumed"): RUNNING,
    (PAUSED, "run_resumed"): RUNNING,
    (INTERRUPTED, "run_resumed"): RUNNING,
    (FAILED, "run_paused"): PAUSED,
    (INTERRUPTED, "run_paused"): PAUSED,
    (PAUSED, "run_paused"): PAUSED,
    # nothing of it can move before something comes from outside: an answer or a signal; or a date
    (RUNNING, "run_pending_input"): PENDING_INPUT,
    (RUNNING, "run_waiting"): WAITING,
    (PENDING_INPUT, "run_woken"): READY,
    (WAITING, "run_woken"): READY,
    (PAUSED, "run_released"): READY,
    (FAILED, "run_released"): READY,
    (PAUSED, "run_requeued"): QUEUED,
    (PENDING_INPUT, "run_resumed"): RUNNING,
    (WAITING, "run_resumed"): RUNNING,
    (READY, "run_resumed"): RUNNING,
    (PENDING_INPUT, "run_paused"): PAUSED,
    (WAITING, "run_paused"): PAUSED,
    (READY, "run_paused"): PAUSED,
    # its records up to here are those of another run
    **{
        (state, "run_forked"): INTERRUPTED
        for state in (
            *(RUNNING, COMPLETED, FAILED, PAUSED, INTERRUPTED),
            *(PENDING_INPUT, WAITING, READY, QUEUED, CANCELLED),
        )
    },
    # a person gave it up
    **{
        (state, "run_cancelled"): CANCELLED
        for state in (RUNNING, FAILED, PAUSED, INTERRUPTED, PENDING_INPUT, WAITING, READY, QUEUED)
    },
}

STEP: Final[dict[tuple[str | None, str], str]] = {
    (None, "step_started"): RUNNING,
    (None, "step_copied"): COMPLETED,
    (RUNNING, "step_completed"): COMPLETED,
    (RUNNING, "step_flagged"): FLAGGED,
    (RUNNING, "step_failed"): FAILED,
    (RUNNING, "step_retrying"): RETRYING,
    (RUNNING, "step_waiting"): WAITING,
    (RUNNING, "step_interrupted"): INTERRUPTED,
    (RUNNING, "step_crashed"): CRASHED,
    (FAILED, "step_started"): RUNNING,
    (RETRYING, "step_started"): RUNNING,
    (WAITING, "step_started"): RUNNING,
    (INTERRUPTED, "step_started"): RUNNING,
    (CRASHED, "step_started"): RUNNING,
    (INVALIDATED, "step_started"): RUNNING,
    (INVALIDATED, "step_copied"): COMPLETED,
    # a question, a signal or a timer: nothing runs until it is there
    (None, "step_pending"): PENDING,
    (FAILED, "step_pending"): PENDING,
    (INTERRUPTED, "step_pending"): PENDING,
    (INVALIDATED, "step_pending"): PENDING,
    (PENDING, "step_completed"): COMPLETED,
    (PENDING, "step_failed"): FAILED,
    (PENDING, "step_interrupted"): INTERRUPTED,
    # found by verify= to have had its effect before the crash
    (CRASHED, "step_completed"): COMPLETED,
    (CRASHED, "step_flagged"): FLAGGED,
    (INTERRUPTED, "step_completed"): COMPLETED,
    (INTERRUPTED, "step_flagged"): FLAGGED,
    # a person asked for it to be executed again
    (COMPLETED, "step_invalidated"): INVALIDATED,
    (FLAGGED, "step_invalidated"): INVALIDATED,
    # what was executed when the run was forked is so in the other run, and has its effect there
    (RUNNING, "step_forked"): INVALIDATED,
    # a person gave it another result in a fork
    (COMPLETED, "step_edited"): COMPLETED,
    (FLAGGED, "step_edited"): COMPLETED,
    (FAILED, "step_edited"): COMPLETED,
}

STEP_RECORDED: Final = frozenset({COMPLETED, FLAGGED})
"""states in which a step's result is reused"""

STEP_IN_DOUBT: Final = frozenset({CRASHED, INTERRUPTED})
"""states in which a step's body ran and nobody knows how far"""

RUN_UNFINISHED: Final = frozenset({RUNNING, INTERRUPTED, CRASHED})
"""states of a run that was in flight and did not finish cleanly (B2); what recovery goes on with by itself"""

RUN_SUSPENDED: Final = frozenset({PENDING_INPUT, WAITING})
"""states of a run that waits in no process"""

RUN_WAITS_FOR_WORKER: Final = frozenset({QUEUED, READY, INTERRUPTED, CRASHED})
"""states of a run that can go on, and that nobody executes"""

RUN_OVER: Final = frozenset({COMPLETED, CANCELLED})
"""states that nothing from outside changes any more"""

RUN_REMOVABLE: Final = (COMPLETED, FAILED, CANCELLED)
"""states in which retention may remove a run: nothing of it is executed, and nobody is waited for"""
