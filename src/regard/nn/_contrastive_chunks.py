"""CLIP's and SigLIP's losses a few images at a time: never all the scores at once, forward or backward.

CLIP's gradient needs the log-normaliser of each row and column of the scores. Forward finds them in one pass: a row is
whole in its chunk, and columns carry their largest score and their sum, rescaled when a larger one comes. Backward
makes each chunk of scores again, and from it the chunk's gradient

    dL/ds_ij = A_i softmax_j(s_ij) + B_j softmax_i(s_ij) - W_ij

with A_i and B_j the shares of a row and a column in the means (0 where it has no target) and W_ij what its targets take
off. SigLIP's dL/ds_ij = (sigmoid(s_ij) - y_ij) / n needs none of the other scores: forward makes it on its way and
keeps the gradients of the embeddings, so that backward only multiplies them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from regard._errors import UnsupportedError


@dataclass(frozen=True, eq=False)
class Matches:
    """Which image belongs to which text: by groups, by a matrix, or the i-th to the i-th where there are neither.

    Args:
        images, texts: how many.
        of_image, of_text: integers (images,) and (texts,), equal for those that belong together.
        matrix: (images, texts), how much each text is a target of each image.
    """

    images: int
    texts: int
    of_image: Tensor | None = None
    of_text: Tensor | None = None
    matrix: Tensor | None = None

    def rows(self, first: int, last: int, like: Tensor) -> Tensor:
        """Rows first to last (exclusive) of the (images, texts) matrix of targets, in the dtype of `like`.

        A tensor of the caller's own, to be written to.
        """
        if self.matrix is not None:
            return self.matrix[first:last].to(like.dtype, copy=True)
        if self.of_image is not None and self.of_text is not None:
            return (self.of_image[first:last, None] == self.of_text).to(like.dtype)
        wanted = like.new_zeros(last - first, self.texts)
        wanted.diagonal(first).fill_(1.0)
        return wanted

    def totals(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of the matrix's rows (images,) and columns (texts,), without the matrix."""
        if self.matrix is not None:
            return self.matrix.sum(1, dtype=like.dtype), self.matrix.sum(0, dtype=like.dtype)
        if self.of_image is not None and self.of_text is not None:
            rows, columns = _count(self.of_image, self.of_text), _count(self.of_text, self.of_image)
            return rows.to(like.dtype), columns.to(like.dtype)
        return like.new_ones(self.images), like.new_ones(self.texts)

    @property
    def soft(self) -> bool:
        """Can a target be anything but 0 and 1?"""
        return self.matrix is not None and self.matrix.dtype != torch.bool


def _count(these: Tensor, among: Tensor) -> Tensor:
    """How often each of `these` stands among the others."""
    ordered = among.sort().values
    these = these.contiguous()
    return torch.searchsorted(ordered, these, right=True) - torch.searchsorted(ordered, these)


def sigmoid_loss(scores: Tensor, wanted: Tensor, *, soft: bool) -> Tensor:
    """Sum of log(1 + exp(-z s)), with z = 1 where `wanted` is 1 and -1 where it is 0, and the mean of both between."""
    if not soft:
        return -functional.logsigmoid((2.0 * wanted - 1.0) * scores).sum()
    return -(wanted * functional.logsigmoid(scores) + (1.0 - wanted) * functional.logsigmoid(-scores)).sum()


def clip_in_chunks(
    image: Tensor, text: Tensor, scale: Tensor, matches: Matches, *, label_smoothing: float, chunk_size: int
) -> Tensor:
    """`clip_loss` of unit embeddings, `chunk_size` images at a time."""
    of = (matches.of_image, matches.of_text, matches.matrix)
    return cast("Any", _CLIP).apply(image, text, scale, *of, label_smoothing, chunk_size)


def siglip_in_chunks(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    matches: Matches,
    *,
    label_smoothing: float,
    chunk_size: int,
) -> Tensor:
    """`siglip_loss` of unit embeddings, `chunk_size` images at a time."""
    of = (matches.of_image, matches.of_text, matches.matrix)
    return cast("Any", _SigLIP).apply(image, text, scale, bias, *of, label_smoothing, chunk_size)


class _Shares:
    """What each row and column counts in the two means, and how its targets share that."""

    def __init__(self, matches: Matches, label_smoothing: float, like: Tensor) -> None:
        self.matches, self.smoothing = matches, label_smoothing
        row_total, column_total = matches.totals(like)
        self.row, self.row_target = _share(row_total, label_smoothing)
        self.column, self.column_target = _share(column_total, label_smoothing)

    def taken_off(self, first: int, last: int) -> Tensor:
        """W: how much each score of these rows is wanted, (rows, texts)."""
        weight = self.row_target[first:last, None] + self.column_target
        wanted = self.matches.rows(first, last, weight).mul_(weight)
        if self.smoothing:
            wanted += self.smoothing / self.matches.texts * self.row[first:last, None]
            wanted += self.smoothing / self.matches.images * self.column
        return wanted


