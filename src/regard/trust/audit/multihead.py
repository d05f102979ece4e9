"""`torch.nn.MultiheadAttention` as attention of heads: its ways to compute, past projections that do nothing.

The class has several code paths; which one runs depends on `need_weights`, on training, and on whether gradients are
wanted. What is looked at is a copy with the same options, and not the projections that were learned: each head is made
three times as wide, so that one input can carry query, key and value past projections that pick their part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard._errors import UnsupportedError
from regard.masks import Keys, Mask, Padding
from regard.trust.question import Question
from regard.trust.target import Target

OFFERS = frozenset({"mask", "bias"})
PARTS = 3
"""Query, key and value side by side."""


def multihead_ways(module: nn.MultiheadAttention, *, heads: int) -> Mapping[str, Target]:
    """Its ways to run, by name. The copies have as many heads as the questions, `heads`."""
    ways = {
        "need_weights=True": (True, True),
        "need_weights=False": (False, True),
        "fast path (eval, no gradient)": (False, False),
    }
    return {
        name: Target(name, OFFERS, _Way(name, heads, module.add_zero_attn, need_weights, wants_gradient))
        for name, (need_weights, wants_gradient) in ways.items()
    }


class _Way:
    """One way to run a copy, as a function of questions."""

    def __init__(self, name: str, heads: int, add_zero_attn: bool, need_weights: bool, wants_gradient: bool) -> None:  # noqa: FBT001
        self._name, self._heads, self._add_zero_attn = name, heads, add_zero_attn
        self._need_weights, self._wants_gradient = need_weights, wants_gradient
        self._copies: dict[tuple[object, ...], nn.MultiheadAttention] = {}

    def __call__(self, question: Question) -> Tensor:
        sizes = question.sizes
        if sizes.kv_heads != sizes.heads:
            raise UnsupportedError({self._name: "it has as many key/value heads as query heads"})
        if not self._wants_gradient and sizes.q_len != sizes.kv_len:
            raise UnsupportedError({self._name: "it is self-attention, with as many queries as keys"})
        kind = (sizes.head_dim, question.dtype, question.query.device)
        if kind not in self._copies:
            self._copies[kind] = self._copy(question)
        module = self._copies[kind]
        inputs = _inputs(question)
        keywords = _masks(question)
        with torch.enable_grad() if self._wants_gradient else torch.no_grad():
            output, _ = module(*inputs, need_weights=self._need_weights, **keywords)
        return output.unflatten(2, (self._heads, PARTS, sizes.head_dim))[:, :, :, 0].transpose(1, 2)

    def _copy(self, question: Question) -> nn.MultiheadAttention:
        """In evaluation mode, with projections that pick query (scaled for its own width), key and value."""
        width = question.sizes.head_dim
        embed = PARTS * self._heads * width
        module = nn.MultiheadAttention(
            embed, self._heads, bias=True, batch_first=True, add_zero_attn=self._add_zero_attn
        )
        picks = torch.zeros(3, self._heads, PARTS, width, PARTS, self._heads, width)
        for part in range(PARTS):
            for head in range(self._heads):
                picks[part, head, 0, :, part, head] = torch.eye(width)
        picks[0] *= math.sqrt(PARTS)
        with torch.no_grad():
            module.in_proj_weight.copy_(picks.reshape(3 * embed, embed))
            module.in_proj_bias.zero_()
            module.out_proj.weight.copy_(torch.eye(embed))
            module.out_proj.bias.zero_()
        return module.to(device=question.query.device, dtype=question.dtype).eval().requires_grad_(self._wants_gradient)


def _inputs(question: Question) -> tuple[Tensor, Tensor, Tensor]:
    """What goes in for query, key and value: one tensor for all three where the lengths allow it."""
    query, key, value = (tensor.transpose(1, 2).flatten(2) for tensor in (question.query, question.key, question.value))
    if question.sizes.q_len == question.sizes.kv_len:
        joined = torch.cat([query, key, value], dim=2)
        return joined, joined, joined
    silent = torch.zeros_like(key)
    of_query = torch.cat([query, torch.zeros_like(query), torch.zeros_like(query)], dim=2)
    return of_query, torch.cat([silent, key, silent], dim=2), torch.cat([silent, silent, value], dim=2)


def _masks(question: Question) -> dict[str, Any]:
    """`key_padding_mask` for padding, `attn_mask` for the rest; True forbids in both."""
    sizes, mask = question.sizes, question.options.get("mask")
    parts: tuple[Mask, ...] = () if mask is None else mask.conjuncts
    said: dict[str, Any] = {}
    for part in parts:
        dense = part.dense(sizes.q_len, sizes.kv_len, device=question.query.device)
        if isinstance(part, Padding | Keys):
            hidden = ~dense[:, 0, 0].expand(sizes.batch, -1)
            said["key_padding_mask"] = hidden | said.get("key_padding_mask", torch.zeros_like(hidden))
        else:
            forbidden = ~dense if dense.dim() == 2 else _by_head(~dense, question)
            said["attn_mask"] = forbidden | said.get("attn_mask", torch.zeros_like(forbidden))
    bias = question.options.get("bias")
    if bias is not None:
        added = _by_head(bias.to(question.dtype), question)
        forbidden = said.get("attn_mask")
        said["attn_mask"] = added if forbidden is None else added.masked_fill(forbidden, -math.inf)
    return said


def _by_head(tensor: Tensor, question: Question) -> Tensor:
    """(batch * heads, q_len, kv_len), as the class wants what differs by sample or head."""
    sizes = question.sizes
    full = (sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len)
    return tensor.expand(full).flatten(0, 1)
