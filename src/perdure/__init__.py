"""Perdure makes runs of AI agents and pipelines durable: kill the process, run it again, and it goes on where it
stopped.

Decorate functions with ``step`` and ``flow``, and execute them with ``run``; see the README for the rest.
"""

from perdure.codec import register
from perdure.errors import PerdureError, RateLimited
from perdure.model import Attribution, Budget, RunKey
from perdure.retry import RetryPolicy
from perdure.runners.attempts import best_of
from perdure.runners.executor import GraphExecutor
from perdure.runtime.api import run
from perdure.runtime.ask import ask, signal, sleep
from perdure.runtime.children import child
from perdure.runtime.client import Client
from perdure.runtime.config import CheckpointConfig
from perdure.runtime.context import context
from perdure.runtime.declare import flow, step
from perdure.runtime.fanout import as_completed, first, gather, map
from perdure.runtime.manager import CheckpointManager
from perdure.secret import Secret
from perdure.stores import open_store as open_store

__version__ = "0.1.0"

__all__ = [
    "Attribution",
    "Budget",
    "CheckpointConfig",
    "CheckpointManager",
    "Client",
    "GraphExecutor",
    "PerdureError",
    "RateLimited",
    "RetryPolicy",
    "RunKey",
    "Secret",
    "as_completed",
    "ask",
    "best_of",
    "child",
    "context",
    "first",
    "flow",
    "gather",
    "map",
    "register",
    "run",
    "signal",
    "sleep",
    "step",
]
