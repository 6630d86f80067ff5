"""What is known of a run besides its steps: facts that the fold collects, one after the other."""

from __future__ import annotations

import msgspec

from perdure import journal as j
from perdure import states
from perdure.codec import Payload
from perdure.model import ArgInfo, Attribution, Budget, ErrorInfo, Limits, Origin, Usage
from perdure.pending import Pending


class Facts(msgspec.Struct, kw_only=True, eq=False):
    """All of a run's state that a snapshot keeps as it is."""

    seq: int = 0
    size: int = 0
    """bytes of its records"""
    status: str | None = None
    reason: str = ""
    run_id: str = ""
    keyed_by: str = ""
    """the id that the journal began with: digests of what is kept out of the records were made under it, and are those
    of the entries that a fork shares too"""
    forked: Origin | None = None
    forked_to: int = 0
    """sequence of the last entry that says how the run was forked"""
    flow: str = ""
    digest: str = ""
    target: str = ""
    durability: str = "strict"
    outputs: str = ""
    inputs: Payload | None = None
    args: tuple[ArgInfo, ...] = ()
    attribution: Attribution = Attribution()
    created: float = 0.0
    updated: float = 0.0
    lives: int = 0
    crashes: int = 0
    """lives in a row that ended in a crash before they completed any step"""
    forgiven: float = 0.0
    """when somebody let it go on: crashes before that do not count"""
    version: str = ""
    queue: str = ""
    idempotency_key: str = ""
    """that it was submitted under"""
    priority: int = 0
    limits: Limits = Limits()
    not_before: float = 0.0
    epoch: int = 0
    reused: int = 0
    saved: float = 0.0
    stopped_by: str = ""
    """the person who paused the run, if one did"""
    budget: Budget | None = None
    usage: Usage = Usage()
    """what all lives used, whatever became of it"""
    paid: Usage = Usage()
    """what the latest life used"""
    saved_usage: Usage = Usage()
    """what the steps reused by the life that completed had used"""
    seconds: float = 0.0
    """time during which lives before the latest one executed the run"""
    life_began: float = 0.0
    output: Payload | None = None
    error: ErrorInfo | None = None
    code: dict[str, Payload] = {}
    """digest -> the text of the code of steps, where it was kept"""
    diverged: bool = False
    """code, inputs or results were changed since it last completed: records may be left over, and rightly"""
    renewing: str | None = None
    """digest of the flow's code with which somebody had what changed executed again, until the run completes"""
    conversations: dict[str, list[j.SpokenMessage]] = {}
    """scope of an agent -> its messages, in order"""
    posts: int = 0
    """number of the last post of the inbox that was taken"""
    waits: Pending = msgspec.field(default_factory=Pending)
    """what it waits for from outside, and what has come"""
    woken: list[str] = []
    """runs that this one began, was waiting for, and that could go on: in the order in which they said so"""
    woken_at: int = 0
    """sequence of the last time that it was woken so"""
    left_at: int = 0
    """sequence of the last time that a step began to wait for another run"""
    stop: j.StopRequested | None = None
    """somebody wants the run to be paused or cancelled, and it is not yet"""
    cleanups: bool = False
    """some flow of it has a clean-up: cancelling it takes its program"""
    pinned: bool = False
    """somebody wants it to be kept, whatever retention says"""
    wake: float = 0.0
    """while the run is suspended: when it can go on by itself; 0: not by a date"""
    current: str = ""
    last_number: int = 0
    """the highest of any step"""
    unused: tuple[int, ...] = ()
    """steps that the last life that completed did without"""
    counts: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(states.STEP.values(), 0))
    """steps in each state"""
