"""``perdure demo`` as a stranger runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from perdure.demo.experts import EXPERTS
from perdure.testing.chat_server import ChatServer, Reply


def demo(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return subprocess.run(
        [sys.executable, "-m", "perdure", "demo", *words],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_killed_twice_the_crew_finishes_and_nothing_completes_twice(tmp_path: Path) -> None:  # C2 C3 C4 C5 C6
    done = demo(tmp_path, "--json", "--pace", "1")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["killed"], told["lives"]) == ("completed", 2, 3)
    assert told["completed_twice"] == []
    assert told["empty_and_retried"] == ["terms", "references"]
    assert "meta-review" in told["executed_again"] and {"paper", "outline"} <= set(told["reused"])
    assert len(told["text_that_survived"]) > 200 and told["seconds_saved"] > 0
    paper = Path(told["files"]["paper"]).read_text()
    for name, expert in EXPERTS.items():
        assert Path(told["files"][name]).read_text() == expert(paper), "the outputs are the experts' own"
    assert Path(told["files"]["meta-review"]).read_text().startswith(told["text_that_survived"])
    assert "SIGKILL" in done.stderr and "\x1b" not in done.stderr


def test_it_reviews_any_text_and_begins_a_new_episode_each_time(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("The ZQX always wins. The ZQX always wins.\n")
    runs = []
    for _ in range(2):
        done = demo(tmp_path, "--doc", "mine.txt", "--pace", "0.3")
        assert done.returncode == 0, done.stderr
        assert "What happened" in done.stdout and "completed twice     nothing" in done.stdout
        runs.append(next(line for line in done.stdout.splitlines() if line.startswith("Every step:")))
    assert "mine.txt#0" in runs[0] and "mine.txt#1" in runs[1]


def test_with_a_model_the_experts_ask_it(tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> Reply:
        return Reply(("The model ", "says: ", "fine."))

    with ChatServer(answer) as server:
        done = demo(tmp_path, "--json", PERDURE_MODEL_URL=server.url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "completed" and Path(told["files"]["claims"]).read_text() == "The model says: fine."
    assert len(server.requests) >= 9


def test_a_file_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "nothing").write_text(" \n")
    for name, said in (("image", "cannot be read as text"), ("nothing", "is empty"), ("gone", "No such file")):
        done = demo(tmp_path, "--doc", name)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "perdure-demo").exists()


def test_ctrl_c_leaves_it_to_be_looked_at(tmp_path: Path) -> None:  # B3
    child = subprocess.Popen(
        [sys.executable, "-m", "perdure", "demo", "--pace", "30"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    with child:
        assert any("structure started" in line for line in child.stderr)
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
    assert child.returncode == 130 and "perdure show" in rest
