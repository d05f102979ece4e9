"""Contrastive losses of image and text embeddings: CLIP's and SigLIP's (guide 2.3).

With unit vectors u_i (images) and v_j (texts), scores s_ij = scale u_i . v_j:

    CLIP    L = 1/2 [ mean_i -log softmax_j(s_ij)[i] + mean_j -log softmax_i(s_ij)[j] ]
    SigLIP  L = 1/n sum_ij log(1 + exp(-z_ij (s_ij + bias))),  z = 1 for a pair and -1 otherwise

(Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343.) CLIP aligns embeddings and nothing else: it
has no attention between image and text, whatever the guide's 2.3 suggests; see `cross_modal.py` for that. In CLIP each
pair competes with all others of its row and column; in SigLIP each is a question of its own.

Several captions for one image, or duplicates, are not each other's negatives: say so with `groups` or `targets`. A
row's targets then share its probability equally (`groups`) or in proportion (`targets`); a row or column without any
target takes no part in the mean.

Cost for n images, m texts, width d: O(n m d) time. Memory O(n m) as written, and O((n + m) d + chunk_size m) with
`chunk_size`: `_contrastive_chunks.py` goes through the images a few at a time, forward and backward, and gives the
same value and the same gradients. Scores are float32 (float64 for float64), also for bfloat16 and inside autocast.
Causal and padding: there are no tokens.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError, ShapeError
from regard._shapes import FLOATS, shape_of
from regard.nn._arguments import require_positive, require_probability
from regard.nn._card import Card
from regard.nn._contrastive_chunks import Matches, clip_in_chunks, siglip_in_chunks, sigmoid_loss

Groups = Tensor | tuple[Tensor, Tensor]


class _ScaledLoss(nn.Module):
    """A loss of cosine similarities, multiplied with a scale that is learned as its log. See `CLIPLoss`."""

    log_scale: Tensor

    def __init__(
        self,
        temperature: float,
        max_scale: float | None,
        *,
        learned: bool,
        label_smoothing: float,
        chunk_size: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        _require_options(label_smoothing, chunk_size)
        for name, number in (("temperature", temperature), ("max_scale", 1.0 if max_scale is None else max_scale)):
            if not (number > 0.0 and math.isfinite(number)):
                raise ArgumentError(
                    name,
                    expected="a positive number",
                    got=repr(number),
                    do="CLIP begins at 0.07 and stops at scale 100.",
                )
        self.max_scale, self.label_smoothing, self.chunk_size = max_scale, label_smoothing, chunk_size
        _register(self, "log_scale", torch.tensor(-math.log(temperature), device=device, dtype=dtype), learned=learned)

    @property
    def scale(self) -> Tensor:
        """What cosine similarities are multiplied with, at most `max_scale`; in float32 or float64."""
        wide = self.log_scale if self.log_scale.dtype == torch.float64 else self.log_scale.float()
        if self.max_scale is None:
            return wide.exp()
        # Beyond the bound a plain clamp has no gradient, and the parameter would never come back.
        beyond = (wide - math.log(self.max_scale)).clamp(min=0.0).detach()
        return (wide - beyond).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put a temperature that an optimizer step took beyond the bound back to it."""
        if self.max_scale is not None:
            self.log_scale.clamp_(max=math.log(self.max_scale))


def _register(module: nn.Module, name: str, value: Tensor, *, learned: bool) -> None:
    if learned:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


