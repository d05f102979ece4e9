"""Selective state space: the mixer of Mamba (guide 5).

Gu, Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", S6. A state space whose step, write
and read vectors are computed from the token, so that it can choose what to keep and what to forget:

    v, z = in_proj(x);  u = silu(depthwise causal convolution of v);  r, write, read = x_proj(u)
    dt = softplus(dt_proj(r));  h_t = exp(dt_t A) h_{t-1} + dt_t write_t u_t;  y_t = read_t h_t + D u_t
    output = out_proj(y * silu(z))

A = -exp(A_log), N real numbers for each of the expand * embed_dim inner channels. Time O(length * inner * N), memory
O(length * inner): the (length, inner, N) tensor of the definition is never made. Causal; padding is honoured.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import UnsupportedError
from regard.masks import Mask
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._card import Card
from regard.nn._linear_map import LinearMap
from regard.nn._real_tokens import real_tokens
from regard.nn._scan_state import ScanState, check_state, check_token
from regard.nn._selective_scan import Problem, selective_scan
from regard.nn.state_space import require_steps

_WINDOW, _NUMBERS = "window", "numbers"  # the names of the state's tensors


class SelectiveStateSpace(nn.Module):
    """Mixes tokens by a state space that each token steers.

    Args:
        embed_dim: width of the tokens.
        state_dim: numbers of state in each inner channel.
        expand: inner channels are expand * embed_dim.
        conv_width: tokens that the convolution before the scan sees, the present one included.
        dt_rank: width through which the steps are computed; "auto" is embed_dim / 16, rounded up.
        bias: of in_proj and out_proj.
        conv_bias: of the convolution.
        dt_min, dt_max: at the start the steps are log-uniform between them.

    The weights have the names that Mamba's checkpoints use (`in_proj`, `conv1d`, `x_proj`, `dt_proj`, `A_log`, `D`,
    `out_proj`), so those load as they are.

    Raises:
        ArgumentError: sizes below 1; steps that are not 0 < dt_min <= dt_max.
    """

    card: ClassVar[Card] = Card(
        guide="5",
        source="Gu, Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        equation="h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t; y_t = C_t h_t + D u_t; dt, B, C from the token",
        time="O(n d N), N the state_dim, d = expand * embed_dim",
        memory="O(n d)",
        causal=True,
        padding=True,
        note="the state is a summary: a token cannot be looked up exactly.",
    )

    def __init__(
        self,
        embed_dim: int,
        *,
        state_dim: int = 16,
        expand: int = 2,
        conv_width: int = 4,
        dt_rank: int | Literal["auto"] = "auto",
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        rank = -(-embed_dim // 16) if dt_rank == "auto" else dt_rank
        require_positive(embed_dim=embed_dim, state_dim=state_dim, expand=expand, conv_width=conv_width, dt_rank=rank)
        require_steps(dt_min, dt_max)
        self.embed_dim, self.state_dim, self.inner = embed_dim, state_dim, expand * embed_dim
        self.conv_width, self.dt_rank, self.dt_min, self.dt_max = conv_width, rank, dt_min, dt_max
        self.in_proj = LinearMap(embed_dim, 2 * self.inner, bias=bias, device=device, dtype=dtype)
        self.conv1d = nn.Conv1d(
            self.inner, self.inner, conv_width, groups=self.inner, bias=conv_bias, device=device, dtype=dtype
        )
        self.x_proj = LinearMap(self.inner, rank + 2 * state_dim, bias=False, device=device, dtype=dtype)
        self.dt_proj = LinearMap(rank, self.inner, device=device, dtype=dtype)
        self.A_log = nn.Parameter(torch.empty(self.inner, state_dim, device=device, dtype=dtype))
        self.D = nn.Parameter(torch.empty(self.inner, device=device, dtype=dtype))
        self.out_proj = LinearMap(self.inner, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew: the dynamics as in the paper (section 3.6), the projections Xavier-uniform."""
        for projection in (self.in_proj, self.x_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                projection.bias.zero_()
        self.conv1d.reset_parameters()
        self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        step = torch.empty_like(self.dt_proj.bias).uniform_(math.log(self.dt_min), math.log(self.dt_max)).exp()
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus backwards
        self.A_log.copy_(torch.arange(1, self.state_dim + 1, device=self.A_log.device).log().expand_as(self.A_log))
        self.D.fill_(1)

    @classmethod
    def from_transformers(cls, mixer: nn.Module) -> SelectiveStateSpace:
        """The same weights, copied, from a `transformers` MambaMixer.

        Raises:
            UnsupportedError: a mixer whose activation is not SiLU, or that is no MambaMixer.
        """
        config: Any = getattr(mixer, "config", None)
        if not hasattr(mixer, "A_log") or not hasattr(mixer, "x_proj") or config is None:
            raise UnsupportedError(
                {"SelectiveStateSpace": f"{type(mixer).__name__} has other weights than a MambaMixer"},
                do="Pass model.backbone.layers[i].mixer of a Mamba model of the first generation.",
            )
        if config.hidden_act != "silu":
            raise UnsupportedError(
                {"SelectiveStateSpace": f"the activation {config.hidden_act!r} is not 'silu'"},
                do="Only SiLU is what the paper has.",
            )
        weights = mixer.state_dict()
        inner, state_dim = weights["A_log"].shape
        width = weights["out_proj.weight"].shape[0]
        if inner % width:
            raise UnsupportedError(
                {"SelectiveStateSpace": f"{inner} inner channels are no multiple of the width {width}"},
                do="Its `expand` has to be a whole number.",
            )
        layer = cls(
            width,
            state_dim=state_dim,
            expand=inner // width,
            conv_width=weights["conv1d.weight"].shape[-1],
            dt_rank=weights["dt_proj.weight"].shape[1],
            bias="out_proj.bias" in weights,
            conv_bias="conv1d.bias" in weights,
            device=weights["A_log"].device,
            dtype=weights["in_proj.weight"].dtype,
        )
        layer.load_state_dict(weights)
        return layer.train(mixer.training)

    def make_state(self, batch: int) -> ScanState:
        """The state before the first token.

        Its tensors are `window` (batch, conv_width - 1, inner), the tokens that the convolution still sees, and
        `numbers` (batch, state_dim, inner), in float32 at least.
        """
        weight = self.in_proj.weight
        numbers = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return ScanState(
            {
                _WINDOW: weight.new_zeros(batch, self.conv_width - 1, self.inner),
                _NUMBERS: weight.new_zeros(batch, self.state_dim, self.inner, dtype=numbers),
            }
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask | Tensor | None = None,
        state: ScanState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, ScanState]:
        """(batch, length, embed_dim) -> the same; with `return_state`, also the state after the last real token.

        Args:
            x: the tokens.
            mask: which of them are real: Padding(lengths) or bool (batch, length). What stands at the others has no
                influence, and no time passes over them; their own outputs mean nothing. To the convolution, a gap
                between real tokens is tokens of zeros.
            state: from the call before this one, for the same samples.
            return_state: give the next state, too.

        Raises:
            ShapeError: sizes that do not fit.
            UnsupportedError: a mask over pairs; a state together with a mask.
        """
        x = check_tokens("x", x, self.embed_dim)
        real = real_tokens("SelectiveStateSpace", mask, x)
        if real is not None and state is not None:
            raise UnsupportedError(
                {"SelectiveStateSpace": "its convolution would see padded tokens between the state and the text"},
                do="Read samples of unequal length with a state one by one, or pad only in the first call.",
            )
        before = self.make_state(x.shape[0]) if state is None else self._checked(state, x.shape[0])
        values, gates = self.in_proj(x).chunk(2, -1)
        if real is not None:
            values = values.masked_fill(~real[:, :, None], 0)
        window = torch.cat([before.tensors[_WINDOW].to(values.dtype), values], 1)
        output, numbers = self._scan(self._convolved(window), before.tensors[_NUMBERS], real)
        output = self.out_proj(output.to(gates.dtype) * functional.silu(gates))
        if not return_state:
            return output
        return output, ScanState({_WINDOW: self._last_window(window, real), _NUMBERS: numbers})

    def step(self, x: Tensor, state: ScanState) -> tuple[Tensor, ScanState]:
        """One token of each sample, (batch, embed_dim) -> (batch, embed_dim), and the next state.

        Raises:
            ShapeError: sizes that do not fit.
        """
        check_token(x, self.embed_dim)
        before = self._checked(state, x.shape[0])
        value, gate = self.in_proj(x).chunk(2, -1)
        window = torch.cat([before.tensors[_WINDOW].to(value.dtype), value[:, None]], 1)
        inputs = self._convolved(window)[:, 0]
        step, write, read = self._steered(inputs)
        wide = before.tensors[_NUMBERS].to(step.dtype)
        taken = inputs.to(step.dtype)
        wide = wide * torch.exp(step[:, None] * self._decay(step.dtype))
        wide = torch.addcmul(wide, write[:, :, None], (step * taken)[:, None])
        output = torch.matmul(read[:, None], wide)[:, 0] + taken * self.D.to(step.dtype)
        output = self.out_proj(output.to(gate.dtype) * functional.silu(gate))
        return output, ScanState({_WINDOW: window[:, 1:], _NUMBERS: wide})

    def _convolved(self, window: Tensor) -> Tensor:
        """(batch, conv_width - 1 + length, inner) -> (batch, length, inner), then SiLU."""
        # A few multiples of the shifted window: conv1d wants the channels first, and would not take no tokens at all.
        length = window.shape[1] - self.conv_width + 1
        first, *others = self.conv1d.weight[:, 0].T.contiguous().unbind(0)
        bias = self.conv1d.bias
        found = window[:, :length] * first if bias is None else torch.addcmul(bias, window[:, :length], first)
        for shift, weight in enumerate(others, 1):
            found = torch.addcmul(found, window[:, shift : shift + length], weight)
        return functional.silu(found)

    def _scan(self, inputs: Tensor, numbers: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        step, write, read = self._steered(inputs)
        if real is not None:
            step = step.masked_fill(~real[:, :, None], 0)  # nothing decays, and nothing is written
        taken = inputs.to(step.dtype)
        problem = Problem(taken, step, self._decay(step.dtype), write, read, numbers.to(step.dtype))
        found = selective_scan(problem)
        return torch.addcmul(found.output, taken, self.D.to(step.dtype)), found.last

    def _steered(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step (..., inner), write and read (..., state_dim) of each token, in float32 at least."""
        rank, write, read = self.x_proj(inputs).split([self.dt_rank, self.state_dim, self.state_dim], -1)
        working = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        return functional.softplus(self.dt_proj(rank).to(working)), write.to(working), read.to(working)

    def _decay(self, dtype: torch.dtype) -> Tensor:
        """(state_dim, inner), negative."""
        return -self.A_log.to(dtype).exp().T

    def _last_window(self, window: Tensor, real: Tensor | None) -> Tensor:
        """(batch, conv_width - 1, inner): what the convolution sees of the past after the last real token."""
        if real is None:
            return window[:, window.shape[1] - self.conv_width + 1 :]
        length = real.shape[1]
        place = torch.arange(1, length + 1, device=real.device)
        end = torch.where(real, place, 0).amax(1) if length else place.new_zeros(real.shape[0])
        source = end[:, None] + torch.arange(self.conv_width - 1, device=real.device)
        return window.gather(1, source[:, :, None].expand(-1, -1, self.inner))

    def _checked(self, state: ScanState, batch: int) -> ScanState:
        return check_state(state, batch, self.make_state(0))

    def extra_repr(self) -> str:
        """What torch prints in the brackets."""
        return f"{self.embed_dim}, state_dim={self.state_dim}, inner={self.inner}, conv_width={self.conv_width}"
