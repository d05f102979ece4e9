"""A few queries that see all tokens, where the tokens are key and value at once: attention as two thin products.

With T (length, width) the tokens and A (rows, width) the queries, scaled,

    W = softmax over the tokens of T A^T,   M = W^T T
    dW = T dM^T,   dS = W (dW - sum(M dM)),   dT = [W, dS] [dM; A],   dA = dS^T T

Attention would go over T once for its gradient as key and once as value, and add the two; here the tokens meet one
product of 2 * rows steps. Time O(length * width * rows); memory 2 * length * rows beside the gradient itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from regard.backends._direct import PLAIN_TENSORS, has_tangent, is_observed


def serves(query: Tensor, tokens: Tensor) -> bool:
    """Is a gradient of the tokens wanted, in a precision that a softmax can have, with nobody looking on?"""
    kind = tokens.device.type
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and tokens.requires_grad
        and type(tokens) in PLAIN_TENSORS
        and tokens.dtype == query.dtype
        and tokens.dtype in (torch.float32, torch.float64)
        and not is_observed()
        and not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))
        and not has_tangent(query, tokens)
        and not has_torch_function((query, tokens))  # whoever observes attention is to see it
    )


def attend_to_tokens(query: Tensor, tokens: Tensor) -> Tensor:
    """softmax(query tokens^T) tokens.

    Args:
        query: (batch, rows, width), with the scale in it.
        tokens: (batch, length, width), at least one.

    Returns:
        (batch, rows, width).
    """
    return _attend(query, tokens)


def _weights(query: Tensor, tokens: Tensor) -> Tensor:
    """(batch, length, rows): turned, so that what comes back to the tokens lies as they do."""
    return (tokens @ query.mT).softmax(1)


class _FewQueries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, tokens: Tensor) -> Tensor:
        weights = _weights(query, tokens)
        means = weights.mT @ tokens
        ctx.save_for_backward(query, tokens, weights, means)
        return means

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        query, tokens, weights, means = ctx.saved_tensors
        (grad,) = grad_outputs
        if torch.is_grad_enabled():  # to be differentiated again: the weights once more, as a part of the graph
            weights = _weights(query, tokens)
            means = weights.mT @ tokens
        slants = weights * (tokens @ grad.mT - (means * grad).sum(-1).unsqueeze(1))
        grad_tokens = torch.cat([weights, slants], 2) @ torch.cat([grad, query], 1)
        return slants.mT @ tokens, grad_tokens


# torch leaves `apply` without a type.
_attend = cast("Callable[[Tensor, Tensor], Tensor]", _FewQueries.apply)  # pyright: ignore[reportUnknownMemberType]
