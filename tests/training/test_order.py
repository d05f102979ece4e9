"""Which examples make which batch."""

from __future__ import annotations

import pytest

from regard.training.order import length_batches, shuffled_batches


@pytest.mark.parametrize(
    ("count", "size", "batches", "seen"), [(10, 3, 3, 9), (9, 3, 3, 9), (2, 3, 1, 2), (1, 1, 1, 1)]
)
def test_whole_batches_of_different_examples(count, size, batches, seen):
    found = shuffled_batches(count, size, seed=1, epoch=0)
    assert len(found) == batches
    assert len({place for batch in found for place in batch}) == seen == sum(map(len, found))
    assert found == shuffled_batches(count, size, seed=1, epoch=0)


def test_another_epoch_or_seed_has_another_order():
    orders = [shuffled_batches(50, 5, seed=seed, epoch=epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_of_nothing_there_are_no_batches():
    assert shuffled_batches(0, 4, seed=1, epoch=0) == []
    assert length_batches([], 4, seed=1, epoch=0) == []


def test_batches_by_length_hold_every_example_once_within_their_tokens():
    lengths = [1 + place * 7 % 13 for place in range(60)] + [50]
    found = length_batches(lengths, 40, seed=1, epoch=3)
    assert sorted(place for batch in found for place in batch) == list(range(61))
    assert [60] in found  # longer than a batch may be: alone
    assert all(len(batch) * max(lengths[place] for place in batch) <= 40 for batch in found if batch != [60])
    assert found != length_batches(lengths, 40, seed=1, epoch=4)
