"""``perdure fork`` and ``ls --tree``, as a stranger uses them."""

from __future__ import annotations

from collections.abc import Callable

from stranger import Shell


def ran(shell: Shell) -> list[str]:
    """What was executed since it was asked last."""
    file = shell.folder / "ran.txt"
    names = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return names


def begun(shell: Shell) -> None:
    shell("run", "review.py:review", "-i", "path=a.md", "-i", "scale=2", "--goal", "g", "--quiet")
    assert sorted(ran(shell)) == ["ann", "bob", "load", "score"]


def test_a_stranger_changes_an_input_and_pays_for_what_takes_it(shell: Shell) -> None:  # X2
    begun(shell)
    told = shell.json("fork", "g", "--after", "load", "--set", "scale=5")
    assert (told["run"], told["forked_from"], told["kept"]) == ("g#1", "g#0", 1) and told["at_seq"] == 3
    assert told["resume"].endswith("resume 'g#1' --app review.py:review")
    assert shell.json("resume", "g#1", "--app", "review.py:review")["result"]["fields"] == {"points": 10}
    assert sorted(ran(shell)) == ["ann", "bob", "score"]
    done = shell.json("fork", "g#0", "--set", "scale=7", "--set", "path=a.md", "--app", "review.py:review")
    assert (done["run"], done["result"]["fields"]) == ("g#2", {"points": 14}) and ran(shell) == ["score"]
    again = shell.json("run", "review.py:review", "-i", "path=a.md", "-i", "scale=7", "--goal", "g", "--episode", "2")
    assert again["result"]["fields"] == {"points": 14}, "without --adopt-input"
    assert ran(shell) == []
    tree = [line.split() for line in shell("ls", "--tree").stdout.splitlines()]
    assert [row[0] for row in tree] == ["run", "g#0", "g#1", "g#2"]
    assert shell("ls", "--tree").stdout.splitlines()[2].startswith("  g#1  after step 1 (load)  completed")
    assert "forked from g#0 after step 1 (load) by " in shell("show", "g#1").stdout


def test_a_stranger_gives_a_step_another_result_from_a_file(make_shell: Callable[[str], Shell]) -> None:  # X12
    shell = make_shell("file:runs")
    begun(shell)
    (shell.folder / "better.md").write_text("a better text")
    shell("fork", "g", "--output", "load=@better.md", "--by", "ann", "--goal", "h")
    assert "completed, edited by ann" in shell("show", "h").stdout
    shell("resume", "h", "--app", "review.py:review", "--quiet")
    assert sorted(ran(shell)) == ["ann", "bob", "score"]
    assert shell("output", "h", "expert").stdout.strip().endswith(": a better text")
    assert shell("output", "g", "expert").stdout.strip().endswith(": text of a.md")
    assert "none damaged" in shell("check").stdout


def test_a_stranger_answers_otherwise(make_shell: Callable[[str], Shell]) -> None:  # X2 W1
    shell = make_shell("sqlite:runs")
    (shell.folder / "asks.py").write_text(
        "import perdure\n\n\n@perdure.flow\ndef asks() -> str:\n"
        "    sure: bool = perdure.ask('Sure?', answer=bool)\n"
        "    return perdure.ask('Where?', choices=['web', 'print'], name='where') if sure else 'no'\n"
    )
    shell("run", "asks.py:asks", "--goal", "g", "--quiet", code=5)
    shell("answer", "g", "--value", "no", "--app", "asks.py:asks")
    told = shell.json("fork", "g", "--answer", "ask=yes", "--app", "asks.py:asks", code=5)
    assert told["run"] == "g#1" and told["questions"][0]["prompt"] == "Where?"
    assert shell("fork", "g#1", "--answer", "where=2", "--app", "asks.py:asks").stdout.strip() == "print"
    wrong = shell("fork", "g#1", "--answer", "where=moon", code=2).stderr
    assert "is no answer to question 2" in wrong and len(shell.json("ls")) == 3
    late = shell("fork", "g#0", "--after", "ask", "--answer", "ask=yes", code=2).stderr
    assert "answered already" in late and "Leave out --after" in late


def test_a_stranger_is_told_what_is_wrong(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs")
    begun(shell)
    for words, said in (
        (("--set", "scale=many"), "--set: 'many' is not a whole number"),
        (("--set", "scale=1.5"), "is not a whole number"),
        (("--set", "tone=harsh"), "left at its default"),
        (("--set", "tone=soft", "--app", "review.py:review"), "The input tone='soft' is no"),
        (("--set", "colour=red"), "has no input 'colour'"),
        (("--set", "scale"), "'scale' has no '='"),
        (("--set", "scale=1", "--set", "scale=2"), "'scale' is given twice"),
        (("--output", "score=3"), "is known to its program only"),
        (("--output", "load=@nowhere"), "cannot be read from 'nowhere'"),
        (("--after", "1", "--at", "3"), "after and at both say"),
        (("--at", "0"), "cannot be forked after entry 0"),
        (("--after", "where"), "has no step 'where'"),
    ):
        assert said in shell("fork", "g", *words, code=2).stderr
    assert len(shell.json("ls")) == 1 and ran(shell) == []
    done = shell.json("fork", "g", "--set", "tone=harsh", "--app", "review.py:review")
    assert done["run"] == "g#1" and ran(shell) == [], "nothing takes the tone"
    assert "none damaged" in shell("check").stdout
