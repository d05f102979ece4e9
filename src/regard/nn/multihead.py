"""Multi-head attention. The guide's 1.1 and 1.2.

Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762, sections 3.2.1 and 3.2.2:

    head_h = softmax( Q_h K_h^T / sqrt(head_dim) ) V_h,   Q_h = x W_h^Q, K_h = y W_h^K, V_h = y W_h^V
    output = concat(head_1 .. head_H) W^O

The guide's code divides the scores by d_k where its text, like the paper, divides by sqrt(d_k): the text is right, and
it is what is done here. Fewer key and value heads than query heads (`kv_heads`) are grouped-query attention (Ainslie et
al. 2023, https://arxiv.org/abs/2305.13245), a single one is multi-query attention (Shazeer 2019,
https://arxiv.org/abs/1911.02150). A gate between the heads and W^O (`gate`) is that of Qiu et al. 2025,
https://arxiv.org/abs/2505.06708: `_output_gate.py`.

Cost: time n * m * d for n queries, m keys and width d, and 4 n d^2 for the projections; memory O((n + m) d), since
regard's kernels hold no n x m tensor. Causal-valid (`causal=True`) and padding-valid (`mask=Padding(lengths)`).
Weights have the names, shapes and order of torch.nn.MultiheadAttention, so state_dicts go both ways.
Which pairs it looks at is seen from outside: `regard.observe(model)`.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard._errors import ArgumentError
from regard._shapes import check_dropout, check_scale, check_softcap
from regard.masks import Causal, Mask
from regard.nn._arguments import check_tokens, require_heads, require_positive
from regard.nn._cache import KeyValueCache
from regard.nn._card import Card
from regard.nn._linear_map import LinearMap, linear
from regard.nn._multihead_parts import (
    Norm,
    States,
    at_the_end,
    checked_position,
    joined,
    mask_at_the_end,
    norm_of,
    require_groups,
    split_heads,
    turns_once,
)
from regard.nn._output_gate import GateOf, begin_gate, output_gate, through_gate
from regard.nn._torch_multihead import as_torch, load_all, options_of, required_of_torch, state_for
from regard.nn.tensor_cores import pad_to_multiple
from regard.positions import Position


class MultiHeadAttention(nn.Module):
    """Projects queries, keys and values, attends with every head, and projects the heads' outputs together.

    Args:
        embed_dim: width of queries and outputs.
        num_heads: query heads.
        kv_heads: key and value heads, a divisor of num_heads; as many as query heads unless given.
        head_dim: width of a query and a key in one head; embed_dim / num_heads unless given.
        value_dim: width of a value in one head; head_dim unless given.
        kdim, vdim: widths of the `key` and `value` that are given to the call; embed_dim unless given.
        bias: have additive vectors in the projections.
        dropout_p: chance of dropping a weight, in training only; the seed is drawn from torch's generator.
        causal: no query sees a later key.
        position: a `regard.positions` module; several layers may share one.
        softcap: scores become softcap * tanh(scores / softcap).
        sink: each head has a learned logit that takes part in the softmax and gives nothing; it begins at 0.
        qk_norm: norm each head's queries and keys, before the position turns them: "rms" or "layer".
        gate: multiply the heads' outputs by sigmoid(query Wg + bg) before they are projected together: "element", a
            number for each channel of each head, as in Qwen3-Next, or "head", one for each head.
        scale: factor of the dot products; 1 / sqrt(head_dim) unless given.
        pad_to: make heads wider inside, by zeros, to a multiple (8 or 16 for tensor cores); changes no result.
        backend: of `regard.attention`.

    Parameters: `in_proj_weight` ((num_heads + kv_heads) * head_dim + kv_heads * value_dim, embed_dim), rows in the
    order query, key, value, or with another kdim or vdim `q_proj_weight`, `k_proj_weight`, `v_proj_weight`;
    `in_proj_bias`; `out_proj` (embed_dim, num_heads * value_dim); with a gate `gate_proj`, to num_heads * value_dim
    or num_heads numbers. Weights begin Xavier-uniform, biases at 0.

    Raises:
        ArgumentError: a size below 1, heads that do not divide, an option out of its range.
        ShapeError: a position that was made for other heads or widths.
    """

    card: ClassVar[Card] = Card(
        guide="1.1, 1.2",
        source="Vaswani et al. 2017, Attention Is All You Need",
        equation="concat_h softmax(Q_h K_h^T / sqrt(d / H)) V_h W^O, with n queries, m keys, width d, H heads",
        time="n m d + 4 n d^2",
        memory="(n + m) d",
        causal=True,
        padding=True,
    )

    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter | None
    k_proj_weight: nn.Parameter | None
    v_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    sink: nn.Parameter | None
    gate_proj: nn.Linear | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout_p: float = 0.0,
        causal: bool = False,
        position: Position | None = None,
        softcap: float | None = None,
        sink: bool = False,
        qk_norm: Norm | None = None,
        gate: GateOf | None = None,
        scale: float | None = None,
        pad_to: int = 1,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = require_heads(embed_dim, num_heads) if head_dim is None else head_dim
        self.kv_heads = num_heads if kv_heads is None else kv_heads
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        require_positive(
            embed_dim=embed_dim, num_heads=num_heads, kv_heads=self.kv_heads, head_dim=self.head_dim,
            value_dim=self.value_dim, kdim=self.kdim, vdim=self.vdim, pad_to=pad_to,
        )  # fmt: skip
        require_groups(num_heads, self.kv_heads)
        self.dropout_p, self.causal, self.backend, self.pad_to = check_dropout(dropout_p), causal, backend, pad_to
        self.scale, self.softcap = check_scale(scale, self.head_dim), check_softcap(softcap)
        self.position = checked_position(
            position, heads=num_heads, widths=(self.head_dim, self.value_dim), pad_to=pad_to
        )
        self.in_proj_widths = (num_heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.value_dim)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self._make_projections(made, bias=bias)
        self.query_norm, self.key_norm = norm_of(qk_norm, self.head_dim, made), norm_of(qk_norm, self.head_dim, made)
        self.sink = nn.Parameter(torch.empty(num_heads, **made)) if sink else None
        self.gate_proj = None
        if gate is not None:
            self.gate_proj = output_gate(gate, embed_dim, num_heads, self.value_dim, bias=bias, **made)
        self.reset_parameters()
        cast("Any", self).register_load_state_dict_pre_hook(state_for)

    def _make_projections(self, made: dict[str, Any], *, bias: bool) -> None:
        fused = self.kdim == self.vdim == self.embed_dim
        queries, keys, values = self.in_proj_widths
        self.in_proj_weight = (
            nn.Parameter(torch.empty(sum(self.in_proj_widths), self.embed_dim, **made)) if fused else None
        )
        self.q_proj_weight = None if fused else nn.Parameter(torch.empty(queries, self.embed_dim, **made))
        self.k_proj_weight = None if fused else nn.Parameter(torch.empty(keys, self.kdim, **made))
        self.v_proj_weight = None if fused else nn.Parameter(torch.empty(values, self.vdim, **made))
        self.in_proj_bias = nn.Parameter(torch.empty(sum(self.in_proj_widths), **made)) if bias else None
        self.out_proj = LinearMap(self.num_heads * self.value_dim, self.embed_dim, bias=bias, **made)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights; biases and sinks 0. The fused weight counts as one matrix, as torch's does."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        for bias in (self.in_proj_bias, self.out_proj.bias, self.sink):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.gate_proj is not None:
            begin_gate(self.gate_proj)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (batch, q_len, embed_dim).
            key: (batch, kv_len, kdim), what is attended to; the query itself when left out.
            value: (batch, kv_len, vdim); the key when left out.
            mask: which pairs may attend, as in `regard.attention`; `causal` intersects it. With a cache its keys are
                all tokens that have been read, those of this call included, and the queries are the last of them: a
                mask that was given no `align` is read so.
            bias: added to the scores, as in `regard.attention`.
            cache: of `make_cache`: the tokens of this call are read into it and attend to all that it holds. Or of
                `cache_context`: they attend to the context. Then `key` and `value` are left out.

        Returns:
            (batch, q_len, embed_dim). A query that may attend to nothing gets the output projection of 0.

        Raises:
            ShapeError, MaskError: tensors or masks that do not fit.
            ArgumentError: the cache of another layer, one that is full, or one beside a key.
        """
        check_tokens("query", query, self.embed_dim)
        if cache is not None:
            return self._with_cache(query, cache, mask, bias, alone=key is None and value is None)
        states = self._project(query, key, value)
        if self.causal:
            mask = joined(Causal(), mask, states)
        return self._from_heads(query, self._attend(states, mask, bias, self.position))

    # ------------------------------------------------------------------------------------------- projections

    def _project(self, query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, heads, length, width) of each. What is projected alike is projected in one product."""
        if key is None and value is None and self.in_proj_weight is not None:
            together = linear(query, self.in_proj_weight, self.in_proj_bias)
            queries, keys, values = torch.split_with_sizes(together, self.in_proj_widths, -1)
        else:
            key = query if key is None else key
            queries = self._projected(0, query)
            keys, values = self._project_context(key, key if value is None else value)
        return self._query_heads(queries), self._key_heads(keys), split_heads(values, self.kv_heads)

    def _project_context(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        check_tokens("key", key, self.kdim)
        check_tokens("value", value, self.vdim)
        if key is not value or self.in_proj_weight is None:
            return self._projected(1, key), self._projected(2, value)
        begin = self.in_proj_widths[0]
        bias = None if self.in_proj_bias is None else self.in_proj_bias[begin:]
        together = linear(key, self.in_proj_weight[begin:], bias)
        keys, values = torch.split_with_sizes(together, self.in_proj_widths[1:], -1)
        return keys, values

    def _projected(self, which: int, states: Tensor) -> Tensor:
        """0 projects queries, 1 keys, 2 values."""
        begin = sum(self.in_proj_widths[:which])
        rows = slice(begin, begin + self.in_proj_widths[which])
        weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[which]
        if weight is None:
            if self.in_proj_weight is None:
                raise AssertionError("weights are fused or apart")
            weight = self.in_proj_weight[rows]
        return linear(states, weight, None if self.in_proj_bias is None else self.in_proj_bias[rows])

    def _query_heads(self, queries: Tensor) -> Tensor:
        return self.query_norm(split_heads(queries, self.num_heads))

    def _key_heads(self, keys: Tensor) -> Tensor:
        return self.key_norm(split_heads(keys, self.kv_heads))

    # --------------------------------------------------------------------------------------------- attending

    def _attend(
        self, states: States, mask: Mask | Tensor | None, bias: Tensor | None, position: Position | None
    ) -> Tensor:
        """(batch, num_heads, q_len, value_dim)."""
        query, key, value = states
        if self.pad_to > 1:
            query, key, value = (pad_to_multiple(each, self.pad_to).tensor for each in states)
        output = attention(
            query,
            key,
            value,
            mask=mask,
            position=position,
            bias=bias,
            scale=self.scale,
            softcap=self.softcap,
            sink=self.sink,
            dropout_p=self.dropout_p if self.training else 0.0,
            enable_gqa=self.kv_heads != self.num_heads,
            backend=self.backend,
        )
        return output[..., : self.value_dim] if self.pad_to > 1 else output

    def _from_heads(self, query: Tensor, heads: Tensor) -> Tensor:
        """What was asked with, (batch, q_len, embed_dim), makes the gate."""
        if self.gate_proj is not None:
            heads = through_gate(torch.sigmoid(self.gate_proj(query)), heads)
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    # ------------------------------------------------------------------------------------------------- cache

    def make_cache(self, batch: int, most_tokens: int) -> KeyValueCache:
        """An empty cache for decoding, with room for `most_tokens` tokens of each sample.

        A position that was given no `align` is read as "bottom_right" with it: the new tokens are the last ones.

        Raises:
            ArgumentError: a size below 1, or a position with align="top_left", for which new tokens are the first.
        """
        if self.position is not None and self.position.align == "top_left":
            raise ArgumentError(
                "position align",
                expected="'bottom_right' or None for a cache",
                got="'top_left'",
                do="New tokens stand at the end of the cache: leave align out.",
            )
        return KeyValueCache(self, batch, most_tokens)

    def cache_context(self, key: Tensor, value: Tensor | None = None) -> KeyValueCache:
        """A context projected once: `forward(query, cache=...)` then attends to it, as often as wanted.

        key is (batch, kv_len, kdim), value (batch, kv_len, vdim) or left out for the key.
        """
        keys, values = self._project_context(key, key if value is None else value)
        return KeyValueCache.of_context(self, self._key_heads(keys), split_heads(values, self.kv_heads))

    def _with_cache(
        self, query: Tensor, cache: KeyValueCache, mask: Mask | Tensor | None, bias: Tensor | None, *, alone: bool
    ) -> Tensor:
        cache.require_owner(self)
        if not alone:
            raise ArgumentError(
                "cache",
                expected="no key and no value beside a cache",
                got="both",
                do="The cache holds them; put a context into one with cache_context(key, value).",
            )
        if not cache.grows:
            queries = self._query_heads(self._projected(0, query))
            states = (queries, cache.keys, cache.values)
            kept = joined(Causal(), cache.mask(), states) if self.causal else cache.mask()
            heads = self._attend(states, joined(kept, mask, states), bias, self.position)
            return self._from_heads(query, heads)
        states, position = self._read(query, cache)
        kept = cache.mask()
        if self.causal and query.shape[1] > 1:  # a single last token sees all that there is
            kept = joined(Causal("bottom_right"), kept, states)
        return self._from_heads(
            query, self._attend(states, joined(kept, mask_at_the_end(mask), states), bias, position)
        )

    def _read(self, query: Tensor, cache: KeyValueCache) -> tuple[States, Position | None]:
        """Put the new tokens into the cache; the states to attend with, and what is left of the position."""
        queries, keys, values = self._project(query, None, None)
        position = self.position
        if position is not None and turns_once(position):
            places = torch.arange(cache.length, cache.length + keys.shape[2], device=keys.device)
            queries, keys, position = position.rotate(queries, places), position.rotate(keys, places), None
        cache.append(keys, values)
        return (queries, cache.keys, cache.values), at_the_end(position)

    # ------------------------------------------------------------------------------------------------- torch

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention, **options: Any) -> MultiHeadAttention:
        """The same attention with copies of torch's weights.

        It takes (batch, length, width) whatever torch's `batch_first` says.

        `options` are keywords of the constructor that torch's module does not have, such as `causal` and `position`.

        Raises:
            UnsupportedError: torch's module was made with add_bias_kv or add_zero_attn.
            ArgumentError: options that leave no place for some of torch's weights, such as bias=False.
        """
        made = cls(**{**options_of(module), **options})
        load_all(made, module.state_dict())
        return made.train(module.training)

    def to_torch(self, *, batch_first: bool = True) -> nn.MultiheadAttention:
        """A torch.nn.MultiheadAttention with copies of these weights.

        Raises:
            UnsupportedError: an option that torch's module does not have; the message names it.
        """
        required_of_torch(self)
        return as_torch(self, batch_first=batch_first)

    def extra_repr(self) -> str:
        shown = {"embed_dim": self.embed_dim, "num_heads": self.num_heads, "head_dim": self.head_dim}
        shown |= {"kv_heads": self.kv_heads} if self.kv_heads != self.num_heads else {}
        more = {"causal": self.causal, "dropout_p": self.dropout_p, "softcap": self.softcap, "backend": self.backend}
        usual = {"causal": False, "dropout_p": 0.0, "softcap": None, "backend": "auto"}
        return ", ".join(
            f"{name}={value!r}" for name, value in (*shown.items(), *((n, v) for n, v in more.items() if v != usual[n]))
        )
