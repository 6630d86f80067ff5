"""The bench runs and reports; what it measures is judged by people, not by tests."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import aims, plot
from bench.cast import OURS, PEER
from bench.peers_cast import PEERS
from bench.plan import programme
from bench.workload import Row, Table

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_the_bench_measures_every_workload_and_leaves_nothing_but_what_it_was_asked_for(tmp_path: Path) -> None:
    device, out, samples = tmp_path / "device", tmp_path / "out", tmp_path / "samples.json"
    device.mkdir()
    done = bench("--quick", "--no-peers", "--dir", device, "--out", out, "--json", samples)
    assert done.returncode == 0, done.stderr
    assert not list(device.iterdir()), "it leaves nothing behind"
    told = json.loads(samples.read_text())
    assert list(told["workloads"]) == [f"W{n}" for n in range(9)]
    for rows in told["workloads"].values():
        assert rows and not [row for row in rows if row["problem"] or row["samples"] == [None]]
    judged = {aim["workload"] for aim in told["aims"]}
    assert judged == {"W0", "W1", "W2", "W3", "W5", "W6"}
    assert told["durability"]["Perdure, sqlite, strict, sync"]["repeated"] == 0
    _report_is_sound(out, done.stdout)


def _report_is_sound(out: Path, printed: str) -> None:
    page = (out / "RESULTS.md").read_text()
    for workload in programme(quick=True, with_peers=False):
        assert f"## {workload.id}: {workload.title}" in page and workload.title in printed
    assert not re.search(rf"{re.escape(str(ROOT))}|/tmp|\b{re.escape(platform.node())}\b|/home/|/root/", page)
    pictures = re.findall(r"!\[[^]]+\]\((plots/[^)]+)\)", page)
    assert sorted(pictures) == ["plots/w2-bytes.svg", "plots/w2-time.svg", "plots/w4-resume.svg"]
    for picture in pictures:
        root = ElementTree.parse(out / picture).getroot()
        assert root.tag == f"{SVG}svg"
        # a difference of two times may come out below zero where there is hardly one, and has no place on that scale
        assert root.findall(f"{SVG}circle") or picture == "plots/w4-resume.svg"


def test_a_part_of_the_bench_writes_no_results_unless_told_where(tmp_path: Path) -> None:
    before = (ROOT / "bench" / "RESULTS.md").read_bytes() if (ROOT / "bench" / "RESULTS.md").exists() else None
    done = bench("--quick", "--no-peers", "--dir", tmp_path, "--only", "W5", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["workloads"]) == ["W5"]
    after = (ROOT / "bench" / "RESULTS.md").read_bytes() if (ROOT / "bench" / "RESULTS.md").exists() else None
    assert before == after and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--only", "W99", "--no-peers"), ("--quick", "--peers", "nowhere/python")])
def test_the_bench_says_what_it_cannot_measure(words: tuple[str, ...]) -> None:
    done = bench(*words)
    assert done.returncode == 2 and done.stderr and not done.stdout


def table(rows: dict[Row, list[float]], key: str) -> Table:
    made = Table()
    made.samples = {row: [{key: value} for value in values] for row, values in rows.items()}
    return made


def test_an_aim_is_judged_by_the_median_of_the_ratios_of_each_round() -> None:
    aim = next(aim for aim in aims.AIMS if aim.what == "sqlite, strict, sync: steps over raw commits")
    rows = {("Perdure, sqlite, strict, sync", 9): [50.0, 10.0, 90.0], ("raw sqlite commits (apsw)", 9): [100.0] * 3}
    verdict = aim.judged({"W1": table(rows, "per_second")})
    assert verdict is not None
    assert (verdict.median, verdict.least, verdict.most, verdict.met) == (0.5, 0.1, 0.9, True)
    assert aim.judged({}) is None, "what was not measured is not judged"


def test_every_aim_is_about_somebody_who_takes_part() -> None:
    """An aim whose contender is spelt differently would never be judged, and so never be missed."""
    workloads = programme(quick=False, with_peers=True)
    tables = {}
    for workload in workloads:
        made = Table()
        keys = {figure.key for figure in workload.figures} | {"payload"}
        made.samples = {entry.row: [dict.fromkeys(keys, 1.0)] for entry in workload.entries}
        tables[workload.id] = made
    assert [aim.what for aim in aims.AIMS if aim.judged(tables) is None] == []


def test_the_bounds_are_those_that_were_promised() -> None:
    bounds = {f"{aim.workload} {aim.what}": aim.bound for aim in aims.AIMS}
    assert len(bounds) == len(aims.AIMS)
    assert bounds["W1 sqlite, strict, sync: steps over raw commits"] == 0.45
    assert bounds["W1 sqlite, strict, async: steps over raw commits"] == 0.33
    assert bounds["W1 sqlite, pipelined, sync: steps over raw commits"] == 0.8
    assert bounds["W1 sqlite, pipelined, async: steps over raw commits"] == 0.65
    assert bounds["W1 file, pipelined, sync: steps over raw commits"] == 0.8
    assert (bounds["W2 sqlite: bytes over payload"], bounds["W2 sqlite: time of 2,000 steps over 1,000"]) == (1.5, 2.2)
    assert bounds["W3 sqlite: over the best durable peer"] == 15
    assert bounds["W3 postgresql: over the best durable peer"] == 4
    assert bounds["W3 sqlite: steps over raw single commits"] == 3
    assert bounds["W4 sqlite, flow: 10,000 steps"] == 0.25


def test_contenders_have_names_of_their_own_and_peers_run_elsewhere() -> None:
    for workload in programme(quick=True, with_peers=True):
        for contender in workload.contenders.values():
            assert contender.program.startswith("peers." if contender.role == PEER else "programs.")
    for path in (ROOT / "bench" / "peers").glob("*.py"):
        assert not re.search(r"^\s*(import|from) perdure\b", path.read_text(), re.MULTILINE), path
    assert len({peer.contender.name for peer in PEERS}) == len(PEERS)
    assert all(peer.contender.role == PEER != OURS for peer in PEERS)


def test_curves_leave_out_what_has_no_place_on_their_axes_and_escape_names() -> None:
    root = ElementTree.fromstring(plot.curves("a < b", "x", "y", {"<i>": [(1, 2), (10, 20), (100, 0)], "none": []}))
    assert len(root.findall(f"{SVG}circle")) == 2
    assert [text.text for text in root.findall(f"{SVG}text")][-1] == "<i>"
