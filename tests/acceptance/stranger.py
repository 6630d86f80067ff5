"""The command as a stranger uses it: real processes, in an empty directory, with a program of the stranger's own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from forker import Forker

PROGRAM = '''
import functools, os, pathlib, signal
from dataclasses import dataclass
from typing import Literal
import perdure

HERE = pathlib.Path(__file__).parent


@dataclass
class Score:
    points: int


def ran(name):
    with open(HERE / "ran.txt", "a") as file:
        file.write(name + "\\n")


def trap(name):
    """Stop as the file `trap` says, once: a signal of its name, sent to this process while `name` runs."""
    path = HERE / f"trap-{name}"
    if path.exists():
        which = path.read_text()
        path.unlink()
        os.kill(os.getpid(), getattr(signal, which))
        signal.pause()


@perdure.step
def load(path: str) -> str:
    ran("load")
    return f"text of {path}"


@perdure.step
def expert(name: str, text: str) -> str:
    ran(name)
    trap(name)
    if (HERE / f"break-{name}").exists():
        raise ValueError(f"{name} is broken")
    return f"{name}: {text}"


@perdure.step
def score(reviews: list[str], scale: int) -> Score:
    ran("score")
    perdure.context().stream("well, ")
    perdure.context().stream("well")
    perdure.context().save({"words": 2})  # durable on return, and what was streamed before with it
    trap("score")
    return Score(scale * len(reviews))


@perdure.flow
def review(path: str, scale: int = 10, tone: Literal["kind", "harsh"] = "kind") -> Score:
    text = load(path)
    return score(perdure.gather(*(functools.partial(expert, name, text) for name in ("ann", "bob"))), scale)


@perdure.flow
def hold(path: str) -> str:
    load(path)
    trap("hold")
    return wait(path)


@perdure.step
def wait(path: str) -> str:
    ran("waiting")
    with open(path) as pipe:  # a named pipe: until the test writes to it
        return pipe.read()


def meta(reviews: dict[str, str]) -> str:
    return " and ".join(reviews)


def needs(one: str, two: str) -> str:
    return one + two


NUMBER = 3
'''


class Shell:
    """Runs ``perdure`` in the stranger's directory."""

    def __init__(self, folder: Path, url: str, forker: Forker) -> None:
        self.folder = folder
        self._forker = forker
        self.url = url
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PERDURE_STORE": url, "COLUMNS": "160", "LINES": "50"}
        (folder / "review.py").write_text(PROGRAM)

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "perdure", *words]

    def __call__(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run to the end; the exit code must be ``code``."""
        done = self._forker.run(list(words), self.folder, {**self.environment, **environment})
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code).stdout)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words(*words),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def terminal(self, *words: str) -> str:
        """Run on a pseudo-terminal; everything it wrote there."""
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            self.words(*words),
            cwd=self.folder,
            env={**self.environment, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        seen = b""
        while True:
            ready, _, _ = select.select([ours], [], [], 60)
            assert ready, "nothing came for a minute"
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the last writer has closed
                break
            if not piece:
                break
            seen += piece
        os.close(ours)
        assert child.wait(60) == 0, seen
        return seen.decode()

    def ran(self) -> list[str]:
        """Which step bodies have begun since the last time."""
        path = self.folder / "ran.txt"
        told = sorted(path.read_text().split()) if path.exists() else []
        path.unlink(missing_ok=True)
        return told

    def trap(self, step: str, signal: str) -> None:
        (self.folder / f"trap-{step}").write_text(signal)
