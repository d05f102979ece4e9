"""RoPE: rotary position embedding.

Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding",
https://arxiv.org/abs/2104.09864, section 3.2.2: channel pair c of a query or key at position p is turned by the
angle p * f_c, with f_c = base^(-2c / dim). The product of a turned query and a turned key then depends on their
distance only. Cost: 3 multiply-adds a channel, no parameters. The guide's 2.1 (相对位置编码).

Two conventions say which channels make a pair (see `rope_layout` for turning weights from one into the other):

    "half"          c and c + dim/2   (GPT-NeoX, Llama, Qwen, Gemma ... in transformers)
    "interleaved"   2c and 2c + 1     (the paper, GPT-J, Cohere, Llama's own release)

Angles are computed in float64 and only their cosines and sines are rounded. A float32 angle, as most libraries
have, is off by up to 0.004 at position 100,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from regard._errors import ArgumentError, ShapeError
from regard.positions._arguments import check_choice, check_even, check_number
from regard.positions._base import Align, Position, Term
from regard.positions.rope_parameters import read_rope_parameters
from regard.positions.rope_scaling import RoPEScaling, plain_frequencies

Style = Literal["half", "interleaved"]


class RoPE(Position):
    """Turns query and key vectors by their position.

    Args:
        dim: how many channels turn, even: the first ones. Those after them (partial rotary) pass as they are.
        style: "half" or "interleaved", see the file's head.
        base: theta; the longest wavelength is about 2 pi base positions.
        scaling: how a model trained on short texts reads longer ones, see `rope_scaling`.
        align: see `Position`.

    Raises:
        ArgumentError: an odd dim, an unknown style, base <= 1, or a scaling that does not fit dim.
    """

    def __init__(
        self,
        dim: int,
        *,
        style: Style = "half",
        base: float = 10000.0,
        scaling: RoPEScaling | None = None,
        align: Align | None = None,
    ) -> None:
        super().__init__(align=align)
        self.dim = check_even("RoPE", "dim", dim)
        check_choice("RoPE", "style", style, ("half", "interleaved"))
        self.style: Style = style
        self.base = check_number("RoPE", "base", base, minimum=1, above=True)
        if scaling is not None:
            _check_scaling(scaling)
            scaling.check_dim(dim)
        self.scaling = scaling

    @classmethod
    def from_rope_parameters(
        cls,
        parameters: Mapping[str, Any],
        head_dim: int,
        *,
        style: Style = "half",
        max_position_embeddings: int | None = None,
        align: Align | None = None,
    ) -> RoPE:
        """The RoPE that a transformers configuration describes.

        `parameters` is `config.rope_parameters` (or the older `rope_scaling`), and `max_position_embeddings` is the
        configuration's, which some types need. The style is not in the configuration: it is the model's.

        Raises:
            ArgumentError: a rope type or a key that is not known here, or one that is missing.
        """
        described = read_rope_parameters(parameters, max_position_embeddings)
        return cls(
            int(head_dim * described.partial_rotary_factor),
            style=style,
            base=described.base,
            scaling=described.scaling,
            align=align,
        )

    @property
    def terms(self) -> frozenset[Term]:
        return frozenset({"rotation"})

    def check(self, *, heads: int, head_dim: int, value_dim: int, q_len: int, kv_len: int) -> None:
        """Raise ShapeError also when more channels should turn than there are, or the text has two lengths."""
        super().check(heads=heads, head_dim=head_dim, value_dim=value_dim, q_len=q_len, kv_len=kv_len)
        if self.dim > head_dim:
            raise ShapeError(
                "RoPE dim",
                expected=f"at most {head_dim}, the head_dim of query and key",
                got=str(self.dim),
                do=f"Build the position with dim={head_dim - head_dim % 2} or less.",
            )
        scaled = self.scaling is not None and self.scaling.depends_on_length
        if scaled and self.align == "top_left" and q_len != kv_len:
            raise ShapeError(
                f"RoPE with {type(self.scaling).__name__}, whose frequencies depend on the length of the text",
                expected="queries that end where the keys end",
                got=f"align='top_left' with q_len {q_len} and kv_len {kv_len}",
                do="Say align='bottom_right', or take a scaling that is the same for every length.",
            )

    def inverse_frequencies(self, length: int = 1, *, device: torch.device | None = None) -> Tensor:
        """The angle of each channel pair for one step, float64 (dim / 2,), in a text of `length` tokens."""
        return self._frequencies(torch.full((), length, dtype=torch.int64, device=device))

    def _frequencies(self, length: Tensor) -> Tensor:
        if self.scaling is None:
            return plain_frequencies(self.dim, self.base, length.device)
        return self.scaling.frequencies(self.dim, self.base, length)

    def _cos_sin(self, positions: Tensor, length: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each position and channel pair, (length, dim / 2) in `dtype`."""
        text = positions.max() + 1 if length is None else positions.new_full((), length)
        angles = positions.to(torch.float64)[:, None] * self._frequencies(text)
        amplitude = 1.0 if self.scaling is None else self.scaling.amplitude()
        return (amplitude * angles.cos()).to(dtype), (amplitude * angles.sin()).to(dtype)

    def rotate(self, states: Tensor, positions: Tensor, *, length: int | None = None) -> Tensor:
        """Turn states (batch, heads, length, head_dim) by int64 positions (length,), in the dtype of the states.

        `length` counts only for a scaling that depends on it; see `Position.rotate`.
        """
        if positions.shape[0] == 0:
            return states
        dtype = torch.promote_types(states.dtype, torch.float32)
        cos, sin = self._cos_sin(positions, length, dtype)
        turning, resting = states[..., : self.dim], states[..., self.dim :]
        turned = _turn(turning.to(dtype), cos, sin, self.style).to(states.dtype)
        return torch.cat([turned, resting], dim=-1) if resting.shape[-1] else turned

    def options(self) -> Mapping[str, object]:
        names = ("dim", "style", "base", "scaling", "align")
        return {name: getattr(self, name) for name in names}


def _turn(states: Tensor, cos: Tensor, sin: Tensor, style: Style) -> Tensor:
    """Turn every channel pair of states (..., dim) by its angle."""
    if style == "half":
        first, second = states.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    first, second = states[..., ::2], states[..., 1::2]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)


def _check_scaling(scaling: object) -> None:
    if not isinstance(scaling, RoPEScaling):
        raise ArgumentError(
            "RoPE scaling",
            expected="a RoPEScaling such as YaRNScaling(4.0, original_length=4096), or None",
            got=repr(scaling),
            do="Build one of regard.positions' scalings; a transformers mapping goes to from_rope_parameters.",
        )
