"""A flow of twelve steps, edits to it, and which steps each of them should have executed again: for test_edits.py,
which runs this file as a program. Its arguments are a folder, and whether to kill it in the "middle" or at "all"
points; it prints what was executed, as JSON.

Every program runs in a child that was forked, with modules of its own. One that is killed kills itself (SIGKILL), in
the body of the k-th step that it executes.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

LEDGER = """
import os
import signal


def executed(name):
    ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ledger, (name + "\\n").encode())
    with open(os.environ["LEDGER"]) as file:
        if len(file.readlines()) == int(os.environ.get("KILL_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
"""
PROGRAM = '''
import perdure
from ledger import executed

PROMPT = "Judge."
STYLE = {"tone": "kind"}
UNUSED = 1


def shorten(text):
    return text[:2000]


def unrelated():
    return 1


@perdure.step
def load(topic: str) -> str:
    executed("load")
    return topic + " text"


@perdure.step
def outline(text: str) -> str:
    """The outline."""
    executed("outline")
    return "outline of " + text


@perdure.step
def claims(text: str) -> str:
    executed("claims")
    return "claims in " + text


@perdure.step
def numbers(text: str) -> str:
    executed("numbers")
    return "numbers in " + text  # of any kind


@perdure.step
def language(text: str, level: int = 2) -> str:
    executed("language")
    return f"language at {level} of " + text


@perdure.step(retries=1)
def judge(claims: str, numbers: str, language: str) -> str:
    executed("judge")
    return PROMPT + claims + numbers + language


@perdure.step
def advise(verdict: str, outline: str) -> str:
    executed("advise")
    return shorten(verdict + outline) + " so do better"


@perdure.step(version="1")
def soften(advice: str) -> str:
    executed("soften")
    return STYLE["tone"] + " " + advice


@perdure.step
def translate(advice: str) -> str:
    executed("translate")
    return "fr:" + advice


@perdure.step
def letter(soft: str, translated: str) -> str:
    executed("letter")
    return soft + translated


@perdure.step
def sign(letter: str) -> str:
    executed("sign")
    return letter + " signed"


@perdure.step
def archive(letter: str) -> int:
    executed("archive")
    return len(letter) + 1


@perdure.flow
def crew(topic: str) -> dict[str, object]:
    text = load(topic)
    table = outline(text)
    found = claims(text)
    counted = numbers(text)
    read = language(text)
    verdict = judge(found, counted, read)
    advice = advise(verdict, table)
    soft = soften(advice)
    translated = translate(advice)
    whole = letter(soft, translated)
    signed = sign(whole)
    kept = archive(whole)
    return {"letter": signed, "kept": kept}
'''
AFTER_JUDGE = "judge advise soften translate letter sign archive"
AFTER_ADVISE = "advise soften translate letter sign archive"


class Edit(NamedTuple):
    """Replacements in the program, and what should be executed because of them."""

    executed: str
    changes: tuple[tuple[str, str], ...]


PROOFREAD = """@perdure.step
def proofread(text: str) -> str:
    executed("proofread")
    return text + "."


@perdure.flow"""
EDITS = {
    "nothing": Edit("", ()),
    "prompt constant": Edit(AFTER_JUDGE, (('"Judge."', '"Judge strictly."'),)),
    "prompt constant, moved to another module": Edit(
        "", (('PROMPT = "Judge."\n', "from prompts import VERDICT as PROMPT\n"),)
    ),
    "body": Edit("translate letter sign archive", (('"fr:" + advice', '"de:" + advice'),)),
    "body, with the same result": Edit("translate", (('"fr:" + advice', 'f"fr:{advice}"'),)),
    "body of the first step": Edit(
        f"load outline claims numbers language {AFTER_JUDGE}",
        (('" text"', '" t."'),),
    ),
    "helper function": Edit(AFTER_ADVISE, (("text[:2000]", "text[:20]"),)),
    "helper function, with the same result": Edit("advise", (("text[:2000]", "text[:3000]"),)),
    "dict constant of a step with a version": Edit("", (('"kind"', '"stern"'),)),
    "version": Edit("soften", (('version="1"', 'version="2"'),)),
    "version and constant": Edit(
        "soften letter sign archive",
        (('version="1"', 'version="2"'), ('"kind"', '"stern"')),
    ),
    "new step in the middle": Edit(
        "proofread sign archive",
        (("@perdure.flow", PROOFREAD), ("    signed = sign", "    whole = proofread(whole)\n    signed = sign")),
    ),
    "new step that nothing depends on": Edit(
        "proofread",
        (("@perdure.flow", PROOFREAD), ("    signed = sign", "    proofread(whole)\n    signed = sign")),
    ),
    "renamed step": Edit(
        "interpret",
        (
            ("def translate(", "def interpret("),
            ('"translate"', '"interpret"'),
            ("= translate(", "= interpret("),
        ),
    ),
    "renamed function, the step's name kept": Edit(
        "",
        (
            ("@perdure.step\ndef sign(", '@perdure.step(name="sign")\ndef autograph('),
            ("= sign(", "= autograph("),
        ),
    ),
    "reordered steps": Edit(
        "",
        (
            ("    table = outline(text)\n    found = claims(text)\n", "    found = claims(text)\n"),
            ("    read = language(text)\n", "    read = language(text)\n    table = outline(text)\n"),
            ("    signed = sign(whole)\n", ""),
            ("    kept = archive(whole)\n", "    kept = archive(whole)\n    signed = sign(whole)\n"),
        ),
    ),
    "steps side by side": Edit(
        "",
        (
            ("    found = claims(text)\n", ""),
            (
                "    counted = numbers(text)\n",
                "    found, counted = perdure.gather(partial(claims, text), partial(numbers, text))\n",
            ),
            ("import perdure\n", "from functools import partial\nimport perdure\n"),
        ),
    ),
    "removed step": Edit("", (("    kept = archive(whole)\n", "    kept = 0\n"),)),
    "removed step on which others depend": Edit(
        "letter sign archive",
        (("    soft = soften(advice)\n", "    soft = advice\n"),),
    ),
    "default argument": Edit(f"language {AFTER_JUDGE}", (("level: int = 2", "level: int = 3"),)),
    "default argument that is given": Edit(
        "",
        (("level: int = 2", "level: int = 3"), ("language(text)", "language(text, 2)")),
    ),
    "added argument": Edit("numbers", (("def numbers(text: str)", 'def numbers(text: str, unit: str = "")'),)),
    "added argument that is used": Edit(
        f"numbers {AFTER_JUDGE}",
        (
            ("def numbers(text: str)", 'def numbers(text: str, unit: str = "m")'),
            ('"numbers in " + text', '"numbers in " + text + unit'),
        ),
    ),
    "asked for twice": Edit(
        "archive",
        (("    kept = archive(whole)\n", "    kept = archive(whole) + archive(whole)\n"),),
    ),
    "comment": Edit("", (("# of any kind", "# of every kind"), ("UNUSED = 1", "UNUSED = 1  # not used"))),
    "formatting": Edit(
        "",
        (("PROMPT + claims + numbers + language", "(\n        PROMPT\n        + claims + numbers + language\n    )"),),
    ),
    "docstring": Edit("", (('"""The outline."""', '"""Its outline, in a line."""'),)),
    "annotations": Edit("", (("(advice: str) -> str", "(advice)"), ("(letter: str) -> int", "(letter)"))),
    "decorator option": Edit("", (("retries=1", "retries=3, timeout=60"),)),
    "what no step uses": Edit(
        "",
        (
            ("UNUSED = 1", "UNUSED = 2"),
            ("def unrelated():\n    return 1", "def unrelated():\n    return 2"),
        ),
    ),
    "only the flow": Edit("", (('"kept": kept}', '"kept": kept, "topic": topic}'),)),
}


def program(edit: Edit) -> str:
    """The program after an edit."""
    text = PROGRAM
    for before, after in edit.changes:
        assert before in text, before
        text = text.replace(before, after)
    return text


def run(folder: Path, text: str, ledger: str, *, rerun: str = "", kill: int = 0) -> list[str]:
    """Run a program in a child process; returns what it executed, in order."""
    (folder / "crew.py").write_text(text)
    (folder / "ledger.py").write_text(LEDGER)
    (folder / "prompts.py").write_text('VERDICT = "Judge."\n')
    child = os.fork()
    if not child:
        try:
            os.environ |= {"LEDGER": str(folder / ledger), "KILL_AT": str(kill)}
            sys.path.insert(0, str(folder))
            import perdure

            crew = importlib.import_module("crew").crew
            perdure.run(crew, "tides", goal="g", store=f"sqlite:{folder}/runs.db", rerun=rerun or ())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL if kill else status == 0, status
    return (folder / ledger).read_text().split() if (folder / ledger).exists() else []


def tried(folder: Path, name: str, points: str) -> dict[str, object]:
    """An edit alone, and with a kill in the middle: in the body of each step, or of the one in the middle."""
    text = program(EDITS[name])

    def fresh(place: str) -> Path:
        made = folder / f"{name} {place}".replace(" ", "-")
        shutil.copytree(folder / "base", made)
        return made

    plain = run(fresh("plain"), text, "first")
    alone = fresh("alone")
    executed = run(alone, text, "first", rerun="changed")
    again = run(alone, text, "second", rerun="changed")
    crashes = []
    middle = {(len(executed) + 1) // 2} if executed else set()
    for point in sorted(range(1, len(executed) + 1) if points == "all" else middle):
        for word in ("changed", ""):  # a plain resume goes on with what was begun
            place = fresh(f"{point} {word}")
            before = run(place, text, "first", rerun="changed", kill=point)
            crashes.append([before, run(place, text, "second", rerun=word)])
    return {"plain": plain, "alone": executed, "again": again, "crashes": crashes}


def main() -> None:
    """Try every edit."""
    folder, points = Path(sys.argv[1]), sys.argv[2]
    base = folder / "base"
    base.mkdir()
    first = run(base, PROGRAM, "base")
    json.dump({"": first} | {name: tried(folder, name, points) for name in EDITS}, sys.stdout)


if __name__ == "__main__":
    import perdure  # noqa: F401  # once, for all children

    main()
