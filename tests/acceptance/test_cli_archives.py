"""``perdure export`` and ``import`` as a stranger uses them, also wrongly."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import tarfile
from collections.abc import Callable

from stranger import Shell

RUN = ("run", "review.py:review", "--input", "path=a.md", "--goal", "paper")


def crashed(shell: Shell, goal: str = "paper") -> None:
    """A run whose process was killed in the middle of an expert."""
    shell.trap("bob", "SIGKILL")
    shell("run", "review.py:review", "-i", "path=a.md", "--goal", goal, code=-9)
    shell.ran()


def test_a_run_that_was_killed_here_goes_on_in_another_store(make_shell: Callable[[str], Shell]) -> None:
    """issue 6.5 rel:S15"""
    shell = make_shell("file:runs")
    crashed(shell)
    told = shell("export", "paper", "-o", "paper.tgz").stdout
    assert told.startswith("Exported 1 run (") and told.rstrip().endswith(" bytes.")
    assert stat.S_IMODE((shell.folder / "paper.tgz").stat().st_mode) == 0o600
    listed = subprocess.run(["tar", "tzf", "paper.tgz"], cwd=shell.folder, capture_output=True, text=True, check=True)
    assert listed.stdout.split()[0] == "perdure.json" and listed.stdout.split()[-1] == "end.json"
    done = {step["name"] for step in shell.json("show", "paper")["steps"] if step["state"] == "completed"}
    assert "load" in done

    there = ("--store", "sqlite:there.db")
    told = shell("import", "paper.tgz", *there).stdout
    assert "It is sound." in told and "Imported 1 run into sqlite:" in told
    assert "1 run came in paused. Let one go on with:" in told and "unpause 'paper#0' --store sqlite:there.db" in told
    stopped = shell(*RUN, *there, code=5)
    assert "imported from paper.tgz, where it was running: let it go on with perdure unpause" in stopped.stderr
    shell("worker", "--app", "review.py", "--until-idle", "--quiet", *there)
    assert shell.ran() == [], "nothing is executed before a person says so"
    shell("unpause", "paper", *there)
    shell("worker", "--app", "review.py", "--until-idle", "--quiet", *there)
    ran = set(shell.ran())
    assert {"bob", "score"} <= ran and not ran & done
    assert shell.json("show", "paper", *there)["status"] == "completed"
    told = shell("import", "paper.tgz", *there).stdout
    assert "Imported 0 runs" in told and "1 run: here already." in told


def test_a_whole_store_goes_through_a_pipe(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    shell(*RUN)
    shell("submit", "review.py:review", "-i", "path=b.md", "--goal", "later")
    words = " ".join(shell.words("export", "--all", "-o", "-"))
    into = " ".join(shell.words("import", "-", "--trust", "--store", "file:there", "--json"))
    done = subprocess.run(
        ["sh", "-c", f"{words} | {into}"], cwd=shell.folder, env=shell.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    came = json.loads(done.stdout)["runs"]
    assert [(run["run"], run["fate"], run["paused"]) for run in came] == [
        ("later#0", "imported", False),
        ("paper#0", "imported", False),
    ]
    assert "Exported 2 runs" in done.stderr
    shell.ran()
    shell("worker", "--app", "review.py", "--until-idle", "--quiet", "--store", "file:there")
    assert shell.ran() == ["ann", "bob", "load", "score"]


def test_what_is_no_archive_is_refused_and_no_store_is_made(make_shell: Callable[[str], Shell]) -> None:  # rel:B3
    shell = make_shell("sqlite:never.db")
    with tarfile.open(shell.folder / "evil.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("../../escaped")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    error = shell("import", "evil.tgz", code=2).stderr
    assert "is a symbolic link, and there are only plain files" in error and len(error) < 400
    assert shell.json("import", "review.py", code=2)["error"]["exit_code"] == 2
    assert not any(name.startswith("never") for name in os.listdir(shell.folder))


def test_a_damaged_run_keeps_no_others_from_a_backup(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("file:runs")
    for goal in ("good", "bad"):
        shell("run", "review.py:review", "-i", "path=a.md", "--goal", goal)
    journal = shell.folder / "runs" / "runs" / "bad.0" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"text of a.md", b"text of b.md", 1))
    done = shell("export", "--all", "-o", "all.tgz", code=4)
    assert "Exported 1 run " in done.stdout and "bad#0" in done.stderr


def test_a_disk_that_is_full_leaves_no_half_archive(make_shell: Callable[[str], Shell]) -> None:  # rel:D10
    shell = make_shell("file:runs")
    shell(*RUN)

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

    words = shell.words("export", "paper", "-o", "paper.tgz")
    done = subprocess.run(
        words, cwd=shell.folder, env=shell.environment, capture_output=True, text=True, preexec_fn=small
    )
    assert done.returncode == 4 and "EFBIG" in done.stderr and "Traceback" not in done.stderr
    assert [name for name in os.listdir(shell.folder) if "paper" in name] == []
    shell("export", "paper", "-o", "paper.tgz")
    words = shell.words("import", "paper.tgz", "--store", "file:there")
    done = subprocess.run(
        words, cwd=shell.folder, env=shell.environment, capture_output=True, text=True, preexec_fn=small
    )
    assert done.returncode == 4 and "EFBIG" in done.stderr and "Traceback" not in done.stderr


def test_of_many_runs_that_come_in_paused_the_first_are_named(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    (shell.folder / "many.py").write_text(
        "import perdure\nflow = perdure.flow(lambda: 1)\n"
        "with perdure.CheckpointManager() as manager:\n"
        "    for n in range(120): manager.submit(flow, goal=f'g{n}')\n"
    )
    subprocess.run([*shell.words()[:1], "many.py"], cwd=shell.folder, env=shell.environment, check=True)
    shell("export", "--all", "-o", "all.tgz")
    assert "... and 100 more" in shell("import", "all.tgz", "--store", "sqlite:there.db").stdout
