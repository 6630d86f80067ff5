"""A pipeline from a short TOML file that names its functions.

    name = "review"
    inputs = ["tone"]                    # what later stages need and the first does not

    [[stage]]
    run = "steps:load"                   # module:function or file.py:function, seen from this file's folder
    name = "paper"
    retries = 2

    [[stage]]                            # a group: side by side
    parallel = [{ run = "steps:outline" }, { run = "steps:count", timeout = 60 }]

    [[stage]]                            # a crew: experts side by side, then one step that gathers them
    crew = "experts"
    experts = [{ run = "steps:style", given = { strict = true } }, { run = "steps:claims" }]
    gather = { run = "steps:meta_review" }
    require = 1                          # "all" (default), "any" or a number

Everything that is wrong with a file is told at once, each with its place.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from perdure.errors import ConfigError
from perdure.limits import read_all
from perdure.runners.pipeline import Crew, Pipeline, quorum
from perdure.runners.task import Task

_TASK: Final = ("run", "name", "given", "retries", "backoff", "timeout", "on_refused", "on_crash")
_CREW: Final = ("crew", "experts", "gather", "require")
_TOP: Final = ("name", "inputs", "stage")
MAX_TOML: Final = 2**18
"""bytes of a file: some thousand stages"""
_LONG_KEY: Final = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){50}""")
_TOLD: Final = 50
"""problems of a file that are told"""
Load = Callable[[str, Path], Any]


def load_pipeline(path: Path, load: Load) -> Pipeline:
    """The pipeline that a file describes; ``load`` finds a function by its name, seen from the file's folder.

    Raises ConfigError with everything that is wrong.
    """
    try:
        table = tomllib.loads(_text(path))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.", hint="Give module:flow, file.py:flow or file.toml.") from None
    except (OSError, ValueError) as error:  # the second: not UTF-8, no TOML, a number of a thousand digits
        raise ConfigError(f"{path} cannot be read: {error}.", hint="Nothing was executed.") from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: it is nested too deeply.", hint="Nothing was executed.") from None
    return _File(path, load).pipeline(table)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        text = read_all(file, MAX_TOML).decode("utf-8").replace("\r\n", "\n")
    if _LONG_KEY.search(text):  # tomllib takes memory for each by the square of their number
        raise ValueError("a key of it has more than 50 parts")
    return text


class _File:
    """One file being read: collects what is wrong with it."""

    def __init__(self, path: Path, load: Load) -> None:
        self.path = path
        self.load = load
        self.problems: list[str] = []

    def pipeline(self, table: Mapping[str, Any]) -> Pipeline:
        self.keys("the file", table, _TOP)
        listed = table.get("stage", [])
        if not isinstance(listed, list) or not listed:
            self.problems.append("it has no [[stage]]")
            listed = []
        stages = [self.stage(f"stage {place}", stage) for place, stage in enumerate(listed, 1)]
        made = None
        if not self.problems:
            try:
                made = Pipeline(
                    [stage for stage in stages if stage is not None],
                    name=table.get("name", self.path.stem),
                    inputs=table.get("inputs", ()),
                )
            except (ValueError, TypeError) as error:
                self.problems.append(str(error))
        if made is None:
            told = "\n".join(f"  - {problem}" for problem in self.problems[:_TOLD])
            told += f"\n  - and {len(self.problems) - _TOLD} more" if len(self.problems) > _TOLD else ""
            raise ConfigError(f"{self.path} does not describe a pipeline:\n{told}\nNothing was executed.")
        return made

    def stage(self, where: str, table: Any) -> Task | list[Task] | Crew | None:
        if not isinstance(table, dict):
            self.problems.append(f"{where} is not a table")
        elif "crew" in table:
            return self.crew(where, table)
        elif "parallel" in table:
            self.keys(where, table, ("parallel",))
            return self.tasks(where, table["parallel"])
        else:
            return self.task(where, table)
        return None

    def crew(self, where: str, table: Mapping[str, Any]) -> Crew | None:
        self.keys(where, table, _CREW)
        experts = self.tasks(f"{where}, expert", table.get("experts"))
        gather = self.task(f"{where}, gather", table.get("gather"))
        require: Any = table.get("require", "all")
        if isinstance(require, int):
            require = quorum(require)
        if self.problems or gather is None:
            return None
        try:
            return Crew(experts, gather, require=require, name=table["crew"])
        except (ValueError, TypeError) as error:
            self.problems.append(f"{where}: {error}")
            return None

    def tasks(self, where: str, listed: object) -> list[Task]:
        if not isinstance(listed, list) or not listed:
            self.problems.append(f"{where}: needs a list of {{ run = ... }}")
            return []
        made = [self.task(f"{where} {place}", table) for place, table in enumerate(listed, 1)]
        return [task for task in made if task is not None]

    def task(self, where: str, table: Any) -> Task | None:
        if isinstance(table, str):
            table = {"run": table}
        if not isinstance(table, dict) or not isinstance(table.get("run"), str):
            self.problems.append(f'{where}: needs run = "module:function"')
            return None
        self.keys(where, table, _TASK)
        options = {key: value for key, value in table.items() if key in _TASK and key != "run"}
        try:
            return Task(self.load(table["run"], self.path.parent), **options)
        except (ValueError, TypeError) as error:
            self.problems.append(f"{where}: {error}")
            return None

    def keys(self, where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key[:40], known, 1)
                meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                self.problems.append(f"{where}: unknown key {key[:40]!r}; {meant}")
