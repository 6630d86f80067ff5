"""docs/shapes.md is run from top to bottom, and the README's agent as a stranger would: killed, resumed, read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _python(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def _run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")} | environment
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_the_page_on_shapes_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(_python("docs/shapes.md")))
    for _ in range(2):  # and its runs are found again
        done = _run(tmp_path, "page.py")
        assert done.returncode == 0, done.stderr


def test_the_readmes_agent_is_killed_goes_on_and_its_transcript_is_read(tmp_path: Path) -> None:  # W4 B7
    (code,) = [block for block in _python("README.md") if "# agent.py" in block]
    (tmp_path / "agent.py").write_text(code)
    (tmp_path / "killed.py").write_text(
        "import os, signal, sys, agent, perdure\n"
        "def dies(messages, tools):\n"
        "    print(len(messages), flush=True)\n"
        "    if len(messages) == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return agent.model(messages, tools)\n"
        "again = agent.Agent(dies, [agent.search, agent.mail], instructions='You are an archivist.')\n"
        "print(perdure.run(again, 'Tell Ann about the tides.', goal='tides'))\n"
    )
    killed = _run(tmp_path, "killed.py", "4")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "2\n4\n")
    whole = _run(tmp_path, "killed.py", "0")
    assert (whole.returncode, whole.stdout) == (0, "4\n6\nAnn knows about the tides.\n"), whole.stderr
    said = _run(tmp_path, "-m", "perdure", "transcript", "tides").stdout
    roles = re.findall(r"^--- (\w+)", said, re.MULTILINE)
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert '-> search({"query":"tides"})' in said and "sent to ann" in said
    command = re.search(r"perdure (run agent.py:agent .*)", (ROOT / "README.md").read_text())
    assert command is not None
    again = _run(
        tmp_path, "-m", "perdure", *[word.strip('"') for word in re.findall(r'(?:[^ "]|"[^"]*")+', command[1])]
    )
    assert again.returncode == 0 and again.stdout == "Ann knows about the tides.\n", again.stderr
