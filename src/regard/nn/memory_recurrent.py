"""Recurrent memory: a few tokens that go through the model with each segment and come out as its memory. Guide 4.3.

Bulatov et al. 2022, "Recurrent Memory Transformer", https://arxiv.org/abs/2207.06881, section 3:

    encoder   [memory; x]          -> the outputs at the memory's places are the next memory
    decoder   [memory; x; memory]  -> causal over x; those at the second memory's places, which see all, are the next

The model itself is unchanged: any module called as `module(tokens, mask=mask)` can be the `backbone`, one layer of
attention or a whole stack. Cost for a segment of n tokens and m memory tokens: that of the backbone for n + m (causal:
n + 2 m) tokens; the state m * d numbers a dialogue. Causal-valid (`causal=True`) and padding-valid, if the backbone
honours masks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.masks import Keys, Mask, PrefixLM
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._card import Card
from regard.nn._real_tokens import real_tokens
from regard.nn._token_masks import both
from regard.nn.memory_state import MemoryState, StatefulMechanism
from regard.nn.multihead import MultiHeadAttention


class RecurrentMemory(StatefulMechanism):
    """Carries memory tokens from segment to segment through a backbone.

    Args:
        embed_dim: width of a token.
        num_heads: heads of the default backbone, a divisor of embed_dim.
        memory_tokens: how many tokens carry the memory.
        backbone: called as backbone(tokens, mask=mask) on (batch, length, embed_dim), with a `regard.masks.Mask` or
            None; gives the same shape. By default one layer of `MultiHeadAttention`, to which bias, dropout_p and
            backend go. It must not be causal itself: the mask says who sees whom.
        causal: may no token see a later one?
        bias, dropout_p, backend, device, dtype: of the default backbone and the memory.

    Parameters: `memory` (memory_tokens, embed_dim), what a dialogue begins with, and those of `backbone`.

    State: `memory` (batch, memory_tokens, embed_dim), in the graph until `state.detach()`: training goes back through
    as many segments as lie between two of these.

    Raises:
        ArgumentError: heads that do not divide embed_dim, no memory tokens, a causal MultiHeadAttention as backbone.
    """

    card: ClassVar[Card] = Card(
        guide="4.3",
        source="Bulatov et al. 2022, Recurrent Memory Transformer, arXiv:2207.06881",
        equation="[M'; y] = backbone([M; x]), causal: [.; y; M'] = backbone([M; x; M]); m memory tokens",
        time="(n + 2 m)^2 d + 4 (n + 2 m) d^2",
        memory="(n + 2 m) d",
        causal=True,
        padding=True,
        note="The memory changes once a segment, so the output depends on where a text is cut.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        memory_tokens: int = 16,
        backbone: nn.Module | None = None,
        causal: bool = False,
        bias: bool = True,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(embed_dim=embed_dim, memory_tokens=memory_tokens)
        self.embed_dim, self.causal = embed_dim, causal
        memory = torch.empty(memory_tokens, embed_dim, device=device, dtype=dtype)
        self.memory = nn.Parameter(nn.init.xavier_uniform_(memory))
        if backbone is None:
            backbone = MultiHeadAttention(
                embed_dim, num_heads, bias=bias, dropout_p=dropout_p, backend=backend, device=device, dtype=dtype
            )
        elif isinstance(backbone, MultiHeadAttention) and backbone.causal:
            raise ArgumentError(
                "backbone",
                expected="one that is not causal itself",
                got="MultiHeadAttention with causal=True",
                do="Say causal=True here: the memory in front is read both ways, and the tokens causally.",
            )
        self.backbone = backbone

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"memory": tuple(self.memory.shape)}

    def forward(
        self, x: Tensor, *, state: MemoryState | None = None, mask: Mask | Tensor | None = None
    ) -> tuple[Tensor, MemoryState]:
        """Read one segment of each dialogue.

        Args:
            x: (batch, length, embed_dim).
            state: of `create_state`, or what the call before gave back; new dialogues when left out.
            mask: padding only, anywhere: `Padding`, `Keys`, or a bool tensor (batch, length), True = real. A dialogue
                without a real token keeps its memory as it is.

        Returns:
            (batch, length, embed_dim), and the state to go on from.

        Raises:
            ShapeError: x, or a state for other sizes or another batch.
            UnsupportedError: a mask of pairs.
        """
        check_tokens("x", x, self.embed_dim)
        real = real_tokens("RecurrentMemory", mask, x)
        before = self.state_for(x, state)
        new = (before.seen == 0)[:, None, None]
        memory = torch.where(new, self.memory.to(x.dtype), before["memory"])
        tokens = torch.cat([memory, x, memory] if self.causal else [memory, x], 1)
        output = self.backbone(tokens, mask=self._mask(real, x.shape[1]))
        count = self.memory.shape[0]
        after = output[:, -count:] if self.causal else output[:, :count]
        return output[:, count : count + x.shape[1]], before.written(after, real, x.shape[1])

    def _mask(self, real: Tensor | None, length: int) -> Mask | None:
        count = self.memory.shape[0]
        order = PrefixLM(count) if self.causal else None
        if real is None:
            return order
        memory = real.new_ones((real.shape[0], count))
        there = Keys(torch.cat([memory, real, memory] if self.causal else [memory, real], 1))
        return both(order, there)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, memory_tokens={self.memory.shape[0]}, causal={self.causal}"
