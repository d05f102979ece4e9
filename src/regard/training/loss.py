"""Cross entropy over a vocabulary, computed together with the projection onto it, a few tokens at a time.

    loss = -sum_i [(1 - s) log p_i(target_i) + s mean_v log p_i(v)],   p_i = softmax(weight states_i)

with label smoothing s (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567). Logits of (tokens, vocabulary) never
exist: gradients are made chunk by chunk in the forward pass, while the chunk's logits are in the cache. Memory is
O(chunk * vocabulary) beside the gradient of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from regard._errors import ShapeError
from regard._shapes import shape_of

CHUNK = 512
"""Tokens at a time: with 8,000 words their logits are 16 MB, which the last cache holds."""


def vocabulary_cross_entropy(states: Tensor, weight: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """The sum of the smoothed cross entropies, float32 (float64 of float64).

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
        apply = cast("Callable[..., Tensor]", cast("Any", _VocabularyCrossEntropy).apply)
        return apply(states, weight, targets, smoothing)


class _VocabularyCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])
        working = torch.promote_types(states.dtype, torch.float32)
        total = states.new_zeros((), dtype=working)
        of_states = torch.empty_like(states) if wanted else None
        of_weight = torch.zeros(weight.shape, dtype=working, device=weight.device) if wanted else None
        room = torch.empty(CHUNK, weight.shape[0], dtype=working, device=weight.device)
        for first in range(0, states.shape[0], CHUNK):
            part = slice(first, first + CHUNK)
            there = targets[part] >= 0
            chosen = targets[part].clamp(min=0)
            logits = states[part] @ weight.T
            scores = logits if logits.dtype == working else room[: logits.shape[0]].copy_(logits)
            losses, likely = _softmax(scores, chosen, smoothing)
            total += losses.masked_fill_(~there, 0.0).sum()
            if of_states is not None and of_weight is not None:
                if not bool(there.all()):
                    likely.masked_fill_(~there[:, None], 0.0)
                chunk = _Chunk(states[part], weight, chosen, there, smoothing)
                of_states[part] = _add_slopes(of_weight, logits.copy_(likely), chunk)
        ctx.save_for_backward(of_states, of_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_states, of_weight = ctx.saved_tensors
        (scale,) = gradients
        return (of_states * scale).to(of_states.dtype), (of_weight * scale).to(ctx.weight_dtype), None, None


def _softmax(scores: Tensor, chosen: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss of each token, and p, which overwrites the scores: log_softmax would fill another matrix."""
    scores -= scores.amax(1, keepdim=True)
    wanted = (1.0 - smoothing) * scores.gather(1, chosen[:, None])[:, 0]
    if smoothing:
        wanted += smoothing * scores.mean(1)
    total = scores.exp_().sum(1)
    return total.log() - wanted, scores.div_(total[:, None])


class _Chunk(NamedTuple):
    """Some tokens: what they are predicted from, what they are, and which are real."""

    states: Tensor
    weight: Tensor
    chosen: Tensor
    there: Tensor
    smoothing: float


def _add_slopes(of_weight: Tensor, p: Tensor, chunk: _Chunk) -> Tensor:
    """Add a chunk's gradient of the weight; return that of its states. p is 0 where there is no target.

    The slope of a logit is p - s / V, and less 1 - s at the target. Only p is a matrix: the rest is a row and a sum.
    """
    states, weight, chosen, there, smoothing = chunk
    real = there.to(of_weight.dtype)[:, None]
    gathered = states.to(of_weight.dtype) * real
    of_weight += p.T @ states
    of_weight.index_add_(0, chosen, gathered, alpha=smoothing - 1.0)
    of_states = (p @ weight).to(of_weight.dtype) - (1.0 - smoothing) * real * weight[chosen]
    if smoothing:
        share = smoothing / weight.shape[0]
        of_weight -= share * gathered.sum(0)
        of_states -= share * real * weight.sum(0, dtype=of_weight.dtype)
    return of_states.to(states.dtype)
