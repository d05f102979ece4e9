"""What combining masks obeys, whatever the masks are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import any_case, pairs

from regard.masks import Causal, Dense, Keys, Padding, SlidingWindow
from regard.masks._indices import block_grid

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)


def dense(mask, case):
    return mask.dense(case.q_len, case.kv_len)


@SETTINGS
@given(any_case())
def test_not_not_is_the_mask_itself(case):
    assert ~~case.mask == case.mask
    assert torch.equal(dense(~case.mask, case), ~dense(case.mask, case))


@SETTINGS
@given(pairs())
def test_de_morgan(two):
    (left, right), case = (each.mask for each in two), two[0]
    assert torch.equal(dense(~(left & right), case), dense(~left | ~right, case))
    assert torch.equal(dense(~(left | right), case), dense(~left & ~right, case))


@SETTINGS
@given(pairs(), st.integers(1, 9))
def test_order_does_not_matter(two, size):
    left, right = (each.mask for each in two)
    for one, other in [(left & right, right & left), (left | right, right | left)]:
        assert torch.equal(dense(one, two[0]), dense(other, two[0]))
        lengths = two[0].q_len, two[0].kv_len
        assert torch.equal(one.blocks(*lengths, size).kinds, other.blocks(*lengths, size).kinds)
        at = block_grid(one.batch_size or 1, one.head_count or 1, *lengths, size)
        assert torch.equal(one.block_kinds(at), other.block_kinds(at))


@SETTINGS
@given(pairs())
def test_intersection_lies_within_and_union_around(two):
    left, right = (each.mask for each in two)
    assert not (dense(left & right, two[0]) & ~dense(left, two[0])).any()
    assert not (dense(left, two[0]) & ~dense(left | right, two[0])).any()
    assert torch.equal(dense(left | (left & right), two[0]), dense(left | right & left, two[0]))


@SETTINGS
@given(st.integers(1, 20), st.integers(0, 20))
def test_causal_and_window_lies_within_causal(length, before):
    both = (Causal() & SlidingWindow(before)).dense(length, length)
    assert not (both & ~Causal().dense(length, length)).any()
    assert torch.equal(both, SlidingWindow(before, 0).dense(length, length))


def test_batch_and_heads_of_a_combination_come_from_either_side():
    per_head = Dense(torch.ones(1, 3, 4, 4, dtype=torch.bool))
    both = Padding([1, 2]) & per_head
    assert (both.batch_size, both.head_count) == (2, 3)
    assert ((~both).batch_size, (~both).head_count) == (2, 3)
    assert both.dense(4, 4).shape == (2, 3, 4, 4)
    assert per_head.dense(4, 4).shape == (1, 3, 4, 4)
    assert ((Causal() | SlidingWindow(1)).batch_size, Causal().head_count) == (None, None)


def test_both_sides_of_a_combination_are_checked():
    with pytest.raises(ValueError, match="Padding lengths"):
        (Causal() & Padding([9])).dense(4, 4)
    with pytest.raises(ValueError, match="Padding lengths"):
        (~Padding([9]) | Causal()).blocks(4, 4)
    with pytest.raises(ValueError, match="Keys"):
        (~Keys(torch.ones(1, 3, dtype=torch.bool))).check(4, 4)


@pytest.mark.parametrize("other", [True, None, 3, "causal"], ids=repr)
def test_only_masks_combine(other):
    with pytest.raises(TypeError):
        Causal() & other
    with pytest.raises(TypeError):
        Causal() | other


def test_and_or_not_of_python_are_refused_because_they_would_drop_a_mask():
    with pytest.raises(TypeError, match=r"combine masks with & \| ~"):
        Causal() and SlidingWindow(3)
