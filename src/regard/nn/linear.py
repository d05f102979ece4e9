"""Linear attention: two forms without a row of weights. The guide's 3.1 (kernel methods).

`LinearAttention`: Katharopoulos et al. 2020, "Transformers are RNNs", https://arxiv.org/abs/2006.16236, eqs. 4-7,

    out_i = phi(q_i)^T S / (phi(q_i)^T z),   S = sum_j phi(k_j) v_j^T,   z = sum_j phi(k_j),   phi(x) = elu(x) + 1

where the sums are over all tokens, or with `causal=True` over those up to i. Time O(n d^2 / H) beside the projections
for n tokens, width d and H heads, memory O(n d). Causal-valid, padding-valid; a text may be read in pieces of any size,
and what is known of it is one matrix for each head (`make_state`, `step`).

`EfficientAttention`: Shen et al. 2021, "Efficient attention: attention with linear complexities",
https://arxiv.org/abs/1812.01243, eq. 5,

    out = softmax_features(Q) ( softmax_tokens(K)^T V )

Each feature of the key is a distribution over all tokens, so it cannot be causal: a later token changes the weight of
every earlier one. Padding-valid. The same time and memory.

Neither computes softmax attention, nor do they approximate it: they are other mechanisms with the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from regard._errors import ArgumentError
from regard.masks import Mask
from regard.nn._card import Card
from regard.nn._causal_scan import Sums, causal_scan
from regard.nn._linear_sums import SummedAttention, sums_over_all, without_padding
from regard.nn._precision import working_dtype
from regard.nn._projections import HeadProjections
from regard.nn._real_tokens import check_pair, real_tokens, refuse_causal, require_no_order

FeatureMap = Literal["elu", "relu", "square", "softmax"]


def _elu(x: Tensor) -> Tensor:
    return functional.elu(x) + 1


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


_FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": _elu,
    "relu": torch.relu,
    "square": torch.square,
    "softmax": _softmax,
}


class LinearAttention(SummedAttention):
    """Attention whose weights are products of features, so that sums over tokens can be taken first.

    Args:
        embed_dim: width of a token.
        num_heads: heads, a divisor of embed_dim.
        feature_map: phi, applied to each head's query and key: "elu" (elu(x) + 1, the paper's), "relu", "square",
            "softmax" (over the features of one token), or a function that keeps all dimensions but the last and gives
            nothing negative.
        bias: have the four projections a bias?
        causal: may no token see a later one?
        device, dtype: of the weights.

    There is no dropout of weights, since no weight is ever computed.

    Raises:
        ArgumentError: heads that do not divide embed_dim; an unknown feature map.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Katharopoulos et al. 2020, Transformers are RNNs",
        equation="out_i = phi(q_i) S / (phi(q_i) z), S = sum_j phi(k_j) v_j^T, z = sum_j phi(k_j), phi = elu + 1; "
        "H heads",
        time="n d^2 / H + 4 n d^2",
        memory="n d",
        causal=True,
        padding=True,
        exact=False,
        note="No softmax attention and no approximation of it: a model has to be trained with it.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        feature_map: FeatureMap | Callable[[Tensor], Tensor] = "elu",
        bias: bool = True,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, bias=bias, causal=causal, device=device, dtype=dtype)
        self.feature_map = _checked_feature_map(feature_map)

    @property
    def _features(self) -> int:
        return self.feature_map(self.in_proj_weight.new_zeros(1, self.head_dim)).shape[-1]

    def _over_all(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        return sums_over_all(*self._mapped(query, key, real), value)

    def _in_order(
        self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, before: Sums | None
    ) -> tuple[Tensor, Sums]:
        query, key = self._mapped(query, key, real)
        return causal_scan(query, key, value, before=before)

    def _mapped(self, query: Tensor, key: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of query and key, in float32 at least; 0 for keys that are not real."""
        working = working_dtype(query)
        return self.feature_map(query.to(working)), without_padding(self.feature_map(key.to(working)), real)

    def extra_repr(self) -> str:
        name = next((name for name, each in _FEATURE_MAPS.items() if each is self.feature_map), "a function")
        return f"{super().extra_repr()}, feature_map={name}"


def _checked_feature_map(given: object) -> Callable[[Tensor], Tensor]:
    if isinstance(given, str) and given in _FEATURE_MAPS:
        return _FEATURE_MAPS[given]
    if callable(given):
        return cast("Callable[[Tensor], Tensor]", given)
    raise ArgumentError(
        "feature_map",
        expected=f"one of {', '.join(_FEATURE_MAPS)}, or a function",
        got=repr(given),
        do="It makes the features of a query or a key, none of them negative.",
    )


_NO_ORDER = "its softmax over tokens gives every token a share that later ones change"


class EfficientAttention(HeadProjections):
    """Attention to a few summaries of the tokens, one for each feature of the key.

    Args:
        embed_dim: width of a token.
        num_heads: heads, a divisor of embed_dim.
        bias: have the four projections a bias?
        causal: refused; it is here to say why.
        device, dtype: of the weights.

    Raises:
        ArgumentError: heads that do not divide embed_dim.
        UnsupportedError: causal.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Shen et al. 2021, Efficient attention: attention with linear complexities",
        equation="softmax_features(Q) (softmax_tokens(K)^T V), H heads",
        time="n d^2 / H + 4 n d^2",
        memory="n d",
        causal=False,
        padding=True,
        exact=False,
        note="No softmax attention and no approximation of it: a model has to be trained with it.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if causal:
            refuse_causal(type(self).__name__, _NO_ORDER)
        super().__init__(embed_dim, num_heads, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Mask | Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, context_length, embed_dim), what is attended to; x when left out.
            mask: which of the tokens attended to are real: Padding(lengths), or bool (batch, context_length).

        Returns:
            (batch, length, embed_dim). Where no token is real, the output projection of 0.

        Raises:
            ShapeError, MaskError: tensors or masks that do not fit.
            UnsupportedError: a causal mask, or one of pairs.
        """
        attended = check_pair(x, context, self.embed_dim)
        require_no_order(type(self).__name__, mask, _NO_ORDER)
        real = real_tokens(type(self).__name__, mask, attended)
        query, key, value = self.to_heads(x, context)
        return self.from_heads(query.softmax(-1) @ _summaries(key, value, real))


def _summaries(key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
    """For each feature of the key the mean of the values, weighted by its softmax: (batch, heads, width, value_dim)."""
    across = key.mT  # tokens last, where softmax is fast
    if real is None:
        return across.softmax(-1) @ value
    padded = ~real[:, None, None, :]
    lowest = torch.finfo(key.dtype).min  # and not -inf, whose softmax is NaN where nothing is real
    shares = across.masked_fill(padded, lowest).softmax(-1).masked_fill(padded, 0.0)
    return shares @ value.masked_fill(padded.mT, 0.0)
