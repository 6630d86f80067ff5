"""Power cuts of a real file system, under a writer that is frozen first: what was reported is there at the next mount.

Where no file system can be mounted, the power cuts are reconstructed instead (as in test_power_cut.py), and the summary
of the suite says so.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import crash_crew as crew
import crash_jobs as jobs
import crash_spy as spy
import pytest
from crash_cases import JOBS, STORES, Case
from crash_cuts import LOG_FLUSHED, LOG_LOST, Device, why_not
from crash_plug import Plug
from crash_zygote import Zygote

from perdure.testing.processes import Child

Record = Callable[[str, object], None]
CUTS = 24
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device | str]:
    """A disk whose power can be cut, or why there is none."""
    reason = why_not(tmp_path_factory.mktemp("probe"))
    if reason:
        yield reason
        return
    found = Device(tmp_path_factory.mktemp("device"))
    yield found
    found.close()


def begin(case: Case, root: Path, forgetful: bool) -> Child:
    """A life of the job in a process of its own, which tells us whatever it says to the witness."""

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        if forgetful:
            spy.install(root, lambda number, op: "drop" if op.kind.startswith("sync") else None)
        crew.timeline.note = lambda text: say(text + "\n")
        crew.listen(f"{root}.witness", 1)
        jobs.run(str(root), case.store, case.job)
        hear()  # stay, so that there is somebody to be frozen

    return Child(work)


def cut(case: Case, device: Device, dice: random.Random, most: int, forgetful: bool = False) -> None:
    """One power cut, some time after a thing was said; resume from what is there, judge."""
    device.format()
    after, how = dice.randint(1, most), dice.choice([LOG_FLUSHED, LOG_LOST])
    with case.folder("cut", f"power cut {how} after {after} things were said") as root:
        root.symlink_to(device.path)
        child = begin(case, root, forgetful)
        for _ in range(after):
            child.hear()
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        device.cut(how)
        child.kill()
        device.unmount()
        device.mount()
        try:
            case.judge(root, 1)
        finally:
            root.unlink()


def said(case: Case) -> int:
    """How much is said in a life to which nothing happens."""
    with case.folder("whole", "left in peace") as root:
        assert not case.run("killed", root, 1, at=0, when="").killed
        return len(Path(f"{root}.witness").read_text().splitlines())


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("store", STORES)
def test_what_was_reported_is_there_after_a_real_power_cut(
    zygote: Zygote, place: Path, device: Device | str, store: str, job: str, record_property: Record
) -> None:
    # C1 rel:D1 rel:D2 rel:D3
    if isinstance(device, str):
        plug = Plug(zygote, place, store, job)
        chosen = random.Random(str(plug)).sample(range(1, len(plug.ops)), CUTS)
        plug.pull(1, chosen.__contains__)
        record_property(f"power cuts reconstructed, as no real ones can be made here ({device})", plug.cuts)
        return
    case = Case(zygote, place, store, job)
    dice, most = random.Random(str(case)), said(case)
    for _ in range(CUTS):
        cut(case, device, dice, most)
    record_property("real power cuts", CUTS)


@pytest.mark.parametrize("store", STORES)
def test_a_store_that_syncs_nothing_is_caught_by_real_power_cuts(
    zygote: Zygote, place: Path, device: Device | str, store: str, record_property: Record
) -> None:
    # the known-bad twin
    if isinstance(device, str):
        return  # test_power_cut.py has it caught by the power cuts that stand for these, and the summary says that
    case = Case(zygote, place, store, "async")
    dice, most = random.Random(str(case)), said(case)
    for _ in range(CUTS):
        try:
            cut(case, device, dice, most, forgetful=True)
        except AssertionError as error:
            if "received but not durable" in str(error):
                return
    raise AssertionError(f"no received step was lost in {CUTS} power cuts of a store that syncs nothing")
