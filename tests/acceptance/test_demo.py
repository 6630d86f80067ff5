"""``perdure demo`` as a stranger runs it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.demo.experts import EXPERTS, meta_review
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
    review = Path(told["files"]["meta-review"]).read_text()
    assert review.startswith(told["text_that_survived"]) and len(review) > len(told["text_that_survived"])
    assert review == "".join(meta_review(paper, {name: expert(paper) for name, expert in EXPERTS.items()}))
    assert not set(told["reused"]) & set(told["executed_again"]) and len(told["reused"]) >= 5
    assert {str(Path(file).parent) for file in told["files"].values()} == {told["outputs"]}
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


def test_a_model_that_is_not_there_ends_it_at_once_and_it_can_go_on_later(tmp_path: Path) -> None:
    with ChatServer(lambda request: Reply(status=401, body=b"unknown key sk-secret")) as server:
        done = demo(tmp_path, PERDURE_MODEL_URL=server.url, PERDURE_MODEL_KEY="sk-secret")
    assert done.returncode == 1 and "unknown key [key]" in done.stderr
    assert "failed in 1 life" in done.stdout and "executed again      nothing" in done.stdout
    assert b"sk-secret" not in (tmp_path / "perdure-demo" / "runs.db").read_bytes(), "rel:S8"
    kept = (tmp_path / "perdure-demo" / "child.log").read_text()
    assert "sk-secret" not in done.stdout + done.stderr + kept
    words = shlex.split(done.stdout.split("To try again:")[1])
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and again.stdout.startswith("# Meta-review of Perdure")


def test_settings_and_folders_that_cannot_work_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = demo(tmp_path, "--folder", "file")
    assert done.returncode == 2 and "file cannot be made: File exists" in done.stderr
    done = demo(tmp_path, PERDURE_MODEL_URL="localhost:80")
    assert done.returncode == 2 and "PERDURE_MODEL_URL" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "perdure-demo").exists()


def test_a_file_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "zeros").write_bytes(bytes(100))
    (tmp_path / "nothing").write_text(" \n")
    told = {
        "image": "is no text",
        "zeros": "is no text",
        "nothing": "is empty",
        "gone": "No such file",
        ".": "directory",
    }
    for name, said in told.items():
        done = demo(tmp_path, "--doc", name)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "perdure-demo").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_says_how_to_go_on_and_that_works(tmp_path: Path, number: int, code: int) -> None:  # B3
    with subprocess.Popen(
        [sys.executable, "-m", "perdure", "demo", "--pace", "30"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        assert any("numbers started" in line for line in child.stderr)
        child.send_signal(number)
        rest = child.stderr.read()
    assert child.returncode == code and "Go on with:" in rest
    words = shlex.split(rest.split("Go on with:")[1])
    done = subprocess.run([*words, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reused"] >= 2 and "# Meta-review" in json.loads(done.stdout)["result"]
    assert list((tmp_path / "perdure-demo" / "outputs").glob("*/*-meta-review.md"))
