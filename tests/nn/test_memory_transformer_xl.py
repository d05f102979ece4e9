"""Transformer-XL's memory beside its formula, and cut into segments beside the whole text."""

import math

import torch

from regard.masks import SlidingWindow
from regard.nn import TransformerXLMemory
from tests.nn.memories import MAKERS, WIDTH, assert_alike, assert_same_gradients, drawn, lower, read, seeded


def transformer_xl_by_hand(module, x, keep):
    """The paper's section 3.3, every pair on its own; keys of earlier tokens that are cached carry no gradient here."""
    heads, position = module.projections, module.position
    weights, biases = heads.in_proj_weight.chunk(3), heads.in_proj_bias.chunk(3)
    query, key, value = (
        (x @ w.T + b).unflatten(-1, (heads.num_heads, -1)).transpose(1, 2) for w, b in zip(weights, biases, strict=True)
    )
    n, width = x.shape[1], x.shape[2]
    scores = []
    for i in range(n):
        row = []
        for j in range(n):
            angle = (i - j) * 10000.0 ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
            relative = (position.projection @ torch.cat([angle.sin(), angle.cos()])).view(heads.num_heads, -1)
            content = (query[:, :, i] + position.key_bias) * key[:, :, j]
            distance = (query[:, :, i] + position.distance_query_bias) * relative
            row.append((content + distance).sum(-1))
        scores.append(torch.stack(row, -1))
    scores = torch.stack(scores, 2) / math.sqrt(heads.head_dim)
    weights = scores.masked_fill(~keep, -torch.inf).softmax(-1)
    return heads.out_proj((weights @ value).transpose(1, 2).flatten(2))


def test_transformer_xl_is_its_formula():
    module = seeded(MAKERS["transformer_xl"])
    x = drawn(2, 7, WIDTH).requires_grad_()
    found, expected = module(x)[0], transformer_xl_by_hand(module, x, lower(7))
    assert_alike(found, expected)
    assert_same_gradients(module, found, expected, x)


def test_segments_are_the_whole_text_while_the_memory_reaches():
    module = seeded(lambda: TransformerXLMemory(WIDTH, 2, memory_length=9))
    x = drawn(2, 12, WIDTH)
    whole, _ = module(x)
    for sizes in ([12], [4, 5, 3], [9, 3], [1] * 9 + [3], [4, 0, 8]):
        found, state = read(module, x.split(sizes, 1))
        assert_alike(found, whole)
        assert_alike(state["hidden"], x[:, -9:])


def test_segments_see_what_the_memory_holds_and_no_more():
    module = seeded(lambda: TransformerXLMemory(WIDTH, 2, memory_length=2))
    x = drawn(2, 9, WIDTH)
    keep = lower(9)
    for start in (3, 6):
        keep[start : start + 3, : start - 2] = False
    assert_alike(read(module, x.split(3, 1))[0], transformer_xl_by_hand(module, x, keep))


def test_same_length_is_the_same_wherever_the_text_is_cut():
    module = seeded(lambda: TransformerXLMemory(WIDTH, 2, memory_length=3, same_length=True))
    x = drawn(2, 13, WIDTH)
    expected = transformer_xl_by_hand(module, x, SlidingWindow(3, 0).dense(13, 13))
    for sizes in ([13], [4, 9], [1] * 13, [2, 7, 0, 4]):
        assert_alike(read(module, x.split(sizes, 1))[0], expected)
