"""Eight reviewers who read a text closely, each for one thing. Pure functions: a text in, a review in Markdown out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from statistics import mean, median
from typing import Final

from perdure.demo.prose import Passage, Prose, is_item, lists_sources, quote, syllables, words

_MOST: Final = 12
"""findings that one review lists"""


def _review(title: str, figures: str, findings: list[str]) -> str:
    listed = [f"- {finding}" for finding in findings[:_MOST]]
    if len(findings) > _MOST:
        listed.append(f"- and {len(findings) - _MOST} more")
    return "\n".join([f"## {title}", "", figures, "", *(listed or ["Nothing to note."])]) + "\n"


_SECTIONS: Final = (
    ("abstract", "summary"),
    ("introduction", "overview", "background"),
    ("conclusion", "limits", "limitations", "discussion"),
    ("references", "bibliography", "literature"),
)
"""what a paper has, each with the names that it goes by"""


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
    missing = [wanted[0] for wanted in _SECTIONS if paper.headings and not any(title in titles for title in wanted)]
    if missing:
        findings.append(f"As a paper it lacks: {', '.join(missing)}.")
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


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


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
        findings.append(
            f"{word!r} has {syllables(word)} syllables and stands {_times(times)}; is there a shorter word?"
        )
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
_CODE: Final = re.compile(r"`[^`]{0,200}`")
_KNOWN: Final = frozenset(
    "AI API CPU GPU HTTP JSON OK SQL TOML URL UTF II III IV VI VII VIII IX OSDI ATC ACM IEEE".split()
)


def terms(text: str) -> str:
    """Acronyms that are never written out, or used before they are."""
    paper = Prose(text)
    uses: dict[str, list[Passage]] = defaultdict(list)
    for s in paper.sentences:
        if lists_sources(s.section):
            continue
        for word in _ACRONYM.findall(_CODE.sub("", s.text)):
            uses[word.rstrip("s")].append(s)
    small = {word for word in paper.words if word.islower()}
    findings = []
    for acronym, places in uses.items():
        if acronym in _KNOWN or acronym.lower() in small or sum(map(str.isupper, acronym)) < 2:
            continue  # known to all, a word that is shouted, or a label such as D8
        defined = [f"({acronym}" in s.text or f"{acronym} (" in s.text for s in places]
        if not any(defined):
            times = _times(len(places))
            findings.append(f"Line {places[0].line}: {acronym} is used {times} and never written out.")
        elif not defined[0]:
            later = places[defined.index(True)].line
            findings.append(
                f"Line {places[0].line}: {acronym} is used; only later, on line {later}, it is written out."
            )
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
    phrases: list[tuple[tuple[str, ...], int]] = []
    for gram, times in ((gram, times) for gram, times in grams.most_common(100) if times > 2):
        if phrases and phrases[-1][0][-4:] == gram[:4] and phrases[-1][1] == times and len(phrases[-1][0]) < 15:
            phrases[-1] = ((*phrases[-1][0], gram[-1]), times)  # one longer phrase, not many that overlap
        else:
            phrases.append((gram, times))
    findings += [f"{' '.join(phrase)!r} stands {times} times." for phrase, times in phrases[:6]]
    different = len({word.lower() for word in paper.words})
    figures = f"{different} different words of {len(paper.words)}."
    return _review("Repetition", figures, findings)


def references(text: str) -> str:
    """References cited and not listed, listed and not cited; links that lead nowhere."""
    paper = Prose(text)
    among = any(lists_sources(heading.title) for heading in paper.headings)
    listed: dict[str, int] = {}
    cited: dict[str, int] = {}
    for s in paper.paragraphs:
        source = re.match(r"\[(\d{1,9})\][:\s]", s.text)
        if source and (lists_sources(s.section) or not among):
            listed.setdefault(source[1], s.line)
    for s in paper.sentences:
        for at, group in ((m.start(), m[1]) for m in _CITATION.finditer(s.text)):
            if at > 0 or (among and not lists_sources(s.section)):
                for one in re.findall(r"\d+", group):
                    cited.setdefault(one, s.line)
    findings = [f"Line {line}: [{n}] is cited and not listed." for n, line in cited.items() if n not in listed]
    findings += [f"Line {line}: [{n}] is listed and never cited." for n, line in listed.items() if n not in cited]
    anchors = {re.sub(r"[^\w\- ]", "", h.title.lower()).strip().replace(" ", "-") for h in paper.headings}
    anchors.update(re.findall(r"\b(?:id|name)=[\"']([^\"'\s]{1,200})[\"']", text))
    for number, line in enumerate(paper.lines, 1):
        for label, target in re.findall(r"\[([^\]\[]{0,200})\]\(([^()\s]{0,500})\)", line):
            if not target:
                findings.append(f"Line {number}: the link {label!r} leads nowhere.")
            elif target.startswith("#") and target[1:].lower() not in anchors:
                findings.append(f"Line {number}: the link {label!r} leads to {target}, and there is no such heading.")
    return _review("References", f"{len(listed)} listed, {len(cited)} cited.", findings)


_CITATION: Final = re.compile(r"\[(\d{1,9}(?:\s?[,;–-]\s?\d{1,9}){0,20})\](?![(:])")
_SMALL: Final = {
    word: n for n, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)
}
_FIGURE: Final = r"(?<![\w.,])(\d{1,6}|" + "|".join(_SMALL) + ")"
_COUNT: Final = re.compile(_FIGURE + r" ([a-z]{3,}s)\b", re.IGNORECASE)
_ANNOUNCED: Final = re.compile(_FIGURE + r" ((?:[a-z]{1,30} ){0,2}[a-z]{3,30}s)\b[^:]{0,60}:$", re.IGNORECASE)
_SHARE: Final = re.compile(r"(?<![\w.,])(\d{1,3}(?:\.\d{1,6})?) ?(?:%|percent\b|per cent\b)")
_UNITS: Final = frozenset(
    "times seconds minutes hours days weeks months years bytes words things ways parts kinds points lines".split()
)


def numbers(text: str) -> str:
    """Counts of one thing that differ, lists of another length than announced, shares and totals that do not add up."""
    paper = Prose(text)
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for s in paper.sentences:
        for figure, noun in _COUNT.findall(s.text):
            counts[noun.lower()].setdefault(_value(figure), s.line)
    findings = []
    for noun, places in counts.items():
        if len(places) > 1 and noun not in _UNITS:
            told = ", ".join(f"{value} on line {line}" for value, line in places.items())
            findings.append(f"How many {noun}? {told}.")
    findings += _announced(paper)
    for s in paper.sentences:
        shares = [float(share) for share in _SHARE.findall(s.text)]
        total = round(sum(shares), 6)
        if len(shares) > 2 and total != 100 and 90 <= total <= 110:
            findings.append(f"Line {s.line}: the shares add up to {total:g} percent: {quote(s.text)}")
    findings += _totals(paper)
    figures = len(re.findall(r"\d+(?:[.,]\d+)*", text))
    return _review("Numbers", f"{figures} figures, counts of {len(counts)} things.", findings)


def _value(figure: str) -> int:
    return int(figure) if figure.isdecimal() else _SMALL.get(figure.lower(), 0)


def _announced(paper: Prose) -> Iterator[str]:
    """Lists under "five experts:" that have another number of items."""
    announced, line, items = None, 0, 0
    for p in [*paper.paragraphs, Passage("", 0, "")]:
        if is_item(p.text):
            items += 1
            continue
        if announced and items and _value(announced[1]) != items:
            yield f"Line {line}: {announced[1]} {announced[2]} are announced, and {items} are listed."
        announced, line, items = _ANNOUNCED.search(p.text[-150:]), p.line, 0


def _totals(paper: Prose) -> Iterator[str]:
    """Columns of tables whose last row, a total, is not the sum of the rows above it."""
    columns: dict[int, list[float]] = defaultdict(list)
    last = 0
    for row in paper.tables:
        if row.line != last + 1:
            columns.clear()
        last = row.line
        cells = [cell.strip(" *_`") for cell in row.text.strip("|").split("|")]
        is_total = cells[0].lower() in ("total", "sum", "all")
        for place, cell in enumerate(cells[1:], 1):
            if not re.fullmatch(r"\d{1,12}(?:\.\d{1,6})?", cell):
                continue
            above = round(sum(columns[place]), 6)
            if is_total and len(columns[place]) > 1 and above != float(cell):
                yield f"Line {row.line}: the total of column {place + 1} is given as {cell}; its rows make {above:g}."
            columns[place].append(float(cell))


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
    said = [point for found in points.values() for point in found]
    lines = Counter(line for point in said for line in dict.fromkeys(re.findall(r"\b[Ll]ine (\d+)", point)))
    worst = [f"line {line} ({times} points)" for line, times in lines.most_common(3) if times > 1]
    if worst:
        yield f"Begin with {', '.join(worst)}. "
    density = 1000 * total / max(len(text.words), 1)
    verdict = "accept" if density < 5 else "minor revision" if density < 25 else "major revision"
    yield f"With {density:.1f} points per thousand words the verdict is: **{verdict}**.\n"
