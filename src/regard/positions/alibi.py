"""ALiBi: attention with linear biases.

Press, Smith and Lewis 2021, "Train Short, Test Long", https://arxiv.org/abs/2108.12409, equation 1 and section 3:

    softmax( scale * q_i . k_j - m_h * (i - j) ),   m_h = 2^(-8 h / heads),  h = 1 .. heads

The further the key, the lower its score; each head has its own slope, so some heads look near and some far.
Cost: one number for each head and distance, no parameters. The guide's 2.1 (相对位置编码).

For a number of heads that is no power of two the authors' code takes the slopes of the closest smaller power
of two and then every other slope of twice that power.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.positions._arguments import check_choice
from regard.positions._base import Align, Position, Term

Form = Literal["causal", "symmetric", "asymmetric"]


def alibi_slopes(heads: int) -> list[float]:
    """The paper's slope of each head, steepest first within each power of two: 1/2, 1/4 ... 1/256 for 8 heads."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * head / power) for head in range(1, power + 1)]
    between = [2.0 ** (-4 * head / power) for head in range(1, 2 * power, 2)]
    return slopes + between[: heads - power]


class ALiBi(Position):
    """A penalty that grows linearly with distance, with a slope for each head.

    With d = key position - query position:

        form="causal"       -slope * max(-d, 0)   keys after the query get 0: whether they may attend is the mask's
                                                  business (`Causal`), and without a mask nothing is rewarded
        form="symmetric"    -slope * |d|          encoders
        form="asymmetric"   -slope_before * max(-d, 0) - slope_after * max(d, 0)

    For cross-attention and cached decoding say `align`.

    Args:
        heads: number of query heads.
        slopes: (heads,) finite numbers >= 0 instead of the paper's; for the asymmetric form also (2, heads),
            the slopes before the query and those after it (else both sides begin alike).
        learnable: make the slopes a parameter. Then nothing keeps them from turning negative.
        align: see `Position`.

    Raises:
        ArgumentError: heads < 1, an unknown form, slopes of a wrong size, or a negative or non-finite slope.
    """

    slopes: Tensor

    def __init__(
        self,
        heads: int,
        *,
        slopes: Sequence[float] | Tensor | None = None,
        form: Form = "causal",
        learnable: bool = False,
        align: Align | None = None,
    ) -> None:
        super().__init__(heads=heads, align=align)
        check_choice("ALiBi", "form", form, ("causal", "symmetric", "asymmetric"))
        self.form: Form = form
        self.learnable = learnable
        values = _slopes(alibi_slopes(heads) if slopes is None else slopes, heads, form)
        if learnable:
            self.slopes = nn.Parameter(values)
        else:
            # The constructor says them all, so checkpoints of other libraries load without a missing key.
            self.register_buffer("slopes", values, persistent=False)

    @property
    def terms(self) -> frozenset[Term]:
        return frozenset({"bias"})

    def distance_bias(self, distance: Tensor) -> Tensor:
        """(heads, n) in the dtype of the slopes, for int64 distances (n,)."""
        # A half type holds no whole number above 2048 (bfloat16: 256), so only the product is rounded to it.
        slopes = self.slopes.to(torch.promote_types(self.slopes.dtype, torch.float32))
        before, after = distance.clamp(max=0), -distance.clamp(min=0)
        if self.form == "causal":
            bias = slopes[:, None] * before
        elif self.form == "symmetric":
            bias = slopes[:, None] * (before + after)
        else:
            bias = slopes[0, :, None] * before + slopes[1, :, None] * after
        return bias.to(self.slopes.dtype)

    def options(self) -> Mapping[str, object]:
        return {"heads": self.heads, "form": self.form, "learnable": self.learnable or None, "align": self.align}


def _slopes(given: Sequence[float] | Tensor, heads: int, form: Form) -> Tensor:
    """The slopes as a new tensor: (heads,), or (2, heads) for the asymmetric form."""
    default = torch.get_default_dtype()
    # On "meta" they would be no numbers: neither checked here, nor in any checkpoint that is loaded later.
    here = None if torch.get_default_device().type != "meta" else "cpu"
    values = given.detach().clone() if isinstance(given, Tensor) else torch.tensor(given, dtype=default, device=here)
    values = values if values.is_floating_point() else values.to(default)
    sizes = [(heads,), (2, heads)] if form == "asymmetric" else [(heads,)]
    if tuple(values.shape) not in sizes:
        raise ArgumentError(
            "ALiBi slopes",
            expected=" or ".join(f"size {size}" for size in sizes) + f" for {heads} heads, form={form!r}",
            got=f"size {tuple(values.shape)}",
            do="Give one slope for each query head.",
        )
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise ArgumentError(
            "ALiBi slopes",
            expected="finite numbers >= 0",
            got=f"{float(values.min())} .. {float(values.max())}",
            do="Give the penalty for one step of distance; the minus sign is added here.",
        )
    return values.expand(2, heads).clone() if form == "asymmetric" else values