def _share(total: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    has_target = total > 0
    share = has_target.to(total.dtype) / (2 * has_target.sum().clamp(min=1))
    return share, share * (1.0 - label_smoothing) / torch.where(has_target, total, 1.0)


class _Side:
    """The rows, or the columns, of the scores: what their losses are made of, gathered chunk by chunk.

    The loss of a row is the small difference of two numbers as large as the scale, so its parts are kept apart and in
    float64 until the end; they are vectors.
    """

    def __init__(self, count: int, across: int, like: Tensor) -> None:
        self.across = across
        self.best = like.new_full((count,), -math.inf, dtype=torch.float64)
        self.total = torch.zeros_like(self.best)  # of exp(score - best)
        self.wanted = torch.zeros_like(self.best)  # scores of the targets
        self.all = torch.zeros_like(self.best)  # scores

    def add(self, where: slice, scores: Tensor, wanted: Tensor, dim: int) -> None:
        """Take in a chunk: sums of it along `dim` belong `where`."""
        larger = torch.maximum(self.best[where], scores.amax(dim))
        before = (self.best[where] - larger).exp()
        peak = larger.to(scores.dtype).unsqueeze(dim)
        self.total[where] = self.total[where] * before + (scores - peak).exp_().sum(dim)
        self.best[where] = larger
        self.wanted[where] += wanted.sum(dim)
        self.all[where] += scores.sum(dim)

    def log(self, dtype: torch.dtype) -> Tensor:
        """The log-normalisers."""
        return (self.best + self.total.log()).to(dtype)

    def loss(self, targets: Tensor, label_smoothing: float) -> Tensor:
        """Mean cross-entropy of those that have a target; `targets` is how many each has."""
        has_target = targets > 0
        wanted = self.wanted / torch.where(has_target, targets, 1.0) * (1.0 - label_smoothing)
        wanted = wanted + self.all * (label_smoothing / self.across)
        lost = (self.best - wanted + self.total.log()) * has_target
        return lost.sum() / has_target.sum().clamp(min=1)


class _CLIP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        image, text, scale, of_image, of_text, matrix, label_smoothing, chunk_size = given
        matches = Matches(image.shape[0], text.shape[0], of_image, of_text, matrix)
        rows, columns = _Side(image.shape[0], text.shape[0], image), _Side(text.shape[0], image.shape[0], image)
        for first, last in _chunks(image.shape[0], chunk_size):
            scores = (scale * image[first:last]) @ text.T
            wanted = matches.rows(first, last, scores).mul_(scores)
            rows.add(slice(first, last), scores, wanted, 1)
            columns.add(slice(None), scores, wanted, 0)
        ctx.save_for_backward(
            image, text, scale, rows.log(image.dtype), columns.log(image.dtype), of_image, of_text, matrix
        )
        ctx.options = (label_smoothing, chunk_size)
        of_rows, of_columns = matches.totals(image)
        loss = 0.5 * (rows.loss(of_rows, label_smoothing) + columns.loss(of_columns, label_smoothing))
        return loss.to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        (gradient,) = gradients
        image, text, scale, row_log, column_log, *of = ctx.saved_tensors
        label_smoothing, chunk_size = ctx.options
        shares = _Shares(Matches(image.shape[0], text.shape[0], *of), label_smoothing, image)
        of_embeddings = _Gradients(image, text, scale)
        for first, last in _chunks(image.shape[0], chunk_size):
            scores = (scale * image[first:last]) @ text.T
            slope = (scores - row_log[first:last, None]).exp_().mul_(shares.row[first:last, None])
            slope += scores.sub_(column_log).exp_().mul_(shares.column)
            of_embeddings.add(slope.sub_(shares.taken_off(first, last)), first, last)
        return (*of_embeddings.times(gradient), None, None, None, None, None)


class _SigLIP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        image, text, scale, bias, of_image, of_text, matrix, label_smoothing, chunk_size = given
        matches = Matches(image.shape[0], text.shape[0], of_image, of_text, matrix)
        soft = matches.soft or label_smoothing > 0.0
        loss, bias_gradient = image.new_zeros((), dtype=torch.float64), image.new_zeros(())
        of_embeddings = _Gradients(image, text, scale) if any(ctx.needs_input_grad) else None
        for first, last in _chunks(image.shape[0], chunk_size):
            scores = (scale * image[first:last]) @ text.T + bias
            wanted = matches.rows(first, last, scores)
            if label_smoothing:
                wanted = wanted.mul_(1.0 - label_smoothing).add_(label_smoothing / 2)
            loss += sigmoid_loss(scores, wanted, soft=soft)
            if of_embeddings is not None:
                slope = scores.sigmoid_().sub_(wanted)
                bias_gradient += slope.sum()
                of_embeddings.add(slope, first, last)
        if of_embeddings is not None:
            ctx.save_for_backward(*of_embeddings.times(1.0 / image.shape[0]), bias_gradient / image.shape[0])
        return (loss / image.shape[0]).to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        (gradient,) = gradients
        return (*(gradient * kept for kept in ctx.saved_tensors), None, None, None, None, None)


class _Gradients:
    """Sums up the gradients of unit embeddings and scale from those of scores = scale * image @ text.T."""

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor) -> None:
        self.image, self.text, self.scale = image, text, scale
        self.of_image, self.of_text = torch.empty_like(image), torch.zeros_like(text)

    def add(self, slope: Tensor, first: int, last: int) -> None:
        """Take in the gradients of these rows of scores."""
        self.of_image[first:last] = slope @ self.text
        self.of_text.addmm_(slope.T, self.image[first:last])

    def times(self, factor: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Of image, text and scale."""
        of_scale = (self.of_image * self.image).sum()
        return self.of_image * (factor * self.scale), self.of_text * (factor * self.scale), of_scale * factor


def _chunks(images: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, images, chunk_size):
        yield first, min(first + chunk_size, images)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # autograd differentiates backward itself: the normalisers it kept are constants there
        raise UnsupportedError(
            {"chunk_size": "the chunked loss has no gradient of its gradient"}, do="Leave chunk_size out for that."
        )
