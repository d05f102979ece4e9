"""One direction of attention between two kinds of tokens, and what the cross-modal mechanisms share.

    output = softmax(x Wq (context Wk)^T / sqrt(d)) context Wv Wo        (Vaswani et al. 2017, with keys from elsewhere)

Rows that may attend to nothing come out as exactly 0: not as NaN, and not as the bias of the last projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard._errors import ArgumentError, ShapeError
from regard.masks import Mask
from regard.nn._arguments import check_tokens, require_heads, require_positive, require_probability
from regard.nn._linear_map import LinearMap
from regard.nn._token_masks import token_mask


class CrossAttention(nn.Module):
    """Tokens of one kind attend to tokens of another, of another width and length: one direction.

    Rows that may attend to nothing come out as exactly 0.

    Args:
        embed_dim: width of the tokens that ask.
        num_heads: heads of attention.
        context_dim: width of the tokens that answer; embed_dim unless given.
        head_dim: width of a head; embed_dim / num_heads unless given.
        bias: do the four projections have one?
        dropout_p: chance of dropping an attention weight in training.
        backend: as in `regard.attention`.

    Raises:
        ArgumentError: a size below 1; heads that do not divide embed_dim; a chance outside 0 to 1.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        context_dim = embed_dim if context_dim is None else context_dim
        head_dim = require_heads(embed_dim, num_heads) if head_dim is None else head_dim
        require_positive(embed_dim=embed_dim, num_heads=num_heads, context_dim=context_dim, head_dim=head_dim)
        require_probability(dropout_p=dropout_p)
        self.embed_dim, self.context_dim = embed_dim, context_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.has_bias, self.dropout_p, self.backend = bias, dropout_p, backend
        inner = num_heads * head_dim
        self.query = linear(embed_dim, inner, bias=bias, device=device, dtype=dtype)
        self.key_value = linear(context_dim, 2 * inner, bias=bias, parts=2, device=device, dtype=dtype)
        self.output = linear(inner, embed_dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, context: Tensor, *, mask: Mask | Tensor | None = None) -> Tensor:
        """What each token of x makes of the context.

        Args:
            x: (batch, q_len, embed_dim).
            context: (batch, kv_len, context_dim).
            mask: which token of x may attend to which of the context: a `regard.masks` value, or bool (batch, kv_len)
                for the real tokens, (q_len, kv_len) for pairs, or as in `regard.attention` with four dimensions.

        Returns:
            (batch, q_len, embed_dim); 0 for a token that may attend to nothing.
        """
        query, key, value = self.heads(x, context)
        kept = token_mask(mask, batch=x.shape[0], q_len=x.shape[1], kv_len=context.shape[1])
        may_be_blind = self.has_bias and (kept is not None or context.shape[1] == 0)
        found = attention(
            query,
            key,
            value,
            mask=kept,
            dropout_p=self.dropout_p if self.training else 0.0,
            backend=self.backend,
            return_lse=may_be_blind,
        )
        mixed, lse = found if isinstance(found, tuple) else (found, None)
        output = self.output(mixed.transpose(1, 2).flatten(2))
        if lse is None:
            return output
        blind = lse.isneginf().all(1)  # (batch, q_len)
        return output.masked_fill(blind[..., None], 0.0)

    def weights(
        self, x: Tensor, context: Tensor, *, mask: Mask | Tensor | None = None, heads: list[int] | None = None
    ) -> Tensor:
        """The attention weights themselves, for looking at: (batch, heads, q_len, kv_len), float32 or float64.

        They are computed beside the fused kernel and cost memory for each pair, so take `heads` you want to see (all
        of them unless given). No dropout. A token that may attend to nothing has weights 0.
        """
        query, key, _ = self.heads(x, context)
        if heads is not None:
            self._check_chosen(heads)
            query, key = query[:, heads], key[:, heads]
        working = torch.float64 if query.dtype == torch.float64 else torch.float32
        with torch.autocast(query.device.type, enabled=False):
            scores = query.to(working) @ key.to(working).transpose(-1, -2) * self.head_dim**-0.5
        which = token_mask(mask, batch=x.shape[0], q_len=x.shape[1], kv_len=context.shape[1])
        if which is None:
            return scores.softmax(-1)
        kept = which.dense(x.shape[1], context.shape[1], device=scores.device)
        if heads is not None and kept.dim() == 4 and kept.shape[1] > 1:
            kept = kept[:, heads]
        return scores.masked_fill(~kept, torch.finfo(working).min).softmax(-1).masked_fill(~kept, 0.0)

    def heads(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (batch, heads, length, head_dim).

        Raises:
            ShapeError: x or the context has another width or number of dimensions, or they differ in batch.
        """
        check_tokens("x", x, self.embed_dim)
        check_tokens("context", context, self.context_dim)
        check_batches("context", context, x)
        query = self.query(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        pair = self.key_value(context).unflatten(-1, (2, self.num_heads, self.head_dim))
        key, value = pair.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _check_chosen(self, heads: list[int]) -> None:
        if not all(0 <= head < self.num_heads for head in heads):
            raise ArgumentError(
                "heads",
                expected=f"numbers from 0 to {self.num_heads - 1}",
                got=repr(heads),
                do="Name the heads to look at, or leave it out for all.",
            )

    def extra_repr(self) -> str:
        """Sizes, as the constructor names them."""
        return (
            f"{self.embed_dim}, {self.num_heads}, context_dim={self.context_dim}, head_dim={self.head_dim}, "
            f"dropout_p={self.dropout_p}"
        )


def linear(
    inputs: int,
    outputs: int,
    *,
    bias: bool,
    parts: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """A projection with Xavier-uniform weights, drawn for each of its `parts` as if it stood alone, and bias 0."""
    made = LinearMap(inputs, outputs, bias=bias, device=device, dtype=dtype)
    for part in made.weight.detach().chunk(parts):
        nn.init.xavier_uniform_(part)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def check_batches(name: str, tokens: Tensor, beside: Tensor) -> None:
    """The two have the same batch, or ShapeError."""
    if tokens.shape[0] != beside.shape[0]:
        raise ShapeError(
            f"{name} batch",
            expected=f"{beside.shape[0]}, as the other side has",
            got=str(tokens.shape[0]),
            do="Give one for each sample; mask what a sample lacks.",
        )
