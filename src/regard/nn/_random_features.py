"""Random directions for kernels: orthogonal, with the lengths that Gaussian vectors have.

Choromanski et al. 2021, "Rethinking attention with Performers", https://arxiv.org/abs/2009.14794. For w from N(0, I)

    exp(q . k) = E[ exp(w . q - |q|^2 / 2) exp(w . k - |k|^2 / 2) ]

and the mean over m directions estimates it with features that are positive (Lemma 1). The estimate varies less where
the directions are orthogonal to one another (Theorem 2), and where each w stands beside its opposite -w, since then the
odd terms of the error cancel (the hyperbolic form of Lemma 1). The relative variance of one product remains about
exp(|q + k|^2) / m: it is small while norms are, and no number of features mends it where they are large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def orthogonal_directions(
    count: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Float32 (count, width): each row is Gaussian, and within each block of `width` rows all are orthogonal.

    They are drawn on the CPU, from torch's default generator unless another is given.
    """
    blocks = [_rotation(width, generator) for _ in range(-(-count // width))]
    lengths = torch.randn(count, width, generator=generator).square().sum(1, keepdim=True).sqrt()
    return (torch.cat(blocks)[:count] * lengths).to(device)


def _rotation(width: int, generator: torch.Generator | None) -> Tensor:
    """A uniformly random orthogonal matrix: the signs that QR leaves open are those of the diagonal (Mezzadri 2007)."""
    qr = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", cast("Any", torch.linalg).qr)
    rotation, triangle = qr(torch.randn(width, width, generator=generator))
    return rotation * triangle.diagonal().sign()
