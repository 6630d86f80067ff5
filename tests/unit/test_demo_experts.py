"""The demo's experts truly analyse: each finds what was planted and is silent about clean text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.demo.experts import EXPERTS, ease, meta_review
from perdure.demo.prose import Prose, split_sentences, syllables

CLEAN = """# A title

## Abstract

We count sheep in a field. The field is large and the sheep are few. A dog helps us to find them all day long.
The work is slow, and nobody is in a hurry. We tell how it went and what it cost us in bread and in boots over
the whole of a summer.

## Introduction

Sheep hide behind stones [1]. We walk around each stone once. Then we write the count into a book that hangs
on a nail. In the evening the book is read aloud, and whoever disagrees walks again with a lamp and comes back
when it is dark outside.

## Conclusion

The count is right when two people agree. It took 12 days. The dog was paid in bread, which it ate at once. We
would do it in the same way in another year, with better boots, more bread and the same dog, provided that it
still likes our company.

## References

[1] A shepherd. On stones. 1911.
"""
LONG = "We " + "walk and " * 40 + "rest."

PLANTED = [
    ("structure", "#### Skipped\n\nText of it.", "skips from level 2 to 4"),
    ("structure", "## Tiny\n\nOnly four words here.", "'Tiny' has only 4 words"),
    ("readability", "Idempotentialization idempotentialization.", "'idempotentialization' has"),
    ("sentences", LONG, "words: “We walk and"),
    ("claims", "Our sheep are always better than others.", "'always' without a figure or reference"),
    ("terms", "The ZQX is near.", "ZQX is used once and never written out"),
    ("terms", "The ZQX is near. The zone of quick exit (ZQX) is far.", "written out"),
    ("terms", "The ZQX is near.\nThe zone of quick exit (ZQX) is far.", "Line 15: ZQX is used; only later, on line 16"),
    ("repetition", "It went went away.", "'went went': a word is doubled"),
    ("repetition", "The dog was paid in bread, which it ate at once.", "this sentence stands on line"),
    (
        "repetition",
        "A dog and a cat sat. A dog and a cat ran. A dog and a cat hid.",
        "'a dog and a cat' stands 3 times",
    ),
    ("references", "Stones lie\n[7] still.", "Line 15: [7] is cited and not listed"),
    ("references", "Stones lie still [7].", "[7] is cited and not listed"),
    ("references", "See [here]().", "the link 'here' leads nowhere"),
    ("references", "See [here](#nowhere).", "there is no such heading"),
    ("numbers", "Five dogs came. Later seven dogs left.", "How many dogs? 5 on line"),
    ("numbers", "We met three kings:\n\n- Caspar\n- Melchior", "three kings are announced, and 2 are listed"),
    ("numbers", "| dog | 1 |\n|---|---|\n| a | 2 |\n| b | 3 |\n| total | 7 |", "the total of column 2 is given as 7"),
    ("numbers", "Of these 40 %, 30 % and 28 % are white.", "the shares add up to 98 percent"),
]


@pytest.mark.parametrize(("name", "planted", "said"), PLANTED)
def test_an_expert_finds_what_is_planted_and_nothing_like_it_in_clean_text(name: str, planted: str, said: str) -> None:
    found = EXPERTS[name](CLEAN.replace("## Conclusion", f"{planted}\n\n## Conclusion"))
    assert said in found
    assert said not in EXPERTS[name](CLEAN)
    assert found.startswith(f"## {name.capitalize()}\n")


@pytest.mark.parametrize("name", ["structure", "sentences", "claims", "terms", "repetition", "references", "numbers"])
def test_clean_text_has_nothing_to_note(name: str) -> None:
    assert "Nothing to note." in EXPERTS[name](CLEAN)


@settings(max_examples=60)
@given(st.text() | st.text(alphabet="#[]().,| \n\r`*-1aA5%\"'"))
def test_no_text_upsets_an_expert(text: str) -> None:
    reviews = {name: expert(text) for name, expert in EXPERTS.items()}
    whole = "".join(meta_review(text, reviews))
    assert whole.strip() and whole == "".join(meta_review(text, reviews))


@pytest.mark.parametrize(
    "text",
    [
        "1" * 200_000,
        "1," * 50_000,
        "A. " * 30_000,
        "1 " + "a" * 100_000,
        "# a\n" * 10_000,
        "a\r\n" * 30_000,
        "." * 100_000,
        "[1," * 30_000,
        "- 1 dogs:\n" * 5_000,
    ],
)
def test_no_pattern_goes_back_over_a_long_text_again_and_again(text: str) -> None:  # one that does takes minutes
    for expert in EXPERTS.values():
        assert expert(text)


@pytest.mark.parametrize("text", ["x" * 300_000, "word " * 50_000, "Aa. " * 30_000, "[" * 50_000, "[x](" * 10_000])
def test_a_very_long_line_is_read_to_its_end(text: str) -> None:
    for expert in EXPERTS.values():
        assert expert(text)


def test_a_meta_review_says_what_there_is_without_those_who_are_missing() -> None:
    reviews = {name: EXPERTS[name](CLEAN + LONG) for name in ("sentences", "terms")}
    pieces = list(meta_review(CLEAN, reviews))
    assert len(pieces) > 5
    assert "2 reviewers read" in "".join(pieces) and "Sentences: 1 point" in "".join(pieces)


def test_the_formula_is_flesch_s() -> None:
    # "The cat sat." 3 words, 3 syllables: 206.835 - 1.015 * 3 - 84.6 * 1
    assert ease(["The cat sat."]) == pytest.approx(119.19)
    assert [syllables(word) for word in ("cat", "make", "little", "review", "idea")] == [1, 1, 2, 2, 2]


def test_sentences_do_not_end_at_abbreviations() -> None:
    text = 'It is so, e.g. Here and there. "Why?" asks C. Mohan et al. They know. (All of it.) Élan.'
    told = ["It is so, e.g. Here and there.", '"Why?" asks C. Mohan et al. They know.', "(All of it.)", "Élan."]
    found = list(split_sentences(text))
    assert [sentence for _, sentence in found] == told
    assert all(text[at:].startswith(sentence) for at, sentence in found)


def test_a_sentence_is_on_the_line_on_which_it_begins() -> None:
    paper = Prose("# T\n\nOne is\nhere. Two\nis. Three is.\r\n- Four. Five.\n\nSix\n===\nSeven.\n| a | b |\n")
    assert [(s.line, s.text) for s in paper.sentences] == [
        (3, "One is here."),
        (4, "Two is."),
        (5, "Three is."),
        (6, "- Four."),
        (6, "Five."),
        (10, "Seven."),
    ]
    assert [(t.line, t.section) for t in paper.tables] == [(11, "Six")]


def test_headings_are_those_of_markdown() -> None:
    text = "---\ntitle: x\n---\nSix\n===\nSeven\n---\n## Eight ##\n```\n# no\n```\n- item\n---\nTwo\nlines\n---\n"
    assert [(h.level, h.title, h.line) for h in Prose(text).headings] == [
        (1, "Six", 4),
        (2, "Seven", 6),
        (2, "Eight", 8),
    ]


def test_words_that_are_no_acronyms_are_not_taken_for_some() -> None:
    found = EXPERTS["terms"]("It is FULL, see D8 and `XYZ=1`. A full [1] is an HTTP one. The ABC is out.")
    assert "ABC" in found and not any(word in found for word in ("FULL", "D8", "XYZ", "HTTP"))


def test_the_paper_of_the_examples_gives_every_expert_something_to_say() -> None:
    text = (Path(__file__).parents[2] / "examples" / "paper.md").read_text()
    for name, expert in EXPERTS.items():
        assert "\n- " in expert(text), name
