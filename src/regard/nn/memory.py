"""Memory-augmented attention: a few slots that every dialogue carries along. The guide's 4.3.

    c = Attention(x, x)                                        the context of this segment
    output = c + Attention(x, M_(t-1))                         what was known before is read
    new = Attention(slots, c)                                  the segment is written: each slot asks for its own
    M_t = lambda M_(t-1) + (1 - lambda) new                    and forgets at the rate lambda

The update is the guide's; its text leaves open how the memory is read and how `new` is made from the context, which
here are the two cross attentions above. M_0 is 0, and reading it gives exactly 0: the first segment is plain attention.
`lambda` is fixed, or learned for each slot and kept between 0 and 1 by a sigmoid.

Cost for a segment of n tokens and s slots: time n^2 d + 2 n s d and projections; memory n d; the state s * d numbers a
dialogue, however long it has lasted. The output is causal-valid (`causal=True`): it reads what earlier segments wrote.
The state a call gives back has read the whole segment. Padding-valid.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard._errors import ArgumentError
from regard.masks import Causal, Mask
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._card import Card
from regard.nn._projections import HeadProjections
from regard.nn._real_tokens import real_tokens
from regard.nn._token_masks import both, padding_mask
from regard.nn.memory_state import MemoryState, StatefulMechanism


class MemoryAttention(StatefulMechanism):
    """Self-attention that also reads a memory of earlier segments, and writes this one into it.

    Args:
        embed_dim: width of a token and of a slot.
        num_heads: heads of the three attentions, a divisor of embed_dim.
        slots: how many vectors the memory has.
        decay: lambda: 1 never takes anything in, 0 remembers only the last segment.
        learned_decay: learn one lambda a slot, beginning at `decay`.
        bias: have the projections a bias?
        dropout_p: probability of dropping an attention weight while training.
        causal: may no token see a later one?
        backend: who computes, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters: `local`, `recall` and `write` (`HeadProjections`), `slots` (slots, embed_dim), the queries that write;
    `decay_logit` (slots,) where it is learned.

    State: `memory` (batch, slots, embed_dim), in the graph until `state.detach()`.

    Raises:
        ArgumentError: heads that do not divide embed_dim, no slots, a probability or lambda beyond 0 to 1, or 0 or 1
            where lambda is learned.
    """

    card: ClassVar[Card] = Card(
        guide="4.3",
        source="the guide's memory update, read and written by cross attention",
        equation="c + Attention(x, M), M <- lambda M + (1 - lambda) Attention(slots, c), c = Attention(x, x); s slots",
        time="n^2 d + 2 n s d + 9 n d^2",
        memory="n d",
        causal=True,
        padding=True,
        note="The memory changes once a segment, so the output depends on where a text is cut.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        slots: int = 16,
        decay: float = 0.9,
        learned_decay: bool = False,
        bias: bool = True,
        dropout_p: float = 0.0,
        causal: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(slots=slots)
        _require_decay(decay, learned=learned_decay)
        self.embed_dim = embed_dim

        def heads() -> HeadProjections:
            return HeadProjections(
                embed_dim, num_heads, bias=bias, dropout_p=dropout_p, causal=causal, backend=backend, device=device,
                dtype=dtype,
            )  # fmt: skip

        self.local, self.recall, self.write = heads(), heads(), heads()
        self.slots = nn.Parameter(nn.init.xavier_uniform_(torch.empty(slots, embed_dim, device=device, dtype=dtype)))
        self.fixed_decay = decay
        self.decay_logit: nn.Parameter | None = None
        if learned_decay:
            start = math.log(decay) - math.log1p(-decay)
            self.decay_logit = nn.Parameter(torch.full((slots,), start, device=device, dtype=dtype))

    @property
    def decay(self) -> Tensor:
        """lambda of each slot, (slots,), from 0 to 1."""
        if self.decay_logit is None:
            return self.slots.new_full((self.slots.shape[0],), self.fixed_decay).detach()
        return torch.sigmoid(self.decay_logit)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"memory": (self.slots.shape[0], self.embed_dim)}

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
        real = real_tokens("MemoryAttention", mask, x)
        padding = padding_mask("MemoryAttention", mask, batch=x.shape[0], length=x.shape[1])
        before = self.state_for(x, state)
        context = _attended(self.local, x, x, both(Causal() if self.local.causal else None, padding))
        recalled = _attended(self.recall, x, before["memory"], None)
        output = context + torch.where((before.seen > 0)[:, None, None], recalled, 0.0)
        return output, before.written(self._remembered(context, before["memory"], padding), real, x.shape[1])

    def _remembered(self, context: Tensor, memory: Tensor, padding: Mask | None) -> Tensor:
        """M_t of M_(t-1)."""
        slots = self.slots.to(context.dtype).expand(context.shape[0], -1, -1)
        new = _attended(self.write, slots, context, padding)
        decay = self.decay.to(new.dtype).unsqueeze(1)
        return decay * memory + (1 - decay) * new

    def extra_repr(self) -> str:
        learned = ", learned" if self.decay_logit is not None else ""
        return f"{self.embed_dim}, slots={self.slots.shape[0]}, decay={self.fixed_decay}{learned}"


def _attended(heads: HeadProjections, x: Tensor, context: Tensor, mask: Mask | None) -> Tensor:
    query, key, value = heads.to_heads(x, None if context is x else context)
    found = attention(query, key, value, mask=mask, dropout_p=heads.dropout_now, backend=heads.backend)
    return heads.from_heads(found)


def _require_decay(decay: float, *, learned: bool) -> None:
    inside = 0.0 < decay < 1.0 if learned else 0.0 <= decay <= 1.0
    if not inside:
        raise ArgumentError(
            "decay",
            expected="a number between 0 and 1, neither of them" if learned else "a number from 0 to 1",
            got=repr(decay),
            do="The memory is decay * old + (1 - decay) * new; a learned one comes from a sigmoid."
            if learned
            else "The memory is decay * old + (1 - decay) * new; beyond 0 to 1 it grows without bound.",
        )
