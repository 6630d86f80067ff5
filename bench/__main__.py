"""``python -m bench``: ratios against raw commits that are measured in turn with each scenario: SQLite's, or for
scenarios of a server those of its own driver.

Machines are noisy, so that absolute figures mean nothing; the ratio of neighbours in time does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.scenarios import SCENARIOS, Scenario, import_cost, raw
from bench.servers import SERVER_SCENARIOS

_RAW_SIZE = 800


def measure(scenario: Scenario, folder: str | None, rounds: int, scale: float) -> dict[str, Any]:
    """Raw, scenario, raw, scenario, ..., raw; each ratio is against the mean of its neighbours."""
    bases, rates = [], []
    base = scenario.base or raw
    for _ in range(rounds):
        bases.append(_fresh(base, folder, max(int(_RAW_SIZE * scale), 20)))
        rates.append(_fresh(scenario.work, folder, max(int(scenario.size * scale), 2)))
    bases.append(_fresh(base, folder, max(int(_RAW_SIZE * scale), 20)))
    ratios = [rate * 2 / (bases[n] + bases[n + 1]) for n, rate in enumerate(rates)]
    return {
        "name": scenario.name,
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "aim": scenario.aim,
        "per_second": statistics.median(rates),
        "raw_per_second": statistics.median(bases),
    }


def _fresh(work: Any, folder: str | None, size: int) -> float:
    with tempfile.TemporaryDirectory(dir=folder, prefix="perdure-bench-") as place:
        return float(work(Path(place), size))


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    aim = f"{row['aim']:.2f} {'met' if row['ratio'] >= row['aim'] else 'NOT MET'}" if row["aim"] is not None else "-"
    spread = f"{row['min']:.2f}..{row['max']:.2f}"
    return f"{row['name']:<44}{row['ratio']:6.2f}  {spread:<14}{aim:<14}{row['per_second']:8.0f}"


def main() -> int:
    """Measure, print, and say with --check whether every aim is met."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--dir", help="a folder on the device to measure (default: that of the working directory)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help="scenarios whose name contains this")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an aim is not met")
    chosen = parser.parse_args()
    rounds, scale = (1, 0.01) if chosen.quick else (chosen.rounds, 1.0)
    folder = chosen.dir or str(Path.cwd())
    rows = []
    if not chosen.json:
        print(f"{'scenario':<44}{'ratio':>6}  {'min..max':<14}{'aim':<14}{'per s':>8}   (raw commits = 1)")
    for scenario in (*SCENARIOS, *SERVER_SCENARIOS):
        if chosen.only and chosen.only not in scenario.name:
            continue
        rows.append(measure(scenario, folder, rounds, scale))
        if not chosen.json:
            print(line(rows[-1]), flush=True)
    cost = import_cost(rounds * 2)
    if chosen.json:
        print(json.dumps({"scenarios": rows, "import_ms": cost}))
    else:
        print(f"import perdure after asyncio: {cost['median']:.0f} ms ({cost['min']:.0f}..{cost['max']:.0f}), aim 60")
    missed = [row["name"] for row in rows if row["aim"] is not None and row["ratio"] < row["aim"]]
    return 1 if chosen.check and (missed or cost["median"] > cost["aim"]) else 0


if __name__ == "__main__":
    sys.exit(main())
