"""Cross entropy over a vocabulary, computed together with the projection onto it, a few tokens at a time.

    loss = -sum_i [(1 - s) log p_i(target_i) + s mean_v log p_i(v)],   p_i = softmax(weight states_i)

with label smoothing s (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567). Logits of (tokens, vocabulary) never
exist: gradients are made chunk by chunk in the forward pass, while the chunk's logits are in the cache. Memory is
O(chunk * vocabulary) beside the gradient of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard._errors import ShapeError
from regard._shapes import shape_of

CHUNK = 256
"""Tokens at a time: with 8,000 words their logits are 8 MB, which the cache holds."""


def vocabulary_cross_entropy(states: Tensor, weight: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """The sum of the smoothed cross entropies, float32.

    Args:
        states: (tokens, embed_dim), what the vocabulary is predicted from.
        weight: (vocabulary, embed_dim), the projection, often the embedding itself.
        targets: int64 (tokens,); a negative one is left out.
        smoothing: the part of the target's mass that is spread over the vocabulary.

    Raises:
        ShapeError: sizes that do not fit together.
    """
    if (
        states.dim() != 2
        or weight.dim() != 2
        or states.shape[1] != weight.shape[1]
        or targets.shape != states.shape[:1]
    ):
        raise ShapeError(
            "states, weight, targets",
            expected="(tokens, width), (vocabulary, width) and (tokens,)",
            got=f"{shape_of(states)}, {shape_of(weight)} and {shape_of(targets)}",
            do="Flatten the batch, and leave out padding.",
        )
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        states, weight = states.to(dtype), weight.to(dtype)
    with torch.autocast(kind, enabled=False):
        return _VocabularyCrossEntropy.apply(states, weight, targets, smoothing)


class _VocabularyCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])
        total = states.new_zeros((), dtype=torch.float32)
        of_states = torch.empty_like(states) if wanted else None
        of_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted else None
        for first in range(0, states.shape[0], CHUNK):
            part = slice(first, first + CHUNK)
            chunk, chosen = states[part], targets[part]
            there = (chosen >= 0).to(torch.float32)[:, None]
            chosen = chosen.clamp(min=0)[:, None]
            logits = (chunk @ weight.T).to(torch.float32)
            lse = logits.logsumexp(1, keepdim=True)
            losses = lse - (1.0 - smoothing) * logits.gather(1, chosen)
            if smoothing:
                losses -= smoothing * logits.mean(1, keepdim=True)
            total += (losses * there).sum()
            if of_states is not None and of_weight is not None:
                slope = logits.sub_(lse).exp_()
                if smoothing:
                    slope -= smoothing / weight.shape[0]
                slope.scatter_add_(1, chosen, slope.new_full(chosen.shape, smoothing - 1.0))
                slope = (slope * there).to(chunk.dtype)
                of_states[part] = slope @ weight
                of_weight += slope.T @ chunk
        ctx.save_for_backward(of_states, of_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_states, of_weight = ctx.saved_tensors
        (scale,) = gradients
        return (of_states * scale).to(of_states.dtype), (of_weight * scale).to(ctx.weight_dtype), None, None
