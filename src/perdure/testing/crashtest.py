"""``crashtest``: your own flow, killed at every durable point, in your own test suite.

from perdure.testing import crashtest

def test_a_review_survives_crashes():
    crashtest(review, {"paper": "paper.md"}).assert_ok()
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from perdure import codec
from perdure.errors import ConfigError
from perdure.runtime.config import Durability
from perdure.testing.crashes.report import Report
from perdure.testing.crashes.server import Inputs
from perdure.testing.crashes.trial import Options, crash_flow

_PROGRAM = """\
import sys
sys.path[:] = {path}
from perdure.testing.crashes.server import read_inputs, serve

def load():
    from {module} import {first} as flow
    flow = flow{rest}
    return flow, read_inputs(flow, {inputs})

serve(load)
"""


def crashtest(
    flow: Callable[..., Any] | str,
    inputs: Mapping[str, Any] | None = None,
    *,
    answers: Mapping[str, Any] | None = None,
    signals: Mapping[str, Any] | None = None,
    points: int | None = None,
    again: int = 10,
    seed: int | None = None,
    jobs: int = 1,
    timeout: float = 60.0,
    store: Literal["sqlite", "file"] = "sqlite",
    durability: Durability = "strict",
    allow: Sequence[str] = (),
) -> Report:
    """Run ``flow(**inputs)`` in child processes, kill it (SIGKILL) before and after each record becomes durable, let it
    go on in another process, and report what a crash would do to it. Blocks; nothing is left behind but what the flow
    itself does, which it does for real, in every run.

    - ``flow``: a flow, graph, agent, pipeline or function that stands in a module, or its name, "module:flow". Children
      import it afresh: what a test has patched is not patched there, environment variables are.
    - ``answers``: what to answer, by the name of the question's step; ``signals``: what to send, by the name of the
      signal; both whenever the run waits for it. Dates are not waited for: the clock is moved.
    - ``points``: how many kills at most, chosen by ``seed``; default all. ``again``: how many runs are killed once more
      while they go on. ``jobs``: how many runs side by side.
    - ``timeout``: seconds that a life may take. ``store``: the kind of the stores, which are made in a
      temporary folder.
    - ``allow``: side effects outside of steps that are meant, as patterns of "event target": "os.mkdir *".

    Raises RunFailed if the flow fails without any crash; ConfigError if it cannot be tested: it is not found, has no
    steps, waits for what is not given, or no kill happened.
    """
    settings = Options(
        answers or {}, signals or {}, points, again, seed, jobs, timeout, store, durability, tuple(allow)
    )
    settings.check()
    module, name = _name(flow)
    first, dot, rest = name.partition(".")
    with tempfile.TemporaryDirectory(prefix="perdure-crashtest-") as folder:
        path = Path(folder) / "inputs.json"
        path.write_bytes(msgspec.json.encode(_written(inputs or {})))
        program = _PROGRAM.format(path=sys.path, module=module, first=first, rest=dot + rest, inputs=repr(str(path)))
        return crash_flow(["-c", program], settings)


def _written(inputs: Mapping[str, Any]) -> Inputs:
    """The inputs for the children. Raises ConfigError for a Secret: its value is written to no file."""
    given = Inputs(*codec.dumps(dict(inputs), "inputs"))
    if codec.load(given.payload, given.blobs).secrets:
        raise ConfigError(
            "The inputs of a crash test hold a Secret, and its value is not handed to child processes.",
            hint="Test a flow that makes it itself, Secret(os.environ[...]); or: perdure crashtest ... --input "
            "name=@FILE",
        )
    return given


def _name(flow: Callable[..., Any] | str) -> tuple[str, str]:
    """The module in which the flow stands, and its name there. Raises ConfigError if it stands in none."""
    if isinstance(flow, str):
        module, _, name = flow.partition(":")
        parts = (*module.split("."), *name.split("."))
        if not all(part.isidentifier() for part in parts) or module.endswith(".py"):
            raise ConfigError(
                f"{flow!r} does not name a flow in a module.",
                hint="Write 'package.module:flow'; files and TOML take the command: perdure crashtest file.py:flow",
            )
        return module, name
    home = str(getattr(flow, "__module__", ""))
    modules = [home, *(name for name in list(sys.modules) if name not in (home, "__main__"))]
    for module in modules:
        for name, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
            if value is flow and module != "__main__" and name.isidentifier():
                return module, name
    raise ConfigError(
        f"{flow!r} stands in no module by a name of its own, so child processes cannot import it.",
        hint="Define it at the top of a module that can be imported, not in a function or in a program's own file.",
    )
