"""Longformer: each token sees a window, and a few global tokens see all and are seen by all.

Beltagy et al. 2020, "Longformer: The Long-Document Transformer", arXiv:2004.05150 (the guide's 3.1). With query q,
key k, value v of one projection and query q', key k', value v' of a second one for the global tokens G:

    local  i:  softmax over {j : |j - i| <= window or j in G} of  q_i k_j / sqrt(d_h),  times v_j
    global i:  softmax over all j                             of q'_i k'_j / sqrt(d_h), times v'_j

Time n * (window + g) * d and memory n * d for g global tokens, beside the projections' n * d^2. Valid causally (the
window then looks back only, and global tokens see and are seen as the order allows) and with padding.

The global rows cost little: where few tokens are global, q' k'_j = (q' Wk') x_j + a constant of the row, which the
softmax does not see, and a weighted mean of v'_j = Wv' x_j + bv' is Wv' (the mean of x_j) + bv'. So x itself serves as
key and value, and the projections of all n tokens for the sake of g rows are never computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard._errors import ArgumentError, ShapeError, UnsupportedError
from regard._shapes import shape_of
from regard.backends._direct import is_transformed
from regard.masks import Causal, Keys, Mask, SlidingWindow
from regard.nn import _few_queries
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._card import Card
from regard.nn._linear_map import linear
from regard.nn._projections import HeadProjections, stack_maps, stacked_maps
from regard.nn._token_masks import both, padding_mask

GlobalTokenChoice = int | Sequence[int] | Tensor


class LongformerAttention(HeadProjections):
    """Window attention with global tokens, called on (batch, length, embed_dim).

    Args:
        embed_dim: width of a token.
        num_heads: heads, a divisor of embed_dim.
        window: tokens that a token sees on either side of itself, so 2 * window + 1 in all. Hugging Face's
            `attention_window` counts both sides: it is 2 * window.
        global_projections: global tokens ask with weights of their own, as in the paper; False lets them use the
            others' (what HF's model computes when its global weights are copies of the local ones).
        bias, dropout_p, backend, output_projection, device, dtype: see `HeadProjections`.
        causal: no token sees a later one: the window looks back only, a global token is seen by later tokens only.

    Parameters beside those of `HeadProjections`: `global_proj_weight` (3 * embed_dim, embed_dim), `global_proj_bias`.

    Raises:
        ArgumentError: a size below 1, heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Beltagy et al. 2020, Longformer: The Long-Document Transformer, arXiv:2004.05150",
        equation="softmax over a window of w tokens on either side and over g global tokens, which see all, exactly",
        time="O(n (w + g) d + n d^2)",
        memory="O(n d)",
        causal=True,
        padding=True,
        note="Under torch.compile a call with global tokens or padding builds its mask as n x n booleans.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window: int = 256,
        global_projections: bool = True,
        bias: bool = True,
        dropout_p: float = 0.0,
        causal: bool = False,
        backend: str = "auto",
        output_projection: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, bias=bias, dropout_p=dropout_p, causal=causal, backend=backend,
            output_projection=output_projection, device=device, dtype=dtype,
        )  # fmt: skip
        require_positive(window=window)
        self.window = window
        self.global_proj_weight: nn.Parameter | None = None
        self.global_proj_bias: nn.Parameter | None = None
        if global_projections:
            self.global_proj_weight, self.global_proj_bias = stacked_maps(
                3, embed_dim, bias=bias, device=device, dtype=dtype
            )

    @staticmethod
    def from_transformers(layer: nn.Module, output: nn.Linear | None = None) -> LongformerAttention:
        """The same attention with copies of the weights of a Hugging Face `LongformerSelfAttention`.

        Args:
            layer: the self-attention. Its `attention_window` is twice our window.
            output: the map behind it (`LongformerAttention.output.dense` there), for ours to end with. Without it ours
                has no last map either.

        Raises:
            ArgumentError: a module without the projections and the window of a LongformerSelfAttention.
        """
        names = ("query", "key", "value", "query_global", "key_global", "value_global")
        if not all(isinstance(getattr(layer, name, None), nn.Linear) for name in names) or not hasattr(
            layer, "one_sided_attn_window_size"
        ):
            raise ArgumentError(
                "layer",
                expected="a transformers LongformerSelfAttention",
                got=type(layer).__name__,
                do="Pass model.encoder.layer[i].attention.self.",
            )
        theirs = cast("Any", layer)
        made = LongformerAttention(
            theirs.embed_dim, theirs.num_heads, window=theirs.one_sided_attn_window_size,
            dropout_p=float(theirs.dropout), output_projection=output is not None,
            device=theirs.query.weight.device, dtype=theirs.query.weight.dtype,
        )  # fmt: skip
        made.copy_maps([getattr(theirs, name) for name in names[:3]], output)
        stack_maps(made.global_proj_weight, made.global_proj_bias, [getattr(theirs, name) for name in names[3:]])
        return made.train(layer.training)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        global_tokens: GlobalTokenChoice | None = None,
        mask: Mask | Tensor | None = None,
    ) -> Tensor:
        """Attend within x.

        Args:
            x: (batch, length, embed_dim), of any length.
            context: must be left out: a window is about the places of tokens in one text.
            global_tokens: which are global: the first so many, their indices (the same in every sample), or bool
                (batch, length), True = global.
            mask: which tokens are real: `Padding(lengths)`, `Keys`, or bool (batch, length), True = real. The rows of
                padded tokens hold numbers that nobody should read.

        Returns:
            (batch, length, embed_dim).

        Raises:
            ShapeError: x or global_tokens of another shape.
            ArgumentError: a global token that the text does not have.
            UnsupportedError: a context, or a mask of pairs.
        """
        x = check_tokens("x", x, self.embed_dim)
        if context is not None:
            raise UnsupportedError(
                {"LongformerAttention": "a window is about the places of tokens in one text, so it takes no context"},
                do="Take MultiHeadAttention for cross attention.",
            )
        batch, length, _ = x.shape
        real = padding_mask("LongformerAttention", mask, batch=batch, length=length)
        chosen = None if global_tokens is None else _chosen(global_tokens, batch, length, x.device)
        query, key, value = self.to_heads(x)
        rows = self.joined(self.attend(query, key, value, both(self._local_mask(chosen), real)))
        if chosen is not None and chosen.places.shape[1]:
            asked = self._global_rows(x, (query, key, value), chosen, real)
            sample = torch.arange(batch, device=x.device)[:, None].expand_as(chosen.places)
            place, found = (sample, chosen.places), asked
            if chosen.is_there is not None:
                place, found = (sample[chosen.is_there], chosen.places[chosen.is_there]), asked[chosen.is_there]
            in_place = not rows.requires_grad and not is_transformed()  # backward needs what attention gave
            rows = (rows.index_put_ if in_place else rows.index_put)(place, found.to(rows.dtype))
        return self.out_proj(rows)

    def _local_mask(self, chosen: _Chosen | None) -> Mask:
        window: Mask = SlidingWindow(self.window, 0 if self.causal else self.window)
        if chosen is None:
            return window
        seen = window | Keys(chosen.flags)
        return Causal() & seen if self.causal else seen

    def _global_rows(
        self, x: Tensor, local: tuple[Tensor, Tensor, Tensor], chosen: _Chosen, real: Mask | None
    ) -> Tensor:
        """What the global tokens see, (batch, g, embed_dim)."""
        allowed = self._global_mask(chosen, real, x.shape[1])
        if self.global_proj_weight is None:
            query, key, value = local
            index = chosen.places[:, None, :, None].expand(-1, self.num_heads, -1, self.head_dim)
            return self.joined(self.attend(query.gather(2, index), key, value, allowed))
        width = self.embed_dim
        tokens = x.gather(1, chosen.places[:, :, None].expand(-1, -1, width))
        weight, bias = self.global_proj_weight, self.global_proj_bias
        to_rest, rest_bias = weight[width:], None if bias is None else bias[width:]
        (query,) = self.apart(linear(tokens, weight[:width], None if bias is None else bias[:width]), 1)
        if 2 * chosen.places.shape[1] * self.num_heads > width or self.dropout_now > 0.0:
            key, value = self.apart(linear(x, to_rest, rest_bias), 2)
            return self.joined(self.attend(query, key, value, allowed))
        return self._absorbed(x, query, to_rest, rest_bias, allowed)

    def _absorbed(
        self, x: Tensor, query: Tensor, to_rest: Tensor, rest_bias: Tensor | None, allowed: Tensor | None
    ) -> Tensor:
        """Global rows with x itself as key and value, and the maps to key and value moved to the few rows.

        All heads then have the same keys, so they are rows of one head: its backward goes over x once, and not once
        for each of them.
        """
        to_key, to_value = to_rest.view(2, self.num_heads, self.head_dim, self.embed_dim)
        tokens, apart = x[:, None], query.shape[:3]
        if allowed is not None and allowed.shape[2] > 1:
            allowed = allowed.repeat(1, 1, self.num_heads, 1)
        asked, scale = (query @ to_key).flatten(1, 2), 1.0 / math.sqrt(self.head_dim)
        sees_something: Tensor | None = None
        if allowed is None and _few_queries.serves(asked, x):
            means = _few_queries.attend_to_tokens(asked * scale, x)
        else:
            means, lse = attention(
                asked[:, None], tokens, tokens, mask=allowed, scale=scale, backend=self.backend, return_lse=True
            )
            sees_something = (lse.reshape(apart) != -math.inf)[..., None]
        heads: Tensor = means.reshape(*apart, self.embed_dim) @ to_value.transpose(1, 2)
        if rest_bias is not None:
            value_bias = rest_bias[self.embed_dim :].view(self.num_heads, 1, self.head_dim)
            # A row that sees nothing is 0, without a bias.
            heads = heads + (value_bias if sees_something is None else value_bias * sees_something)
        return self.joined(heads)

    def _global_mask(self, chosen: _Chosen, real: Mask | None, length: int) -> Tensor | None:
        """What the global rows may see, bool (batch or 1, 1, g or 1, length), or None for everything."""
        device = chosen.places.device
        columns = torch.arange(length, device=device)
        allowed = None
        if real is not None:
            allowed = real.tile(columns[:1], columns, length, length)
        if self.causal:
            earlier = columns <= chosen.places[:, None, :, None]
            allowed = earlier if allowed is None else allowed & earlier
        return allowed