class CLIPLoss(_ScaledLoss):
    """CLIP's symmetric cross-entropy with a learned temperature.

    `log_scale` is the log of the scale, the inverse of the temperature. CLIP keeps the scale at 100 or below: so does
    forward, and the gradient of a parameter beyond it is what it is at the bound. `clamp_()` after an optimizer step
    puts the parameter itself back, as CLIP's training does.

    Args:
        temperature: at the start; 0.07 as CLIP.
        max_scale: the largest scale; None for no bound.
        learned: is the temperature a parameter (or a buffer)?
        label_smoothing: this share of each row's target is spread over all of the row.
        chunk_size: images at a time, for large batches; None for all at once.
        device, dtype: of `log_scale`.

    Raises:
        ArgumentError: an option out of its range.
    """

    card: ClassVar[Card] = Card(
        guide="2.3",
        source="Radford et al. 2021, CLIP, arXiv:2103.00020, section 2.3 and figure 3",
        equation="1/2 [mean_i -log softmax_j(s_ij)[i] + mean_j -log softmax_i(s_ij)[j]], s_ij = scale u_i . v_j",
        time="O(n^2 d)",
        memory="O(n^2); O(n (d + c)) in chunks of c",
        causal=None,
        padding=None,
        note="It aligns one embedding of the image with one of the text; there is no attention between the two.",
    )

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        max_scale: float | None = 100.0,
        learned: bool = True,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            temperature, max_scale, learned=learned, label_smoothing=label_smoothing, chunk_size=chunk_size,
            device=device, dtype=dtype,
        )  # fmt: skip

    def forward(
        self, image: Tensor, text: Tensor, *, groups: Groups | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar. Arguments, shapes and errors as in `clip_loss`."""
        return clip_loss(
            image,
            text,
            self.scale,
            groups=groups,
            targets=targets,
            label_smoothing=self.label_smoothing,
            chunk_size=self.chunk_size,
        )


class SigLIPLoss(_ScaledLoss):
    """SigLIP's sigmoid loss with a learned temperature and bias.

    Args:
        temperature: at the start; 0.1 as SigLIP.
        bias: at the start; -10 as SigLIP, so that the many negatives do not begin as a huge loss.
        max_scale: the largest scale; None, as SigLIP, for no bound.
        learned: are temperature and bias parameters (or buffers)?
        label_smoothing: targets 1 and 0 become 1 - share / 2 and share / 2.
        chunk_size: images at a time, for large batches; None for all at once.
        device, dtype: of `log_scale` and `bias`.

    Raises:
        ArgumentError: an option out of its range.
    """

    card: ClassVar[Card] = Card(
        guide="2.3",
        source="Zhai et al. 2023, SigLIP, arXiv:2303.15343, equation 1 and algorithm 1",
        equation="1/n sum_ij log(1 + exp(-z_ij (scale u_i . v_j + bias))), z = 1 for a pair, -1 otherwise",
        time="O(n^2 d)",
        memory="O(n^2); O(n (d + c)) in chunks of c",
        causal=None,
        padding=None,
        note="It aligns one embedding of the image with one of the text; there is no attention between the two.",
    )

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        bias: float = -10.0,
        max_scale: float | None = None,
        learned: bool = True,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            temperature, max_scale, learned=learned, label_smoothing=label_smoothing, chunk_size=chunk_size,
            device=device, dtype=dtype,
        )  # fmt: skip
        _register(self, "bias", torch.tensor(bias, device=device, dtype=dtype), learned=learned)

    def forward(
        self, image: Tensor, text: Tensor, *, groups: Groups | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar. Arguments, shapes and errors as in `siglip_loss`."""
        return siglip_loss(
            image,
            text,
            self.scale,
            self.bias,
            groups=groups,
            targets=targets,
            label_smoothing=self.label_smoothing,
            chunk_size=self.chunk_size,
        )

    bias: Tensor


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    groups: Groups | None = None,
    targets: Tensor | None = None,
    label_smoothing: float = 0.0,
    normalize: bool = True,
    chunk_size: int | None = None,
) -> Tensor:
    """CLIP's loss of a batch. Symmetric: images and texts may be exchanged.

    Args:
        image: (images, width).
        text: (texts, width); the i-th text belongs to the i-th image unless `groups` or `targets` say otherwise.
        scale: what the similarities are multiplied with, a number or a scalar tensor; gradient flows to it.
        groups: int (images,), equal for those that belong together, when there are as many texts; or that and
            int (texts,).
        targets: (images, texts), bool or not negative: how much each text is a target of each image.
        label_smoothing: this share of each row's target is spread over all of the row, and the same in columns.
        normalize: bring the embeddings to length 1 first.
        chunk_size: images at a time; None for all at once. Then gradients of gradients are refused.

    Returns:
        Scalar, float32 (float64 for float64). An empty batch has the loss 0.

    Raises:
        ShapeError: sizes or dtypes that do not fit.
        ArgumentError: an option out of its range, or both `groups` and `targets`.
    """
    _require_options(label_smoothing, chunk_size)
    matches = _matches(image, text, groups, targets)
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = _prepared(image, text, scale, normalize=normalize)
        if chunk_size is not None and image.shape[0] and text.shape[0]:
            return clip_in_chunks(image, text, scale, matches, label_smoothing=label_smoothing, chunk_size=chunk_size)
        scores = (scale * image) @ text.T
        wanted = matches.rows(0, image.shape[0], scores)
        return 0.5 * (
            _cross_entropy(scores, wanted, label_smoothing) + _cross_entropy(scores.T, wanted.T, label_smoothing)
        )


