"""Bool matrices get their names, and what differs from the declaration gets its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from regard.masks import Blocks, Causal, Dense, Dilated, Documents, GlobalTokens, Keys, Mask, Padding, PrefixLM
from regard.masks import SlidingWindow as Window
from regard.trust.audit.compare_mask import DeclaredMask, compare_masks
from regard.trust.audit.declared import Declared, lengths_of, unseen_parts, varied
from regard.trust.audit.describe_mask import describe, document_lengths
from regard.trust.audit.recover import Recovered
from tests.masks.mask_cases import any_case

NAMES = [
    (Causal(), 12, 12, "causal"),
    (Causal("top_left"), 5, 12, "causal, top-left"),
    (Causal("bottom_right"), 5, 12, "causal, bottom-right"),
    (Causal() & Window(4, 0), 12, 12, "causal, window 4 before"),
    (Window(4, 0, align="bottom_right"), 5, 12, "causal, window 4 before, bottom-right"),
    (Window(3, 2), 12, 12, "window 3 before, 2 after"),
    (Window(99, 2), 12, 12, "window 2 after"),
    (Window(3, 99), 12, 12, "window 3 before, all after"),
    (Window(0), 12, 12, "causal, window 0 before"),
    (Documents([5, 7]), 12, 12, "documents of 5, 7"),
    (Causal() & Documents([5, 7]), 12, 12, "causal, within documents of 5, 7"),
    (Window(1) & Documents([5, 7]), 12, 12, "window 1 before, 1 after, within documents of 5, 7"),
    (Blocks(5), 12, 12, "blocks of 5"),
    (PrefixLM(3), 12, 12, "prefix of 3, then causal"),
    (Window(2) | GlobalTokens([0, 6]), 12, 12, "window 2 before, 2 after, global tokens 0, 6"),
    (Dilated(3, 2), 12, 12, "one key in 3, 2 before, 2 after"),
    (Padding([12, 7]), 12, 12, "padding, 12, 7 real keys"),
    (Padding([12, 7], side="left"), 4, 12, "padding, 12, 7 real keys, on the left"),
    (Causal() & Padding([12, 7]), 12, 12, "causal; padding, 12, 7 real keys"),
    (Keys(torch.arange(12)[None] % 3 != 1), 12, 12, "no key 1, 4, 7, 10"),
    (Dense((torch.arange(144) % 5 != 0).view(12, 12)), 12, 12, "another mask, 80% of pairs"),
]


def allowed_of(mask: Mask, q_len: int, kv_len: int) -> Tensor:
    return mask.dense(q_len, kv_len).expand(mask.batch_size or 2, mask.head_count or 3, q_len, kv_len)


@pytest.mark.parametrize(("mask", "q_len", "kv_len", "words"), NAMES, ids=lambda value: str(value)[:40])
def test_masks_get_their_names(mask, q_len, kv_len, words):
    allowed = allowed_of(mask, q_len, kv_len)
    found = describe(allowed)
    assert found.words == words
    assert found.mask is not None
    assert torch.equal(allowed_of(found.mask, q_len, kv_len), allowed) or found.mask.batch_size == 1


@settings(max_examples=40)
@given(any_case())
def test_a_name_makes_the_same_mask_again(case):
    allowed = case.dense.expand(2, 3, case.q_len, case.kv_len)
    if not allowed.numel():
        return
    found = describe(allowed)
    made = torch.ones_like(allowed) if found.mask is None else found.mask.dense(case.q_len, case.kv_len)
    assert torch.equal(made.expand(allowed.shape), allowed), (case.mask, found)


def test_heads_that_differ_are_told_apart():
    allowed = torch.ones(2, 3, 6, 6, dtype=torch.bool)
    allowed[:, 2] = Causal().dense(6, 6)
    assert describe(allowed).words == "head 0-1: every pair; head 2: causal"


def test_samples_that_differ_by_more_than_padding_are_told_apart():
    allowed = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    allowed[1] = Causal().dense(6, 6)
    assert describe(allowed).words == "sample 0: every pair; sample 1: causal"


def test_the_pieces_of_a_text_are_found():
    assert document_lengths(Documents([3, 1, 4]).dense(8, 8)) == [3, 1, 4]
    assert document_lengths(Causal().dense(8, 8)) == [8]


# ---------------------------------------------------------------------------------------- differences


def compared(
    declared: Mask | None, found: Tensor, *, unknown: Tensor | None = None, lengths=(12, 12)
) -> dict[str, str]:
    """From code to sentence."""
    wanted = torch.ones(2, 3, *lengths, dtype=torch.bool) if declared is None else declared.dense(*lengths)
    wanted = wanted.expand(2, 3, *lengths)
    found = found.expand(2, 3, *lengths)
    rows = torch.zeros(2, 3, lengths[0], dtype=torch.bool) if unknown is None else unknown.expand(2, 3, lengths[0])
    recovered = Recovered(found.double(), found & ~rows[..., None], rows)
    return {one.code: one.sentence for one in compare_masks(DeclaredMask(declared, wanted), recovered)}


def dense(mask: Mask, q_len: int = 12, kv_len: int = 12) -> Tensor:
    return mask.dense(q_len, kv_len)


ALL = torch.ones(12, 12, dtype=torch.bool)

DIFFERENCES = [
    (Causal(), ALL, {"causal_missing"}),
    (Causal(), dense(Window(99, 2)), {"future_attended"}),
    (None, dense(Causal()), {"causal_imposed"}),
    (None, dense(Window(3)), {"window_imposed"}),
    (None, dense(Causal() & Window(3, 0)), {"window_imposed", "causal_imposed"}),
    (Window(4, 2), ALL, {"window_left_ignored", "window_right_ignored"}),
    (Window(4, 2), dense(Window(4, 3)), {"window_right_differs"}),
    (Window(4, 2), dense(Window(4, 1)), {"window_right_differs"}),
    (Window(4, 2), dense(Window(5, 2)), {"window_left_differs"}),
    (Window(4, 2), dense(Window(3, 2)), {"window_left_differs"}),
    (Window(4, 0), dense(Window(4, 99)), {"window_right_ignored"}),
    (Causal() & Window(4, 0), dense(Window(4, 99)), {"causal_missing"}),
    (Causal() & Window(4, 0), dense(Causal()), {"window_left_ignored"}),
    (Causal() & Window(4, 0), ALL, {"causal_missing", "window_left_ignored"}),
    (Causal() & Documents([5, 7]), dense(Causal()), {"documents_cross"}),
    (Causal() & Documents([5, 7]), dense(Documents([5, 7])), {"causal_missing"}),
    (Causal() & Padding([12, 7]), dense(Causal()), {"padding_attended"}),
    (Padding([12, 7]), dense(Padding([12, 8])), {"padding_attended"}),
    (Padding([12, 7]), dense(Padding([12, 6])), {"keys_hidden"}),
    (Causal(), ~dense(Causal()), {"mask_inverted"}),
    (Causal() & Window(4, 0), dense(Window(0, 4)), {"mask_transposed"}),
    (Causal(), torch.zeros(12, 12, dtype=torch.bool), {"nothing_attended"}),
    (None, ALL & (torch.arange(12) != 5), {"keys_hidden"}),
    (None, ALL & (torch.arange(12) != 5)[:, None], {"nothing_attended"}),
    (Dense(dense(Causal())), ALL, {"causal_missing"}),
    (Dense((torch.arange(144) % 5 != 0).view(12, 12)), ALL, {"mask_ignored"}),
    (Dilated(3, 2), dense(Dilated(2, 2)), {"mask_differs"}),
    (None, (torch.arange(144) % 5 != 0).view(12, 12), {"mask_differs"}),
    (Blocks(4), ALL, {"mask_ignored"}),
]


@pytest.mark.parametrize(("declared", "found", "codes"), DIFFERENCES)
def test_differences_get_their_codes(declared, found, codes):
    assert set(compared(declared, found)) == codes


@pytest.mark.parametrize(
    "mask", [Causal(), Window(3, 1), Padding([12, 7]), Causal() & Documents([5, 7]), Dilated(3, 2), None]
)
def test_the_same_mask_has_no_difference(mask):
    assert compared(mask, ALL if mask is None else dense(mask)) == {}


@pytest.mark.parametrize("lengths", [(5, 12), (1, 12), (12, 5)])
def test_the_other_corner_is_named(lengths):
    declared, other = Causal("top_left"), Causal("bottom_right")
    found = compared(declared, dense(other, *lengths), lengths=lengths)
    assert found == {"causal_corner": "causal corner bottom-right, declared top-left"}
    found = compared(
        other & Window(2, 0, align="bottom_right"), dense(declared & Window(2, 0), *lengths), lengths=lengths
    )
    assert found == {"causal_corner": "causal corner top-left, declared bottom-right"}


def test_numbers_are_told():
    assert compared(Window(4, 0), dense(Window(5, 0)))["window_left_differs"] == (
        "the window reaches 5 keys before the query, declared 4"
    )
    assert compared(Window(4, 2), dense(Window(4, 99)))["window_right_ignored"] == "window_right ignored, declared 2"
    assert compared(Causal(), dense(Window(99, 3)))["future_attended"] == (
        "the future is attended to, up to 3 keys ahead"
    )
    staircase = dense(Causal())[(torch.arange(12) // 4) * 4 + 3]
    assert compared(Causal(), staircase)["future_attended"] == (
        "the future is attended to, in places up to 3 keys ahead"
    )


def test_the_heads_that_are_wrong_are_told():
    found = dense(Causal()).expand(2, 3, 12, 12).clone()
    found[:, 1] = True
    assert compared(Causal(), found)["causal_missing"].endswith("every later key is attended to by head 1")


def test_rows_that_may_attend_to_nothing_are_judged_apart():
    declared = Padding([12, 0])
    empty = torch.zeros(2, 1, 12, dtype=torch.bool)
    empty[1] = True
    assert set(compared(declared, dense(declared), unknown=empty)) == {"empty_row_nan"}
    assert set(compared(declared, ALL)) == {"empty_row_attends"}
    assert compared(declared, dense(declared)) == {}


def test_a_row_of_nan_that_may_attend_is_told():
    rows = (torch.arange(12) == 3)[None, None]
    assert compared(Causal(), dense(Causal()), unknown=rows) == {
        "row_nan": "6 of 72 queries return NaN at scores of zero"
    }


# ------------------------------------------------------------------------------------- where it can be seen


@pytest.mark.parametrize(
    ("mask", "main"),
    [
        (None, (12, 12)),
        (Window(4, 0), (12, 12)),
        (Window(100, 0), (192, 192)),
        (Documents([5, 4]), (9, 9)),
        (Padding([12, 7]), (12, 12)),
        (Padding([20, 7]), (24, 24)),
        (Dense(torch.ones(3, 5, dtype=torch.bool)), (3, 5)),
        (Keys(torch.ones(2, 17, dtype=torch.bool)), (17, 17)),
    ],
)
def test_lengths_show_the_mask(mask, main):
    lengths = lengths_of(Declared.of(mask))
    assert lengths[0] == main
    assert len(lengths) == len(set(lengths))


def test_lengths_that_differ_need_a_corner():
    assert all(q_len == kv_len for q_len, kv_len in lengths_of(Declared.of(Causal())))
    assert {(5, 12), (1, 12), (12, 6)} <= set(lengths_of(Declared.of(Causal("top_left"))))
    assert (12, 6) not in lengths_of(Declared.of(Causal("bottom_right")))  # its first queries see no key


def test_a_part_that_forbids_nothing_is_told():
    assert unseen_parts(Causal() & Window(5, 0), 12, 12) == []
    assert unseen_parts(Causal() & Window(50, 0), 12, 12) == ["SlidingWindow(before=50, after=0)"]
    assert unseen_parts(Window(50), 12, 12) == ["SlidingWindow(before=50, after=50)"]


@pytest.mark.parametrize(
    "mask", [Window(4, 0), Causal() & Window(4), Padding([12, 7]), Documents([5, 7]), Documents([6, 6])]
)
def test_other_numbers_make_another_mask_of_the_same_kind(mask):
    other = varied(mask)
    assert other is not None
    assert not torch.equal(other.dense(12, 12), mask.dense(12, 12))


@pytest.mark.parametrize("mask", [None, Causal(), Blocks(4), Padding([7, 7])])
def test_masks_without_numbers_to_change_stay(mask):
    assert varied(mask) is None
