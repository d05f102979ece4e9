"""IBM model 1 against expectation-maximisation in three loops, and on a text whose alignment is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from regard import ArgumentError
from regard.explain import IBM1, GoldAlignment, ibm1, reversed_links, score_alignments

SOURCES = [["das", "Haus"], ["das", "Buch"], ["ein", "Buch"], ["das", "das", "Haus", "ist", "klein"], ["so"]]
TARGETS = [["the", "house"], ["the", "book"], ["a", "book"], ["the", "house", "is", "the", "small"], ["so", "so"]]


def by_loops(sources, targets, *, iterations, null):
    """p[source word, target word], as in the paper."""
    start = 1 / len({word for target in targets for word in target})
    sources = [[None, *source] if null else source for source in sources]
    p = {(s, t): start for source, target in zip(sources, targets, strict=True) for s in source for t in target}
    likelihoods = []
    for turn in range(iterations + 1):
        counts, totals, likelihood = dict.fromkeys(p, 0.0), {}, 0.0
        for source, target in zip(sources, targets, strict=True):
            for t in target:
                evidence = sum(p[s, t] for s in source)
                likelihood += math.log(evidence / len(source))
                for s in source:
                    counts[s, t] += p[s, t] / evidence
                    totals[s] = totals.get(s, 0.0) + p[s, t] / evidence
        likelihoods.append(likelihood)
        if turn < iterations:
            p = {(s, t): count / totals[s] for (s, t), count in counts.items()}
    return p, likelihoods


@pytest.mark.parametrize("together", [1, 2, 4096])
@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_the_loops_of_the_paper(iterations, null, together, monkeypatch):
    monkeypatch.setattr(ibm1, "TOGETHER", together)
    expected, likelihoods = by_loops(SOURCES, TARGETS, iterations=iterations, null=null)
    model = IBM1.fit(SOURCES, TARGETS, iterations=iterations, null=null)
    source_words, target_words = ["das", "Haus", "Buch", "ein", "ist", "klein", "so"], ["the", "house", "book", "so"]
    found = model.probabilities(source_words, target_words)
    for row, target in enumerate(target_words):
        for column, source in enumerate([None, *source_words]):
            assert found[row, column].item() == pytest.approx(expected.get((source, target), 0.0), abs=1e-12)
    assert model.log_likelihoods == pytest.approx(likelihoods)


def test_the_likelihood_never_falls():
    values = IBM1.fit(SOURCES, TARGETS, iterations=20).log_likelihoods
    assert len(values) == 21
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))


def test_probabilities_of_a_source_word_sum_to_1():
    words = sorted({word for target in TARGETS for word in target})
    found = IBM1.fit(SOURCES, TARGETS, iterations=3).probabilities(["das", "Buch"], words)
    torch.testing.assert_close(found.sum(0), torch.ones(3, dtype=torch.float64))


def test_posteriors_and_null():
    model = IBM1.fit(SOURCES, TARGETS, iterations=5)
    found = model.probabilities(["das", "Haus"], ["the", "house"])
    torch.testing.assert_close(model.weights(["das", "Haus"], ["the", "house"]), (found / found.sum(1, True))[:, 1:])
    without = IBM1.fit(SOURCES, TARGETS, iterations=5, null=False)
    torch.testing.assert_close(without.weights(["das", "Haus"], ["the"]).sum(1), torch.ones(1, dtype=torch.float64))


def test_the_schoolbook_alignment():
    model = IBM1.fit(SOURCES, TARGETS, iterations=30, null=False)
    assert model.links(["das", "Haus"], ["the", "house"]) == {(0, 0), (1, 1)}
    assert model.links(["ein", "Buch"], ["book", "a"]) == {(1, 0), (0, 1)}


def test_a_word_that_anything_makes_goes_to_null():
    pairs = [(["x"], ["X", "and"]), (["y"], ["Y", "and"]), (["z"], ["Z", "and"]), (["x", "y"], ["and", "X", "Y"])]
    model = IBM1.fit(*zip(*pairs, strict=True), iterations=30)
    assert model.links(["x"], ["and", "X"]) == {(0, 1)}


def test_unknown_words_and_empty_sentences_have_no_links():
    model = IBM1.fit(SOURCES, TARGETS, iterations=3, null=False)
    assert model.links(["Katze"], ["the"]) == model.links(["das"], ["cat"]) == frozenset()
    assert model.links([], ["the"]) == model.links(["das"], []) == frozenset()
    assert model.weights(["Katze"], ["the"]).tolist() == [[0.0]]
    assert IBM1.fit([*SOURCES, []], [*TARGETS, ["lost"]]).links(["das"], ["lost"]) == frozenset()


def test_both_directions_find_a_known_cipher():
    draw = torch.Generator().manual_seed(0)

    def some(count, out_of):
        return torch.randperm(out_of, generator=draw)[:count].tolist()

    sources = [some(2 + turn % 7, 30) for turn in range(300)]
    orders = [some(len(source), len(source)) for source in sources]
    targets = [[f"w{source[place]}" for place in order] for source, order in zip(sources, orders, strict=True)]
    gold = [GoldAlignment(len(o), len(o), {(place, row) for row, place in enumerate(o)}) for o in orders]
    there, back = IBM1.fit(sources, targets), IBM1.fit(targets, sources)
    pairs = list(zip(sources, targets, strict=True))
    assert score_alignments([there.links(s, t) for s, t in pairs], gold).aer < 0.01
    assert score_alignments([reversed_links(back.links(t, s)) for s, t in pairs], gold).aer < 0.01


def test_what_is_refused():
    with pytest.raises(ArgumentError, match="targets: expected 5 sentences, as sources has, got 4"):
        IBM1.fit(SOURCES, TARGETS[:4])
    with pytest.raises(ArgumentError, match="iterations: expected at least 1"):
        IBM1.fit(SOURCES, TARGETS, iterations=0)
    for nothing in ([], [[]]):
        with pytest.raises(ArgumentError, match="at least one pair of words"):
            IBM1.fit(nothing, nothing)
