"""From weights to links: argmax, thresholds, the step that aligns a word, two directions joined, words of pieces."""

from __future__ import annotations

import itertools

import pytest
import torch

from regard import ArgumentError, ShapeError
from regard.explain import argmax_links, symmetrised, target_rows, threshold_links, word_links, word_weights

WEIGHTS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


def test_argmax_of_each_target_word():
    assert argmax_links(WEIGHTS) == {(0, 0), (2, 1), (0, 2)}  # the first of a tie; none for a row of nothing


def test_argmax_of_each_source_word():
    assert argmax_links(WEIGHTS, each="source") == {(0, 0), (1, 2), (2, 1)}


def test_argmax_above_a_weight():
    assert argmax_links(WEIGHTS, least=0.5) == {(0, 0), (2, 1)}


def test_threshold():
    assert threshold_links(WEIGHTS, 0.5) == {(0, 0), (2, 1), (0, 2), (1, 2)}
    assert threshold_links(WEIGHTS, 0.9) == frozenset()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_no_words_no_links(shape):
    assert argmax_links(torch.zeros(shape)) == argmax_links(torch.zeros(shape), each="source") == frozenset()
    assert threshold_links(torch.zeros(shape), 0.1) == frozenset()


def test_what_is_refused():
    with pytest.raises(ShapeError, match="Choose one sample and one head"):
        argmax_links(WEIGHTS[None])
    with pytest.raises(ArgumentError, match="expected numbers, got NaN"):
        argmax_links(WEIGHTS * torch.nan)
    with pytest.raises(ArgumentError, match="a weight above 0"):
        threshold_links(WEIGHTS, 0.0)
    with pytest.raises(ArgumentError, match="each: expected"):
        argmax_links(WEIGHTS, each="row")
    with pytest.raises(ArgumentError, match="how: expected"):
        symmetrised([], [], "diag")
    with pytest.raises(ArgumentError, match="'predicting' or 'consuming'"):
        target_rows(WEIGHTS, "naive")
    with pytest.raises(ShapeError, match="1 \\+ target tokens"):
        target_rows(WEIGHTS[:0], "predicting")


def test_the_two_step_rules():
    steps = torch.arange(4.0)[:, None].expand(4, 2)  # steps that read begin, y_1, y_2, y_3
    assert target_rows(steps, "predicting")[:, 0].tolist() == [0, 1, 2]
    assert target_rows(steps, "consuming")[:, 0].tolist() == [1, 2, 3]
    assert target_rows(steps.expand(2, 5, 4, 2), "consuming").shape == (2, 5, 3, 2)
    assert target_rows(steps[:1], "consuming").shape == (0, 2)


# Links as (source, target). The first direction gives each target word a link, the second each source word.
#
#            source 0 1 2 3 4 5          b both, 1 first only, 2 second only
#   target 0        b . . . . .
#   target 1        . 1 . . . .          touches (0, 0): grows
#   target 2        . 2 b . . .          (1, 2) touches (2, 2), but by then neither of its words is free
#   target 3        . . . . . 1          touches nothing; both words are free: all of final
#   target 4        . . . 1 . .          touches nothing; both words are free
#   target 5        . . . . 2 .          touches (3, 4), but only after growing is over
#   target 6        . . . 1 . .          final: target 6 is free, source 3 taken by then; final-and: no
FIRST = {(0, 0), (1, 1), (2, 2), (5, 3), (3, 4), (3, 6)}
SECOND = {(0, 0), (1, 2), (2, 2), (4, 5)}


def test_symmetrisation_by_hand():
    assert symmetrised(FIRST, SECOND, "intersection") == {(0, 0), (2, 2)}
    assert symmetrised(FIRST, SECOND, "union") == FIRST | SECOND
    grown = {(0, 0), (1, 1), (2, 2)}
    assert symmetrised(FIRST, SECOND, "grow-diag") == grown
    assert symmetrised(FIRST, SECOND, "grow-diag-final") == grown | {(5, 3), (3, 4), (3, 6), (4, 5)}
    assert symmetrised(FIRST, SECOND, "grow-diag-final-and") == grown | {(5, 3), (3, 4), (4, 5)}


def test_growing_goes_on_from_what_was_added():
    chain = {(0, 0), (1, 1), (2, 2), (3, 3)}
    assert symmetrised(chain, {(0, 0)}, "grow-diag") == chain
    backward = {(3, 0), (2, 1), (1, 2), (0, 3)}
    assert symmetrised(backward, {(0, 3)}, "grow-diag") == backward


