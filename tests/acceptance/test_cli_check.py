"""``perdure check`` and a long ``ls`` as a stranger uses them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from stranger import Shell

from perdure.cli import main
from perdure.framing import frame
from perdure.model import RunKey
from perdure.stores import open_store
from perdure.stores.base import Append

ONE = ("run", "review.py:review", "-i", "path=a", "--goal", "one", "--quiet")


@pytest.fixture
def shell(make_shell: Callable[[str], Shell]) -> Shell:
    made = make_shell("file:runs")
    made(*ONE)
    with (made.folder / "runs/runs/one.0/journal.jsonl").open("ab") as file:
        file.write(b'{"torn')
    return made


def test_what_a_crash_left_is_told_then_mended_and_its_copy_named(shell: Shell) -> None:
    told = shell("check").stdout
    assert "repair (torn_tail): run one#0: the last 6 bytes" in told and "1 to repair: perdure check --repair" in told
    assert told.splitlines()[-1] == "1 run read, none damaged"
    told = shell("check", "--repair").stdout
    (copy,) = shell.folder.glob("runs/repaired-*/**/*.torn")
    assert "Repaired." in told and f"copies of what was there are in {copy.parents[2]}" in told
    assert copy.read_bytes() == b'{"torn' and copy.stat().st_mode & 0o777 == 0o600
    assert "repair" not in shell("check").stdout


def test_it_is_told_in_json_too_and_copies_go_where_they_are_to(shell: Shell) -> None:
    told = shell.json("check", "one", "--repair", "--keep", "kept")
    (found,) = told["findings"]
    assert (found["kind"], found["level"], found["run"], found["repaired"]) == ("torn_tail", "repair", "one#0", True)
    assert told["copies"] == "kept" and told["counts"]["repaired"] == 1 and told["exit_code"] == 0
    assert [path.read_bytes() for path in (shell.folder / "kept").rglob("*.torn")] == [b'{"torn']
    assert shell.json("check")["findings"] == []


def test_what_somebody_has_is_left_and_a_newer_record_is_no_damage(make_shell: Callable[[str], Shell]) -> None:
    shell = make_shell("sqlite:runs.db")
    shell(*ONE)
    store = open_store(f"sqlite:{shell.folder / 'runs.db'}")
    lease = store.claim(RunKey("one"))
    row, lines = store.runs()[0], store.read(lease.key)
    assert store.append([Append(lease, len(lines), (), replace(row, status="failed", holder=None))]) == [None]
    told = shell("check", "--repair", code=3).stdout
    assert "1 executed now" in told and "Left: Run one#0 is being executed by process" in told
    record = frame(lease.key, b'{"kind":"step_dreamt/1","seq":%d}' % (len(lines) + 1))
    assert store.append([Append(lease, len(lines), (record,), replace(row, seq=len(lines) + 1, holder=None))]) == [None]
    told = shell("check", code=2).stdout
    assert "newer: run one#0: record" in told and "none damaged" in told
    store.close()


def test_words_that_do_not_fit_are_refused(shell: Shell) -> None:
    assert "--keep DIR is for" in shell("check", "--keep", "x", code=2).stderr
    assert "There is no run 'two'" in shell("check", "two", code=2).stderr
    assert "There is no store" in shell("check", "--store", "file:nowhere", code=2).stderr
    assert not (shell.folder / "nowhere").exists()


def test_a_run_of_which_only_the_place_is_left_can_be_checked(shell: Shell) -> None:
    (shell.folder / "runs/runs/one.0/run.json").write_text("{")
    assert "run.json is damaged" in shell("check", "one", code=4).stdout


def test_a_listing_in_pages_is_one_table_and_one_array(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], make_shell: Callable[[str], Shell]
) -> None:
    shell = make_shell("sqlite:runs.db")
    for goal in ("a", "bb", "a much longer name"):
        shell("submit", "review.py:review", "-i", "path=a", "--goal", goal)
    shell("run", "review.py:review", "-i", "path=a", "--goal", "zz", "--quiet")
    monkeypatch.setattr("perdure.cli.listing._PAGE", 2)
    monkeypatch.setattr("perdure.runtime.look._PAGE", 2)
    store = f"sqlite:{shell.folder / 'runs.db'}"
    assert main(["ls", "--json", "--store", store]) == 0
    rows = json.loads(capfdbinary.readouterr().out)
    assert [row["goal"] for row in rows] == ["a", "a much longer name", "bb", "zz"]
    assert main(["ls", "--store", store]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["a#0", "a much longer name#0", "bb#0", "zz#0"]
    assert main(["ls", "--status", "completed", "--json", "--store", store]) == 0
    assert [row["goal"] for row in json.loads(capfdbinary.readouterr().out)] == ["zz"]
    assert main(["ls", "--status", "failed", "--store", store]) == 0
    assert b"No runs of that kind" in capfdbinary.readouterr().out
    assert main(["ls", "--status", "failed", "--json", "--store", store]) == 0
    assert json.loads(capfdbinary.readouterr().out) == []


def test_how_far_it_is_shows_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], shell: Shell
) -> None:
    monkeypatch.setattr("perdure.cli.counter._PAUSE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    store = f"file:{shell.folder / 'runs'}"
    for command, said in (("check", "1 runs read"), ("check", "1 places looked at"), ("ls", "1 runs looked at")):
        assert main([command, "--store", store]) == 0
        told = capfd.readouterr()
        assert f"\r{said}" in told.err and said not in told.out
    assert main(["check", "--json", "--store", store]) == 0 and capfd.readouterr().err == ""
