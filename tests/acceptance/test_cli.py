"""``perdure run``, ``resume`` and the listings: what goes on, how it ends, and what is said."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from typing import IO

import pytest
from stranger import Shell

RUN = ("run", "review.py:review", "--input", "path=a.md", "--goal", "paper")


def test_a_flow_runs_and_is_listed_and_shown(shell: Shell) -> None:  # C2 C4
    done = shell(*RUN)
    assert json.loads(done.stdout) == {"~": "data", "type": "review:Score", "fields": {"points": 20}}
    assert "\x1b" not in done.stdout + done.stderr, "no colours in a pipe"
    assert "run paper#0 completed" in done.stderr
    [row] = shell.json("ls")
    assert (row["run"], row["status"], row["completed"], row["holder"]) == ("paper#0", "completed", 4, None)
    shown = shell.json("show", "paper")
    assert [(s["name"], s["state"]) for s in shown["steps"][:1] + shown["steps"][-1:]] == [
        ("load", "completed"),
        ("score", "completed"),
    ]
    assert shown["steps"][0]["output_head"] == "text of a.md"
    text = shell("show", "paper").stdout
    assert "text of a.md" in text and '"ann"' in text
    assert shell("output", "paper", "1").stdout == "text of a.md\n"
    assert shell.json("output", "paper", "score")["output"]["fields"] == {"points": 20}
    if shell.url.startswith("file"):
        assert shown["steps"][0]["file"].endswith("outputs/01-load.md")


def test_the_same_command_again_returns_the_recorded_result_and_executes_nothing(shell: Shell) -> None:  # C3
    first = shell(*RUN).stdout
    shell.ran()
    again = shell(*RUN)
    assert (again.stdout, shell.ran()) == (first, [])
    assert "had completed" in again.stderr and "--new" in again.stderr
    shell(*RUN, "--new")
    assert shell.ran() == ["ann", "bob", "load", "score"]
    assert [row["run"] for row in shell.json("ls")] == ["paper#0", "paper#1"]


def test_killed_and_run_again_it_goes_on_where_it_stopped(shell: Shell) -> None:  # C3 C5
    shell.trap("score", "SIGKILL")
    shell(*RUN, code=-signal.SIGKILL)
    assert shell.ran() == ["ann", "bob", "load", "score"]
    assert shell.json("ls", "--status", "crashed")[0]["run"] == "paper#0"
    crashed = shell("output", "paper", "score", code=1)
    assert "well, well" in crashed.stderr, "the text that survived can be read"
    shell(*RUN)
    assert shell.ran() == ["score"]
    assert shell.json("show", "paper")["reused"] == 3


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_the_run_resumable_and_prints_the_command_that_resumes_it(
    shell: Shell, name: str, code: int
) -> None:  # B3
    shell.trap("score", name)
    done = shell(*RUN, "--outputs", "my outputs", code=code)
    assert "3 finished steps are kept" in done.stderr
    assert shell.json("ls")[0]["status"] == "interrupted"
    shell.ran()
    line = done.stderr.strip().splitlines()[-1].strip()
    assert line.startswith("perdure resume ")
    resumed = subprocess.run(line, shell=True, cwd=shell.folder, env=shell.environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert shell.ran() == ["score"]
    assert sorted(p.name[:2] for p in (shell.folder / "my outputs").rglob("*.*") if p.is_file()) == [
        "01",
        "02",
        "03",
        "04",
    ]


def test_a_failing_flow_exits_1_and_says_where_and_how_to_go_on(shell: Shell) -> None:  # B3 C11
    (shell.folder / "break-bob").touch()
    done = shell(*RUN, code=1)
    assert re.search(r"Error: ValueError: bob is broken \(.*review.py:\d+\)", done.stderr)
    assert "perdure resume 'paper#0' --app review.py:review" in done.stderr
    told = shell.json(*RUN, code=1)["error"]
    assert (told["exit_code"], told["run"]) == (1, "paper#0")
    (shell.folder / "break-bob").unlink()
    shell.ran()
    shell("resume", "paper", "--app", "review.py:review")
    assert shell.ran() == ["bob", "score"]


def test_one_step_is_executed_again_with_what_depends_on_it(shell: Shell) -> None:  # C11
    shell(*RUN)
    shell.ran()
    shell(*RUN, "--rerun", "load")
    assert shell.ran() == ["load"], "its output is the same, so that nothing else depends on the change"
    assert "has no step 'lod'" in shell(*RUN, "--rerun", "lod", code=2).stderr


def test_another_process_is_told_who_executes_the_run_and_may_wait_for_the_result(shell: Shell) -> None:
    pipe = shell.folder / "pipe"
    os.mkfifo(pipe)
    words = ("run", "review.py:hold", "--input", f"path={pipe}", "--goal", "held")
    with shell.start(*words) as first:
        until(first.stderr, "wait(")
        second = shell(*words, code=3)
        [row] = shell.json("ls")
        assert row["status"] == "running" and row["holder"]["pid"] == first.pid
        assert f"process {first.pid} on " in second.stderr and "since" in second.stderr
        with shell.start(*words, "--wait") as third:
            pipe.write_text("the answer")
            assert third.communicate(timeout=60)[0] == "the answer\n"
        assert first.communicate(timeout=60)[0] == "the answer\n"
    assert shell.ran() == ["load", "waiting"], "the second and third executed nothing"


def test_tail_shows_what_happens_and_what_is_streamed_and_ends_with_the_run(shell: Shell) -> None:  # C5
    pipe = shell.folder / "pipe"
    os.mkfifo(pipe)
    shell.trap("score", "SIGKILL")
    shell(*RUN, code=-signal.SIGKILL)
    told = shell("tail", "paper").stdout
    assert "score" in told and "well, well" in told and told.endswith("run paper#0: crashed\n")
    kinds = [json.loads(line)["kind"] for line in shell("tail", "paper", "--json").stdout.splitlines()]
    assert kinds[0] == "run_began/1" and kinds[-2:] == ["step_chunk/1", "step_progress/1"]
    with shell.start("run", "review.py:hold", "--input", f"path={pipe}", "--goal", "held") as running:
        until(running.stderr, "wait(")
        with shell.start("tail", "held") as tail:
            until(tail.stdout, "wait(")
            pipe.write_text("x")
            rest = tail.communicate(timeout=60)[0]
            assert "completed" in rest and rest.endswith("run held#0: completed\n") and tail.returncode == 0
        assert running.wait(60) == 0


def until(lines: IO[str] | None, word: str) -> None:
    """Read until a line has ``word``."""
    assert lines is not None
    assert any(word in line for line in lines), f"it ended without {word!r}"


def test_a_terminal_gets_a_live_table_with_a_row_a_step(shell: Shell) -> None:
    seen = shell.terminal(*RUN)
    assert "\x1b[" in seen
    for word in ("step", "state", "time", "progress", "load", "expert", "score", "completed"):
        assert word in seen


def test_a_paused_run_stays_stopped_until_a_person_lets_it_go_on(shell: Shell) -> None:  # B9
    shell.trap("score", "SIGTERM")
    shell(*RUN, code=143)
    assert "unpause" in shell("pause", "paper", "--reason", "too dear", "--by", "ann").stdout
    assert "stopped by ann: too dear" in shell(*RUN, code=5).stderr
    assert "review.py:review" in shell("unpause", "paper").stdout
    assert "not paused" in shell("unpause", "paper", code=2).stderr
    shell("pause", "paper")
    shell("resume", "paper", "--app", "review.py:review", "--stopped")


def test_resume_never_imports_what_stored_data_names(shell: Shell) -> None:  # rel:S1
    shell.trap("score", "SIGTERM")
    shell(*RUN, code=143)
    (shell.folder / "review.py").write_text("raise SystemExit('boom')")
    done = shell("resume", "paper", code=2)
    assert "--app review.py:review" in done.stderr and "boom" not in done.stderr
    for words in (("show", "paper"), ("ls",), ("tail", "paper"), ("output", "paper", "1")):
        assert "boom" not in shell(*words).stderr


def test_inputs_are_converted_to_what_the_flow_declares(shell: Shell) -> None:
    done = shell("run", "review.py:review", "-i", "path=a.md", "-i", "scale=3", "-i", "tone=harsh")
    assert json.loads(done.stdout)["fields"] == {"points": 6}
    (shell.folder / "note.txt").write_text("from a file")
    shell("run", "review.py:review", "-i", "path=@note.txt", "--goal", "g")
    assert shell("output", "g", "load").stdout == "text of from a file\n"


TOML = """
name = "short"
[[stage]]
run = "review:load"
name = "text"
[[stage]]
crew = "experts"
experts = [{ run = "review.py:expert", name = "ann", given = { name = "ann" } },
           { run = "review:expert", name = "bob", given = { name = "bob" } }]