def siglip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    groups: Groups | None = None,
    targets: Tensor | None = None,
    label_smoothing: float = 0.0,
    normalize: bool = True,
    chunk_size: int | None = None,
) -> Tensor:
    """SigLIP's loss of a batch: the sum over all pairs, divided by the number of images.

    Arguments, result and errors as in `clip_loss`, and:

        bias: is added to the scaled similarities; a number or a scalar tensor, gradient flows to it.
        targets: (images, texts), bool or from 0 to 1: how likely the two belong together.
        label_smoothing: targets 1 and 0 become 1 - share / 2 and share / 2.
    """
    _require_options(label_smoothing, chunk_size)
    matches = _matches(image, text, groups, targets)
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = _prepared(image, text, scale, normalize=normalize)
        bias = torch.as_tensor(bias, device=image.device).to(image.dtype)
        if chunk_size is not None and image.shape[0]:
            return siglip_in_chunks(
                image, text, scale, bias, matches, label_smoothing=label_smoothing, chunk_size=chunk_size
            )
        scores = (scale * image) @ text.T + bias
        wanted = matches.rows(0, image.shape[0], scores) * (1.0 - label_smoothing) + label_smoothing / 2
        soft = matches.soft or label_smoothing > 0.0
        return sigmoid_loss(scores, wanted, soft=soft) / max(image.shape[0], 1)


def _cross_entropy(scores: Tensor, wanted: Tensor, label_smoothing: float) -> Tensor:
    """Mean over the rows that have a target, each with its targets in proportion."""
    total = wanted.sum(1)
    has_target = total > 0
    share = wanted / torch.where(has_target, total, 1.0)[:, None]
    evenly = has_target.to(scores.dtype)[:, None] * (label_smoothing / max(scores.shape[1], 1))
    share = share * (1.0 - label_smoothing) + evenly
    return -(share * scores.log_softmax(1)).sum() / has_target.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------------- arguments


def _require_options(label_smoothing: float, chunk_size: int | None) -> None:
    require_probability(label_smoothing=label_smoothing)
    if chunk_size is not None:
        require_positive(chunk_size=chunk_size)


def _prepared(image: Tensor, text: Tensor, scale: Tensor | float, *, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and scale in float32 or float64, the embeddings of length 1."""
    working = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
    image, text = image.to(working), text.to(working)
    if normalize:
        image, text = functional.normalize(image, dim=1), functional.normalize(text, dim=1)
    return image, text, torch.as_tensor(scale, device=image.device).to(working)


def _matches(image: Tensor, text: Tensor, groups: Groups | None, targets: Tensor | None) -> Matches:
    """Check everything; which image belongs to which text."""
    _check_embeddings(image, text)
    sizes = image.shape[0], text.shape[0]
    if groups is not None and targets is not None:
        raise ArgumentError("groups", expected="groups or targets", got="both", do="Put the groups into the targets.")
    if targets is not None:
        _check_size("targets", targets, sizes)
        return Matches(*sizes, matrix=targets.detach())
    if groups is None:
        if image.shape[0] != text.shape[0]:
            raise ShapeError(
                "text",
                expected=f"as many as images, {image.shape[0]}",
                got=str(text.shape[0]),
                do="Say with groups=(of_image, of_text) which belong together.",
            )
        return Matches(*sizes)
    of_image, of_text = groups if isinstance(groups, tuple) else (groups, groups)
    for name, of, size in (("groups of images", of_image, image.shape[0]), ("groups of texts", of_text, text.shape[0])):
        _check_size(name, of, (size,))
        if of.is_floating_point() or of.is_complex():
            raise ShapeError(name, expected="integers", got=str(of.dtype), do="Number the groups.")
    return Matches(*sizes, of_image, of_text)


def _check_embeddings(image: Tensor, text: Tensor) -> None:
    for name, tensor in (("image", image), ("text", text)):
        if tensor.dim() != 2 or tensor.dtype not in FLOATS:
            raise ShapeError(
                name,
                expected="floating-point (batch, width)",
                got=f"{tensor.dtype} of shape {shape_of(tensor)}",
                do="Pool each sample to one embedding first.",
            )
    if image.shape[1] != text.shape[1]:
        raise ShapeError(
            "text width",
            expected=f"{image.shape[1]}, as image has",
            got=str(text.shape[1]),
            do="Project both to one width.",
        )


def _check_size(name: str, tensor: Tensor, size: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != size:
        raise ShapeError(name, expected=str(size), got=shape_of(tensor), do="Give one entry for each of this batch.")
