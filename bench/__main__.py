"""``python -m bench``: Perdure, the raw limit of the device, and peers, measured in turn on the same payloads.

Machines are noisy, so that absolute figures mean little; the ratio of neighbours in time does.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from bench import durability, machine, report, tables
from bench.plan import programme
from bench.player import ROOT
from bench.stage import Stage
from bench.workload import Workload, tell

PEERS_PYTHON = ROOT / ".venv" / "peers" / "bin" / "python"
DURABILITY = "durability"
"""what ``--only`` calls the part that looks at what durability really is"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", metavar="W3,W4", help=f"these workloads alone; {DURABILITY} is one too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: shows that it works")
    parser.add_argument("--rounds", type=int, help="default 5, and 1 with --quick")
    parser.add_argument("--no-peers", action="store_true", help="Perdure and the raw limit alone")
    parser.add_argument("--peers", type=Path, default=PEERS_PYTHON, help="the Python that has the peers installed")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a folder on the device to measure")
    parser.add_argument("--out", type=Path, help="write RESULTS.md and plots/ there; default bench/, of a whole run")
    parser.add_argument("--json", metavar="FILE", help="write every sample there; - for the standard output")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an aim is missed or somebody left out")
    return parser.parse_args()


def main() -> int:
    """0; 1 with --check if an aim is missed; 2 if it cannot be measured as asked for; 130 if it is told to stop."""
    chosen = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _carried_out(chosen)
    except KeyboardInterrupt:
        print("Stopped. Servers and folders are removed, and RESULTS.md is as it was.", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    """What ends the bench leaves no server behind."""
    raise KeyboardInterrupt


def _carried_out(chosen: argparse.Namespace) -> int:
    if not chosen.no_peers and not chosen.peers.exists():
        print("The peers' environment is not there: `make bench` makes it; or pass --no-peers.", file=sys.stderr)
        return 2
    workloads = programme(chosen.quick, with_peers=not chosen.no_peers)
    known = [*(workload.id for workload in workloads), DURABILITY]
    only = chosen.only.split(",") if chosen.only else known
    if not set(only) <= set(known):
        print(f"--only takes some of {', '.join(known)}.", file=sys.stderr)
        return 2
    outcome = _measured(chosen, workloads, only)
    lines, missed = tables.judged(outcome.measured)
    if chosen.json != "-":
        print(f"Aims\n{tables.plain(lines)}")
    _written(chosen, outcome, whole=only == known and not chosen.quick)
    left_out = any(table.problems for table in outcome.measured.values())
    return 1 if chosen.check and (missed or left_out) else 0


def _measured(chosen: argparse.Namespace, workloads: list[Workload], only: list[str]) -> report.Outcome:
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    there = {} if chosen.no_peers else machine.versions_there(chosen.peers, report.PACKAGES)
    stage = Stage(chosen.dir, None if chosen.no_peers else chosen.peers)
    measured, taking_part = {}, [workload for workload in workloads if workload.id in only]
    try:
        for workload in taking_part:
            table = measured[workload.id] = workload.run(stage, rounds)
            if chosen.json != "-":
                print(f"{workload.id}: {workload.title}\n{tables.plain(tables.cells(workload, table))}\n", flush=True)
        seen = durability.look(stage, workloads[1], chosen.quick) if DURABILITY in only else {}
    finally:
        tell("tidying up")
        stage.close()
    facts, versions, cast = machine.facts(chosen.dir), machine.our_versions(), workloads[1].contenders
    return report.Outcome(facts, versions, there, rounds, taking_part, measured, seen, cast)


def _written(chosen: argparse.Namespace, outcome: report.Outcome, whole: bool) -> None:
    folder = chosen.out or (ROOT / "bench" if whole else None)
    if folder is not None:
        report.write(outcome, folder)
    if chosen.json == "-":
        print(json.dumps(outcome.as_json()))
    elif chosen.json:
        Path(chosen.json).write_text(json.dumps(outcome.as_json(), indent=1))


if __name__ == "__main__":
    sys.exit(main())
