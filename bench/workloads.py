"""W0 to W8: what is done with each, and what is told of it."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.cast import OURS, RAW, Contender, raw
from bench.player import ENVIRONMENT, ROOT, once
from bench.stage import Place, Stage
from bench.talk import Sample
from bench.workload import Entry, Figure, Ratio, Row, Table, Workload

MB = 1 / 1024 / 1024
_STEPS_PER_SECOND = Figure("per_second", "steps/s")


def _of_raw(base: Callable[[str], Contender]) -> Callable[[Contender, int], Row | None]:
    """The row of the raw limit of the same kind of store; sizes are those of the raw limit's only row."""

    def found(contender: Contender, size: int) -> Row | None:
        return (base(contender.store).name, size) if contender.role != RAW else None

    return found


class Import(Workload):
    id = "W0"
    title = "Importing Perdure"
    about = "`import perdure` in a process that has imported asyncio; drivers come only with the store that needs them."
    figures = (Figure("milliseconds", "ms", "{:.0f}"),)

    def prepare(self, stage: Stage, entry: Entry, stack: ExitStack) -> Place | None:
        self.play(stage, entry, None)  # what is imported for the first time has to be compiled
        return None

    def play(self, stage: Stage, entry: Entry, prepared: Place | None) -> Sample:
        code = "import asyncio, time; t = time.perf_counter(); import perdure; print((time.perf_counter() - t) * 1000)"
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
        return {"milliseconds": float(done.stdout)}


class OneRun(Workload):
    id = "W1"
    title = "One run, steps one after the other"
    about = (
        "One run of {size} sequential steps with results of 1 KiB, begin and end included. A raw commit is one record "
        "of 1 KiB that is on stable storage before the next is sent; `strict` waits for the device twice a step, "
        "`pipelined` once."
    )
    figures = (_STEPS_PER_SECOND, Figure("bytes", "bytes a step", spread=False))
    ratios = (Ratio("of raw", "per_second", _of_raw(raw)),)

    def finish(self, table: Table) -> None:
        for row, samples in table.samples.items():
            for sample in samples:
                if sample is not None and "bytes" in sample:
                    sample["bytes"] /= row[1]


class Growing(Workload):
    id = "W2"
    title = "An agent's conversation that grows by 2 KiB a step"
    about = (
        "A model and a tool say 2 KiB in turn. Each is a step, its message is kept, and the conversation can be had "
        "back as it was after any of them. Bytes are those on the disk after closing, the log included."
    )
    figures = (
        Figure("seconds", "seconds", "{:.2f}"),
        Figure("bytes", "MB", "{:.1f}", MB, spread=False),
    )
    ratios = (Ratio("bytes of payload", "bytes", to="payload"),)


class ManyRuns(Workload):
    id = "W3"
    title = "Many runs at a time"
    about = (
        "{runs} runs of {size} steps with results of 1 KiB, all at once in one process, strict. The raw limits: one "
        "commit after the other; and a bare asyncio program with one writer thread that commits whatever is queued, "
        "one record a step."
    )
    figures = (_STEPS_PER_SECOND,)
    ratios = (Ratio("of raw commits", "per_second", _of_raw(raw)),)


