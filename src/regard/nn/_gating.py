"""What the image gates share: pooling and scaling in few passes over the image, and the small projections between.

A gate reads an image, computes few numbers from it and multiplies the image by them. The arithmetic between is
nothing; the passes over the image are the cost, above all in the backward. So a mean is a sum times a number (its
gradient is broadcast, never written out), the gradients of mean and maximum share one buffer, and the maximum is
found again with a comparison that writes floats, which torch vectorises, where its own writes bools, which it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.nn._arguments import check_image, require_positive

Activation = Literal["relu", "silu", "gelu", "hard_swish"]
Gate = Literal["sigmoid", "hard_sigmoid"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "hard_swish": functional.hardswish,
}
_GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "hard_sigmoid": functional.hardsigmoid}

PIXELS = (2, 3)
"""The dimensions of (batch, channels, height, width) that are places."""
CHANNELS = (1,)


class Pointwise(nn.Conv2d):
    """A projection of the channels, the same at each place: a 1x1 convolution that also takes vectors.

    Its weight is (out, in, 1, 1), as in timm and torchvision, so that their checkpoints load. On pooled vectors
    (batch, channels) and tokens (batch, length, channels) it is a matrix product, which costs less to start.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - torch leaves device and dtype untyped
            in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype
        )

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, a bias of zero (guide 3.3)."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def zero(self) -> None:
        """Weight and bias become zero: what follows starts as if this were not there."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(batch, in), (batch, length, in) or (batch, in, height, width), to the same with `out` channels."""
        if input.dim() == 4:
            return super().forward(input)
        return functional.linear(input, self.weight.flatten(1), self.bias)


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The function between two projections. Raises ArgumentError."""
    return _named("activation", name, _ACTIVATIONS)


def gate_named(name: str) -> Callable[[Tensor], Tensor]:
    """The function that makes a gate, from 0 to 1. Raises ArgumentError."""
    return _named("gate", name, _GATES)


def _named(what: str, name: str, known: dict[str, Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    if name not in known:
        raise ArgumentError(what, expected=f"one of {', '.join(known)}", got=repr(name), do="Take one of these names.")
    return known[name]


def hidden_units(channels: int, reduction: int, hidden: int | None) -> int:
    """`hidden` if given, else channels / reduction rounded down, but never fewer than one.

    With none, the gate would be the same constant for every image (FAULTS F57). Raises ArgumentError.
    """
    require_positive(channels=channels, reduction=reduction)
    if hidden is None:
        return max(1, channels // reduction)
    require_positive(hidden=hidden)
    return hidden


def require_odd(**sizes: int) -> None:
    """Each is an odd number of at least 1, or ArgumentError."""
    require_positive(**sizes)
    for name, size in sizes.items():
        if size % 2 == 0:
            raise ArgumentError(
                name, expected="an odd number", got=str(size), do="A window has one middle only if it is odd."
            )


def checked_image(image: object, channels: int) -> Tensor:
    """Floating-point (batch, channels, height, width) with at least one pixel, or ShapeError."""
    tensor = check_image("image", image, channels)
    if tensor.shape[2] == 0 or tensor.shape[3] == 0:
        raise ShapeError(
            "image", expected="at least one pixel", got=shape_of(tensor), do="There is nothing to pool over."
        )
    return tensor


def mean(image: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The mean over `dims`, which stay with size 1; its gradient is never written out at full size."""
    if image.dtype == torch.float16:  # a sum of 256 x 256 ones is beyond its largest number
        return image.mean(dims, keepdim=True)
    return image.sum(dims, keepdim=True) * (1.0 / _count(image, dims))


def mean_and_max(image: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum over `dims`, which stay with size 1. Equal maxima share the gradient, as in torch.amax.

    Where torch.compile writes the passes itself it is given torch's own operators.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and image.requires_grad):
        return mean(image, dims), image.amax(dims, keepdim=True)
    return cast("tuple[Tensor, Tensor]", _MeanAndMax.apply(image, dims))  # pyright: ignore[reportUnknownMemberType]


def _count(image: Tensor, dims: tuple[int, ...]) -> int:
    count = 1
    for dim in dims:
        count *= image.shape[dim]
    return count


class _MeanAndMax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return image.mean(dims, keepdim=True), image.amax(dims, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: tuple[Tensor, Tensor]) -> None:
        image, ctx.dims = inputs
        ctx.save_for_backward(image, output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        to_mean, to_max = gradients
        image, maximum = ctx.saved_tensors
        to_mean = to_mean * (1.0 / _count(image, ctx.dims))
        if torch.is_grad_enabled():
            chosen = (image == maximum).to(image.dtype)
            return chosen * (to_max / chosen.sum(ctx.dims, keepdim=True)) + to_mean, None
        chosen = torch.eq(image, maximum, out=torch.empty_like(image))
        return chosen.mul_(to_max / chosen.sum(ctx.dims, keepdim=True)).add_(to_mean), None
