"""The files of C4: every completed step's output in a file of its own, for people and for other programs.

``03-methodology.md`` for text, ``.bin`` for bytes, ``.json`` for everything else (the codec's tagged JSON); the content
of a ``File`` under that file's own suffix. A file is complete or absent: written under a temporary name, synced,
renamed, the directory synced; and it is there before the step's record is, so that a completed step always has its
file. Outputs that a later life superseded move to ``superseded/`` when the run completes. Messages of agents get no
files: they stand in the transcript.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from perdure import codec
from perdure import journal as j
from perdure.errors import CodecError, CorruptStore
from perdure.fold import State
from perdure.limits import MAX_VALUE
from perdure.model import File
from perdure.record import Step
from perdure.stores import disk
from perdure.stores.base import Store
from perdure.stores.disk import run_folder_name

_SMALL = 2**16
"""bytes of JSON that may be indented whatever it is like"""


_SUFFIX = re.compile(r"\.[A-Za-z0-9_+-]{1,20}")


class Outputs:
    """Keeps the output files of one run in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def work(self, state: State, entry: j.Entry, blobs: Mapping[str, bytes]) -> list[Callable[[], None]]:
        """What must happen on disk before ``entry`` is durable."""
        if isinstance(entry, j.StepCompleted) and not state.steps[entry.step].spoken:
            return [partial(self.keep, state.steps[entry.step], entry.output, blobs)]
        if isinstance(entry, j.RunCompleted):
            return [partial(self.supersede, [state.steps[n] for n in entry.unused if not state.steps[n].spoken])]
        return []

    def keep(self, step: Step, payload: codec.Payload, blobs: Mapping[str, bytes]) -> None:
        """Write one output, complete or not at all. Raises StoreError."""
        name, content = render(step, payload, blobs)
        disk.make_dir(self.folder)
        disk.refuse_link(self.folder)
        disk.replace_file(self.folder / name, content)

    def bring(self, steps: Iterable[Step], blobs: Callable[[Sequence[str]], Mapping[str, bytes]]) -> None:
        """Write the outputs of steps that were executed before the run was forked."""
        for step in steps:
            if step.output is not None and not step.spoken:
                with suppress(CorruptStore, CodecError):  # whoever needs it is told
                    self.keep(step, step.output, blobs(step.output.refs))

    def find(self, step: Step) -> Path | None:
        """The file of a step's output, if it is there."""
        return next(iter(sorted(self.folder.glob(glob.escape(stem(step)) + ".*"))), None)

    def supersede(self, steps: list[Step]) -> None:
        for step in steps:
            path = self.find(step)
            if path is not None:
                disk.make_dir(self.folder / "superseded")
                disk.refuse_link(self.folder / "superseded")
                disk.move(path, self.folder / "superseded" / path.name)


def outputs_folder(store: Store, state: State) -> Path | None:
    """Where the outputs of a run stand as files: in the folder recorded with it, or in the store's own."""
    return Path(state.outputs) if state.outputs else own_outputs(store, state)


def own_outputs(store: Store, state: State) -> Path | None:
    """The folder for the outputs of a run in the store itself, if it keeps any."""
    root = store.capabilities.outputs
    return root / run_folder_name(state.key) / "outputs" if root else None


def stem(step: Step) -> str:
    """``03-methodology``: the step's number and as much of its path as makes a safe file name."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", step.path).strip("-.")[:80]
    return f"{step.number:02d}-{slug or 'step'}"


def render(step: Step, payload: codec.Payload, blobs: Mapping[str, bytes]) -> tuple[str, bytes]:
    """File name and content of an output. Raises CorruptStore when a blob is missing."""
    suffix, content = readable(payload, blobs)
    return stem(step) + suffix, content


def readable(payload: codec.Payload, blobs: Mapping[str, bytes]) -> tuple[str, bytes]:
    """A value for people and other programs, and the suffix of its file: text as text, bytes as bytes, else JSON.

    Raises CodecError for what is no JSON either."""
    try:
        value = codec.loads(payload, blobs)
    except CodecError:  # of a type that this program does not know: its JSON says all
        value = None
    if isinstance(value, str):
        return ".md", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return ".bin", value
    if isinstance(value, File):
        suffix = Path(value.name).suffix
        return suffix if _SUFFIX.fullmatch(suffix) else ".bin", value.content
    return ".json", indented(codec.stored_json(payload, blobs)) + b"\n"


def indented(text: bytes) -> bytes:
    """JSON over as many lines as it has values, unless that would multiply its size."""
    try:
        if len(text) > _SMALL and _blanks(text) > MAX_VALUE:
            return text
        return msgspec.json.format(text, indent=2)
    except (ValueError, RecursionError):  # numbers or depths that nothing reads
        return text


def _blanks(text: bytes) -> int:
    """How many blanks would stand in front of the lines, at most."""
    level, depth = [msgspec.json.decode(text)], 0
    while level:
        depth += 1
        level = [
            item
            for part in level
            if isinstance(part, dict | list)
            for item in (part.values() if isinstance(part, dict) else part)
        ]
    return 2 * depth * (text.count(b",") + 2 * text.count(b"[") + 2 * text.count(b"{"))
