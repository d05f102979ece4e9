"""S4D: a diagonal linear state space for each channel (guide 5).

Gu, Gupta, Goel, Re 2022, "On the Parameterization and Initialization of Diagonal State Space Models". Each channel has
n = state_dim / 2 complex modes; the other n are their conjugates, which is where the 2 Re comes from:

    s'(t) = A s(t) + u(t)    is sampled with steps of dt:    s_t = w s_{t-1} + u_t
    y_t = 2 Re(sum over modes of C (B / scale) s_t) + D u_t
    zoh:       w = exp(dt A),                       B / scale = (w - 1) / A
    bilinear:  w = (1 + dt A / 2) / (1 - dt A / 2),  B / scale = dt / (1 - dt A / 2)

A = -exp(log_decay) + i frequency and dt = exp(log_dt), so that it is stable whatever is learned. The paper's B is part
of C here, as in its public minimal form. Then, as there, GELU, dropout, and a linear gate (GLU) that mixes channels.

Time O(length * embed_dim * (chunk + 4 n)), memory O(length * embed_dim), where the convolution as it is written down
makes a table of embed_dim * n * length complex numbers. Causal unless bidirectional; padding is honoured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError, UnsupportedError
from regard.masks import Mask
from regard.nn._arguments import check_tokens, require_positive, require_probability
from regard.nn._card import Card
from regard.nn._diagonal_scan import Problem, Scanned, diagonal_scan
from regard.nn._dropout import dropout
from regard.nn._linear_map import LinearMap
from regard.nn._real_tokens import real_tokens
from regard.nn._scan_state import ScanState, check_state, check_token

Initialisation = Literal["legs", "lin", "inv", "real"]
Discretisation = Literal["zoh", "bilinear"]
Mixing = Literal["glu", "linear", "none"]

_MODES = "modes"  # the name of the state's only tensor


class S4D(nn.Module):
    """Mixes tokens by a diagonal state space in each channel.

    Args:
        embed_dim: channels.
        state_dim: real numbers of state in each channel, even: twice the complex modes.
        bidirectional: a second readout looks back from the end; an output then sees every token, those after it too.
        initialisation: of A: "legs" from HiPPO-LegS, "lin" -1/2 + i pi k, "inv" its 1/k law, "real" -(k + 1).
        discretisation: "zoh" or "bilinear".
        dt_min, dt_max: the step of each channel is drawn log-uniformly between them; 1 / dt is about how many tokens
            back a channel remembers.
        chunk: tokens of a chunk; changes the speed and nothing else.
        mixing: after GELU: "glu" a gated projection, "linear" a plain one, "none" nothing, not even the GELU.
        bias: of that projection.
        dropout_p: between GELU and projection, in training.

    `forward` on (batch, length, embed_dim) is what `step` gives token by token. Keep the weights in float32 where you
    can (autocast does): bfloat16 has three digits, which is too few for a frequency that turns for thousands of tokens.

    Raises:
        ArgumentError: an odd state_dim; steps that are not 0 < dt_min <= dt_max; an unknown word.
    """

    card: ClassVar[Card] = Card(
        guide="5",
        source="Gu, Gupta, Goel, Re 2022, On the Parameterization and Initialization of Diagonal State Space Models",
        equation="s_t = w s_{t-1} + u_t; y_t = 2 Re(sum of N/2 modes of C B s_t) + D u_t; w = exp(dt A)",
        time="O(n d (T + 2 N)) in chunks of T tokens, N the state_dim",
        memory="O(n d)",
        causal=True,
        padding=True,
        note="causal unless bidirectional; the state is a summary: a token cannot be looked up exactly.",
    )

    def __init__(
        self,
        embed_dim: int,
        *,
        state_dim: int = 64,
        bidirectional: bool = False,
        initialisation: Initialisation = "legs",
        discretisation: Discretisation = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        chunk: int = 64,
        mixing: Mixing = "glu",
        bias: bool = True,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(embed_dim=embed_dim, state_dim=state_dim, chunk=chunk)
        require_probability(dropout_p=dropout_p)
        _require_word("initialisation", initialisation, get_args(Initialisation))
        _require_word("discretisation", discretisation, get_args(Discretisation))
        _require_word("mixing", mixing, get_args(Mixing))
        _require_even(state_dim)
        require_steps(dt_min, dt_max)
        self.embed_dim, self.modes, self.bidirectional = embed_dim, state_dim // 2, bidirectional
        self.initialisation: Initialisation = initialisation
        self.discretisation: Discretisation = discretisation
        self.dt_min, self.dt_max, self.chunk, self.mixing, self.dropout_p = dt_min, dt_max, chunk, mixing, dropout_p
        each = (embed_dim, self.modes)
        self.log_dt = nn.Parameter(torch.empty(embed_dim, device=device, dtype=dtype))
        self.log_decay = nn.Parameter(torch.empty(each, device=device, dtype=dtype))
        self.frequency = nn.Parameter(torch.empty(each, device=device, dtype=dtype))
        self.readout = nn.Parameter(torch.empty(1 + bidirectional, *each, 2, device=device, dtype=dtype))
        self.skip = nn.Parameter(torch.empty(embed_dim, device=device, dtype=dtype))
        width = {"glu": 2 * embed_dim, "linear": embed_dim, "none": 0}[mixing]
        self.out_proj = LinearMap(embed_dim, width, bias=bias, device=device, dtype=dtype) if width else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        decay, frequency, entry = initial_modes(self.initialisation, self.modes)
        self.log_decay.copy_(decay.log())
        self.frequency.copy_(frequency)
        self.readout.normal_(std=math.sqrt(0.5)).mul_(entry.to(self.readout)[:, None])
        self.skip.normal_()
        if self.out_proj is not None:
            nn.init.xavier_uniform_(self.out_proj.weight)
            if self.out_proj.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                self.out_proj.bias.zero_()

    @classmethod
    def from_state_spaces(cls, weights: Mapping[str, Tensor], **options: Any) -> S4D:
        """A layer that computes what the public minimal S4D does, from that layer's `state_dict`.

        Its `models/s4/s4d.py` is meant: `D`, `kernel.C`, `kernel.log_dt`, `kernel.log_A_real`, `kernel.A_imag` and
        `output_linear.0`. It takes (batch, channels, length); this layer takes (batch, length, channels).
        """
        count, modes = weights["kernel.log_A_real"].shape
        layer = cls(count, state_dim=2 * modes, **options)
        names = {"log_dt": "kernel.log_dt", "log_decay": "kernel.log_A_real", "frequency": "kernel.A_imag", "skip": "D"}
        state = {ours: weights[theirs] for ours, theirs in names.items()}
        state["readout"] = weights["kernel.C"][None]
        state["out_proj.weight"] = weights["output_linear.0.weight"].squeeze(-1)
        state["out_proj.bias"] = weights["output_linear.0.bias"]
        layer.load_state_dict(state)
        return layer

    def make_state(self, batch: int) -> ScanState:
        """The state before the first token.

        Its tensor `modes` is (batch, embed_dim, state_dim / 2, 2), real and imaginary parts, in float32 at least.

        Raises:
            UnsupportedError: bidirectional.
        """
        self._require_causal("a state")
        dtype = torch.float64 if self.log_dt.dtype == torch.float64 else torch.float32
        return ScanState(
            {_MODES: torch.zeros(batch, self.embed_dim, self.modes, 2, dtype=dtype, device=self.log_dt.device)}
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
                influence; their own outputs mean nothing. Time passes over them, so a gap is not as if cut out.
            state: from the call before this one, for the same samples.
            return_state: give the next state, too.

        Raises:
            ShapeError: sizes that do not fit.
            UnsupportedError: a mask over pairs; a state of a bidirectional layer; a state together with a mask.
        """
        x = check_tokens("x", x, self.embed_dim)
        real = real_tokens("S4D", mask, x)
        if state is not None or return_state:
            self._require_causal("a state")
        if real is not None and (state is not None or return_state):
            return self._forward_masked(x, real, state)
        inputs = x if real is None else x.masked_fill(~real[:, :, None], 0)
        before = None if state is None else self._checked(state, x.shape[0])
        if not return_state:  # without a name, the scan's output is gone before the projection needs memory
            return self._mix(x, inputs, self._scan(inputs, before).output)
        found = self._scan(inputs, before)
        return self._mix(x, inputs, found.output), ScanState({_MODES: found.last})

    def step(self, x: Tensor, state: ScanState) -> tuple[Tensor, ScanState]:
        """One token of each sample, (batch, embed_dim) -> (batch, embed_dim), and the next state. Time O(embed_dim N).

        Raises:
            ShapeError: sizes that do not fit.
            UnsupportedError: bidirectional.
        """
        self._require_causal("decoding")
        check_token(x, self.embed_dim)
        modes = torch.view_as_complex(self._checked(state, x.shape[0]).tensors[_MODES].contiguous())
        log_decay, readout = self._discrete()
        inputs = x.to(modes.real.dtype)
        modes = modes * torch.exp(log_decay).to(modes.dtype) + inputs[:, :, None]
        output = 2 * (modes * readout[0].to(modes.dtype)).real.sum(-1)
        return self._mix(x, x, output), ScanState({_MODES: torch.view_as_real(modes)})

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """log w, (embed_dim, modes), and C B / scale, (directions, embed_dim, modes): complex128, for exact phases."""
        step = self.log_dt.double().exp()[:, None]
        decay = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        readout = torch.view_as_complex(self.readout.double())
        if self.discretisation == "zoh":
            return step * decay, readout * (torch.expm1(step * decay) / decay)
        half = step * decay / 2
        return torch.log((1 + half) / (1 - half)), readout * (step / (1 - half))

    def _scan(self, inputs: Tensor, state: ScanState | None) -> Scanned:
        working = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        log_decay, readout = self._discrete()
        rates, weights = torch.view_as_real(log_decay), torch.view_as_real(readout).to(working)
        begin = torch.zeros_like(weights[0]).expand(inputs.shape[0], -1, -1, -1)
        begin = begin if state is None else state.tensors[_MODES].to(working)
        tokens = inputs.to(working)
        found = diagonal_scan(Problem(tokens, rates, weights[0], begin, self.chunk))
        if not self.bidirectional:
            return found
        # The second readout sees what comes after a token, not the token again: one place is left out.
        later = diagonal_scan(Problem(tokens.flip(1), rates, weights[1], begin, self.chunk)).output.flip(1)
        return Scanned(found.output + functional.pad(later[:, 1:], (0, 0, 0, min(1, later.shape[1]))), found.last)

    def _mix(self, x: Tensor, inputs: Tensor, output: Tensor) -> Tensor:
        """Skip, GELU, dropout and projection: from the scan's output, in the dtype of x."""
        output = torch.addcmul(output, inputs.to(output.dtype), self.skip.to(output.dtype)).to(x.dtype)
        if self.out_proj is None:
            return output
        output = dropout(functional.gelu(output), self.dropout_p, self.training)
        output = self.out_proj(output)
        return functional.glu(output, -1) if self.mixing == "glu" else output

    def _forward_masked(self, x: Tensor, real: Tensor, state: ScanState | None) -> tuple[Tensor, ScanState]:
        """The padding is moved to the left, where nothing has been read yet that could decay over it."""
        if state is not None:
            raise UnsupportedError(
                {"S4D": "a state would decay over padded tokens"},
                do="Read samples of unequal length with a state one by one, or pad only in the first call.",
            )
        batch, length = real.shape
        place = torch.arange(length, device=x.device)
        end = torch.where(real, place + 1, 0).amax(1, keepdim=True) if length else place.new_zeros(batch, 1)
        source = (place + end) % max(length, 1)  # sample by sample, so that its last real token is the last of all
        moved = _taken(x.masked_fill(~real[:, :, None], 0), source)
        found = self._scan(moved, None)
        back = (place - end) % max(length, 1)
        return self._mix(x, _taken(moved, back), _taken(found.output, back)), ScanState({_MODES: found.last})

    def _checked(self, state: ScanState, batch: int) -> ScanState:
        return check_state(state, batch, self.make_state(0))

    def _require_causal(self, what: str) -> None:
        if self.bidirectional:
            raise UnsupportedError(
                {"S4D": f"{what} needs a layer that never looks ahead, and this one is bidirectional"},
                do="Make it with bidirectional=False.",
            )

    def extra_repr(self) -> str:
        """What torch prints in the brackets."""
        return (
            f"{self.embed_dim}, state_dim={2 * self.modes}, bidirectional={self.bidirectional}, "
            f"initialisation={self.initialisation!r}, discretisation={self.discretisation!r}"
        )


