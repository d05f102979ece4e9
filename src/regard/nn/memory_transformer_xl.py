"""Transformer-XL's memory: the hidden states of earlier segments stay within sight. The guide's 4.3.

Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
https://arxiv.org/abs/1901.02860, section 3.2:

    keys and values of [stop_gradient(memory); x], queries of x, causal, with the relative position of section 3.3

The memory holds the last `memory_length` inputs of this layer, so a stack of N layers sees about N times as far. Cost
for a segment of n tokens and m remembered ones: time n (n + m) d and projections of n + m tokens; memory (n + m) d; the
state m * d numbers a dialogue. Causal always; padding-valid on the right.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard._attention import attention
from regard.masks import Causal, Mask, SlidingWindow
from regard.nn._arguments import check_tokens, require_heads, require_positive
from regard.nn._card import Card
from regard.nn._projections import HeadProjections
from regard.nn.memory_segment import memory_and_segment, pushed, read_by, segment_lengths
from regard.nn.memory_state import MemoryState, StatefulMechanism
from regard.positions import TransformerXL


class TransformerXLMemory(StatefulMechanism):
    """Causal self-attention over a segment and the cached inputs before it, with Transformer-XL's relative position.

    Read in segments, a token sees itself, what is before it in its segment, and the last `memory_length` tokens of the
    segments before. So segments and the whole text give the same output as long as at most `memory_length` tokens stand
    before the last segment; after that the oldest are cut off. With `same_length` every token sees exactly
    `memory_length` tokens before it, and the output is the same wherever the text is cut, however long it is. The
    gradient ends at the memory: no later segment changes an earlier one.

    Args:
        embed_dim: width of a token, even.
        num_heads: heads of attention, a divisor of embed_dim.
        memory_length: how many tokens of earlier segments are kept.
        same_length: let every token see as far, as the authors do in evaluation.
        bias: have the projections a bias?
        dropout_p: probability of dropping an attention weight while training.
        backend: who computes, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters: `projections` (`HeadProjections`) and `position` (`regard.positions.TransformerXL`).

    State: `hidden` (batch, memory_length, embed_dim), never in a graph.

    Raises:
        ArgumentError: heads that do not divide embed_dim, an odd embed_dim, no memory, a probability beyond 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="4.3",
        source="Dai et al. 2019, Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
        equation="Attention(x, [M; x]), causal, with relative positions; M the last m inputs, without gradient",
        time="n (n + m) d + 4 (n + m) d^2",
        memory="(n + m) d",
        causal=True,
        padding=True,
        note="Segments equal the whole text within memory_length tokens, and with same_length everywhere.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        memory_length: int = 512,
        same_length: bool = False,
        bias: bool = True,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(memory_length=memory_length)
        head_dim = require_heads(embed_dim, num_heads)
        self.embed_dim, self.memory_length, self.same_length = embed_dim, memory_length, same_length
        self.projections = HeadProjections(
            embed_dim, num_heads, bias=bias, dropout_p=dropout_p, causal=True, backend=backend, device=device,
            dtype=dtype,
        )  # fmt: skip
        position = TransformerXL(num_heads, head_dim, embed_dim=embed_dim, align="bottom_right")
        self.position = position.to(device=device, dtype=dtype)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"hidden": (self.memory_length, self.embed_dim)}

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
        lengths = segment_lengths("TransformerXLMemory", mask, x)
        before = self.state_for(x, state)
        hidden = before["hidden"].detach()
        heads = self.projections
        query, key, value = heads.to_heads(x, torch.cat([hidden, x], 1))
        there = memory_and_segment(before.seen, self.memory_length, lengths, x.shape[1])
        found = attention(
            query,
            key,
            value,
            mask=self._order() & there,
            position=self.position,
            dropout_p=heads.dropout_now,
            backend=heads.backend,
        )
        after = {"hidden": pushed(hidden, x.detach(), lengths)}
        return heads.from_heads(found), before.replaced(after, read=read_by(lengths, x))

    def _order(self) -> Mask:
        if self.same_length:
            return SlidingWindow(self.memory_length, 0, align="bottom_right")
        return Causal("bottom_right")

    def extra_repr(self) -> str:
        return f"memory_length={self.memory_length}, same_length={self.same_length}"
