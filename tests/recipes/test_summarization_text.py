"""Sentences, ROUGE, extracts and the oracle."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from regard.recipes.summarization.rouge import cut, extract, lead, oracle, rouge
from regard.recipes.summarization.text import paragraphs_of, sentences_of, without_addresses


def test_sentences_end_where_another_can_begin() -> None:
    assert sentences_of("It reads X, e.g. this. See version 2.5 of it! Really?  (Yes.) Done") == [
        "It reads X, e.g. this.",
        "See version 2.5 of it!",
        "Really?",
        "(Yes.)",
        "Done",
    ]
    assert sentences_of("你好。再见！好") == ["你好。", "再见！", "好"]
    assert sentences_of(" ... 1. ") == []


def test_long_texts_without_ends_take_time_by_their_length() -> None:
    """Each of these took the square of it: minutes."""
    assert sentences_of("A. " * 60_000) == ["A. " * 59_999 + "A."]
    assert paragraphs_of("so many words\n" * 200_000) == ((" ".join(["so many words"] * 200_000),),)


def test_paragraphs_and_list_items() -> None:
    text = "First line\nof one. Two.\n\nFeatures:\n * one item\n   that goes on\n * another\n\n\n - alone\n"
    assert paragraphs_of(text) == (
        ("First line of one.", "Two."),
        ("Features:", "one item that goes on", "another"),
        ("alone",),
    )
    assert paragraphs_of(" \r\n \r\n") == ()
    assert paragraphs_of("A title\n=======\nText of it.") == (("A title", "Text of it."),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://example.org/a?b=c.", "see URL."),
        ("(http://example.org/)", "(URL)"),
        ("<ftp://example.org/x>, www.example.org!", "<URL>, URL!"),
        ("plain text: no address", "plain text: no address"),
    ],
)
def test_addresses_are_replaced(text: str, expected: str) -> None:
    assert without_addresses(text) == expected


@pytest.mark.parametrize(
    ("summary", "reference"),
    [
        ("fast editors for cats", "a fast editor for the cat"),
        ("Libraries, running; café", "running the library"),
        ("", "something"),
        ("x-y z_1", "x y z 1"),
        ("nothing shared", "other words here"),
    ],
)
def test_english_scores_are_those_of_the_package(summary: str, reference: str) -> None:
    kinds = ["rouge1", "rouge2", "rougeL"]
    theirs = RougeScorer(kinds, use_stemmer=True).score(reference, summary)
    assert rouge(summary, reference) == pytest.approx({kind: 100 * theirs[kind].fmeasure for kind in kinds})


@pytest.mark.parametrize("text", ["注意力机制的库", "hello", "GPU 上的注意力", "Привет, мир", "the cat sat"])
def test_f70_identical_texts_score_100(text: str) -> None:
    assert rouge(text, text) == pytest.approx({"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0})


def test_chinese_is_scored_by_characters() -> None:
    # shared: 注 意 力; 6 and 4 characters; the pairs 注意 意力 of 5 and 3
    assert rouge("注意力机制好", "注意力库") == pytest.approx(
        {"rouge1": 100 * 6 / 10, "rouge2": 100 * 4 / 8, "rougeL": 100 * 6 / 10}
    )
    assert rouge("注意", "天地") == pytest.approx({"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0})


def test_one_word_against_more_is_not_flattered() -> None:
    assert rouge("hello world", "hello")["rouge2"] == 0.0
    assert rouge("hello", "world") == pytest.approx({"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0})


def test_cut_counts_words_and_characters() -> None:
    assert cut(["One two", "three four."], 3) == "One two three"
    assert cut(["你好世界 ab cd"], 5) == "你好世界 ab"
    assert cut(["short"], 100) == "short"
    assert lead(["A b.", "C d."], 3) == "A b. C"


def test_extracts_stand_in_the_order_of_the_text() -> None:
    sentences = ["a a a", "b b b", "c c c"]
    assert extract(sentences, [0.0, 1.0, 2.0], 6) == "b b b c c c"
    assert extract(sentences, [2.0, 0.0, 2.0], 4) == "a a a c"
    assert extract(sentences, [1.0, 1.0, 1.0], 3) == "a a a"


def test_oracle_by_hand() -> None:
    # Summary: the cat sat on mat (5 words, 4 pairs).
    #   "dogs ran off"    nothing shared, and never able
    #   "the cat sat"     ROUGE-1 2*3/(3+5) = .75, ROUGE-2 2*2/(2+4) = .667: 1.417, the best first choice
    #   "cat on the mat"  ROUGE-1 2*4/(4+5) = .889, ROUGE-2 0 (pairs: cat-on, on-the, the-mat): .889
    # With room, "the cat sat" + "cat on the mat": ROUGE-1 2*5/(7+5) = .833, ROUGE-2 2*2/(6+4) = .4: 1.233, so it stops.
    sentences = ["dogs ran off", "the cat sat", "cat on the mat"]
    assert oracle(sentences, "the cat sat on mat", 20) == [1]
    # "on mat" completes it: 2*5/10 + 2*4/8 = 2
    assert oracle(["on mat", "the cat sat", "dogs"], "the cat sat on mat", 20) == [0, 1]
    # no room for a second sentence
    assert oracle(["the cat sat", "on mat"], "the cat sat on mat", 3) == [0]
    assert oracle(["dogs", "birds"], "the cat sat", 5) == []
    # the earlier of equals
    assert oracle(["the cat", "the cat"], "the cat", 9) == [0]


def test_oracle_cuts_as_extracts_do() -> None:
    """The choice is by the text that would be shown: what is said behind the cut counts for nothing."""
    assert oracle(["one two three the cat", "the dog"], "the cat", 3) == [1]
    assert oracle(["关于注意力", "天地"], "注意力", 2) == []
    assert oracle(["关于注意力", "注意"], "注意力", 2) == [1]
