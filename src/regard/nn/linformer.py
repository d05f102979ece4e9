"""Linformer: keys and values are projected along the text to a fixed number of slots. The guide's 3.1 (low rank).

Wang et al. 2020, "Linformer: self-attention with linear complexity", https://arxiv.org/abs/2006.04768, eq. 7, for each
head,

    out = softmax( Q (E^T K)^T / sqrt(d / H) ) (F^T V)

with learned E and F (max_length, projected_length). Since E^T (X W) = (E^T X) W, the text is projected before the keys
and values are, and those are computed for the slots alone where the heads share E and F.

Time O(n k d) for n tokens, k slots and width d: linear in n for a k that does not grow with it. Memory O((n + k) d).

Not causal-valid: each slot mixes all tokens, so even the first query would see the last token
(https://github.com/tatp22/linformer-pytorch/issues/11). Padding-valid: a padded token is taken out of the sums E^T K
and F^T V. Nothing else needs to be normalised, since the softmax is over slots and not over tokens, and a slot is a
sum and no mean. A text shorter than max_length uses the first rows of E and F; a longer one is refused.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, ShapeError
from regard.masks import Mask
from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._linear_map import linear
from regard.nn._projections import HeadProjections
from regard.nn._real_tokens import check_pair, real_tokens, refuse_causal, require_no_order

Share = Literal["none", "heads", "kv"]
_SHARES = ("none", "heads", "kv")
_MIXES = "each of its slots is a sum over all tokens, so even the first query would see the last token"


class LinformerAttention(HeadProjections):
    """Attention to `projected_length` learned mixtures of the tokens.

    Args:
        embed_dim: width of a token.
        num_heads: heads, a divisor of embed_dim.
        max_length: the longest text; E and F have a row for each of its tokens.
        projected_length: slots, the paper's k.
        share: which of E and F are the same, in the paper's section 4: "none" (each head has its own), "heads" (one E
            and one F for all heads), "kv" (E = F for all heads). For "layerwise" sharing take "kv" and give every layer
            the parameter of the first: `second.key_projection = first.key_projection`.
        bias: have the four projections a bias?
        dropout_p: probability of dropping a weight of a slot while training.
        causal: refused; it is here to say why.
        backend: who computes, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters beside those of `HeadProjections`: `key_projection` (E) and `value_projection` (F; absent with "kv"),
    (max_length, projected_length), or (num_heads, max_length, projected_length) with "none". They begin Xavier-uniform.
    Untrained they approximate nothing: their error against softmax attention is above 1.

    Raises:
        ArgumentError: sizes below 1, heads that do not divide embed_dim, an unknown `share`.
        UnsupportedError: causal.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Wang et al. 2020, Linformer: self-attention with linear complexity",
        equation="softmax(Q (E^T K)^T / sqrt(d / H)) (F^T V), E and F (max_length, k), H heads",
        time="n k d + 2 n d^2",
        memory="(n + k) d",
        causal=False,
        padding=True,
        exact=False,
        note="E and F are learned: untrained it is no approximation of attention, and a text has at most max_length "
        "tokens.",
    )

    value_projection: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        max_length: int,
        projected_length: int = 256,
        share: Share = "heads",
        bias: bool = True,
        dropout_p: float = 0.0,
        causal: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if causal:
            refuse_causal(type(self).__name__, _MIXES)
        require_positive(max_length=max_length, projected_length=projected_length)
        _check_share(share)
        super().__init__(
            embed_dim, num_heads, bias=bias, dropout_p=dropout_p, backend=backend, device=device, dtype=dtype
        )
        self.max_length, self.projected_length, self.share = max_length, projected_length, share
        sizes = ((num_heads,) if share == "none" else ()) + (max_length, projected_length)
        key, value = (torch.empty(sizes, device=device, dtype=dtype) for _ in range(2))
        self.key_projection = nn.Parameter(_xavier(key))
        self.value_projection = None if share == "kv" else nn.Parameter(_xavier(value))

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Mask | Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, context_length, embed_dim), what is attended to, at most max_length tokens; x when left
                out.
            mask: which of the tokens attended to are real: Padding(lengths), or bool (batch, context_length).

        Returns:
            (batch, length, embed_dim). Where no token is real, the output projection of 0.

        Raises:
            ShapeError: tensors that do not fit; more tokens than max_length.
            MaskError: a mask that does not fit.
            UnsupportedError: a causal mask, or one of pairs.
        """
        attended = check_pair(x, context, self.embed_dim)
        self._check_length(attended)
        require_no_order(type(self).__name__, mask, _MIXES)
        real = real_tokens(type(self).__name__, mask, attended)
        maps = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        (query,) = self.apart(linear(x, maps[0], biases[0]), 1)
        value_projection = self.key_projection if self.value_projection is None else self.value_projection
        key = self._slots(attended, real, self.key_projection, maps[1], biases[1])
        value = self._slots(attended, real, value_projection, maps[2], biases[2])
        return self.from_heads(self.attend(query, key, value, None))

    def _slots(
        self, tokens: Tensor, real: Tensor | None, projection: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Keys or values of the slots: (batch, heads, projected_length, head_dim)."""
        across = projection[..., : tokens.shape[1], :].mT
        if self.share == "none":  # a head's slots are its own: project to its width first, which is narrower
            (each,) = self.apart(linear(tokens, weight, bias), 1)
            return across @ (each if real is None else each.masked_fill(~real[:, None, :, None], 0.0))
        mixed = across @ (tokens if real is None else tokens.masked_fill(~real.unsqueeze(-1), 0.0))
        slots = linear(mixed, weight)
        if bias is not None:  # every real token brings the bias once
            count = across.sum(-1) if real is None else real.to(across.dtype) @ across.mT
            slots = slots + count.unsqueeze(-1) * bias
        return self.apart(slots, 1)[0]

    def _check_length(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.max_length:
            raise ShapeError(
                "length",
                expected=f"at most max_length {self.max_length}",
                got=str(tokens.shape[1]),
                do="E and F have no rows for more tokens: make and train it with more, or cut the text.",
            )

    def extra_repr(self) -> str:
        sizes = f"max_length={self.max_length}, projected_length={self.projected_length}, share={self.share!r}"
        return f"{super().extra_repr()}, {sizes}"


def _check_share(share: object) -> None:
    if share not in _SHARES:
        raise ArgumentError(
            "share",
            expected="'none', 'heads' or 'kv'",
            got=repr(share),
            do="For the paper's layerwise sharing give several layers made with 'kv' the same key_projection.",
        )


def _xavier(projection: Tensor) -> Tensor:
    """Xavier-uniform, each head's matrix by itself."""
    bound = math.sqrt(6.0 / (projection.shape[-2] + projection.shape[-1]))
    return nn.init.uniform_(projection, -bound, bound)
