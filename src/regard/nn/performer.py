"""Performer: softmax attention by positive orthogonal random features, FAVOR+. The guide's 3.1 (kernel methods).

Choromanski et al. 2021, "Rethinking attention with Performers", https://arxiv.org/abs/2009.14794. With q and k scaled
by d_h^(-1/4), features phi_f(q) = exp(w_f . q), phi_f(k) = exp(w_f . k - |k|^2 / 2) and random w_f,

    out_i = sum_f phi_f(q_i) S_f / sum_f phi_f(q_i) z_f,   S_f = sum_j phi_f(k_j) v_j,   z_f = sum_j phi_f(k_j)

(what depends on the query alone cancels). Sums over all tokens are softmaxes in disguise: S_f / z_f is attention of the
query w_f to the keys, and out_i is attention of q_i to the keys w_f with log z_f added to their scores. So that is how
they are computed: no n x m tensor is held, and nothing is added to a normaliser that cannot vanish. (An epsilon there
makes `performer-pytorch` return the mean of the values for unit-normal queries and keys.) With `causal=True` the sums
run up to i, by chunks (`_causal_scan.py`), and each number is computed from tokens up to i alone.

Time O(n m d) for n tokens, m features and width d; memory O(n d). Causal-valid and padding-valid.

It approximates softmax attention only while queries and keys are short: `approximation_error` measures it. The relative
variance of a weight is about exp(|q|^2 + |k|^2) / m, with |q|^2 = |k|^2 = 8 for unit-normal heads of width 64: there no
affordable m helps, and the mean of the values is nearer to softmax attention than FAVOR+ is. `shrink=True` goes, by
that variance, from FAVOR+ to the first order of softmax attention, which is nearer still. `kernel="relu"` (generalized
attention, section 2.2 of the paper) is no approximation of softmax at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regard._attention import attention
from regard._errors import ArgumentError, UnsupportedError
from regard.masks import Dense, Keys, Mask
from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._causal_scan import Sums, causal_scan
from regard.nn._linear_sums import SummedAttention, sums_over_all, without_padding
from regard.nn._precision import working_dtype
from regard.nn._random_features import orthogonal_directions
from regard.nn._shrinkage import Sizes, shrunk, slope_in_order

Kernel = Literal["softmax", "relu"]
_RELU_EPSILON = 1e-3  # of the authors' code: without it a query may share no feature with any key


class PerformerAttention(SummedAttention):
    """Softmax attention estimated from random features, in time and memory that grow with the length.

    Args:
        embed_dim: width of a token.
        num_heads: heads, a divisor of embed_dim.
        num_features: random directions m, the same for all heads; head_dim * log(head_dim) as in the paper, up to a
            multiple of 16, unless given.
        kernel: "softmax", or "relu": generalized attention with phi(x) = relu(w x) + 0.001.
        opposites: half of the directions are the other half negated (the paper's hyperbolic form, which varies less at
            the same cost); not with "relu", which has no use for it.
        shrink: go towards the first order of softmax attention where the features say little (`_shrinkage.py`, ours and
            not the paper's); not with "relu".
        redraw_every: draw new directions after so many calls in training mode; never unless given.
        bias: have the four projections a bias?
        causal: may no token see a later one?
        backend: who computes the two attentions without `causal`, as in `regard.attention`.
        device, dtype: of the weights.

    The directions are a buffer, `directions` (num_features, head_dim), or half as many rows with opposites. So a
    state_dict has them, and the same module gives the same numbers wherever it is loaded. They stay in float32 (or
    float64) whatever the module is converted to, and so does all that is computed with them.

    Raises:
        ArgumentError: sizes below 1, heads that do not divide embed_dim, an unknown kernel, an odd num_features with
            opposites.
        UnsupportedError: shrink with another kernel than "softmax".
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Choromanski et al. 2021, Rethinking attention with Performers",
        equation="out_i = phi(q_i) S / (phi(q_i) z), S = sum_j phi(k_j) v_j^T, z = sum_j phi(k_j), "
        "phi(x) = exp(W x - |x|^2 / 2) for m random orthogonal rows of W",
        time="n m d + 4 n d^2",
        memory="n d",
        causal=True,
        padding=True,
        exact=False,
        note="Approximates softmax attention only while queries and keys are short: measure it with "
        "`approximation_error`, and train with it.",
    )

    directions: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_features: int | None = None,
        kernel: Kernel = "softmax",
        opposites: bool = True,
        shrink: bool = False,
        redraw_every: int | None = None,
        bias: bool = True,
        causal: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, bias=bias, causal=causal, backend=backend, device=device, dtype=dtype)
        self.num_features = _usual_features(self.head_dim) if num_features is None else num_features
        require_positive(num_features=self.num_features)
        if redraw_every is not None:
            require_positive(redraw_every=redraw_every)
        _check_kernel(kernel, shrink=shrink)
        self.opposites = opposites and kernel == "softmax"
        if self.opposites and self.num_features % 2:
            raise ArgumentError(
                "num_features",
                expected="an even number, since each direction stands beside its opposite",
                got=str(num_features),
                do="Take one more, or opposites=False.",
            )
        self.kernel, self.shrink, self.redraw_every, self._calls = kernel, shrink, redraw_every, 0
        self.register_buffer("directions", self._drawn(None, device))

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw other directions, from torch's default generator unless one is given.

        A state belongs to the directions that it was made with.
        """
        # A new tensor, and not new numbers in the old one, which the graph of an earlier call may still need.
        self.directions = self._drawn(generator, self.directions.device).to(self.directions.dtype)

    @torch.no_grad()
    def approximation_error(
        self, query: Tensor, key: Tensor, value: Tensor, *, real: Tensor | None = None, rows: int = 256
    ) -> float:
        """How far this is from exact softmax attention: |approximate - exact| / |exact|, Frobenius norms.

        0 is exact; 1 is what an output of 0 would have; above 1 the estimate is noise.

        Args:
            query, key, value: (batch, heads, length, head_dim), as `to_heads` makes them.
            real: bool (batch, length), the real keys; all unless given.
            rows: queries, evenly spread, that are compared. Exact attention is computed for them alone.

        Raises:
            UnsupportedError: the kernel is not softmax's, so there is nothing it approximates.
        """
        if self.kernel != "softmax":
            raise UnsupportedError(
                {type(self).__name__: f"kernel={self.kernel!r} approximates no softmax attention"},
                do="Compare the trained models instead.",
            )
        q_len, kv_len = query.shape[2], key.shape[2]
        picked = torch.linspace(0, q_len - 1, min(rows, q_len), device=query.device).round().long()
        working = working_dtype(query)
        found = self.mix(query, key, value, real=real)[:, :, picked].to(working)
        mask: Mask | None = None if real is None else Keys(real)
        if self.causal:
            seen = Dense(torch.arange(kv_len, device=query.device) <= picked.unsqueeze(1))
            mask = seen if mask is None else mask & seen
        exact = attention(query[:, :, picked].to(working), key.to(working), value.to(working), mask=mask)
        return float(((found - exact).square().sum() / exact.square().sum()).sqrt())

    # ----------------------------------------------------------------------------------------- without order

    @property
    def _features(self) -> int:
        return self.num_features

    def _over_all(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        self._count_call()
        working = working_dtype(query)
        query, key, wide = query.to(working), key.to(working), value.to(working)
        if self.kernel == "relu":
            features = without_padding(self._rectified(key), real)
            return sums_over_all(self._rectified(query), features, value)
        found = self._through_directions(query, key, wide, real)
        return (self._shrunk(found, query, key, wide, real) if self.shrink else found).to(value.dtype)

    def _through_directions(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        """Attention of the directions to the keys, then of the queries to the directions."""
        scale = self.head_dim**-0.25
        directions = self.directions.to(query.dtype)
        if self.opposites:
            directions = torch.cat([directions, -directions])
        directions = directions.expand(*key.shape[:2], -1, -1)
        bias = key.square().sum(-1).unsqueeze(2) * (-0.5 * scale * scale)
        summaries, log_total = attention(
            directions, key, value, bias=bias, scale=scale, mask=None if real is None else Keys(real),
            backend=self.backend, additive=True, return_lse=True,
        )  # fmt: skip
        weight = log_total.to(query.dtype).unsqueeze(2)
        return attention(query, directions, summaries, bias=weight, scale=scale, backend=self.backend, additive=True)

    def _shrunk(self, found: Tensor, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        kept = torch.ones_like(key[..., 0]) if real is None else real.unsqueeze(1).expand(key.shape[:3]).to(key.dtype)
        count = kept.sum(-1)[..., None, None].clamp_min(1)
        mean = value.sum(2, keepdim=True) / count
        around = without_padding(key - key.sum(2, keepdim=True) / count, real)
        slope = query @ (around.mT @ value / (count * self.head_dim**0.5))
        squares = key.square().sum((2, 3)).unsqueeze(-1)
        return shrunk(found, mean, slope, self._sizes(query, squares, count.squeeze(-1)))

    def _sizes(self, query: Tensor, squares: Tensor, count: Tensor) -> Sizes:
        return Sizes(query, squares / count, count, self.num_features, opposites=self.opposites)

    # ---------------------------------------------------------------------------------------------- in order

    def _in_order(
        self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, before: Sums | None
    ) -> tuple[Tensor, Sums]:
        self._count_call()
        scale, working = self.head_dim**-0.25, working_dtype(query)
        if self.kernel == "relu":
            features = without_padding(self._rectified(key.to(working)), real)
            return causal_scan(self._rectified(query.to(working)), features, value, before=before)
        log_weight = key.to(working).square().sum(-1) * (-0.5 * scale * scale)
        if real is not None:
            log_weight = log_weight.masked_fill(~real.unsqueeze(1), -math.inf)
        found, after = causal_scan(
            query,
            key,
            value,
            log_weight=log_weight,
            projection=self.directions * scale,
            opposites=self.opposites,
            before=before,
        )
        return (self._shrunk_in_order(found, query, key, value, real) if self.shrink else found), after

    def _shrunk_in_order(self, found: Tensor, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        """`_shrunk`, with means over the tokens so far."""
        working = working_dtype(query)
        query, key, wide = query.to(working), key.to(working), value.to(working)
        kept = torch.ones_like(key[..., :1]) if real is None else real[:, None, :, None].to(working)
        count = kept.expand(*key.shape[:3], 1).cumsum(2).clamp_min(1)
        mean, squares = wide.cumsum(2) / count, key.square().sum(-1).cumsum(-1)
        slope = slope_in_order(query, key, wide, kept=kept, mean=mean, count=count)
        return shrunk(found.to(working), mean, slope, self._sizes(query, squares, count.squeeze(-1))).to(value.dtype)

    def _rectified(self, tokens: Tensor) -> Tensor:
        projected = tokens @ (self.directions.to(tokens.dtype) * self.head_dim**-0.25).mT
        return torch.relu(projected) + _RELU_EPSILON

    # ------------------------------------------------------------------------------------------- directions

    def _require_state(self) -> None:
        super()._require_state()
        if self.shrink:
            raise UnsupportedError(
                {type(self).__name__: "shrink=True needs means over the text, which a state does not hold"},
                do="Make the module with shrink=False to read a text piece by piece.",
            )

    def _drawn(self, generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
        count = self.num_features // 2 if self.opposites else self.num_features
        return orthogonal_directions(count, self.head_dim, generator=generator, device=device)

    def _count_call(self) -> None:
        if self.redraw_every is None or not self.training:
            return
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                {type(self).__name__: "redraw_every counts calls, which a compiled graph does not"},
                do="Leave it out and call redraw() between steps.",
            )
        if self._calls == self.redraw_every:
            self.redraw()
            self._calls = 0
        self._calls += 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's signature
        before = self.directions
        module: Any = super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped
        if self.directions.dtype in (torch.float16, torch.bfloat16):
            self.directions = before.to(self.directions.device)
        return module

    def extra_repr(self) -> str:
        told = f"{super().extra_repr()}, num_features={self.num_features}, kernel={self.kernel!r}"
        return told + (", shrink=True" if self.shrink else "")


def _usual_features(width: int) -> int:
    return -(-max(1, int(width * math.log(width))) // 16) * 16


def _check_kernel(kernel: object, *, shrink: bool) -> None:
    if kernel not in ("softmax", "relu"):
        raise ArgumentError(
            "kernel", expected="'softmax' or 'relu'", got=repr(kernel), do="It says what the features are."
        )
    if shrink and kernel != "softmax":
        raise UnsupportedError(
            {"PerformerAttention": "shrink=True rests on how the features of softmax vary"}, do="Leave one of them out."
        )
