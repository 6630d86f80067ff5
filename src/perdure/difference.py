"""A request that no record fits, although the code is as it was: what is told of that."""

from __future__ import annotations

from perdure.commands import Machine, Read
from perdure.errors import Nondeterminism
from perdure.life import Life, Request
from perdure.model import ArgInfo
from perdure.record import Identity, changes


def difference(args: tuple[ArgInfo, ...], identity: Identity, request: Request) -> str:
    """What tells a request from a record that could have been meant, in words."""
    found = [change.told(120) for change in changes(args, request.args)]
    if not found and identity.fingerprint != request.fingerprint:
        found = ["its key is another"]
    return "; ".join(found) or "it is asked for more often than before"


def tell_difference(life: Life, identity: Identity, request: Request) -> Machine:
    """A request without a record, though records of that name are left over under unchanged code, is not what happened
    last time: say which argument differs, or refuse in strict mode."""
    named = (identity.scope, identity.name)
    if life.diverged or not life.same_code or named in life.used_up:
        return
    with life.lock:
        unasked = (life.state.steps[n] for n in life.state.steps.named(*named) if n not in life.asked)
        left = next((step for step in unasked if step.recorded and not step.unused), None)
    if left is None:
        life.used_up.add(named)
        return
    args = left.args or getattr((yield Read(left.begun)), "args", ())
    message = (
        f"run {life.state.key}: step {identity.name!r} is asked for with inputs that no record has, although the code "
        f"is unchanged: {difference(args, left.identity, request)}. Recorded step {left.number} was not asked for."
    )
    if life.strict:
        raise Nondeterminism(message, hint="Make the argument deterministic, for example by computing it in a step.")
    life.diverged = True
    life.tell(message + " It is executed.")
