"""Data are told apart by a digest of their numbers."""

from __future__ import annotations

import torch

from regard.training.data_digest import digest_of


def test_the_same_numbers_have_one_digest_as_lists_and_as_tensors():
    rows = [[1, 2, 3], [4], []]
    whole = digest_of(rows, [[7]])
    assert whole == digest_of((torch.tensor(row, dtype=torch.int32) for row in rows), [torch.tensor([7])])
    assert len(whole) == 64


def test_other_numbers_orders_and_borders_have_others():
    digests = {
        digest_of(*sides)
        for sides in (
            ([[1, 2], [3]],),
            ([[1], [2, 3]],),
            ([[1, 2, 3]],),
            ([[3], [1, 2]],),
            ([[1, 2]], [[3]]),
            ([[1, 2], [3]], []),
            ([], [[1, 2], [3]]),
            ([[1, 2], [4]],),
            ([],),
            ([[]],),
        )
    }
    assert len(digests) == 10


def test_a_view_of_every_second_number_is_read_as_its_own_numbers():
    assert digest_of([torch.arange(6)[::2]]) == digest_of([[0, 2, 4]])