def initial_modes(initialisation: Initialisation, modes: int) -> tuple[Tensor, Tensor, Tensor]:
    """-Re A, Im A and |B| of n modes, float64 (modes,), as the paper has them (section 4.2 and its table of names).

    "legs" are the eigenvalues of the skew part of HiPPO-LegS for N = 2 n, which all have -1/2 as their real part, and B
    is sqrt(2 k + 1) in their basis; its phase does not matter, for the random C turns by any angle.
    """
    place = torch.arange(modes, dtype=torch.float64)
    half, one = torch.full_like(place, 0.5), torch.ones_like(place)
    size = 2 * modes
    if initialisation == "lin":
        return half, math.pi * place, one
    if initialisation == "inv":
        return half, size / math.pi * (size / (2 * place + 1) - 1), one
    if initialisation == "real":
        return place + 1, torch.zeros_like(place), one
    root = (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()
    skew = torch.tril(root[:, None] * root[None, :] / 2, -1)
    hermitian = torch.complex(torch.zeros_like(skew), skew - skew.T)
    linalg: Any = torch.linalg  # which has no types
    values, vectors = linalg.eigh(hermitian)
    entry: Tensor = (vectors.mH @ root.to(vectors.dtype)).abs()
    return half, values[modes:], entry[modes:]


def require_steps(dt_min: float, dt_max: float) -> None:
    """0 < dt_min <= dt_max, or ArgumentError."""
    if not 0.0 < dt_min <= dt_max < math.inf:
        raise ArgumentError(
            "dt_min and dt_max",
            expected="0 < dt_min <= dt_max",
            got=f"{dt_min} and {dt_max}",
            do="They are step sizes.",
        )


def _require_word(name: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ArgumentError(name, expected=" or ".join(map(repr, known)), got=repr(word), do="Take one of these.")


def _require_even(state_dim: int) -> None:
    if state_dim % 2:
        raise ArgumentError(
            "state_dim",
            expected="an even number",
            got=str(state_dim),
            do="Modes come in conjugate pairs; each pair is two numbers of state.",
        )


def _taken(tokens: Tensor, source: Tensor) -> Tensor:
    """(batch, length, channels): token source[b, i] of sample b at place i."""
    return tokens.gather(1, source[:, :, None].expand_as(tokens))
