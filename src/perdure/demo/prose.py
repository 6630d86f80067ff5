"""A text cut into what the experts look at: headings, sections, paragraphs, sentences, words. Linear in its length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Final, NamedTuple

_HEADING: Final = re.compile(r"(#{1,6})\s+(.*)")
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_END: Final = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[\"'(\[]?[A-Z0-9])")
_ABBREVIATION: Final = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|al|Fig|Sec|No|Dr|Mr|Ms)|\b[A-Z])\.$")


class Heading(NamedTuple):
    """A heading of Markdown: how deep, what it says, where."""

    level: int
    title: str
    line: int


class Passage(NamedTuple):
    """A paragraph, list item or sentence, and the line on which it begins."""

    text: str
    line: int
    section: str


class Prose:
    """A document. Code between fences is not prose; tables are lines of their own."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines()
        self.headings: list[Heading] = []
        self.paragraphs: list[Passage] = []
        self.tables: list[Passage] = []
        self._read()

    def _read(self) -> None:
        fenced, section = False, ""
        gathered: list[str] = []
        began = 0
        for number, line in enumerate([*self.lines, ""], 1):
            bare = line.strip()
            if bare.startswith(("```", "~~~")):
                fenced, bare = not fenced, ""
            elif fenced:
                bare = ""
            heading = _HEADING.fullmatch(bare)
            item = re.match(r"(?:[-*+]|\d+[.)]|\[\d+\])\s", bare)
            if (heading or item or not bare or bare.startswith("|")) and gathered:
                self.paragraphs.append(Passage(" ".join(gathered), began, section))
                gathered = []
            if heading:
                section = heading[2].strip("# ")
                self.headings.append(Heading(len(heading[1]), section, number))
            elif bare.startswith("|"):
                self.tables.append(Passage(bare, number, section))
            elif bare:
                began = began if gathered else number
                gathered.append(bare)

    @cached_property
    def sentences(self) -> list[Passage]:
        """The sentences of all paragraphs."""
        return [Passage(sentence, p.line, p.section) for p in self.paragraphs for sentence in split_sentences(p.text)]

    @cached_property
    def words(self) -> list[str]:
        """Every word of the prose."""
        return [word for p in self.paragraphs for word in words(p.text)]

    def section_words(self) -> dict[str, int]:
        """Words in each section's own text, in order; sections without any are there too."""
        counts = {heading.title: 0 for heading in self.headings}
        for p in self.paragraphs:
            if p.section:
                counts[p.section] = counts.get(p.section, 0) + len(words(p.text))
        return counts


def words(text: str) -> list[str]:
    """The words of a text, numbers left out."""
    return _WORD.findall(text)


def split_sentences(text: str) -> Iterator[str]:
    """Sentences of one paragraph. Abbreviations and initials end none."""
    begun = ""
    for part in _END.split(text):
        begun = f"{begun} {part}" if begun else part
        if not _ABBREVIATION.search(begun[-12:]):
            yield begun
            begun = ""
    if begun:
        yield begun


def syllables(word: str) -> int:
    """Syllables of an English word, counted as groups of vowels; a silent final e is none."""
    found = len(re.findall(r"[aeiouy]+", word.lower()))
    return max(found - (word.lower().endswith("e") and not word.lower().endswith("le")), 1)


def quote(text: str, width: int = 90) -> str:
    """The beginning of a passage, in quotation marks."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= width else line[: width - 1] + '…'}”"
