"""The forgetting transformer: softmax attention in which a token fades. The guide's 4.2.

Lin et al. 2025, "Forgetting Transformer: Softmax Attention with a Forget Gate", https://arxiv.org/abs/2503.02130:

    f_l = sigmoid(x_l Wf + bf),   D_ij = log f_(j+1) + ... + log f_i,   output = softmax(Q K^T / sqrt(head_dim) + D) V

for j <= i, each head with its own gate. Cost: that of causal attention, time n^2 d / 2 and memory n d (no n x n tensor
is made), and n d H for the gate. Causal always; padding-valid.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._attention import attention
from regard._errors import UnsupportedError
from regard.masks import Causal, Keys, Mask, Padding
from regard.nn._arguments import check_tokens
from regard.nn._card import Card
from regard.nn._mask_rows import Rows
from regard.nn._output_gate import gate_map
from regard.nn._projections import HeadProjections
from regard.nn._token_masks import token_mask


class ForgettingAttention(nn.Module):
    """Causal attention that forgets: a key fades by the forget gates of all tokens after it.

    With c_i = log f_0 + ... + log f_i the fading is c_i - c_j, and c_i is the same for all keys of a query, so the
    softmax does not see it: -c_j, a bias of the keys, is all that attention has to be told. So that a long text loses
    no digits, the sums are made in float64, and each block of 256 queries counts them from its middle: what rounding
    does to a score then is what it does to the largest sum within half a block, whatever the length.

    Args:
        embed_dim: width of a token.
        num_heads: heads of attention, a divisor of embed_dim; each has its own forget gate.
        bias: have the projections of attention a bias? The forget gate always has one.
        forget_bias: what the gate's bias begins with. At 0 a token fades by about a half with each step, at 5 by less
            than one in a hundred.
        dropout_p: probability of dropping an attention weight while training.
        backend: who computes, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters: `forget`, a Linear from embed_dim to num_heads, and `projections` (`HeadProjections`).

    Raises:
        ArgumentError: heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    ROWS: ClassVar[int] = 256

    card: ClassVar[Card] = Card(
        guide="4.2",
        source="Lin et al. 2025, Forgetting Transformer: Softmax Attention with a Forget Gate, arXiv:2503.02130",
        equation="softmax(Q K^T / sqrt(d / H) + c_i - c_j) V, c = cumsum log sigmoid(x Wf + bf), causal",
        time="n^2 d / 2 + 4 n d^2",
        memory="n d",
        causal=True,
        padding=True,
        note="Causal always; it needs no other position.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        forget_bias: float = 0.0,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.projections = HeadProjections(
            embed_dim, num_heads, bias=bias, dropout_p=dropout_p, causal=True, backend=backend, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.forget = gate_map(embed_dim, num_heads, device=device, dtype=dtype)
        nn.init.constant_(self.forget.bias, forget_bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        return_gate: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend to what has not been forgotten.

        Args:
            x: (batch, length, embed_dim).
            context: must be left out: forgetting is defined along one text.
            mask: which pairs may attend; what is later is never seen. Tokens that a padding mask takes out
                (`Padding`, `Keys`, a bool tensor (batch, length)) forget nothing either; a mask of pairs leaves the
                gates of all tokens in place.
            return_gate: also give f, (batch, length, num_heads): how much of the past each token keeps.

        Returns:
            (batch, length, embed_dim), and the gate where it is asked for.

        Raises:
            ShapeError: x is of another shape.
            MaskError: the mask does not fit it.
            UnsupportedError: a context was given.
        """
        check_tokens("x", x, self.embed_dim)
        if context is not None:
            raise UnsupportedError(
                {"ForgettingAttention": "what is forgotten lies between a token and one before it in the same text"},
                do="Leave context out, or take GatedAttention or OutputGatedAttention for cross attention.",
            )
        heads = self.projections
        query, key, value = heads.to_heads(x)
        asked = token_mask(mask, batch=x.shape[0], q_len=x.shape[1], kv_len=x.shape[1])
        logits = self.forget(x)
        earlier = Causal() if asked is None else Causal() & asked
        found = self._attended(query, key, value, self._faded(logits, asked), earlier)
        output = heads.from_heads(found)
        return (output, torch.sigmoid(logits)) if return_gate else output

    @staticmethod
    def _faded(logits: Tensor, mask: Mask | None) -> Tensor:
        """c of each token, float64 (batch, heads, length)."""
        kept = functional.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        length = logits.shape[1]
        place = torch.arange(length, device=logits.device)
        for part in () if mask is None else mask.conjuncts:
            if isinstance(part, Padding | Keys):  # whatever stands there, NaN too, is in no sum
                real = part.tile(place[:1], place, length, length)[:, 0, 0]
                kept = torch.where(real.unsqueeze(2), kept, 0.0)
        return kept.to(torch.float64).cumsum(1).transpose(1, 2)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, faded: Tensor, mask: Mask) -> Tensor:
        length = query.shape[2]
        working = torch.promote_types(query.dtype, torch.float32)
        blocks: list[Tensor] = []
        for first in range(0, max(length, 1), self.ROWS):
            end = min(first + self.ROWS, length)
            middle = (first + end) // 2
            since = faded[:, :, middle : middle + 1].detach()
            blocks.append(
                attention(
                    query[:, :, first:end],
                    key[:, :, :end],
                    value[:, :, :end],
                    mask=mask if length <= self.ROWS else Rows(mask, first, length),
                    bias=(since - faded[:, :, :end]).to(working).unsqueeze(2),
                    dropout_p=self.projections.dropout_now,
                    backend=self.projections.backend,
                    additive=True,
                )
            )
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
