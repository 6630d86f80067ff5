"""``perdure transcript``, ``files``, ``graph`` and ``--budget`` as a stranger uses them, rightly and wrongly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from stranger import Shell

EXAMPLES = Path(__file__).parents[2] / "examples"
SUPPORT, CRITIC, BEST = (str(EXAMPLES / f"{name}.py") for name in ("support", "critic", "best"))
TICKET = ("--input", "task=My lamp, order A17", "--goal", "ticket")


@pytest.fixture
def shell(shell: Shell) -> Shell:
    """The stranger's shell, where the examples do not kill themselves."""
    (shell.folder / ".perdure").mkdir()
    for name in ("support", "critic", "best"):
        (shell.folder / ".perdure" / f"{name}-crashed").touch()
    return shell


def test_a_transcript_is_read_as_text_and_as_json(shell: Shell) -> None:  # B7
    shell("run", f"{SUPPORT}:support", *TICKET)
    said = shell("transcript", "ticket").stdout
    assert re.findall(r"^--- (\w+)", said, re.MULTILINE) == ["system", "user", *("assistant", "tool") * 3, "assistant"]
    assert '-> refund({"number":"A17","amount":30})' in said and said.rstrip().endswith("has a letter.")
    lines = shell.json("transcript", "ticket")
    assert [line["role"] for line in lines][-1] == "assistant" and lines[3]["step"] == 2 and lines[0]["scope"] == ""
    assert "has no agent in scope 'helper-0'" in shell("transcript", "ticket", "--scope", "helper-0", code=2).stderr
    assert "There is no run 'nobody'" in shell("transcript", "nobody", code=2).stderr


def test_files_are_listed_and_written(shell: Shell) -> None:  # W6
    shell("run", f"{SUPPORT}:support", *TICKET)
    [row] = shell.json("files", "ticket")
    assert (row["name"], row["type"], row["step"]) == ("Ann.txt", "text/plain", 6)
    shell("files", "ticket", "--to", "out")
    assert (shell.folder / "out" / "Ann.txt").read_text().startswith("Dear Ann")
    assert shell("output", "ticket", "letter").stdout.startswith("Dear Ann")
    (shell.folder / "taken").write_text("a file")
    assert "'taken' is a file" in shell("files", "ticket", "--to", "taken", code=2).stderr
    assert (
        "The files cannot be written to taken/below" in shell("files", "ticket", "--to", "taken/below", code=2).stderr
    )


def test_a_budget_pauses_the_run_and_a_larger_one_lets_it_go_on(shell: Shell) -> None:  # X6
    stopped = shell("run", f"{SUPPORT}:support", *TICKET, "--budget", "calls=2", "--budget", "cost=5", code=5)
    assert "its budget is used up (calls: 2 of 2)" in stopped.stderr and "--budget" in stopped.stderr
    [row] = shell.json("ls", "--goal", "ticket")
    assert row["status"] == "paused" and row["used"]["calls"] == 2
    assert shell.json("show", "ticket")["budget"] == {"cost": 5.0, "calls": 2}
    done = shell("resume", "ticket", "--app", f"{SUPPORT}:support", "--budget", "calls=9")
    assert done.stdout.splitlines() == [
        "did ask 2",
        "did letter Ann",
        "did ask 3",
        "Ann was refunded and has a letter.",
    ]
    shown = shell("show", "ticket").stdout
    assert "used: 4 calls; in the last life: 2 calls; saved by resuming: 2 calls" in shown
    assert "budget: cost 5, calls 9" in shown and "-> refund(" in shown
    assert "4 calls (2 calls saved)" in shell("ls").stdout


@pytest.mark.parametrize("word", ["calls", "calls=", "calls=0", "calls=many", "money=3", "calls=nan", "=3"])
def test_a_budget_that_is_none_is_refused(shell: Shell, word: str) -> None:
    refused = shell("run", f"{SUPPORT}:support", *TICKET, "--budget", word, code=2)
    assert "is no cap. Write NAME=NUMBER with cost, tokens, calls, seconds." in refused.stderr


def test_a_graph_is_drawn_with_and_without_the_states_of_a_run(shell: Shell) -> None:
    drawn = shell("graph", f"{CRITIC}:article").stdout
    assert drawn.startswith("flowchart TD") and "at most 2x" in drawn and "completed" not in drawn
    shell("run", f"{CRITIC}:article", "--input", "topic=tides", "--goal", "a")
    assert "writer<br/>completed x3" in shell("graph", f"{CRITIC}:article", "a").stdout
    told = shell.json("graph", f"{CRITIC}:article", "a")
    assert [node["state"] for node in told["nodes"]] == ["completed x3", "completed x3", "completed"]
    assert "is no Graph; its type is Agent" in shell("graph", f"{SUPPORT}:support", code=2).stderr


def test_attempts_are_followed_live_and_listed_as_runs(shell: Shell) -> None:  # K2
    done = shell("run", f"{BEST}:best", "--input", "topic=sea", "--goal", "s", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["result"]["fields"]["episode"] == 1
    assert "[s/best#1] run s/best#1 begins" in done.stderr and "run s#0 completed" in done.stderr
    assert [row["run"] for row in shell.json("ls")] == ["s#0", "s/best#0", "s/best#1"]
    assert "attempt 1 has the highest score" in shell("output", "s").stdout
    shown = shell.terminal("run", f"{BEST}:best", "--input", "topic=sea", "--goal", "t")
    assert "[t/best#1] think" in shown


def test_two_graphs_without_names_of_their_own_are_two_tasks(shell: Shell) -> None:
    (shell.folder / "two.py").write_text(
        "from perdure.runners import Graph\n"
        "one = Graph({'a': lambda topic: topic + ' one'}, inputs=['topic'])\n"
        "other = Graph({'a': lambda topic: topic + ' other'}, inputs=['topic'])\n"
    )
    for name in ("one", "other"):
        assert shell("run", f"two.py:{name}", "--input", "topic=t").stdout.strip() == f"t {name}"
    assert [row["run"] for row in shell.json("ls")] == ["one topic=t#0", "other topic=t#0"]


def test_a_long_loop_shows_its_latest_steps_on_a_terminal(shell: Shell) -> None:
    (shell.folder / "long.py").write_text(
        "from perdure.runners import Agent, Reply, ToolCall\n"
        "def look(n: int) -> str: return f'seen {n}'\n"
        "def model(messages, tools):\n"
        "    n = len(messages) // 2\n"
        "    return Reply('', (ToolCall('look', {'n': n}),)) if n < 60 else 'done'\n"
        "agent = Agent(model, [look], max_iterations=99)\n"
    )
    shown = shell.terminal("run", "long.py:agent", "--input", "task=go", "--goal", "g")
    last = shown[shown.rindex("earlier steps not shown") :]
    assert "(75 earlier steps not shown)" in shown and re.search(r"\b121 *\S*model", last)
