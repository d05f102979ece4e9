"""Sparse attention with weights: exact attention over fewer pairs, each mechanism one mask of `regard.masks`.

The guide's 3.1. With query, key and value projected from x and M the mask,

    output = concat over heads( softmax(q k^T / sqrt(d_h) where M) v ) Wo

* `BlockAttention`: pieces of the text by themselves (Qiu et al. 2019, arXiv:1911.02972), `Blocks`;
* `DilatedAttention`: every step-th token around (Beltagy et al. 2020, arXiv:2004.05150, 3.1), `Dilated`;
* `StridedAttention`: the nearest tokens and every stride-th (Child et al. 2019, arXiv:1904.10509), `SlidingWindow` and
  `Dilated`.

BigBird and top-k attention, whose masks are drawn or depend on the scores, have files of their own.

Only the mask is sparse: a pair that it keeps has the weight it would have in full attention over what is kept, and
nothing is approximated. Time is in proportion to the kept pairs and memory to the length, since tokens that are a
multiple of the step apart are laid side by side, where they are plain text with a plain window. A mask of pairs in the
call cannot be laid out so, and costs the blocks of pairs that hold something. All are valid causally and with padding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from regard._errors import UnsupportedError
from regard.masks import Blocks, Causal, Dilated, Keys, Mask, Padding, SlidingWindow
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._card import Card
from regard.nn._folding import fold, folded_lengths, unfold
from regard.nn._merge import merged
from regard.nn._projections import HeadOptions, HeadProjections
from regard.nn._token_masks import both, token_mask


class MaskedAttention(HeadProjections):
    """Projections, and attention with a mask that only the length decides. What the mechanisms of this file share."""

    @abstractmethod
    def own_mask(self, length: int) -> Mask:
        """The mask of a text of this length, order of tokens included."""

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Mask | Tensor | None = None) -> Tensor:
        """Attend within x where both this mechanism's mask and the given one allow it.

        Args:
            x: (batch, length, embed_dim), of any length.
            context: must be left out: the mask is about the places of tokens in one text.
            mask: a `regard.masks` value; or bool, True = may attend: (batch, length) for real tokens, (length, length)
                for pairs, or four dimensions (batch or 1, heads or 1, length or 1, length or 1).

        Returns:
            (batch, length, embed_dim). The row of a token that sees nothing is the bias of the last map.

        Raises:
            ShapeError: x of another shape.
            MaskError: a mask for other sizes.
            UnsupportedError: a context.
        """
        x = check_tokens("x", x, self.embed_dim)
        name = type(self).__name__
        if context is not None:
            raise UnsupportedError(
                {name: "its mask is about the places of tokens in one text, so it takes no context"},
                do="Take MultiHeadAttention for cross attention.",
            )
        batch, length, _ = x.shape
        asked = token_mask(mask, batch=batch, q_len=length, kv_len=length)
        return self._mix(x, asked)

    def _mix(self, x: Tensor, asked: Mask | None) -> Tensor:
        """By the mask as it is. A mechanism that knows a layout with fewer pairs computes there."""
        query, key, value = self.to_heads(x)
        allowed = both(self.own_mask(x.shape[1]), asked)
        return self.from_heads(self.attend(query, key, value, allowed))

    def _ordered(self, mask: Mask) -> Mask:
        return Causal() & mask if self.causal else mask


class BlockAttention(MaskedAttention):
    """The text is cut into pieces of `block_size` tokens, and each piece attends to itself.

    Args:
        embed_dim, num_heads: width of a token, and heads that divide it.
        block_size: tokens in a piece; the last one may be shorter.
        bias, dropout_p, causal, backend, output_projection, device, dtype: see `HeadProjections`.

    Raises:
        ArgumentError: a size below 1, heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Qiu et al. 2019, Blockwise Self-Attention for Long Document Understanding, arXiv:1911.02972",
        equation="softmax(q k^T / sqrt(d_h)) v within each block of b tokens",
        time="O(n b d + n d^2)",
        memory="O(n d)",
        causal=True,
        padding=True,
        note="Blocks never hear of one another; the paper's permuted heads, which let them, are not part of it.",
    )

    def __init__(
        self, embed_dim: int, num_heads: int, *, block_size: int = 128, **options: Unpack[HeadOptions]
    ) -> None:
        super().__init__(embed_dim, num_heads, **options)
        require_positive(block_size=block_size)
        self.block_size = block_size

    def own_mask(self, length: int) -> Mask:
        return self._ordered(Blocks(self.block_size))


