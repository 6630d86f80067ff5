"""Eight reviewers who read a text closely, each for one thing. Pure functions: a text in, a review in Markdown out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from statistics import mean, median
from typing import Final

from perdure.demo.prose import Passage, Prose, quote, syllables, words

_MOST: Final = 12
"""findings that one review lists"""


def _review(title: str, figures: str, findings: list[str]) -> str:
    listed = [f"- {finding}" for finding in findings[:_MOST]]
    if len(findings) > _MOST:
        listed.append(f"- and {len(findings) - _MOST} more")
    return "\n".join([f"## {title}", "", figures, "", *(listed or ["Nothing to note."])]) + "\n"


def structure(text: str) -> str:
    """Headings: what is missing, skipped, too short or too long."""
    paper = Prose(text)
    sections = paper.section_words()
    findings = []
    if not paper.headings:
        findings.append("There are no headings: a reader cannot find anything again.")
    for before, after in zip(paper.headings, paper.headings[1:], strict=False):
        if after.level > before.level + 1:
            findings.append(f"Line {after.line}: {after.title!r} skips from level {before.level} to {after.level}.")
    titles = " ".join(sections).lower()
    for wanted in ("abstract", "introduction", "conclusion", "references"):
        if paper.headings and wanted not in titles and not (wanted == "conclusion" and "limits" in titles):
            findings.append(f"There is no section {wanted!r}.")
    lengths = [count for count in sections.values() if count]
    for heading in paper.headings[1:]:
        count = sections[heading.title]
        if 0 < count < 40 and heading.title.lower() not in ("abstract", "references"):
            findings.append(f"Line {heading.line}: {heading.title!r} has only {count} words; merge it or say more.")
        elif lengths and count > 3 * median(lengths) and count > 250:
            findings.append(f"Line {heading.line}: {heading.title!r} has {count} words, over three times the usual.")
    for title, times in Counter(heading.title for heading in paper.headings).items():
        if times > 1:
            findings.append(f"{times} sections are called {title!r}.")
    figures = f"{len(paper.headings)} headings, {len(paper.paragraphs)} paragraphs, {len(paper.words)} words."
    return _review("Structure", figures, findings)


def readability(text: str) -> str:
    """Reading ease of the whole and of its sections.

    Flesch reading ease, 206.835 - 1.015 * words per sentence - 84.6 * syllables per word: R. Flesch, "A new readability
    yardstick", Journal of Applied Psychology 32 (1948).
    """
    paper = Prose(text)
    by_section: dict[str, list[Passage]] = defaultdict(list)
    for sentence in paper.sentences:
        by_section[sentence.section].append(sentence)
    scores = {title: ease([s.text for s in group]) for title, group in by_section.items() if len(group) >= 3}
    whole = ease([s.text for s in paper.sentences])
    findings = [
        f"Line {by_section[title][0].line}: {title or 'the beginning'!r} has a reading ease of {score:.0f}: "
        f"{_level(score)}."
        for title, score in sorted(scores.items(), key=lambda pair: pair[1])
        if score < 45 and score < whole - 3 and title.lower() != "references"
    ]
    long_words = [word for word in paper.words if syllables(word) >= 5]
    for word, times in Counter(map(str.lower, long_words)).most_common(3):
        findings.append(f"{word!r} has {syllables(word)} syllables and stands {times} times; is there a shorter word?")
    figures = f"Flesch reading ease {whole:.0f} ({_level(whole)}) over {len(paper.sentences)} sentences."
    return _review("Readability", figures, findings)


def ease(sentences: list[str]) -> float:
    """Flesch reading ease of some sentences; 100 for none."""
    counted = [words(sentence) for sentence in sentences]
    total = sum(map(len, counted))
    if not total:
        return 100.0
    spoken = sum(syllables(word) for sentence in counted for word in sentence)
    return 206.835 - 1.015 * total / len(sentences) - 84.6 * spoken / total


def _level(score: float) -> str:
    names = ((70, "easy"), (60, "plain"), (50, "fairly hard"), (30, "hard"))
    return next((name for least, name in names if score >= least), "very hard")


def sentences(text: str) -> str:
    """Lengths of sentences, and those that are too long."""
    paper = Prose(text)
    sized = [(len(words(s.text)), s) for s in paper.sentences if words(s.text)]
    lengths = [size for size, _ in sized]
    findings = [
        f"Line {s.line}: {size} words: {quote(s.text)}"
        for size, s in sorted(sized, key=lambda pair: -pair[0])
        if size > 35
    ]
    findings += [
        f"Line {s.line}: {commas} commas in one sentence: {quote(s.text)}"
        for size, s in sized
        if size <= 35 and (commas := s.text.count(",")) > 5
    ]
    if not lengths:
        return _review("Sentences", "No sentences.", [])
    figures = (
        f"{len(lengths)} sentences, mean {mean(lengths):.1f} words, median {median(lengths):g}, max {max(lengths)}."
    )
    return _review("Sentences", figures, findings)


_CLAIM: Final = re.compile(
    r"\b(always|never|significant(?:ly)?|dramatic(?:ally)?|much|far|best|fastest|orders? of magnitude|"
    r"obvious(?:ly)?|clearly|guarantees?|impossible)\b|\b(\w+er|more|less|fewer) than\b",
    re.IGNORECASE,
)
_EVIDENCE: Final = re.compile(r"\d|\[\w+\]|https?:|\bbecause\b|\bsee\b|\bSection\b|\bTable\b|\bFigure\b")


def claims(text: str) -> str:
    """Strong or comparing claims with neither a figure nor a reference in the same sentence."""
    paper = Prose(text)
    found = [(match[0], s) for s in paper.sentences if (match := _CLAIM.search(s.text))]
    bare = [(word, s) for word, s in found if not _EVIDENCE.search(s.text)]
    findings = [f"Line {s.line}: {word!r} without a figure or reference: {quote(s.text)}" for word, s in bare]
    return _review("Claims", f"{len(found)} strong claims, {len(bare)} of them without evidence beside them.", findings)


_ACRONYM: Final = re.compile(r"\b[A-Z][A-Z0-9]{1,6}s?\b")
_KNOWN: Final = frozenset(
    "AI API CPU GPU HTTP JSON OK SQL TOML URL UTF II III IV VI VII VIII IX OSDI ATC ACM IEEE".split()
)


def terms(text: str) -> str:
    """Acronyms that are never written out, or used before they are."""
    paper = Prose(text)
    uses: dict[str, list[Passage]] = defaultdict(list)
    for s in paper.sentences:
        if s.section.lower() == "references":
            continue
        for word in _ACRONYM.findall(s.text):
            uses[word.rstrip("s")].append(s)
    findings = []
    for acronym, places in uses.items():
        if acronym in _KNOWN:
            continue
        defined = [f"({acronym}" in s.text or f"{acronym} (" in s.text for s in places]
        if not any(defined):
            times = "once" if len(places) == 1 else f"{len(places)} times"
            findings.append(f"Line {places[0].line}: {acronym} is used {times} and never written out.")
        elif not defined[0]:
            later = places[defined.index(True)].line
            findings.append(f"Line {places[0].line}: {acronym} is used before line {later} says what it means.")
    return _review("Terms", f"{len(uses)} acronyms.", findings)


def repetition(text: str) -> str:
    """Sentences, phrases and words that stand there twice."""
    paper = Prose(text)
    findings = []
    first: dict[str, int] = {}
    for s in paper.sentences:
        plain = " ".join(map(str.lower, words(s.text)))
        if plain in first and len(words(s.text)) > 4:
            findings.append(f"Line {s.line}: this sentence stands on line {first[plain]} already: {quote(s.text)}")
        first.setdefault(plain, s.line)
    for p in paper.paragraphs:
        for match in re.finditer(r"\b([^\W\d_]+) \1\b", p.text, re.IGNORECASE):
            findings.append(f"Line {p.line}: {match[0]!r}: a word is doubled.")
    grams: Counter[tuple[str, ...]] = Counter()
    for s in paper.sentences:
        said = [word.lower() for word in words(s.text)]
        grams.update(zip(said, said[1:], said[2:], said[3:], said[4:], strict=False))
    findings += [f"{' '.join(gram)!r} stands {times} times." for gram, times in grams.most_common(6) if times > 2]
    different = len({word.lower() for word in paper.words})
    figures = f"{different} different words of {len(paper.words)}."
    return _review("Repetition", figures, findings)


def references(text: str) -> str:
    """References cited and not listed, listed and not cited; links that lead nowhere."""
    paper = Prose(text)
    listed = {m[1]: number for number, line in enumerate(paper.lines, 1) if (m := re.match(r"\s*\[(\d+)\][: ]", line))}
    cited: dict[str, int] = {}
    for p in paper.paragraphs:
        for group in re.findall(r"(?<!^)\[(\d+(?:\s*,\s*\d+)*)\](?!\()", p.text):
            for one in re.split(r"\s*,\s*", group):
                cited.setdefault(one, p.line)
    findings = [f"Line {line}: [{n}] is cited and not listed." for n, line in cited.items() if n not in listed]
    findings += [f"Line {line}: [{n}] is listed and never cited." for n, line in listed.items() if n not in cited]
    anchors = {re.sub(r"[^\w\- ]", "", h.title.lower()).strip().replace(" ", "-") for h in paper.headings}
    for number, line in enumerate(paper.lines, 1):
        for label, target in re.findall(r"\[([^\]\[]{0,200})\]\(([^()\s]{0,500})\)", line):
            if not target:
                findings.append(f"Line {number}: the link {label!r} leads nowhere.")
            elif target.startswith("#") and target[1:] not in anchors:
                findings.append(f"Line {number}: the link {label!r} leads to {target}, and there is no such heading.")
    return _review("References", f"{len(listed)} listed, {len(cited)} cited.", findings)


_SMALL: Final = {
    word: n for n, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)
}
_COUNT: Final = re.compile(r"\b(\d{1,6}|" + "|".join(_SMALL) + r") ([a-z]{3,}s)\b", re.IGNORECASE)


def numbers(text: str) -> str:
    """Counts of one thing that differ, and shares that do not add up."""
    paper = Prose(text)
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for s in paper.sentences:
        for figure, noun in _COUNT.findall(s.text):
            value = _SMALL.get(figure.lower()) or (int(figure) if figure.isdigit() else 0)
            counts[noun.lower()].setdefault(value, s.line)
    findings = []
    for noun, places in counts.items():
        if len(places) > 1 and not re.fullmatch(
            r"(times|seconds|minutes|hours|days|weeks|bytes|words|things|ways|parts|kinds)", noun
        ):
            told = ", ".join(f"{value} on line {line}" for value, line in places.items())
            findings.append(f"How many {noun}? {told}.")
    for s in paper.sentences:
        shares = [float(share) for share in re.findall(r"(\d+(?:\.\d+)?) ?(?:%|percent)", s.text)]
        if len(shares) > 2 and sum(shares) != 100 and 90 <= sum(shares) <= 110:
            findings.append(f"Line {s.line}: the shares add up to {sum(shares):g} percent: {quote(s.text)}")
    total = len(re.findall(r"\d+(?:[.,]\d+)*", text))
    return _review("Numbers", f"{total} figures, counts of {len(counts)} things.", findings)


EXPERTS: Final[dict[str, Callable[[str], str]]] = {
    "structure": structure,
    "readability": readability,
    "sentences": sentences,
    "claims": claims,
    "terms": terms,
    "repetition": repetition,
    "references": references,
    "numbers": numbers,
}


def _points(count: int) -> str:
    return "1 point" if count == 1 else f"{count} points"


def meta_review(paper: str, reviews: Mapping[str, str]) -> Iterator[str]:
    """One review made of all, sentence by sentence; the same for the same arguments."""
    text = Prose(paper)
    title = text.headings[0].title if text.headings else "the text"
    points = {name: re.findall(r"^- (.*)$", review, re.MULTILINE) for name, review in reviews.items()}
    total = sum(map(len, points.values()))
    yield f"# Meta-review of {title}\n\n"
    yield f"{len(reviews)} reviewers read {len(text.words)} words in {len(text.sentences)} sentences. "
    yield f"Together they make {_points(total)}.\n\n"
    busy = sorted((name for name in points if points[name]), key=lambda name: (-len(points[name]), name))
    for name in busy:
        figures = reviews[name].split("\n\n")[1:2]
        yield f"## {name.capitalize()}: {_points(len(points[name]))}\n\n"
        yield f"{figures[0] if figures else ''}\n"
        for point in points[name][:4]:
            yield f"- {point}\n"
        yield "\n"
    silent = [name for name in points if not points[name]]
    if silent:
        yield f"Nothing to note from: {', '.join(silent)}.\n\n"
    lines = Counter(
        line for found in points.values() for point in found for line in re.findall(r"[Ll]ine (\d+)", point)
    )
    worst = [f"line {line} ({times} points)" for line, times in lines.most_common(3) if times > 1]
    if worst:
        yield f"Begin with {', '.join(worst)}. "
    density = 1000 * total / max(len(text.words), 1)
    verdict = "accept" if density < 5 else "minor revision" if density < 25 else "major revision"
    yield f"With {density:.1f} points per thousand words the verdict is: **{verdict}**.\n"
