"""A text cut into what the experts look at: headings, sections, paragraphs, sentences, words. Linear in its length."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import Final, NamedTuple

_HEADING: Final = re.compile(r"(#{1,6})\s+(.*)")
_UNDERLINE: Final = re.compile(r"={2,}|-{2,}")
_ITEM: Final = re.compile(r"(?:[-*+]|\d{1,2}[.)])\s")
_SOURCE: Final = re.compile(r"\[\d{1,9}\][:\s]")
_SOURCES: Final = re.compile(r"\b(?:references|bibliography|literature|works cited|notes)\b", re.IGNORECASE)
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_END: Final = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))\s+(?=[\"'“‘(\[*_`]{0,2}[^\W_a-z])")
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
    """A document. Code between fences and the front matter are not prose; tables are lines of their own."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines()
        self.headings: list[Heading] = []
        self.paragraphs: list[Passage] = []
        self.tables: list[Passage] = []
        self._begins: list[list[int]] = []
        """for each paragraph, where in its text each of its lines begins"""
        self._section = ""
        self._gathered: list[str] = []
        self._read()

    def _read(self) -> None:
        fenced = False
        for number, line in enumerate([*self._body(), ""], 1):
            bare = line.strip()
            if bare.startswith(("```", "~~~")):
                fenced, bare = not fenced, ""
            elif fenced:
                bare = ""
            heading = _HEADING.fullmatch(bare)
            rule = _UNDERLINE.fullmatch(bare)
            if rule and len(self._gathered) == 1 and not is_item(self._gathered[0]):
                title = self._gathered.pop()
                self._head(1 if bare.startswith("=") else 2, title, number - 1)
            elif heading:
                self._end(number)
                self._head(len(heading[1]), heading[2].strip("# "), number)
            elif not bare or rule or bare.startswith("|"):
                self._end(number)
                if bare.startswith("|"):
                    self.tables.append(Passage(bare, number, self._section))
            else:
                if is_item(bare) or (_SOURCE.match(bare) and lists_sources(self._section)):
                    self._end(number)
                self._gathered.append(bare)

    def _body(self) -> list[str]:
        """The lines, those of a front matter (between two lines of dashes at the beginning) as blank ones."""
        if self.lines[:1] == ["---"] and "---" in self.lines[1:]:
            last = self.lines.index("---", 1)
            return [""] * (last + 1) + self.lines[last + 1 :]
        return self.lines

    def _head(self, level: int, title: str, line: int) -> None:
        self._section = title
        self.headings.append(Heading(level, title, line))

    def _end(self, number: int) -> None:
        """The paragraph that was gathered ended before line ``number``."""
        if self._gathered:
            line = number - len(self._gathered)
            self.paragraphs.append(Passage(" ".join(self._gathered), line, self._section))
            self._begins.append([0, *accumulate(len(part) + 1 for part in self._gathered[:-1])])
            self._gathered = []

    @cached_property
    def sentences(self) -> list[Passage]:
        """The sentences of all paragraphs."""
        return [
            Passage(sentence, p.line + bisect_right(begins, at) - 1, p.section)
            for p, begins in zip(self.paragraphs, self._begins, strict=True)
            for at, sentence in split_sentences(p.text)
        ]

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


def is_item(text: str) -> bool:
    """Whether a paragraph or line is an item of a list."""
    return bool(_ITEM.match(text))


def lists_sources(title: str) -> bool:
    """Whether a section of this title lists what the text refers to."""
    return bool(_SOURCES.search(title))


def split_sentences(text: str) -> Iterator[tuple[int, str]]:
    """(where it begins, sentence) of one paragraph. Abbreviations and initials end none."""
    begun = 0
    for end in _END.finditer(text):
        follows = text[end.end() : end.end() + 3].lstrip("\"'“‘([*_`")[:1]
        if not follows.islower() and not _ABBREVIATION.search(text[max(begun, end.start() - 12) : end.start()]):
            yield begun, text[begun : end.start()]
            begun = end.end()
    if text[begun:].strip():
        yield begun, text[begun:]


def syllables(word: str) -> int:
    """Syllables of an English word, counted as groups of vowels; a silent final e is none."""
    found = len(re.findall(r"[aeiouy]+", word.lower()))
    return max(found - (word.lower().endswith("e") and not word.lower().endswith("le")), 1)


def quote(text: str, width: int = 90) -> str:
    """The beginning of a passage, in quotation marks."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= width else line[: width - 1] + '…'}”"
