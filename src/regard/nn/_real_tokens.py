"""Which tokens of a batch are real: all that a mechanism without scores of pairs can know of a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from regard._errors import ShapeError, UnsupportedError
from regard._shapes import shape_of
from regard.masks import Causal, Mask
from regard.nn._arguments import check_tokens
from regard.nn._token_masks import padding_mask


def check_pair(x: Tensor, context: Tensor | None, embed_dim: int) -> Tensor:
    """Tokens and what they attend to, compared; returns the latter, x itself where there is no context."""
    check_tokens("x", x, embed_dim)
    if context is None:
        return x
    check_tokens("context", context, embed_dim)
    if context.shape[0] != x.shape[0]:
        raise ShapeError(
            "context batch",
            expected=f"{x.shape[0]}, as x has",
            got=shape_of(context),
            do="Use .expand on the one that is to be shared; nothing is broadcast silently.",
        )
    return context


def require_no_order(name: str, mask: Mask | Tensor | None, why: str) -> None:
    """UnsupportedError where a causal mask is asked of a mechanism that has none; `why` says what is in the way."""
    if isinstance(mask, Mask) and any(isinstance(part, Causal) for part in mask.conjuncts):
        refuse_causal(name, why)


def refuse_causal(name: str, why: str) -> None:
    """UnsupportedError: this mechanism cannot be causal."""
    raise UnsupportedError(
        {name: f"it cannot be causal: {why}"},
        do="Take LinearAttention or PerformerAttention with causal=True, or MultiHeadAttention.",
    )


def real_tokens(name: str, mask: Mask | Tensor | None, tokens: Tensor) -> Tensor | None:
    """Bool (batch, length), True = real, of the tokens (batch, length, ...) that are attended to; None for all.

    Raises:
        UnsupportedError: a mask of pairs; `name` is the mechanism that cannot honour it.
        MaskError: a mask for another batch or length.
    """
    batch, length = tokens.shape[:2]
    padding = padding_mask(name, mask, batch=batch, length=length)
    if padding is None:
        return None
    row, columns = torch.zeros(1, dtype=torch.int64, device=tokens.device), torch.arange(length, device=tokens.device)
    return padding.tile(row, columns, length, length)[:, 0, 0]
