"""BigBird: what its window, its global and its random blocks must satisfy."""

from __future__ import annotations

import collections
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.masks import BigBird


def block_rows(mask, blocks):
    """For each row of blocks, the set of the column blocks that it keeps; the mask must keep whole blocks."""
    size = mask.block_size
    length = blocks * size
    kept = mask.dense(length, length).view(blocks, size, blocks, size).transpose(1, 2).flatten(2)
    assert torch.equal(kept.all(2), kept.any(2))
    return [set(row.nonzero()[:, 0].tolist()) for row in kept.all(2)]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    blocks=st.integers(1, 24),
    size=st.integers(1, 4),
    window=st.sampled_from([1, 3, 5]),
    first=st.integers(0, 3),
    last=st.integers(0, 2),
    random=st.integers(0, 5),
    seed=st.integers(0, 10**6),
)
def test_each_row_keeps_its_window_the_global_and_its_share_of_random_blocks(
    blocks, size, window, first, last, random, seed
):
    rows = block_rows(BigBird(size, window, (first, last), random, seed), blocks)
    everywhere = {block for block in range(blocks) if block < first or block >= blocks - last}
    for place, kept in enumerate(rows):
        near = {block for block in range(blocks) if abs(block - place) <= window // 2}
        if place in everywhere:
            assert kept == set(range(blocks))
        else:
            others = set(range(blocks)) - near - everywhere
            assert kept >= near | everywhere
            assert len(kept & others) == min(random, len(others))


def test_every_candidate_is_drawn_as_often_as_the_others():
    counts = collections.Counter()
    for seed in range(1500):
        kept = BigBird(1, 1, 0, 3, seed).tile(torch.tensor([5]), torch.arange(11), 11, 11)
        counts.update(kept[0].nonzero()[:, 0].tolist())
    assert counts.pop(5) == 1500
    assert len(counts) == 10
    # 450 expected each, with a binomial spread of 18: five of them are a generous bound.
    assert all(abs(count - 450) < 90 for count in counts.values())


def test_rows_and_seeds_differ():
    assert len({frozenset(row) for row in block_rows(BigBird(1, 1, 0, 3), 64)}) > 60
    assert BigBird(4, seed=0).dense(128, 128).ne(BigBird(4, seed=1).dense(128, 128)).any()


def test_same_seed_gives_the_same_blocks_and_touches_no_random_state():
    state = torch.get_rng_state()
    expected = BigBird(4, seed=3).dense(120, 120)
    found = []
    threads = [threading.Thread(target=lambda: found.append(BigBird(4, seed=3).dense(120, 120))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == 4
    assert all(torch.equal(each, expected) for each in found)


def test_last_block_may_be_shorter():
    kept = BigBird(4, 1, 0, 0).dense(6, 6)
    assert kept.sum() == 4 * 4 + 2 * 2


@pytest.mark.parametrize("ends", [1, (1, 0), [1, 0], torch.tensor([1, 0])])
def test_global_blocks_are_a_number_or_both_ends(ends):
    assert BigBird(2, global_blocks=ends) == BigBird(2, global_blocks=1)


def test_which_blocks_are_random_stays_as_it_was():
    """Weights that were trained with a pattern need that pattern."""
    rows = block_rows(BigBird(1, 1, (0, 0), 2, 5), 10)
    assert [sorted(row) for row in rows] == [
        [0, 4, 7], [0, 1, 2], [2, 4, 5], [3, 7, 8], [4, 5, 9], [5, 6, 9], [3, 4, 6], [1, 4, 7], [6, 7, 8], [0, 2, 9],
    ]  # fmt: skip


def test_what_is_left_out_is_as_in_the_paper():
    assert repr(BigBird(64)) == (
        "BigBird(block_size=64, window_blocks=3, global_blocks=(1, 0), random_blocks=3, seed=0)"
    )
