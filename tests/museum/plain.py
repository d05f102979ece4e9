"""Attention in a few lines, to be spoilt by the exhibits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(head_dim)) value over the pairs where `allowed`."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1) @ value


def causal(q_len: int, kv_len: int, *, offset: int = 0) -> Tensor:
    """bool (q_len, kv_len): key <= query + offset."""
    return torch.ones(q_len, kv_len, dtype=torch.bool).tril(offset)


def not_before(q_len: int, kv_len: int, before: int, *, offset: int = 0) -> Tensor:
    """bool (q_len, kv_len): key >= query + offset - before."""
    return torch.ones(q_len, kv_len, dtype=torch.bool).triu(offset - before)


def fused(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """torch's own, with no scale but its default."""
    return scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=is_causal)
