"""Memorizing transformers: the nearest of many remembered keys are looked up. The guide's 4.3.

Wu et al. 2022, "Memorizing Transformers", https://arxiv.org/abs/2203.08913, section 3:

    local = Attention(q, keys, values of the segment)
    recalled = softmax over the k remembered keys with the largest q . key, of their values
    output = g * recalled + (1 - g) * local,  g = sigmoid(b), one b for each head

Keys and values of earlier segments are kept as they were, without gradient. Queries and keys have length one, times a
learned factor of each head, so that old keys and new ones stay comparable while the weights change (the paper
normalizes them for this reason). The search is exact: every remembered key is scored, in pieces of 2048, and no n x m
tensor is made.

Cost for a segment of n tokens, m remembered ones and k looked up: time n^2 d + n m d + 2 n k d and projections; memory
n (d + k d + 2048 heads); the state 2 m d numbers a dialogue. Causal-valid (`causal=True`): what is recalled is from
earlier segments. Padding-valid on the right.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._attention import attention
from regard.masks import Causal, Mask
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._card import Card
from regard.nn._projections import HeadProjections
from regard.nn._token_masks import both, padding_mask
from regard.nn.memory_segment import pushed, read_by, remembered, segment_lengths
from regard.nn.memory_state import MemoryState, StatefulMechanism
from regard.positions import Position


class KNNMemory(StatefulMechanism):
    """Self-attention over the segment, gated with attention to the nearest keys of all earlier segments.

    A dialogue that remembers nothing has plain self-attention: its gate is 0.

    Args:
        embed_dim: width of a token.
        num_heads: heads of attention, a divisor of embed_dim; each has a memory and a gate of its own.
        memory_length: how many tokens are kept; the oldest go first.
        top_k: how many of them each query looks up.
        normalize: give queries and keys length one, as the paper does.
        position: how distance changes the scores within the segment; what is recalled has none.
        bias: have the projections a bias?
        dropout_p: probability of dropping an attention weight of the segment while training.
        causal: may no token see a later one?
        backend: who computes the attention of the segment, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters: `projections` (`HeadProjections`), `gate_logit` (heads,), and `log_scale` (heads,) where keys are
    normalized.

    State: `keys` and `values` (batch, heads, memory_length, head_dim), never in a graph.

    Raises:
        ArgumentError: heads that do not divide embed_dim, a size below 1, more to look up than is kept.
    """

    PIECE: ClassVar[int] = 2048

    card: ClassVar[Card] = Card(
        guide="4.3",
        source="Wu et al. 2022, Memorizing Transformers, arXiv:2203.08913",
        equation="g Attention(q, k nearest of m remembered) + (1 - g) Attention(q, segment), g = sigmoid(b) by head",
        time="n^2 d + n m d + 2 n k d + 4 n d^2",
        memory="n k d",
        causal=True,
        padding=True,
        note="No gradient reaches what is remembered.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        memory_length: int = 8192,
        top_k: int = 32,
        normalize: bool = True,
        position: Position | None = None,
        bias: bool = True,
        dropout_p: float = 0.0,
        causal: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(memory_length=memory_length, top_k=top_k)
        self.embed_dim, self.memory_length, self.top_k = embed_dim, memory_length, min(top_k, memory_length)
        self.position = position
        self.projections = HeadProjections(
            embed_dim, num_heads, bias=bias, dropout_p=dropout_p, causal=causal, backend=backend, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.gate_logit = nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype))
        self.log_scale: nn.Parameter | None = None
        if normalize:  # as large at first as scores of unit-normal queries and keys
            start = 0.5 * math.log(self.projections.head_dim)
            self.log_scale = nn.Parameter(torch.full((num_heads,), start, device=device, dtype=dtype))

    @property
    def gate(self) -> Tensor:
        """How much each head takes from memory, (heads,), from 0 to 1."""
        return torch.sigmoid(self.gate_logit)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        shape = (self.projections.num_heads, self.memory_length, self.projections.head_dim)
        return {"keys": shape, "values": shape}

    def forward(
        self, x: Tensor, *, state: MemoryState | None = None, mask: Mask | Tensor | None = None
    ) -> tuple[Tensor, MemoryState]:
        """Read one segment of each dialogue.

        Args:
            x: (batch, length, embed_dim).
            state: of `create_state`, or what the call before gave back; new dialogues when left out.
            mask: padding on the right only: `Padding`, or a bool tensor (batch, length), True = real. Padding is not
                remembered.

        Returns:
            (batch, length, embed_dim), and the state to go on from.

        Raises:
            ShapeError: x, or a state for other sizes or another batch.
            UnsupportedError: a mask of pairs, or padding on the left or between.
        """
        check_tokens("x", x, self.embed_dim)
        lengths = segment_lengths("KNNMemory", mask, x)
        before = self.state_for(x, state)
        heads = self.projections
        query, key, value = heads.to_heads(x)
        query, key, scale = self._scaled(query, key)
        padding = padding_mask("KNNMemory", mask, batch=x.shape[0], length=x.shape[1])
        local = attention(
            query,
            key,
            value,
            mask=both(Causal() if heads.causal else None, padding),
            position=self.position,
            scale=scale,
            dropout_p=heads.dropout_now,
            backend=heads.backend,
        )
        recalled = self._recalled(scale * query, before)
        gate = torch.where((before.seen > 0)[:, None], self.gate, 0.0)[:, :, None, None]
        after = {
            "keys": pushed(before["keys"], key.detach(), lengths, dim=2),
            "values": pushed(before["values"], value.detach(), lengths, dim=2),
        }
        mixed = torch.lerp(local, recalled, gate.to(local.dtype))
        return heads.from_heads(mixed), before.replaced(after, read=read_by(lengths, x))

    def _scaled(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, float]:
        """Query and key as they are compared, and the factor of their products."""
        if self.log_scale is None:
            return query, key, self.projections.head_dim**-0.5
        factor = self.log_scale.exp()[:, None, None].to(query.dtype)
        return functional.normalize(query, dim=-1) * factor, functional.normalize(key, dim=-1), 1.0

    def _recalled(self, query: Tensor, state: MemoryState) -> Tensor:
        """What each query finds among its nearest remembered keys; 0 where nothing is remembered."""
        keys, values = state["keys"].detach(), state["values"].detach()
        place, found = self._nearest(query.detach(), keys, state.seen)
        near_keys, near_values = _rows_at(place, keys), _rows_at(place, values)
        scores = (query.unsqueeze(3) @ near_keys.mT).squeeze(3)
        scores = torch.where(found, scores, torch.finfo(scores.dtype).min)
        weights = torch.where(found, scores.softmax(-1), 0.0)
        return (weights.unsqueeze(3) @ near_values).squeeze(3)

    @torch.no_grad()
    def _nearest(self, query: Tensor, keys: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the largest scores, (batch, heads, n, top_k), and whether anything is remembered there."""
        kept = remembered(seen, self.memory_length)[:, None, None]
        best: tuple[Tensor, Tensor] | None = None
        for first in range(0, self.memory_length, self.PIECE):
            end = min(first + self.PIECE, self.memory_length)
            scores = torch.where(kept[..., first:end], query @ keys[:, :, first:end].mT, -math.inf)
            score, place = scores.topk(min(self.top_k, end - first), -1)
            best = (score, place + first) if best is None else _better(best, (score, place + first), self.top_k)
        if best is None:
            raise AssertionError("a memory has room for one token at least")
        return best[1], best[0] > -math.inf

    def extra_repr(self) -> str:
        return f"memory_length={self.memory_length}, top_k={self.top_k}"


def _better(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The largest of two lists of scores, with their places."""
    scores, places = torch.cat([left[0], right[0]], -1), torch.cat([left[1], right[1]], -1)
    score, which = scores.topk(min(count, scores.shape[-1]), -1)
    return score, places.gather(-1, which)


def _rows_at(place: Tensor, rows: Tensor) -> Tensor:
    """(batch, heads, n, k, head_dim): the rows of (batch, heads, m, head_dim) at (batch, heads, n, k)."""
    batch, heads, length, width = rows.shape
    first = torch.arange(batch * heads, device=rows.device).view(batch, heads, 1, 1) * length
    found = rows.reshape(batch * heads * length, width).index_select(0, (place + first).flatten())
    return found.view(*place.shape, width)