gather = { run = "review:meta", retries = 1 }
"""


def test_a_toml_file_names_the_functions_of_a_pipeline(shell: Shell) -> None:
    (shell.folder / "flows").mkdir()
    (shell.folder / "review.py").rename(shell.folder / "flows" / "review.py")
    (shell.folder / "flows" / "short.toml").write_text(TOML)
    assert shell("run", "flows/short.toml", "--input", "path=a.md").stdout == "ann and bob\n"
    assert shell.json("ls")[0]["run"] == "short path=a.md#0"


def test_help_teaches(shell: Shell) -> None:
    for words in ((), ("run",), ("resume",), ("ls",), ("show",), ("output",), ("tail",), ("pause",), ("demo",)):
        assert "Usage: perdure" in shell(*words, "--help").stdout
    top = shell("--help").stdout
    assert "Exit codes:" in top and "143" in top
    assert shell("--version").stdout.startswith("perdure, version 0.")
    assert "Begin one with: perdure run TARGET" in shell("ls", PERDURE_STORE="memory:").stdout


def test_a_reader_that_goes_away_is_no_error(shell: Shell) -> None:
    shell(*RUN)
    line = f"{shlex.quote(sys.executable)} -m perdure tail paper --json | true"
    done = subprocess.run(line, shell=True, cwd=shell.folder, env=shell.environment, capture_output=True, text=True)
    assert done.stderr == ""
