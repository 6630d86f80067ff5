"""The tools that inject faults into system calls, as far as this machine has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import crash_calls
import pytest
from crash_zygote import Zygote


class Tools:
    """The shim and strace. There is at least one, or the suite fails."""

    def __init__(self, folder: Path) -> None:
        self._shim = crash_calls.shim(folder)
        self._found = {"shim": self._shim is not None, "strace": crash_calls.strace() is not None}
        self._zygotes: dict[str, Zygote] = {}
        if not any(self._found.values()):
            pytest.fail(
                "System calls cannot be made to fail: there is neither a C compiler nor an strace that works here. "
                "Install one of them; `make test-long` gets strace by itself where it can."
            )

    def choose(self, wanted: str, record: Callable[[str, object], None], only: bool = False) -> str:
        """That tool, or what stands for it; which is said. ``only``: nothing else can do this, so "" if it is missing:
        what is torn or short is left to the matrices of test_kill_points.py and test_file_store_faults.py then."""
        if self._found[wanted]:
            return wanted
        if only:
            record(f"matrices left to the spy, as there is no {wanted}", 1)
            return ""
        other = next(tool for tool, found in self._found.items() if found)
        record(f"matrices by {other}, as there is no {wanted}", 1)
        return other

    def kinds(self, tool: str) -> tuple[str, ...]:
        """What a whole matrix goes through: the shim counts all calls together, strace each kind for itself."""
        return ("",) if tool == "shim" else crash_calls.CALLS

    def zygote(self, tool: str) -> Zygote:
        """The zygote for lives that the tool meets."""
        if tool not in self._zygotes:
            self._zygotes[tool] = Zygote(self._shim if tool == "shim" else None)
        return self._zygotes[tool]

    def close(self) -> None:
        for zygote in self._zygotes.values():
            zygote.close()
