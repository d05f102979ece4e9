"""Selective kernels (Li et al. 2019): convolutions of several reaches side by side, and attention that mixes them.

    u_k = relu(bn(conv_k(x)));   z = relu(bn(W mean(sum_k u_k)));   a_k = softmax over k of (A_k z)
    y[b, c] = sum_k a_k[b, c] * u_k[b, c]

Each channel of each image chooses its reach. A reach of 5 is a 3x3 convolution with dilation 2, as in the paper. Time
is that of the convolutions, memory one image for each of them. No order of tokens, no padding of tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._gating import PIXELS, Pointwise, checked_image, hidden_units, mean, require_odd


class SelectiveKernel(nn.Module):
    """Attention over convolutions of different reach (Li, Wang, Hu, Yang 2019).

    Weights have the names and shapes of timm's SelectiveKernel.

    Args:
        channels: of the image.
        out_channels: of the output; as many as `channels` unless given.
        kernel_sizes: the reach of each path; odd, at least 3.
        stride: of all paths.
        groups: of each path's convolution; the paper takes 32, for about 32 channels in each.
        split: each path reads its own share of the channels instead of all (timm's `split_input`): fewer weights.
        dilated: a reach beyond 3 is made by a dilated 3x3 convolution, instead of a full one.
        reduction: output channels for each hidden unit of the attention; there are at least `min_hidden`.
        min_hidden: 32 in the paper.
        hidden: the number of hidden units, instead of the rule above.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, an even kernel, fewer than two paths, channels that groups or paths do not
            divide.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Li, Wang, Hu, Yang 2019, Selective Kernel Networks",
        equation="y = sum_k softmax_k(A_k relu(bn(W mean(sum_k u_k)))) * u_k, u_k = relu(bn(conv_k(x))), K paths",
        time="O(K h w c^2 / groups), the convolutions",
        memory="O(K h w c)",
        causal=None,
        padding=None,
        note="A replacement of a convolution, not a gate behind one.",
    )

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        kernel_sizes: Sequence[int] = (3, 5),
        stride: int = 1,
        groups: int = 1,
        split: bool = False,
        dilated: bool = True,
        reduction: int = 16,
        min_hidden: int = 32,
        hidden: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        require_positive(out_channels=out_channels, stride=stride, min_hidden=min_hidden)
        width = hidden_units(out_channels, reduction, hidden)
        width = width if hidden is not None else max(width, min_hidden)
        _require_paths(kernel_sizes, channels, out_channels, groups, split=split)
        self.channels = channels
        self.split = split
        read = channels // len(kernel_sizes) if split else channels
        self.paths = nn.ModuleList(
            _path(read, out_channels, size, stride=stride, groups=groups, dilated=dilated, device=device, dtype=dtype)
            for size in kernel_sizes
        )
        self.attn = nn.ModuleDict()
        self.attn["fc_reduce"] = Pointwise(out_channels, width, bias=False, device=device, dtype=dtype)
        self.attn["bn"] = nn.BatchNorm2d(width, device=device, dtype=dtype)
        self.attn["fc_select"] = Pointwise(
            width, out_channels * len(kernel_sizes), bias=False, device=device, dtype=dtype
        )

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, out_channels, height / stride, width / stride), rounded up.

        Raises:
            ShapeError: not such an image.
        """
        image = checked_image(image, self.channels)
        shares = image.chunk(len(self.paths), dim=1) if self.split else (image,) * len(self.paths)
        found = [cast("Tensor", path(share)) for path, share in zip(self.paths, shares, strict=True)]
        chosen = self._choose(found)  # (batch, paths, out_channels)
        mixed = found[0] * chosen[:, 0, :, None, None]
        for number, each in enumerate(found[1:], start=1):
            mixed = mixed + each * chosen[:, number, :, None, None]
        return mixed

    def _choose(self, found: list[Tensor]) -> Tensor:
        """The mean of a sum is the sum of the means, so the sum of the images is never made."""
        pooled = torch.stack([mean(each, PIXELS) for each in found]).sum(dim=0)  # (batch, out_channels, 1, 1)
        hidden = self.attn["fc_reduce"](pooled.flatten(1))[:, :, None, None]
        scores = self.attn["fc_select"](self.attn["bn"](hidden).relu().flatten(1))
        return scores.unflatten(1, (len(found), -1)).softmax(dim=1)


def _require_paths(sizes: Sequence[int], channels: int, out_channels: int, groups: int, *, split: bool) -> None:
    require_positive(channels=channels, groups=groups)
    for size in sizes:
        require_odd(kernel_size=size)
    if len(sizes) < 2 or min(sizes) < 3:
        raise ArgumentError(
            "kernel_sizes",
            expected="two or more sizes from 3",
            got=repr(tuple(sizes)),
            do="With one path there is nothing to choose; a reach of 1 sees no neighbours.",
        )
    if split and channels % len(sizes):
        raise ArgumentError(
            "channels",
            expected=f"a multiple of the {len(sizes)} paths",
            got=str(channels),
            do="With split=True each path reads an equal share; take split=False, or other channels.",
        )
    read = channels // len(sizes) if split else channels
    if read % groups or out_channels % groups:
        raise ArgumentError(
            "groups",
            expected=f"a divisor of the {read} channels each path reads and of the {out_channels} it gives",
            got=str(groups),
            do="Each group has the same number of channels.",
        )


def _path(
    read: int,
    out_channels: int,
    size: int,
    *,
    stride: int,
    groups: int,
    dilated: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Sequential:
    """A convolution of this reach with its batch norm and activation; timm's names."""
    dilation = (size - 1) // 2 if dilated else 1
    kernel = 3 if dilated else size
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        read, out_channels, kernel, stride, padding=dilation * (kernel - 1) // 2, dilation=dilation, groups=groups,
        bias=False, device=device, dtype=dtype,
    )  # fmt: skip
    layers["bn"] = nn.BatchNorm2d(out_channels, device=device, dtype=dtype)
    layers["act"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)
