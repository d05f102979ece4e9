"""Masks inside a traced program: tensor operations only, nothing that looks at a value."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from regard.masks import (
    Axial,
    BigBird,
    Blocks,
    Causal,
    CrissCross,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    GridBlocks,
    Indices,
    Keys,
    Neighborhood,
    Padding,
    PrefixLM,
    SlidingWindow,
)

LENGTH = 24
SEED = torch.Generator().manual_seed(0)
MASKS = [
    Causal(),
    SlidingWindow(3),
    Dilated(3, 2),
    GlobalTokens([1, 9]),
    Blocks(5),
    BigBird(3),
    PrefixLM(5),
    Documents([4, 20]),
    Padding([3, 24]),
    Padding([3, 24], side="left"),
    Keys(torch.rand(2, LENGTH, generator=SEED) < 0.5),
    Dense(torch.rand(2, 1, LENGTH, LENGTH, generator=SEED) < 0.5),
    Axial((4, 6), 0),
    CrissCross((4, 6)),
    GridBlocks((4, 6), 2),
    Neighborhood((2, 3, 4), 1),
    ~(Causal() & SlidingWindow(3)) | GlobalTokens(2),
]


def as_mask_mod(mask):
    def mask_mod(batch, head, query, key):
        return mask.keep(Indices(batch, head, query, key, LENGTH, LENGTH))

    return mask_mod


def expected(mask):
    dense = mask.dense(LENGTH, LENGTH)
    return dense.expand(2, 1, LENGTH, LENGTH)


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_keep_serves_as_a_mask_mod_of_flex_attention(mask):
    assert torch.equal(create_mask(as_mask_mod(mask), 2, 1, LENGTH, LENGTH, device="cpu"), expected(mask))


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_keep_is_traced_whole(mask):
    torch.compiler.reset()
    rows = torch.arange(LENGTH)
    places = [torch.arange(2).view(2, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64)]
    places += [rows.view(1, 1, -1, 1), rows.view(1, 1, 1, -1)]
    traced = torch.compile(as_mask_mod(mask), backend="eager", fullgraph=True)
    assert torch.equal(traced(*places).expand(2, 1, LENGTH, LENGTH), expected(mask))
