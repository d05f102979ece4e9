"""Masks are values: frozen, equal by meaning, hashable, and printed as the call that makes them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from mask_cases import any_case
from tests.wording import assert_known

import regard.masks
from regard.masks import (
    Axial,
    BigBird,
    Causal,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    Keys,
    Mask,
    Neighborhood,
    Padding,
    SlidingWindow,
)

NAMES = {name: getattr(regard.masks, name) for name in regard.masks.__all__}


def holds_a_tensor(mask):
    return "bool " in repr(mask)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(any_case())
def test_repr_is_the_call_that_makes_an_equal_mask(case):
    if holds_a_tensor(case.mask):
        return
    again = eval(repr(case.mask), NAMES)  # noqa: S307  the test's own text
    assert again == case.mask
    assert hash(again) == hash(case.mask)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(any_case())
def test_copies_are_equal(case):
    for again in (copy.deepcopy(case.mask), pickle.loads(pickle.dumps(case.mask))):  # noqa: S301  the test's own bytes
        assert again == case.mask
        assert hash(again) == hash(case.mask)
        assert torch.equal(again.dense(case.q_len, case.kv_len), case.mask.dense(case.q_len, case.kv_len))


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (Causal(), "Causal()"),
        (Causal("bottom_right"), "Causal(align='bottom_right')"),
        (SlidingWindow(128, 0), "SlidingWindow(before=128, after=0)"),
        (SlidingWindow(2, align="bottom_right"), "SlidingWindow(before=2, after=2, align='bottom_right')"),
        (Dilated(3), "Dilated(step=3)"),
        (GlobalTokens(16), "GlobalTokens(16)"),
        (GlobalTokens([5, 1, 5]), "GlobalTokens([1, 5])"),
        (GlobalTokens(1, align="top_left"), "GlobalTokens(1, align='top_left')"),
        (Documents(torch.tensor([10, 22])), "Documents(lengths=(10, 22))"),
        (Padding([3], side="left"), "Padding(lengths=(3,), side='left')"),
        (Axial([4, 4], -1), "Axial(shape=(4, 4), axis=1)"),
        (Neighborhood((4, 4), 1), "Neighborhood(shape=(4, 4), radius=(1, 1))"),
        (
            BigBird(64),
            "BigBird(block_size=64, window_blocks=3, global_blocks=(1, 0), random_blocks=3, seed=0)",
        ),
        (Dense(torch.ones(2, 1, 5, 7, dtype=torch.bool)), "Dense(bool 2x1x5x7, 100% kept)"),
        (Dense(torch.arange(10).view(2, 5) < 4), "Dense(bool 2x5, 40% kept)"),
        (Dense(torch.arange(1000).view(20, 50) < 1), "Dense(bool 20x50, <1% kept)"),
        (Dense(torch.arange(1000).view(20, 50) > 0), "Dense(bool 20x50, >99% kept)"),
        (Dense(torch.arange(1000).view(20, 50) < 6), "Dense(bool 20x50, 1% kept)"),
        (Dense(torch.zeros(0, 5, dtype=torch.bool)), "Dense(bool 0x5, 0% kept)"),
        (Keys(torch.tensor([[True, False]])), "Keys(bool 1x2, 50% kept)"),
        (~(Causal() & SlidingWindow(1)) | GlobalTokens(1), None),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value),
)
def test_repr(mask, text):
    combined = "(~(Causal() & SlidingWindow(before=1, after=1)) | GlobalTokens(1))"
    assert repr(mask) == (combined if text is None else text)


@pytest.mark.parametrize("sequence", [(3, 5), [3, 5], torch.tensor([3, 5]), torch.tensor([3, 5], dtype=torch.int32)])
def test_lengths_come_as_list_tuple_or_tensor(sequence):
    assert Documents(sequence).lengths == Padding(sequence).lengths == (3, 5)
    assert GlobalTokens(sequence) == GlobalTokens([5, 3])


def test_axes_count_from_either_end():
    assert [Axial((4, 4), axis) for axis in (-2, -1)] == [Axial((4, 4), axis) for axis in (0, 1)]


def test_a_map_of_blocks_is_of_128():
    assert Causal().blocks(300, 300).size == 128


def test_a_mask_is_neither_true_nor_false():
    with pytest.raises(TypeError) as caught:
        bool(Causal())
    assert_known(str(caught.value))


def test_equality_is_by_meaning():
    assert SlidingWindow(3) == SlidingWindow(3, 3) != SlidingWindow(3, 0)
    assert GlobalTokens(2) == GlobalTokens([1, 0]) != GlobalTokens([1])
    assert Padding([3]) != Padding([3], side="left") != Documents([3])
    assert Causal() & SlidingWindow(1) == Causal() & SlidingWindow(1) != Causal() | SlidingWindow(1)
    assert len({Causal(), Causal(), Causal("top_left"), ~Causal(), Padding([1]), Padding([1])}) == 4


def test_masks_of_tensors_are_equal_when_their_tensors_are():
    kept = torch.tensor([[True, False]])
    for kind in (Dense, Keys):
        assert kind(kept) == kind(kept.clone())
        assert kind(kept) != kind(~kept)
        assert kind(kept) != kind(kept.expand(2, 2))
        assert kind(kept) != Causal()
        assert hash(kind(kept)) == hash(kind(kept.clone()))
    assert Dense(kept) != Keys(kept)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(any_case())
def test_masks_are_frozen(case):
    for field in dataclasses.fields(case.mask):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(case.mask, field.name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(case.mask, field.name)


def test_a_field_can_be_replaced_in_a_copy():
    assert dataclasses.replace(SlidingWindow(3, 1), before=5) == SlidingWindow(5, 1)
    assert dataclasses.replace(BigBird(4), seed=7) == BigBird(4, seed=7)


def test_masks_of_others_need_not_be_dataclasses():
    class Everything(Mask):
        def keep(self, at):
            return at.key >= 0

    assert "Everything object" in repr(Everything())
    assert Everything().dense(2, 3).all()


def test_public_names_are_sorted_and_documented():
    assert regard.masks.__all__ == sorted(regard.masks.__all__)
    assert all(value.__doc__ for value in NAMES.values())
    kinds = [value for value in NAMES.values() if isinstance(value, type) and issubclass(value, Mask)]
    assert len(kinds) == 16  # Mask itself and fifteen kinds


def test_import_and_drawing_bring_no_more_than_they_need():
    code = (
        "import sys; import regard.masks as masks; mask = masks.Causal() & masks.SlidingWindow(3);"
        "mask.blocks(64, 64, 8); print(*({'matplotlib', 'sympy'} & set(sys.modules)));"
        "mask.draw(); print(*({'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"
