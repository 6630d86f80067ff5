"""Wrong words for ``perdure export`` and ``import``, and what they say of a run that is here: in one process."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from archive_shapes import run

import perdure
from perdure.cli import main
from perdure.errors import RunSuspended


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store that has one run, and an archive of that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_STORE", "sqlite:runs.db")
    run(perdure.open_store("sqlite:runs.db"), "paper", ("work", 9_000), ("ask", None))
    assert main(["export", "paper", "-o", "paper.tgz"]) == 0
    (tmp_path / "text").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("paper -o text", "text is there already. Nothing was written."),
        ("paper -o .", "is no regular file"),
        ("paper -o gone/x.tgz", "gone"),
        ("nobody -o x.tgz", "There is no run 'nobody'"),
        ("-o x.tgz", "Name the runs to export, or say --all"),
        ("paper --all -o x.tgz", "Name the runs to export, or say --all"),
        ("paper", "Missing option '-o'"),
        ("paper -o - --json", "nothing for a terminal, or among JSON"),
        ("paper -o x.tgz --store sqlite:gone.db", "gone.db"),
    ],
)
def test_wrong_words_for_an_export(here: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(here))
    assert main(["export", *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert sorted(os.listdir(here)) == before and (here / "text").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("paper.tgz --skip --new", "contradict each other"),
        ("paper.tgz --max-size much", "'much' is no size. Write a number and k, M, G or T: 500M."),
        ("paper.tgz --max-size 0", "more than 0 members, which is more than is taken"),
        ("paper.tgz --max-size 1K", "more than 1,000 bytes, which is more than is taken without asking"),
        ("text", "it is no gzip file"),
        ("gone.tgz", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("", "Missing argument 'FILE'"),
        ("paper.tgz --dry-run", "There is no store at"),
    ],
)
def test_wrong_words_for_an_import(here: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(here))
    assert main(["import", *words.split(), "--store", "sqlite:never.db"]) == 2
    assert said in capsys.readouterr().err
    assert sorted(os.listdir(here)) == before, "no store was made"


def test_names_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((("--as", "../x"), "the path component '..'"), (("--by", " "), "by is empty")):
        assert main(["import", "paper.tgz", "--store", "file:there", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["ls", "--store", "file:there", "--json"]) == 0 and capsys.readouterr().out == "[]\n"


def test_an_import_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    there = ("--store", "file:there")
    run(perdure.open_store("file:there"), "paper", ("work", 3))
    for words, said in (
        (("--skip",), "1 run: left as they are here, with other content."),
        (("--new", "--dry-run"), "Would import 1 run into file:"),
        (("--new", "--dry-run"), "paper#0 would come in as paper#1"),
        (("--new",), "paper#0 came in as paper#1"),
        (("--new",), "1 run: here already."),
        (("--as", "copy", "--by", "ann"), "unpause 'copy#0' --store file:there"),
    ):
        assert main(["import", "paper.tgz", *words, *there]) == 0
        assert said in capsys.readouterr().out
    assert main(["ls", "--json", *there]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == ["copy#0", "paper#0", "paper#1"]
    assert main(["import", "paper.tgz", *there, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "1 of 1 runs of paper.tgz are here already, with other content: paper#0" in told and "--skip" in told


def test_an_archive_that_is_larger_than_usual_is_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.runtime.archive.ArchiveWriter.exceeds", lambda self, bounds: True)
    assert main(["export", "paper", "-o", "large.tgz", "--json"]) == 0
    needed = json.loads(capsys.readouterr().out)["allow"]
    assert main(["export", "paper", "-o", "large.tgz", "--force"]) == 0
    assert f"import it with --max-size {needed}" in capsys.readouterr().out
    assert main(["import", "large.tgz", "--max-size", str(needed), "--store", "file:there"]) == 0


def test_a_deadline_at_the_end_of_all_dates_is_shown_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asks = perdure.flow(
        lambda: perdure.ask("Now?", answer=bool, deadline=datetime(9999, 12, 31, 23, tzinfo=UTC)), name="f"
    )
    with suppress(RunSuspended):
        perdure.run(asks, goal="late")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert main(["export", "late", "-o", "late.tgz"]) == 0
        assert main(["import", "late.tgz", "--store", "file:there"]) == 0
        assert main(["questions", "--store", "file:there", "--json"]) == 0
        assert '"until":"9999-01-01T' in capsys.readouterr().out
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_archive_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    stream = io.TextIOWrapper(io.BytesIO((here / "paper.tgz").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert main(["import", "-", "--store", "file:there"]) == 0
    with perdure.Client("file:there") as client:
        assert client.find("paper").status == "paused"


def test_how_far_it_is_shows_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("perdure.cli.counter._PAUSE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["export", "--all", "-o", "all.tgz"]) == 0
    assert "\r1 runs exported ..." in capsys.readouterr().err
    assert main(["import", "all.tgz", "--store", "file:there"]) == 0
    told = capsys.readouterr()
    assert "\r1 runs checked ..." in told.err and "\r1 runs imported ..." in told.err and "..." not in told.out
