"""``--at`` and ``perdure diff`` as a stranger uses them, rightly and wrongly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from stranger import Shell

SUPPORT = str(Path(__file__).parents[2] / "examples" / "support.py")
RUN = ("--input", "path=a.md", "--goal", "a")


def test_a_run_is_shown_as_it_was(shell: Shell) -> None:
    shell("run", "review.py:review", *RUN)
    shell("run", "review.py:review", *RUN, "--rerun", "score")
    today = shell.json("show", "a")
    shown = shell("show", "a", "--at", "load").stdout
    assert re.search(rf"^as of entry 3 of {today['seq']}, \d{{4}}-\d\d-\d\dT", shown, re.MULTILINE), shown
    assert shown.startswith("run a#0: running\n") and "expert" not in shown and "Go on with" not in shown
    assert "Outputs stand in" not in shown
    told = shell.json("show", "a", "--at", "#4")
    assert (told["status"], told["holder"], told["last_seq"]) == ("running", None, today["seq"])
    assert (told["at_seq"], len(told["steps"])) == (told["seq"], 4) and told["steps"][3]["state"] == "completed"
    assert "at_seq" not in today and today["lives"] == 2 and told["lives"] == 2, "step 4 ended last in the second life"
    crashed = shell("show", "a", "--at", "0s").stdout
    assert crashed.startswith("run a#0: completed\n")


def test_an_output_is_printed_as_it_was(shell: Shell) -> None:
    shell("run", "review.py:review", *RUN)
    end = shell.json("show", "a")["seq"]
    shell("run", "review.py:review", "--input", "path=a.md", "--input", "scale=5", "--goal", "a", "--adopt-input")
    assert shell.json("output", "a", "--at", str(end))["output"]["fields"] == {"points": 20}
    assert shell.json("output", "a")["output"]["fields"] == {"points": 10}
    assert "Run a had no output: it was running" in shell("output", "a", "--at", "load", code=1).stderr
    assert "Step 2 (expert) had no output: it was running" in shell("output", "a", "2", "--at", "4", code=1).stderr


def test_a_transcript_is_printed_as_it_was(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    (shell.folder / ".perdure").mkdir()
    (shell.folder / ".perdure" / "support-crashed").touch()
    shell("run", f"{SUPPORT}:support", "--input", "task=My lamp, order A17", "--goal", "t")
    said = shell("transcript", "t", "--at", "refund").stdout
    assert "-> refund(" in said and said.rstrip().endswith("reference A17-30") and "letter" not in said
    assert [line["role"] for line in shell.json("transcript", "t", "--at", "2")] == ["system"]


def test_what_is_no_moment_is_refused(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    shell("run", "review.py:review", *RUN)
    for words in (("show", "a"), ("output", "a", "load"), ("transcript", "a")):
        refused = shell(*words, "--at", "yesterday", code=2).stderr
        assert "'yesterday' is no moment of it" in refused and "load, expert, score" in refused


# -- diff --------------------------------------------------------------------------------------------------------------


def two(shell: Shell) -> None:
    shell("run", "review.py:review", *RUN)
    shell("run", "review.py:review", "--input", "path=b.md", "--input", "scale=5", "--goal", "b")


def test_two_runs_are_compared_steps_by_steps(shell: Shell) -> None:
    two(shell)
    said = shell("diff", "a", "b").stdout
    assert said.startswith("a  run a#0: completed, flow review, 1 life\nb  run b#0: completed")
    assert 'input path was "a.md", now "b.md"\ninput scale was 10, now 5\nresult differs\n' in said
    table = re.findall(r"^(\d)  +(load|expert|score) +inputs, output +1 +\d", said, re.MULTILINE)
    assert [number for number, _ in table] == ["1", "2", "3", "4"] and "No steps are the same.\n" in said
    assert "--- a#0 step 1 (load)\n+++ b#0 step 1 (load)\n@@ -1 +1 @@\n-text of a.md\n+text of b.md\n" in said
    assert said.endswith(
        '-    "points": 20\n+    "points": 10\n   }\n }\n\nresult: differs as the output of score does\n'
    )
    assert "\x1b" not in said


def test_equal_runs_and_all_steps_and_one_step(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    two(shell)
    shell("run", "review.py:review", *RUN[:2], "--goal", "c", "--input", "scale=11")
    said = shell("diff", "a", "c").stdout
    assert "3 steps are the same." in said and "expert" not in said
    assert re.search(r"^2 +expert +nothing", shell("diff", "a", "c", "--all").stdout, re.MULTILINE)
    one = shell("diff", "a", "b", "--step", "load").stdout
    assert "step 1 (load)" in one and "expert" not in one and "result" not in one
    assert [pair["path"] for pair in shell.json("diff", "a", "b", "--step", "4")["steps"]] == ["score"]
    assert "neither a#0 nor b#0 has a step 'x'. Their steps: load, expert, score" in (
        shell("diff", "a", "b", "--step", "x", code=2).stderr
    )
    assert shell("diff", "a", "a").stdout.endswith("4 steps are the same.\n")
    assert "There is no run 'nobody'" in shell("diff", "a", "nobody", code=2).stderr


def test_a_long_diff_is_cut_and_json_has_all_of_it(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    (shell.folder / "long.py").write_text(
        "import perdure\n"
        "@perdure.step\ndef lines(n: int) -> str: return '\\n'.join(f'{n} {k}' for k in range(50))\n"
        "@perdure.flow\ndef long(n: int) -> int: return len(lines(n))\n"
    )
    for n in ("1", "2"):
        shell("run", "long.py:long", "--input", f"n={n}", "--goal", f"l{n}")
    cut = shell("diff", "l1", "l2").stdout
    assert "... 63 more lines; --full shows them" in cut and "+2 49" not in cut
    assert "+2 49" in shell("diff", "l1", "l2", "--full").stdout
    told = shell.json("diff", "l1", "l2")
    assert told["same"] is False and "+2 49" in told["steps"][0]["diff"] and told["steps"][0]["found_by"] == "name"
    assert told["inputs"] == [{"argument": "n", "before": "1", "now": "2"}] and told["result_differs"] is False


def test_the_exit_code_tells_a_difference_only_if_it_is_asked_for(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    two(shell)
    shell("diff", "a", "b", code=0)
    shell("diff", "a", "b", "--exit-code", code=7)
    shell("diff", "a", "a", "--exit-code", code=0)
    shell("diff", "a", "b", "--step", "load", "--exit-code", "--json", code=7)


def test_a_diff_is_coloured_on_a_terminal_only_and_moves_no_cursor(
    make_shell: Callable[[str], Shell],
) -> None:
    shell = make_shell("sqlite:runs.db")
    (shell.folder / "rude.py").write_text(
        "import perdure\n"
        "@perdure.step\ndef say(n: int) -> str: return f'\\x1b[2J{n}'\n"
        "@perdure.flow\ndef rude(n: int) -> str: return say(n)\n"
    )
    for n in ("1", "2"):
        shell("run", "rude.py:rude", "--input", f"n={n}", "--goal", f"r{n}")
    shown = shell.terminal("diff", "r1", "r2")
    assert "\x1b[31m-\\u001b[2J1\x1b[0m" in shown and "\x1b[2J" not in shown
    assert "\n-\\u001b[2J1\n" in shell("diff", "r1", "r2").stdout
