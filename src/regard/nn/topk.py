"""Top-k attention: each query attends to the k keys with the highest scores, and to no other.

Zhao et al. 2019, "Explicit Sparse Transformer", arXiv:1912.11637; in chunks of queries as Gupta et al. 2021,
"Memory-efficient Transformers via Top-k Attention", arXiv:2106.06899.

    output_i = sum over j in T_i of softmax over T_i (q_i k_j / sqrt(d_h)) v_j,   T_i = the k best j that i may see

What it truly costs: to know the best keys all scores are computed, so time is O(n^2 d) for the scores and O(n^2) for
the choice, which torch does more slowly than attention multiplies: this is *slower* than full attention, at every
length. Memory is that of one chunk of queries, O(chunk * n), forward and backward. Take it for what it computes - few,
readable weights, no long tail - and never for speed. Gradients flow through the chosen keys; the choice has none, as in
both papers. Valid causally, with any mask, and for cross attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Unpack, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] - torch leaves it half typed

from regard._errors import ArgumentError
from regard.masks import Causal, Mask
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._card import Card
from regard.nn._projections import HeadOptions, HeadProjections
from regard.nn._token_masks import both, token_mask

_checkpoint = cast("Callable[..., Tensor]", checkpoint)


class TopKAttention(HeadProjections):
    """Attention to the `topk` best keys of each query and head, called on (batch, length, embed_dim).

    Args:
        embed_dim, num_heads: width of a token, and heads that divide it.
        topk: keys that a query attends to; all of them where there are fewer.
        chunk: queries whose scores are held at a time.
        bias, dropout_p, causal, backend, output_projection, device, dtype: see `HeadProjections`.

    Raises:
        ArgumentError: a size below 1, heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Zhao et al. 2019, Explicit Sparse Transformer, arXiv:1912.11637; Gupta et al. 2021, arXiv:2106.06899",
        equation="softmax over the k keys of highest score for each query, q k^T / sqrt(d_h), times v",
        time="O(n^2 d): all scores are computed to choose from them",
        memory="O(c n) for c queries at a time",
        causal=True,
        padding=True,
        note="Slower than full attention at every length: it makes weights sparse, not the work.",
    )

    def __init__(
        self, embed_dim: int, num_heads: int, *, topk: int = 32, chunk: int = 256, **options: Unpack[HeadOptions]
    ) -> None:
        super().__init__(embed_dim, num_heads, **options)
        require_positive(topk=topk, chunk=chunk)
        self.topk, self.chunk = topk, chunk

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Mask | Tensor | None = None) -> Tensor:
        """Attend from x to the context, or within x.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, kv_len, embed_dim), what is attended to; x where it is left out.
            mask: a `regard.masks` value; or bool, True = may attend: (batch, kv_len) for real tokens, (length, kv_len)
                for pairs, or four dimensions (batch or 1, heads or 1, length or 1, kv_len or 1). The best keys are
                chosen among those it keeps.

        Returns:
            (batch, length, embed_dim). The row of a token that sees nothing is the bias of the last map.

        Raises:
            ShapeError: x or context of another shape.
            MaskError: a mask for other sizes.
            ArgumentError: a context of another length where `causal`.
        """
        x = check_tokens("x", x, self.embed_dim)
        if context is not None:
            context = check_tokens("context", context, self.embed_dim)
        query, key, value = self.to_heads(x, context)
        q_len, kv_len = query.shape[2], key.shape[2]
        if self.causal and q_len != kv_len:
            raise ArgumentError(
                "context",
                expected=f"{q_len} tokens, as many as x, where causal=True",
                got=str(kv_len),
                do="What is earlier is clear within one text only; make the module without causal, and pass a mask.",
            )
        asked = token_mask(mask, batch=x.shape[0], q_len=q_len, kv_len=kv_len)
        if asked is not None:
            asked.check(q_len, kv_len)
        allowed = both(Causal() if self.causal else None, asked)
        chunks = [self._chunk(query, key, value, first, allowed) for first in range(0, q_len, self.chunk)]
        heads = torch.cat(chunks, 2) if chunks else query
        return self.from_heads(heads)

    def _chunk(self, query: Tensor, key: Tensor, value: Tensor, first: int, allowed: Mask | None) -> Tensor:
        """The queries from `first` on, as many as a chunk has."""
        last = min(first + self.chunk, query.shape[2])
        seen = last if self.causal else key.shape[2]
        rows, key, value = query[:, :, first:last], key[:, :, :seen], value[:, :, :seen]
        kept = None
        if allowed is not None:
            places = torch.arange(max(last, seen), device=query.device)
            kept = allowed.tile(places[first:last], places[:seen], query.shape[2], key.shape[2])
        best = _best_keys(rows, key, kept, self.topk)
        if last - first == query.shape[2] or not torch.is_grad_enabled():
            return self._attend_to(rows, key, value, best, kept)
        # What backward needs of a chunk is made again there: else the masks of all chunks would be kept, n x n in all.
        return _checkpoint(self._attend_to, rows, key, value, best, kept, use_reentrant=False)

    def _attend_to(self, rows: Tensor, key: Tensor, value: Tensor, best: Tensor, kept: Tensor | None) -> Tensor:
        chosen = torch.zeros(*best.shape[:3], key.shape[2], dtype=torch.bool, device=best.device)
        chosen = chosen.scatter(3, best, value=True)
        if kept is not None:
            chosen = chosen & kept
        return self.attend(rows, key, value, chosen)


@torch.no_grad()
def _best_keys(rows: Tensor, key: Tensor, kept: Tensor | None, topk: int) -> Tensor:
    """int64 (batch, heads, rows, at most topk): the keys of highest score among those kept, then others."""
    scores = rows @ key.transpose(2, 3)
    if kept is not None:
        scores = scores.masked_fill(~kept, float("-inf"))
    return scores.topk(min(topk, key.shape[2]), dim=3, sorted=False).indices
