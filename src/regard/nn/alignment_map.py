"""Maps from words to the patches of an image: how alike their embeddings are, and what attention was paid (guide 2.3).

    similarity[w, r, c] = cos(word_w, patch at row r, column c)
    attention[h, w, r, c] = weight of head h, from word w to that patch, in a `CrossModalAttention`

What these numbers are. A similarity is an angle between two vectors. In CLIP and SigLIP the loss sees one embedding of
the image and one of the text, and never a patch or a word: nothing in training asks that the embedding of a patch be
like that of the word it shows, and often it is not (Li et al. 2023, arXiv:2304.05653, find the background lighter than
the object). In a model with losses on patches and words (FILIP, Yao et al. 2021, arXiv:2111.07783) it is asked for.

An attention weight is the share of a patch's value in the mixture that one head makes for one word. It is not the
effect of the patch on the output: the value may be small, the last projection or the other layers may take it away,
and patches deep in an encoder have seen one another. A softmax sums to 1 also for a word that the image does not show.
Neither map is evidence of grounding until it is held against regions that people marked, or pixels are taken away.

Cost: O(words x patches x width) time, and memory for the maps that are asked for. Padded words and patches are 0 and
`valid` says where; a patch's neighbours are never mixed with padding when a map is enlarged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.masks import Mask
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._cross_attention import CrossAttention, check_batches
from regard.nn._real_tokens import real_tokens
from regard.nn._token_masks import padding_mask
from regard.nn.cross_modal import CrossModalAttention

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class AlignmentMap:
    """Numbers over the grid of an image, for each word.

    Attributes:
        values: (batch, words, rows, cols), or (batch, heads, words, rows, cols) for attention; float32 or float64. 0
            where not valid.
        valid: bool (batch, words, rows, cols): both the word and the patch are real.
    """

    values: Tensor
    valid: Tensor

    def resized(self, size: Grid, *, mode: Literal["bilinear", "nearest"] = "bilinear") -> AlignmentMap:
        """The same maps over the pixels of an image.

        Args:
            size: (height, width) of the image as it went into the model, after it was cropped and scaled.
            mode: "nearest" repeats each patch's number over its pixels; "bilinear" draws a smooth surface through the
                centres of the patches, which looks finer than what is known: nothing is known below a patch.

        Returns:
            Values (..., height, width); a pixel is valid where the patch that it lies in is. An attention map no
            longer sums to 1.

        Raises:
            ArgumentError: a size below 1, or an unknown mode.
        """
        require_positive(height=size[0], width=size[1])
        if mode not in {"bilinear", "nearest"}:
            raise ArgumentError("mode", expected="'bilinear' or 'nearest'", got=repr(mode), do="Take one of these.")
        valid = _enlarged(self.valid.to(self.values.dtype), size, "nearest") > 0
        values = _enlarged(self.values, size, mode)
        if mode == "bilinear":  # a patch beside padding takes its numbers from real patches alone
            known = _enlarged(self.valid.to(self.values.dtype), size, mode)
            known = known.unsqueeze(1) if values.dim() == 5 else known
            values = values / torch.where(known > 0, known, 1.0)
        here = valid.unsqueeze(1) if values.dim() == 5 else valid
        return replace(self, values=values.masked_fill(~here, 0.0), valid=valid)


def similarity_map(
    words: Tensor,
    patches: Tensor,
    grid: Grid,
    *,
    skip: int = 0,
    word_mask: Mask | Tensor | None = None,
    patch_mask: Mask | Tensor | None = None,
) -> AlignmentMap:
    """Cosine similarity of each word with each patch, from -1 to 1.

    Args:
        words: (batch, words, width), in the space that the patches are in.
        patches: (batch, skip + rows * cols, width), row after row of the image.
        grid: (rows, cols) of patches.
        skip: tokens before the first patch that stand for no place: a class token, registers.
        word_mask: which words are real: Padding, Keys, or bool (batch, words).
        patch_mask: which patches are real, those skipped included.

    Returns:
        Values (batch, words, rows, cols). A vector of length 0 is like nothing: its similarity is 0.

    Raises:
        ShapeError: widths, batches or the grid do not fit.
        MaskError, UnsupportedError: a mask for other sizes, or one that is no padding.
    """
    check_tokens("patches", patches, patches.shape[-1])
    check_tokens("words", words, patches.shape[-1])
    check_batches("words", words, patches)
    _check_grid(patches, grid, skip)
    real_word, real_patch = _real("word_mask", word_mask, words), _real("patch_mask", patch_mask, patches)
    words, patches = _emptied(words, real_word), _emptied(patches, real_patch)
    working = torch.float64 if torch.float64 in (words.dtype, patches.dtype) else torch.float32
    with torch.autocast(words.device.type, enabled=False):
        cosines = _unit(words.to(working)) @ _unit(patches[:, skip:].to(working)).transpose(1, 2)
    return AlignmentMap(_on_grid(cosines, grid), _on_grid(real_word[:, :, None] & real_patch[:, None, skip:], grid))


def attention_map(
    module: CrossModalAttention | CrossAttention,
    text: Tensor,
    image: Tensor,
    grid: Grid,
    *,
    heads: list[int] | None = None,
    skip: int = 0,
    text_mask: Mask | Tensor | None = None,
    image_mask: Mask | Tensor | None = None,
) -> AlignmentMap:
    """The weights with which each word attended to each patch.

    Args:
        module: a `CrossModalAttention` (its text_to_image is taken), or one direction such as the `attention` of a
            `GatedCrossAttention`, which is given the text as that block gives it: after its `attention_norm`.
        text: (batch, words, embed_dim), as forward takes it.
        image: (batch, skip + rows * cols, image_dim), row after row.
        grid: (rows, cols) of patches.
        heads: which heads to show, in this order; all unless given. Their mean hides what single heads do.
        skip: image tokens before the first patch. Their weights are left out, so a map then sums to less than 1.
        text_mask, image_mask: which tokens are real, as forward takes them.

    Returns:
        Values (batch, heads, words, rows, cols). A word with no image has a map of 0.

    Raises:
        ShapeError: widths, batches or the grid do not fit.
        ArgumentError: a head that there is not.
        MaskError, UnsupportedError: a mask for other sizes, or one that is no padding.
    """
    direction = module.text_to_image if isinstance(module, CrossModalAttention) else module
    check_tokens("text", text, direction.embed_dim)
    check_tokens("image", image, direction.context_dim)
    check_batches("image", image, text)
    _check_grid(image, grid, skip)
    real_word, real_patch = _real("text_mask", text_mask, text), _real("image_mask", image_mask, image)
    mask = padding_mask("image_mask", image_mask, batch=image.shape[0], length=image.shape[1])
    text, image = _emptied(text, real_word), _emptied(image, real_patch)
    weights = direction.weights(text, image, mask=mask, heads=heads)[..., skip:]
    valid = _on_grid(real_word[:, :, None] & real_patch[:, None, skip:], grid)
    return AlignmentMap(_on_grid(weights, grid).masked_fill(~valid[:, None], 0.0), valid)


def _on_grid(flat: Tensor, grid: Grid) -> Tensor:
    """(..., rows * cols) as (..., rows, cols)."""
    return flat.reshape(*flat.shape[:-1], *grid)


def _real(name: str, mask: Mask | Tensor | None, tokens: Tensor) -> Tensor:
    """bool (batch, length)."""
    real = real_tokens(name, mask, tokens)
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if real is None else real


def _emptied(tokens: Tensor, real: Tensor) -> Tensor:
    """Padding as 0: whatever stands there, NaN too, would otherwise come back in gradients, as 0 x NaN."""
    return tokens.masked_fill(~real[..., None], 0.0)


def _unit(vectors: Tensor) -> Tensor:
    length: Tensor = cast("Any", torch.linalg).vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1.0)


def _enlarged(maps: Tensor, size: Grid, mode: str) -> Tensor:
    flat = maps.flatten(0, -3)[:, None]
    if mode == "nearest":  # the patch that a pixel's centre lies in
        return functional.interpolate(flat, size, mode="nearest-exact").view(*maps.shape[:-2], *size)
    return functional.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def _check_grid(patches: Tensor, grid: Grid, skip: int) -> None:
    rows, cols = grid
    require_positive(rows=rows, cols=cols)
    if skip < 0 or patches.shape[1] != skip + rows * cols:
        raise ShapeError(
            "patches",
            expected=f"skip {skip} + rows {rows} x cols {cols} = {skip + rows * cols} tokens",
            got=f"{patches.shape[1]} in {shape_of(patches)}",
            do="Give the grid of the image, and count class token and registers with skip.",
        )
