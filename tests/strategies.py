"""Hypothesis strategies: sizes, masks, options and layouts of attention problems."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from regard import masks
from regard.masks import Mask
from tests.oracles import Case

LENGTHS = st.integers(1, 9)
SEEDS = st.integers(0, 2**32)


def numbers(seed: int, *sizes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit-normal numbers."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bools(seed: int, *sizes: int) -> Tensor:
    """A bool tensor, half of it True."""
    return torch.rand(*sizes, generator=torch.Generator().manual_seed(seed)) < 0.5


@st.composite
def any_mask(draw: st.DrawFn, batch: int, heads: int, q_len: int, kv_len: int) -> Mask:
    """A mask of these sizes; two are combined now and then."""
    kinds = [
        st.sampled_from([masks.Causal("top_left"), masks.Causal("bottom_right")]),
        st.builds(masks.SlidingWindow, st.integers(0, 4), st.integers(0, 4)),
        st.builds(masks.Padding, st.lists(st.integers(0, kv_len), min_size=batch, max_size=batch)),
        st.builds(masks.GlobalTokens, st.integers(0, min(q_len, kv_len))),
        st.builds(masks.Blocks, st.integers(1, 5)),
        st.builds(lambda seed: masks.Dense(bools(seed, q_len, kv_len)), SEEDS),
        st.builds(lambda seed: masks.Dense(bools(seed, batch, heads, q_len, kv_len)), SEEDS),
    ]
    mask: Mask = draw(st.one_of(kinds))
    match draw(st.sampled_from(["alone", "and", "or", "not"])):
        case "and":
            return mask & draw(st.one_of(kinds))
        case "or":
            return mask | draw(st.one_of(kinds))
        case "not":
            return ~mask
        case _:
            return mask


@st.composite
def any_case(draw: st.DrawFn, *, dtype: torch.dtype = torch.float64, options: bool = True) -> Case:
    """A problem with some of the options, in any of three layouts."""
    batch, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    q_len, kv_len, width, value_dim = draw(LENGTHS), draw(LENGTHS), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    heads, seed = kv_heads * group, draw(SEEDS)
    query = numbers(seed, batch, heads, q_len, width, dtype=dtype)
    key = numbers(seed + 1, batch, kv_heads, kv_len, width, dtype=dtype)
    value = numbers(seed + 2, batch, kv_heads, kv_len, value_dim, dtype=dtype)
    if draw(st.booleans()):
        query, key, value = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value))
    more: dict[str, Any] = {"enable_gqa": group > 1}
    if draw(st.booleans()):
        more["mask"] = draw(any_mask(batch, heads, q_len, kv_len))
    if not options:
        return Case(query, key, value, more)
    if draw(st.booleans()):
        sizes = [draw(st.sampled_from([1, size])) for size in (batch, heads, q_len, kv_len)]
        more["bias"] = numbers(seed + 3, *sizes, dtype=dtype)
    if draw(st.booleans()):
        more["softcap"] = draw(st.sampled_from([0.5, 5.0]))
    if draw(st.booleans()):
        more["sink"] = numbers(seed + 4, heads, dtype=dtype)
    if draw(st.booleans()):
        more["scale"] = draw(st.sampled_from([0.0, -1.0, 0.5]))
    return Case(query, key, value, more)
