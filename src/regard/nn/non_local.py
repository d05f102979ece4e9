"""Non-local attention (Wang et al. 2018): every place of an image attends to every other.

    embedded_gaussian   y_i = sum_j softmax_j(s theta_i . phi_j) g_j          O(n^2 d) time, O(n d) memory
    dot_product         y_i = (1 / n) sum_j (theta_i . phi_j) g_j             O(n d^2) time, O(n d + d^2) memory
    out = x + bn(W y),   theta, phi, g = 1x1 convolutions of x to d channels, n = h w places

The softmax form is attention with one head, computed by `regard.attention`: no n x n tensor. The dot-product form has
no softmax, so theta (phi^T g) gives the same sum in another order, with d x d numbers between. Neither knows where a
place is. No order of tokens, no padding.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._attention import attention
from regard._errors import ArgumentError
from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._gating import Pointwise, checked_image, hidden_units

Form = Literal["embedded_gaussian", "dot_product"]


class NonLocal(nn.Module):
    """The non-local block (Wang, Girshick, Gupta, He 2018), with its residual and batch norm.

    Weights have the names and shapes of timm's NonLocalAttn.

    Args:
        channels: of the image.
        form: "embedded_gaussian" (softmax) or "dot_product" (linear in the number of places).
        reduction: channels for each channel of theta, phi and g; 2 in the paper. There is always at least one.
        hidden: their number, instead of channels // reduction.
        scale: of the products in the softmax; 1 / sqrt(channels) unless given, as in timm. The paper's is 1.
        subsample: phi and g are max-pooled by this factor, the paper's way to fewer keys; 1 for none.
        zero_init: the batch norm starts with weight 0, so that the block starts as the identity, as in the paper.
        backend: of `regard.attention`, for the softmax form.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Wang, Girshick, Gupta, He 2018, Non-local Neural Networks",
        equation="y_i = x_i + bn(W sum_j softmax_j(s theta_i . phi_j) g_j), n = h w places, d = c / r channels",
        time="O(n^2 d + n c d); O(n d^2 + n c d) for the dot-product form",
        memory="O(n d)",
        causal=None,
        padding=None,
        note="It does not know where a place is; the dot-product form has no softmax.",
    )

    def __init__(
        self,
        channels: int,
        *,
        form: Form = "embedded_gaussian",
        reduction: int = 2,
        hidden: int | None = None,
        scale: float | None = None,
        subsample: int = 1,
        zero_init: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = hidden_units(channels, reduction, hidden)
        require_positive(subsample=subsample)
        if form not in {"embedded_gaussian", "dot_product"}:
            raise ArgumentError(
                "form", expected="embedded_gaussian or dot_product", got=repr(form), do="Take one of these."
            )
        self.channels = channels
        self.form = form
        self.scale = channels**-0.5 if scale is None else scale
        self.subsample = subsample
        self.backend = backend
        self.starts_as_identity = zero_init
        self.t = Pointwise(channels, width, device=device, dtype=dtype)
        self.p = Pointwise(channels, width, device=device, dtype=dtype)
        self.g = Pointwise(channels, width, device=device, dtype=dtype)
        self.z = Pointwise(width, channels, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        if zero_init:
            nn.init.zeros_(self.norm.weight)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        query = self.t(image).flatten(2).transpose(1, 2)  # (batch, places, hidden)
        key, value = (self._fewer(part(image)).flatten(2).transpose(1, 2) for part in (self.p, self.g))
        if self.form == "dot_product":
            mixed = query @ (key.transpose(1, 2) @ value * (1.0 / key.shape[1]))
        else:
            mixed = attention(query[:, None], key[:, None], value[:, None], scale=self.scale, backend=self.backend)
            mixed = mixed[:, 0]
        maps = mixed.transpose(1, 2).reshape(image.shape[0], mixed.shape[2], *image.shape[2:])
        return image + self.norm(self.z(maps))

    def _fewer(self, maps: Tensor) -> Tensor:
        if self.subsample == 1:
            return maps
        return functional.max_pool2d(maps, self.subsample, ceil_mode=True)
