"""What one process saved, another that starts from nothing loads with the same types, or saving refused it (W8)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import dataclasses, enum, os, signal, typing
import msgspec, pydantic
import perdure

@dataclasses.dataclass
class Paper:
    title: str

@dataclasses.dataclass(frozen=True)
class Score:
    paper: Paper
    n: int | None = None

class Note(pydantic.BaseModel):
    text: str
    _seen: int = pydantic.PrivateAttr(default=0)

class Mood(enum.StrEnum):
    GOOD = "good"

class Pair(typing.NamedTuple):
    left: int
    right: "Mood"

class Row(msgspec.Struct):
    n: int

class Refusal(Exception):
    pass

Any_of_them = Score | Note | Mood | Pair | Row | Refusal

@perdure.step
def make(kind: str, paper: Paper) -> list[Any_of_them]:
    print("made", kind)
    return [{"data": Score(paper, 3), "model": Note(text="x"), "enum": Mood.GOOD, "named": Pair(1, Mood.GOOD),
             "struct": Row(1), "error": Refusal("no")}[kind]]

@perdure.step
def make_unannotated(kind: str, paper: Paper):
    return make.fn(kind, paper)

@perdure.step
def pause() -> int:
    if "DIE" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1

@perdure.flow
def crew(kind: str, paper: Paper):
    made = (make_unannotated if "UNANNOTATED" in os.environ else make)(kind, paper)
    pause()
    return made, type(made[0]).__name__

def main(kind):
    print(perdure.run(crew, kind, Paper("t"), goal=kind, store="sqlite:runs.db"))

if __name__ == "__main__":
    import sys
    main(sys.argv[1])
"""
EXPECTED = {
    "data": "([Score(paper=Paper(title='t'), n=3)], 'Score')",
    "model": "([Note(text='x')], 'Note')",
    "enum": "([<Mood.GOOD: 'good'>], 'Mood')",
    "named": "([Pair(left=1, right=<Mood.GOOD: 'good'>)], 'Pair')",
    "struct": "([Row(n=1)], 'Row')",
    "error": "([Refusal('no')], 'Refusal')",
}


def python(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(__file__).parents[2] / "src")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env={"PYTHONPATH": f"{source}:{place}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_killed_script_is_resumed_with_the_same_types_also_when_it_is_imported(kind: str, tmp_path: Path) -> None:
    (tmp_path / "crew.py").write_text(PROGRAM)
    killed = python(tmp_path, "-u", "crew.py", kind, DIE="1")
    assert (killed.returncode, killed.stdout) == (-9, f"made {kind}\n"), killed.stderr
    resumed = python(tmp_path, "-c", f"import crew; crew.main({kind!r})")
    assert resumed.stdout == f"{EXPECTED[kind]}\n", resumed.stderr
    finished = python(tmp_path, "crew.py", kind)  # no step is called, so that none teaches its types
    assert finished.stdout == f"{EXPECTED[kind]}\n", finished.stderr


def test_a_type_that_no_annotation_names_is_refused_at_save_and_annotating_is_enough(tmp_path: Path) -> None:
    (tmp_path / "crew.py").write_text(PROGRAM)
    refused = python(tmp_path, "crew.py", "data", UNANNOTATED="1")
    assert refused.returncode == 1
    message = refused.stderr
    assert "make_unannotated()[0]: crew.Score cannot be stored" in message and "Annotate the step's return" in message
    mended = python(tmp_path, "crew.py", "data")
    assert mended.stdout == f"made data\n{EXPECTED['data']}\n", mended.stderr


def test_a_class_that_is_gone_stops_the_run_with_run_step_and_remedy_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "crew.py").write_text(PROGRAM)
    assert python(tmp_path, "crew.py", "data", DIE="1").returncode == -9
    (tmp_path / "crew.py").write_text(PROGRAM.replace("Score", "Grade"))
    stopped = python(tmp_path, "crew.py", "data")
    assert stopped.returncode == 1 and stopped.stdout == ""
    message = stopped.stderr.strip().splitlines()[-1]
    assert "Run data#0, result of step 1 (make): value[0] was stored as 'crew:Score', which this program" in message
    (tmp_path / "crew.py").write_text(
        PROGRAM.replace("Score", "Grade").replace("def main", 'perdure.register(Grade, name="crew:Score")\n\ndef main')
    )
    resumed = python(tmp_path, "crew.py", "data")
    assert resumed.stdout == EXPECTED["data"].replace("Score", "Grade") + "\n", resumed.stderr


def test_a_damaged_blob_stops_the_run_with_run_step_and_blob_and_loses_nothing(tmp_path: Path) -> None:
    program = PROGRAM.replace('Refusal("no")', 'Refusal("no" * 9000)').replace("sqlite:runs.db", "file:store")
    (tmp_path / "crew.py").write_text(program)
    assert python(tmp_path, "crew.py", "error", DIE="1").returncode == -9
    (blob,) = (path for path in (tmp_path / "store" / "blobs").rglob("*") if len(path.name) == 64)
    content = blob.read_bytes()
    for damage in (b"no" * 8999 + b"nO", b"", None):
        blob.unlink() if damage is None else blob.write_bytes(damage)
        stopped = python(tmp_path, "crew.py", "error")
        message = stopped.stderr.strip().splitlines()[-1]
        assert f"Run error#0, result of step 1 (make): {blob}" in message and "Restore it from a copy" in message
    blob.write_bytes(content)
    resumed = python(tmp_path, "crew.py", "error")
    assert resumed.stdout.startswith("([Refusal('nono") and "made" not in resumed.stdout, resumed.stderr