class DilatedAttention(MaskedAttention):
    """Each token sees `window` tokens on either side, `step` apart: a window that reaches `step` times as far.

    Args:
        embed_dim, num_heads: width of a token, and heads that divide it.
        step: the distance between two kept tokens; 1 is a plain window.
        window: kept tokens on either side; None sets no bound, so that every step-th token of the text is seen.
        bias, dropout_p, causal, backend, output_projection, device, dtype: see `HeadProjections`.

    Raises:
        ArgumentError: a size below 1, heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Beltagy et al. 2020, Longformer, arXiv:2004.05150, section 3.1 (dilated sliding window)",
        equation="softmax(q k^T / sqrt(d_h)) v over the keys at distances 0, +-s, ..., +-w s for step s, window w",
        time="O(n w d + n d^2); with a mask of pairs in the call O(n w s d + n d^2)",
        memory="O(n d)",
        causal=True,
        padding=True,
        note="Tokens whose places differ by no multiple of the step never hear of one another in one layer.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        step: int = 2,
        window: int | None = 128,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(embed_dim, num_heads, **options)
        require_positive(step=step, window=1 if window is None else window)
        self.step, self.window = step, window

    def own_mask(self, length: int) -> Mask:
        return self._ordered(Dilated(self.step, self.window))

    def _mix(self, x: Tensor, asked: Mask | None) -> Tensor:
        real = real_tokens(asked, x.shape[1])
        if asked is not None and real is None:
            return super()._mix(x, asked)
        window = None if self.window is None else SlidingWindow(self.window)
        order = both(Causal() if self.causal else None, window)
        query, key, value = self.to_heads(fold(x, self.step))
        heads = self.attend(query, key, value, both(order, folded_padding(x, real, self.step)))
        return unfold(self.from_heads(heads), self.step, x.shape[1])


class StridedAttention(MaskedAttention):
    """Each token sees its neighbours up to `stride` tokens away, and every stride-th token of the whole text.

    With stride near the square root of the length two layers join any two tokens. This is the paper's merged head, one
    head that sees what its two heads see together.

    In float64 the result is right to about 1e-7: the two sets of keys are joined by float32 normalisers.

    Args:
        embed_dim, num_heads: width of a token, and heads that divide it.
        stride: how far the window reaches, and how far apart the other tokens stand.
        bias, dropout_p, causal, backend, output_projection, device, dtype: see `HeadProjections`. The paper's form is
            `causal=True`.

    Raises:
        ArgumentError: a size below 1, heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Child et al. 2019, Generating Long Sequences with Sparse Transformers, arXiv:1904.10509",
        equation="softmax(q k^T / sqrt(d_h)) v over the keys at distances up to s, and at all multiples of s",
        time="O(n (s + n / s) d + n d^2); with a mask of pairs in the call nearly O(n^2 d)",
        memory="O(n d)",
        causal=True,
        padding=True,
        note="The two sets of keys are two calls of attention, joined by their normalisers, which are float32: in "
        "float64 it is right to about 1e-7.",
    )

    def __init__(self, embed_dim: int, num_heads: int, *, stride: int = 64, **options: Unpack[HeadOptions]) -> None:
        super().__init__(embed_dim, num_heads, **options)
        require_positive(stride=stride)
        self.stride = stride

    def own_mask(self, length: int) -> Mask:
        return self._ordered(SlidingWindow(self.stride) | Dilated(self.stride))

    def _mix(self, x: Tensor, asked: Mask | None) -> Tensor:
        length, stride = x.shape[1], self.stride
        real = real_tokens(asked, length)
        if asked is not None and real is None:
            return super()._mix(x, asked)
        query, key, value = self.to_heads(x)
        near = self.attend_with_lse(query, key, value, both(self._ordered(SlidingWindow(stride)), asked))
        # Side by side, a stride is one place: those at distances 0 and 1 are in the window already.
        beyond = both(self._ordered(_BEYOND_THE_WINDOW), folded_padding(x, real, stride))
        query, key, value = (fold(part.transpose(1, 2), stride).transpose(1, 2) for part in (query, key, value))
        far, far_lse = self.attend_with_lse(query, key, value, beyond)
        far = unfold(far.transpose(1, 2), stride, length).transpose(1, 2)
        far_lse = unfold(far_lse.transpose(1, 2), stride, length).transpose(1, 2)
        return self.from_heads(merged([near, (far, far_lse)]))


_BEYOND_THE_WINDOW = ~SlidingWindow(1)  # made here, since torch.compile cannot trace `~`


def real_tokens(asked: Mask | None, length: int) -> Tensor | None:
    """Bool (batch, length) where the mask says nothing but which tokens are real; otherwise None."""
    if asked is None or not all(isinstance(part, Padding | Keys) for part in asked.conjuncts):
        return None
    asked.check(length, length)
    return asked.tile(torch.zeros(1, dtype=torch.int64), torch.arange(length), length, length)[:, 0, 0]


def folded_padding(x: Tensor, real: Tensor | None, step: int) -> Mask | None:
    """Which of the folded tokens are real: None where all are."""
    batch, length, _ = x.shape
    if real is not None:
        return Keys(fold(real.to(x.device), step))
    return Padding(folded_lengths(length, step) * batch) if length % step else None
