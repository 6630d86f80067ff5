"""The bench runs and reports; what it measures is judged by people, not by tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_bench_measures_every_scenario_against_raw_commits(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", "--dir", tmp_path],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    aims = {row["name"]: row["aim"] for row in told["scenarios"] if row["aim"] is not None}
    assert sorted(aims.values()) == [0.3, 0.4, 0.4, 0.4, 0.6, 0.7, 0.7, 0.75, 3.0, 3.0, 3.0]
    assert all(row["ratio"] > 0 and row["raw_per_second"] > 0 for row in told["scenarios"])
    assert told["import_ms"]["aim"] == 60.0
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"