class _Chosen(NamedTuple):
    """Which tokens are global."""

    flags: Tensor  # bool (batch, length)
    places: Tensor  # int64 (batch, g), with 0 where a sample has fewer than g
    is_there: Tensor | None  # bool (batch, g), False at those; None when every sample has g


def _chosen(given: GlobalTokenChoice, batch: int, length: int, device: torch.device) -> _Chosen:
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        return _flagged(given, batch, length)
    places = _places(given, length)
    index = torch.tensor(places, dtype=torch.int64, device=device)
    flags = torch.zeros(length, dtype=torch.bool, device=device)
    flags[index] = True
    return _Chosen(flags.expand(batch, -1), index.expand(batch, -1), None)


def _flagged(flags: Tensor, batch: int, length: int) -> _Chosen:
    if tuple(flags.shape) != (batch, length):
        raise ShapeError(
            "global_tokens",
            expected=f"bool (batch, length) = {(batch, length)}, True = global, or indices",
            got=shape_of(flags),
            do="Say it for every token of x.",
        )
    count = flags.sum(1)
    most = int(count.max()) if batch else 0
    index = torch.zeros(batch, most, dtype=torch.int64, device=flags.device)
    sample, place = flags.nonzero(as_tuple=True)
    index[sample, flags.cumsum(1)[sample, place] - 1] = place
    is_there = torch.arange(most, device=flags.device) < count[:, None]
    return _Chosen(flags, index, None if bool(is_there.all()) else is_there)


def _places(given: GlobalTokenChoice, length: int) -> list[int]:
    """The indices of the global tokens, ascending, each once."""
    if isinstance(given, Tensor) and (given.dim() != 1 or given.is_floating_point()):
        raise ShapeError(
            "global_tokens",
            expected="bool (batch, length), a 1-D int tensor of indices, a list of indices, or a number",
            got=f"{given.dtype} {shape_of(given)}",
            do="Indices are shared by all samples; use the bool form where samples differ.",
        )
    if isinstance(given, Tensor):
        given = cast("list[int]", cast("Any", given).tolist())
    places = sorted(set(range(given) if isinstance(given, int) else given))
    if isinstance(given, bool) or (places and not 0 <= places[0] <= places[-1] < length):
        raise ArgumentError(
            "global_tokens",
            expected=f"indices from 0 to {length - 1}, or how many of the first {length} tokens",
            got=repr(given),
            do="Name tokens of this text.",
        )
    return places
