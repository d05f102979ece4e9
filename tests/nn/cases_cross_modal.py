"""The cross-modal mechanisms in small, and the contrastive losses as one loss for each sample of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard import nn as mechanisms
from regard.masks import Padding
from tests.nn.cases import Case, tokens

TEXT, IMAGE, PATCHES = 12, 20, 5


def text_and_image(batch: int, length: int) -> tuple[Tensor, ...]:
    """Words, and always the same number of patches of another width."""
    return (*tokens(TEXT)(batch, length), *tokens(IMAGE, seed=2)(batch, PATCHES))


def text_and_images(batch: int, length: int) -> tuple[Tensor, ...]:
    """Words, and three images of five tokens each."""
    words, image = tokens(TEXT)(batch, length)[0], tokens(IMAGE, seed=2)(batch, 3 * PATCHES)[0]
    return words, image.unflatten(1, (3, PATCHES))


def both_streams(found: mechanisms.TextImage) -> Tensor:
    """One tensor, as long as the text, that no output of the two is missing from."""
    return found.text + found.image.mean((1, 2))[:, None, None]


def real_words(lengths: list[int]) -> dict[str, Any]:
    return {"text_mask": Padding(lengths)}


def nothing_to_say(_lengths: list[int]) -> dict[str, Any]:
    """No word is a key here, so padded words have no influence; padded images are in test_cross_modal.py."""
    return {}


def open_gates(**options: Any) -> nn.Module:
    """As after some training: with gates at 0 there is nothing to see."""
    made = mechanisms.GatedCrossAttention(TEXT, 3, context_dim=IMAGE, **options)
    with torch.no_grad():
        for gate in (made.attention_gate, made.feedforward_gate):
            gate.copy_(torch.randn(gate.shape))
    return made


def images_of_words(batch: int, length: int) -> dict[str, Any]:
    """Two words without an image, two with each of the first two, the rest with the third."""
    return {"image_of_token": (torch.arange(length) // 2 - 1).clamp(max=2).expand(batch, -1)}


class LossCase(Case):
    """A loss of (items, width) for each sample, since a contrastive loss is nothing that one item has by itself."""

    def call(self, module: nn.Module, inputs: tuple[Tensor, ...], **more: Any) -> Tensor:
        images, texts = inputs
        if not len(images):
            return images.sum((1, 2))
        losses = [module(image, text, **more) for image, text in zip(images, texts, strict=False)]
        return torch.stack(losses).to(images.dtype)


def two_kinds(batch: int, length: int) -> tuple[Tensor, ...]:
    """Embeddings of images, and of texts that are somewhat like them."""
    image, other = tokens(6)(batch, length)[0], tokens(6, seed=3)(batch, length)[0]
    return image, 0.5 * image + other


LOSS: dict[str, Any] = {
    "inputs": two_kinds,
    "compiles": False,  # test_contrastive.py compiles it: the laws give it a batch of batches
    "empty": False,
}

CASES = [
    Case(
        name="cross_modal",
        make=lambda: mechanisms.CrossModalAttention(TEXT, 3, image_dim=IMAGE),
        inputs=text_and_image,
        with_padding=real_words,
        output=both_streams,
    ),
    Case(
        name="cross_modal_no_bias_wide_heads",
        make=lambda: mechanisms.CrossModalAttention(TEXT, 2, image_dim=IMAGE, head_dim=16, bias=False),
        inputs=text_and_image,
        with_padding=real_words,
        output=both_streams,
    ),
    Case(
        name="co_attention",
        make=lambda: mechanisms.CoAttention(TEXT, 3, image_dim=IMAGE),
        inputs=text_and_image,
        with_padding=real_words,
        output=both_streams,
    ),
    Case(
        name="co_attention_norm_first",
        make=lambda: mechanisms.CoAttention(TEXT, 3, image_dim=IMAGE, norm_first=True, activation="relu"),
        inputs=text_and_image,
        with_padding=real_words,
        output=both_streams,
    ),
    Case(
        name="perceiver_resampler",
        make=lambda: mechanisms.PerceiverResampler(TEXT, 3, num_latents=3, depth=2),
        inputs=tokens(TEXT),
        with_padding=lambda lengths: {"mask": Padding(lengths)},
        empty=False,  # latents come out though nothing went in: test_perceiver.py
    ),
    Case(
        name="perceiver_resampler_gelu",
        make=lambda: mechanisms.PerceiverResampler(TEXT, 2, num_latents=2, depth=1, head_dim=8, activation="gelu"),
        inputs=tokens(TEXT),
        with_padding=lambda lengths: {"mask": torch.arange(7) < torch.tensor(lengths)[:, None]},
        empty=False,
    ),
    Case(
        name="gated_cross_attention",
        make=open_gates,
        inputs=text_and_image,
        with_padding=nothing_to_say,
        causal=True,
    ),
    Case(
        name="gated_cross_attention_images",
        make=lambda: open_gates(gate_per_channel=True, bias=True),
        inputs=text_and_images,
        options=images_of_words,
        causal=True,
        with_padding=nothing_to_say,
    ),
    LossCase(name="clip_loss", make=mechanisms.CLIPLoss, **LOSS),
    LossCase(name="clip_loss_chunks", make=lambda: mechanisms.CLIPLoss(chunk_size=3, label_smoothing=0.1), **LOSS),
    LossCase(name="siglip_loss", make=lambda: mechanisms.SigLIPLoss(bias=-1.0), **LOSS),
    LossCase(name="siglip_loss_chunks", make=lambda: mechanisms.SigLIPLoss(bias=-1.0, chunk_size=3), **LOSS),
]
