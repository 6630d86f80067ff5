"""``perdure replay`` as a stranger uses it, rightly and wrongly."""

from __future__ import annotations

from collections.abc import Callable

from stranger import Shell

RUN = ("--input", "path=a.md", "--goal")
APP = ("--app", "review.py")


def edit(shell: Shell, old: str, new: str) -> None:
    program = (shell.folder / "review.py").read_text()
    assert program.count(old) == 1
    (shell.folder / "review.py").write_text(program.replace(old, new))


def test_a_completed_run_is_followed_until_the_code_leaves_it(shell: Shell) -> None:  # X11 rel:R5
    shell("run", "review.py:review", *RUN, "a")
    shell.ran()
    said = shell("replay", "a", *APP).stdout
    assert said == (
        "a#0 (review) follows its records\n1 run replayed: 1 can be followed, 0 diverge. No step was executed.\n"
    )
    edit(shell, '("ann", "bob")', '("ann", "carl")')
    said = shell("replay", "a", *APP, code=7).stdout
    assert 'DIVERGES: expert is asked for with inputs that no record has: name was "bob", now "carl"' in said
    told = shell.json("replay", "a", *APP, code=7)
    assert told["ok"] is False and told["runs"][0]["verdict"] == "diverges" and told["runs"][0]["step"] == 3
    assert shell.ran() == []


def test_before_a_deploy_the_runs_that_have_not_ended_are_looked_at(shell: Shell) -> None:  # X11
    (shell.folder / "break-bob").touch()
    shell("run", "review.py:review", *RUN, "failed", code=1)
    (shell.folder / "break-bob").unlink()
    shell.trap("score", "SIGKILL")
    shell("run", "review.py:review", *RUN, "crashed", code=-9)
    shell("run", "review.py:review", *RUN, "done")
    shell("submit", "review.py:hold", "--input", "path=x", "--goal", "queued")
    shell.ran()
    before = [shell.json("ls"), shell("tail", "crashed", "--no-follow", "--json").stdout]
    said = shell("replay", "--unfinished", *APP).stdout
    assert "crashed#0 (review) follows its records as far as they go, and would go on with score again\n" in said
    assert "queued#0 (hold) follows its records as far as they go, and would go on with load(" in said
    assert said.endswith("2 runs replayed: 2 can be followed, 0 diverge. No step was executed.\n")
    assert "Runs of other flows were left out: hold (1)." in shell("replay", "--app", "review.py:review").stdout
    edit(shell, "text = load(path)", "text = load(path + '?')")
    said = shell("replay", *APP, code=7).stdout
    assert 'crashed#0 (review) DIVERGES: load is asked for with inputs that no record has: path was "a.md"' in said
    after = [shell.json("ls"), shell("tail", "crashed", "--no-follow", "--json").stdout]
    assert after[1] == before[1] and [row["seq"] for row in after[0]] == [row["seq"] for row in before[0]]
    assert shell.ran() == []


def test_an_archive_is_replayed_without_a_store(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    shell("run", "review.py:review", *RUN, "a")
    shell("export", "--all", "-o", "recorded.perdure")
    nowhere = {"PERDURE_STORE": "sqlite:nowhere.db"}
    said = shell("replay", "--from", "recorded.perdure", *APP, **nowhere).stdout
    assert said.startswith("a#0 (review) follows its records\n")
    assert not (shell.folder / "nowhere.db").exists()
    refused = shell("replay", "--from", "recorded.perdure", "--app", "review.py:hold", code=2).stderr
    assert "recorded.perdure has no run of hold to replay. It has runs of: review (1)." in refused
    assert "cannot be read" in shell("replay", "--from", "no.perdure", *APP, code=2).stderr


def test_wrong_words_are_refused(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    shell("run", "review.py:review", *RUN, "a")
    for words, said in (
        (("a",), "Missing option '--app'"),
        (("nobody", *APP), "There is no run 'nobody'"),
        (("a", "--unfinished", *APP), "Name runs, or say --unfinished"),
        (("a", "--app", "nothing.py"), "There is no file"),
        (("a", "--app", "review.py:hold"), "run a#0 is of the flow 'review', which is not among: hold"),
        (("--from", "x.perdure", "--store", "memory:", *APP), "from an archive or from a store, not both"),
    ):
        assert said in shell("replay", *words, code=2).stderr


def test_nothing_to_replay_in_a_store_is_no_failure(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    shell("run", "review.py:review", *RUN, "a")
    assert shell("replay", *APP).stdout == "0 runs replayed: 0 can be followed, 0 diverge. No step was executed.\n"
