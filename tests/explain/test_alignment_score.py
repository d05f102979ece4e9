"""Alignment scores: the formulas by hand, what would be 0 / 0, and every way two files can fail to fit (F69)."""

from __future__ import annotations

import pytest

from regard import ArgumentError
from regard.explain import AlignmentScore, GoldAlignment, reversed_links, score_alignment, score_alignments

GOLD = GoldAlignment(4, 5, sure={(0, 0), (1, 1), (2, 3)}, possible={(0, 0), (1, 1), (2, 3), (2, 4), (3, 4)})


def test_by_hand():
    score = score_alignment({(0, 0), (1, 2), (2, 3), (3, 4)}, GOLD)  # one wrong, one possible, (1, 1) missed
    assert score == AlignmentScore(found=4, sure=3, found_sure=2, found_possible=3, linked=8, words=9)
    assert score.precision == pytest.approx(3 / 4)
    assert score.recall == pytest.approx(2 / 3)
    assert score.aer == pytest.approx(1 - (2 + 3) / (4 + 3))
    assert score.f1 == pytest.approx(2 * (3 / 4) * (2 / 3) / (3 / 4 + 2 / 3))
    assert score.coverage == pytest.approx(8 / 9)
    assert str(score) == "AER 0.286, precision 0.750, recall 0.667, F1 0.706, coverage 0.889"


def test_without_possible_links_aer_is_one_minus_f1():
    gold = GoldAlignment(4, 5, GOLD.possible)
    score = score_alignment({(0, 0), (1, 2), (2, 3)}, gold)
    assert score.aer == pytest.approx(1 - score.f1)


def test_a_corpus_is_summed_and_not_averaged():
    one, other = GoldAlignment(1, 1, {(0, 0)}), GoldAlignment(3, 3, {(0, 0), (1, 1), (2, 2)})
    score = score_alignments([{(0, 0)}, {(0, 1)}], [one, other])
    assert score.recall == pytest.approx(1 / 4)
    assert score == score_alignment({(0, 0)}, one) + score_alignment({(0, 1)}, other)


@pytest.mark.parametrize(
    ("found", "sure", "possible", "expected"),
    [
        # aer, precision, recall, f1
        (set(), {(0, 0)}, {(0, 0)}, (1.0, 0.0, 0.0, 0.0)),
        (set(), set(), set(), (0.0, 1.0, 1.0, 1.0)),
        (set(), set(), {(0, 0)}, (0.0, 1.0, 1.0, 1.0)),
        ({(0, 0)}, set(), set(), (1.0, 0.0, 1.0, 0.0)),
        ({(0, 0)}, set(), {(0, 0)}, (0.0, 1.0, 1.0, 1.0)),
        ({(0, 1)}, {(0, 0)}, {(0, 0)}, (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_F69_nothing_found_or_nothing_to_find_is_defined(found, sure, possible, expected):
    score = score_alignment(found, GoldAlignment(2, 2, sure, possible))
    assert (score.aer, score.precision, score.recall, score.f1) == expected


def test_F69_no_sentences_and_no_words_are_defined():
    assert score_alignments([], []).aer == 0.0
    assert score_alignments([], []).coverage == 1.0
    assert score_alignment(set(), GoldAlignment(0, 0, set())).coverage == 1.0


@pytest.mark.parametrize("link", [(4, 0), (0, 5), (-1, 0), (0, -1)])
def test_F69_a_link_out_of_range_is_refused(link):
    with pytest.raises(ArgumentError, match="links within 4 source and 5 target words, both counted from 0"):
        score_alignment({link}, GOLD)
    with pytest.raises(ArgumentError, match="possible"):
        GoldAlignment(4, 5, {link})


def test_F69_a_link_that_is_right_from_1_is_told_so():
    with pytest.raises(ArgumentError, match=r"got \(4, 5\). Are they counted from 1\? Read them with base=1"):
        score_alignment({(4, 5)}, GOLD)
    with pytest.raises(ArgumentError, match="Are source and target exchanged"):
        score_alignment({(7, 0)}, GOLD)


def test_F69_sure_links_must_be_possible():
    with pytest.raises(ArgumentError, match=r"sure: expected links that are possible too, got \(1, 1\), which is not"):
        GoldAlignment(2, 2, {(0, 0), (1, 1)}, {(0, 0)})


def test_F69_another_number_of_sentences_is_refused():
    with pytest.raises(ArgumentError, match="found: expected 2 sentences, as gold has, got 1"):
        score_alignments([{(0, 0)}], [GOLD, GOLD])


def test_the_sentence_of_a_bad_link_is_named():
    with pytest.raises(ArgumentError, match=r"found\[1\]"):
        score_alignments([{(0, 0)}, {(9, 9)}], [GOLD, GOLD])


def test_reversed_links_go_back():
    links = {(0, 1), (2, 0)}
    assert reversed_links(links) == {(1, 0), (0, 2)}
    assert reversed_links(reversed_links(links)) == links