def test_growing_takes_a_neighbour_of_which_one_word_is_free():
    assert symmetrised({(0, 0), (1, 0)}, {(0, 0)}, "grow-diag") == {(0, 0), (1, 0)}
    square = {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert symmetrised(square, {(0, 0), (1, 1)}, "grow-diag") == {(0, 0), (1, 1)}  # no word of the others is free


def test_all_ways_lie_between_intersection_and_union():
    draw = torch.Generator().manual_seed(1)
    for _ in range(50):
        one, other = (argmax_links(torch.rand(6, 7, generator=draw), each=each) for each in ("target", "source"))
        ways = ("intersection", "grow-diag", "grow-diag-final-and", "grow-diag-final", "union")
        found = [symmetrised(one, other, way) for way in ways]
        assert all(smaller <= larger for smaller, larger in itertools.pairwise(found))
        words = {source for source, _ in one | other}, {target for _, target in one | other}
        assert ({source for source, _ in found[3]}, {target for _, target in found[3]}) == words


def test_nothing_to_join():
    for way in ("intersection", "union", "grow-diag", "grow-diag-final", "grow-diag-final-and"):
        assert symmetrised([], [], way) == frozenset()
    assert symmetrised([(1, 1)], [], "grow-diag-final-and") == {(1, 1)}


def test_weights_of_words_by_hand():
    pieces = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.0, 0.6, 0.4]])
    found = word_weights(pieces, source_words=[0, 0, 1], target_words=[0, 1, 1])
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.3], [0.4, 0.6]]))


def test_weights_of_words_sum_to_1():
    weights = torch.rand(2, 3, 7, 9).softmax(-1).double()
    found = word_weights(weights, [0, 1, 1, 2, 2, 2, 3, 4, 4], [0, 0, 1, 2, 2, 2, 3])
    assert found.shape == (2, 3, 4, 5)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 4).double())


def test_pieces_of_no_word_are_left_out():
    pieces = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(word_weights(pieces, [0, 1, -1], [0, -1]), torch.tensor([[0.5, 0.2]]))
    assert word_weights(pieces, [-1, -1, -1], [0, 0]).shape == (1, 0)
    torch.testing.assert_close(word_weights(pieces, [0, 1, 1], [2, 0])[1], torch.zeros(2))


def test_words_are_linked_when_any_pieces_are():
    links = {(0, 0), (1, 2), (2, 2), (3, 1)}
    assert word_links(links, [0, 0, 1, -1], [0, 0, 1]) == {(0, 0), (0, 1), (1, 1)}
    with pytest.raises(ArgumentError, match="links within 2 source"):
        word_links(links, [0, 0], [0, 0, 1])


def test_words_of_each_piece_are_asked_for():
    with pytest.raises(ShapeError, match="Give the word of each piece"):
        word_weights(WEIGHTS, [0, 1], [0, 1, 2, 3])


STEPS = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


def grown_on_a_grid(one, other, size, *, final):
    """Koehn's description, on a grid of target rows and source columns, in loops over all of it."""
    union, now = one | other, one & other

    def free(source, target):
        return (all(s != source for s, _ in now)) + (all(t != target for _, t in now))

    def neighbours(source, target):
        return [(source + right, target + down) for down, right in STEPS if (source + right, target + down) in union]

    grid = [(source, target) for target in range(size) for source in range(size)]
    before = None
    while before != now:
        before = now
        for at in grid:
            for near in neighbours(*at) if at in now else ():
                now = now | {near} if free(*near) else now
    for direction in (one, other) if final else ():
        for at in grid:
            now = now | {at} if at in direction and free(*at) >= final else now
    return now


def test_symmetrisation_is_that_of_loops_over_the_grid():
    draw = torch.Generator().manual_seed(2)
    names = {0: "grow-diag", 1: "grow-diag-final", 2: "grow-diag-final-and"}
    for turn in range(60):
        one, other = (
            threshold_links(torch.rand(7, 7, generator=draw) * (torch.rand(7, 7, generator=draw) > 0.4), 0.5)
            for _ in range(2)
        )
        final = turn % 3
        assert symmetrised(one, other, names[final]) == grown_on_a_grid(one, other, 7, final=final)