class Resume(Workload):
    id = "W4"
    title = "Resuming a long run in a fresh process"
    about = (
        "A run is executed up to its n-th step in one process, which stops. Another goes on with it, up to the moment "
        "at which the body of the next step is entered. Wall time and memory of that process, over those of one that "
        "makes the same imports and does nothing. Every round resumes a fresh copy of what the first process left. "
        "Results have 100 bytes. The agent has never been summarised: its model is given all that was said. The "
        "summarising agent's conversation becomes a summary whenever it has 20,000 characters."
    )
    figures = (
        Figure("over", "seconds", "{:.3f}"),
        Figure("memory_over", "MB over imports", "{:.1f}", 1 / 1024, spread=False),
        Figure("memory", "peak MB", "{:.0f}", 1 / 1024, spread=False),
        Figure("next", "next step", "{:,.0f}", spread=False),
    )

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__(entries)
        self._made: dict[tuple[str, int], Place] = {}

    def prepare(self, stage: Stage, entry: Entry, stack: ExitStack) -> Place | None:
        """The run that is resumed. The raw limit reads the rows of Perdure's, which comes before."""
        store, size = entry.contender.store, entry.size
        if entry.contender.role == RAW:
            return self._made[store, size]
        place = stack.enter_context(stage.place(store))
        once(stage.words(entry.contender.program), self.job(entry, place, "W4 make"))
        if entry.contender.role == OURS and entry.contender.options["shape"] == "flow":
            self._made[store, size] = place
        return place

    def play(self, stage: Stage, entry: Entry, prepared: Place | None) -> Sample:
        words = stage.words(entry.contender.program)
        with stage.place(entry.contender.store, like=prepared) as place:
            alone, imports = once(words, self.job(entry, place, "W4 imports"))
            resumed, seconds = once(words, self.job(entry, place, "W4 resume"))
        over = resumed["memory"] - alone["memory"]
        sample = {"seconds": seconds, "imports": imports, "memory": resumed["memory"], "memory_over": over}
        return sample if entry.contender.role == RAW else {**sample, "next": resumed["first"] + 1}

    def finish(self, table: Table) -> None:
        imports: dict[str, list[float]] = {}
        for (name, _), samples in table.samples.items():
            imports.setdefault(name, []).extend(sample["imports"] for sample in samples if sample is not None)
        for (name, _), samples in table.samples.items():
            for sample in filter(None, samples):
                sample["over"] = sample["seconds"] - statistics.median(imports[name])


class Floor(Workload):
    id = "W5"
    title = "Without a store"
    about = "What a step costs outside of any run, over calling its function; {size} calls."
    figures = (
        Figure("microseconds", "microseconds a call", "{:.2f}"),
        Figure("plain", "the function alone", "{:.2f}"),
    )


class Crowd(Workload):
    id = "W6"
    title = "A store of many runs"
    about = (
        "Most of the runs are finished, the others in every state that there is; 100 of them can go on now, at every "
        "size. Milliseconds for: listing the first 100; finding all that are due; finding what a worker may take and "
        "claiming ten; the next deadline. Medians of 15 in each round."
    )
    figures = tuple(
        Figure(key, heading, "{:.2f}")
        for key, heading in (("page", "list 100"), ("due", "due"), ("claim", "claim 10"), ("deadline", "next deadline"))
    )

    def prepare(self, stage: Stage, entry: Entry, stack: ExitStack) -> Place | None:
        place = stack.enter_context(stage.place(entry.contender.store))
        if place.server:
            _hurry(place.server, "off")
        stage.player(entry.contender.program).ask(self.job(entry, place, "W6 fill"))
        if place.server:
            _hurry(place.server, "on")
        return place

    def play(self, stage: Stage, entry: Entry, prepared: Place | None) -> Sample:
        assert prepared is not None
        return stage.player(entry.contender.program).ask(self.job(entry, prepared, "W6 ask"))


def _hurry(server: str, commit: str) -> None:
    """Sessions that begin now need not wait for the device, while a store is filled; then the server tidies up."""
    import psycopg

    name = server.rpartition("/")[2]
    with psycopg.connect(server, autocommit=True) as control:
        control.execute(f"ALTER DATABASE {name} SET synchronous_commit = {commit}")
        if commit == "on":
            control.execute("VACUUM ANALYZE")
            control.execute("CHECKPOINT")


class Streaming(Workload):
    id = "W7"
    title = "Streaming a step's text"
    about = (
        "One step streams {size} tokens of 6 characters as fast as it can; readers see them, and a crash keeps them "
        "up to about one write of the device. The async step gives others a turn after each token."
    )
    figures = (Figure("per_second", "tokens/s"), Figure("bytes", "KB", "{:.0f}", 1 / 1024, spread=False))
    ratios = (Ratio("bytes of payload", "bytes", to="payload"),)


class Workers(Workload):
    id = "W8"
    title = "Several processes on one store"
    about = (
        "{size} submitted runs without steps: how many a second four processes claim, ten at a time; and how many "
        "four workers claim, begin and complete. And runs that ask a question and are suspended, 100 at a time."
    )
    figures = (Figure("per_second", "runs/s"),)

    def play(self, stage: Stage, entry: Entry, prepared: Place | None) -> Sample:
        with stage.place(entry.contender.store) as place:
            name = f"W8 {entry.contender.options['what']}"
            return stage.player(entry.contender.program).ask(self.job(entry, place, name))
