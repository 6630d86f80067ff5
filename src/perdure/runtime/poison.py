"""A step that takes its process down, life after life, is given up before it has taken every worker along (X4).

Counted are attempts that ended in a crash, in a row, over all processes: the journal has them. A step around others has
not got stuck as long as something inside it is completed between two crashes. A run that dies before any step of it
begins, or between two, is counted by its lives.
"""

from __future__ import annotations

from perdure import states
from perdure.fold import State
from perdure.record import Step, enclosing


def poison(state: State, limit: int) -> str:
    """Why a run that is found crashed must not be executed again by itself; "" if it may, or has not crashed."""
    if state.status != states.RUNNING:
        return ""
    running = list(state.running.values())
    stuck = [step for step in running if _crashes(state, step, limit) >= limit]
    if stuck:
        named = ", ".join(f"{step.number} ({step.path})" for step in stuck)
        which = f"step {named} has" if len(stuck) == 1 else f"one of the steps {named} has"
        return f"{which} crashed its process {limit} times in a row"
    if state.crashes + 1 >= limit and not running:
        return f"it has crashed its process {state.crashes + 1} times in a row, and completed no step in between"
    return ""


def _crashes(state: State, step: Step, limit: int) -> int:
    """How many of the step's last attempts crashed, with the one that is found so now, and nothing inside it was
    completed since."""
    if len(step.attempts) < limit:
        return 0
    since = max(state.forgiven, _progress(state, step))
    found = 0
    for attempt in reversed(step.attempts):
        if attempt.outcome not in (states.CRASHED, states.RUNNING) or attempt.started < since:
            break
        found += 1
    return found


def _progress(state: State, step: Step) -> float:
    """When something inside a step was completed last; 0: never."""
    path = state.scopes.get(step.identity)
    if path is None:
        return 0.0
    inside = (s for s in state.steps.values() if s.recorded and path in enclosing(s.identity.scope))
    return max((s.attempts[-1].ended for s in inside), default=0.0)
