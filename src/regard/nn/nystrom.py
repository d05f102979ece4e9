"""Nystrom attention: softmax attention through a few landmarks. The guide's 3.1 (low rank).

Xiong et al. 2021, "Nystromformer: a Nystrom-based algorithm for approximating self-attention",
https://arxiv.org/abs/2102.03902, eqs. 13-16. With landmarks Q~ and K~, the means of l segments of the queries and keys,

    out = softmax(s Q K~^T)  pinv( softmax(s Q~ K~^T) )  softmax(s Q~ K^T) V,     s = 1 / sqrt(d / H)

The pseudo-inverse is that of the iteration of Razavi et al. 2014, of third order:
Z <- Z (13 - A Z (15 - A Z (7 - A Z))) / 4. The two outer factors are attention themselves, to the landmarks and by
them, and are computed as such: no n x l tensor is held. Time O(n l d + l^3 H) for n tokens, l landmarks, width d and H
heads; memory O(n d + l^2 H).

Not causal-valid: a landmark is a mean over a segment, the later tokens of it included, and the middle factor mixes all
landmarks (https://github.com/facebookresearch/xformers/issues/107). Padding-valid: segments are cut from the real
tokens alone, so a padded text gives what it gives by itself. Real tokens that do not divide into l segments make
segments that differ by one token; fewer tokens than landmarks are landmarks themselves.

The error is small where attention is smooth and may be large where it is sharp: A is then close to singular.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard._errors import ArgumentError
from regard.masks import Keys, Mask
from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._precision import in_full_precision, working_dtype
from regard.nn._projections import HeadProjections
from regard.nn._real_tokens import check_pair, real_tokens, refuse_causal, require_no_order

_MIXES = "a landmark is a mean over a segment, and a query would see the tokens of it that come later"


class NystromAttention(HeadProjections):
    """Softmax attention approximated through landmarks.

    Args:
        embed_dim: width of a token.
        num_heads: heads, a divisor of embed_dim.
        num_landmarks: segments whose means stand for the tokens.
        inverse_steps: of the iteration for the pseudo-inverse.
        conv_size: tokens that a learned depthwise convolution of the values covers, an odd number; its result is
            added, as the paper does. 0 for none.
        bias: have the four projections a bias?
        causal: refused; it is here to say why.
        backend: who computes the outer factors, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters beside those of `HeadProjections`: `conv.weight` (num_heads, 1, conv_size, 1) where there is a
    convolution. The iteration begins with each matrix's own norm, where the authors' code takes the largest of the
    batch, by which samples would depend on one another.

    Raises:
        ArgumentError: sizes below 1, heads that do not divide embed_dim, an even conv_size.
        UnsupportedError: causal.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Xiong et al. 2021, Nystromformer: a Nystrom-based algorithm for approximating self-attention",
        equation="softmax(s Q K~^T) pinv(softmax(s Q~ K~^T)) softmax(s Q~ K^T) V, K~ and Q~ means of l segments, "
        "s = 1 / sqrt(d / H), H heads",
        time="n l d + l^3 H + 4 n d^2",
        memory="n d + l^2 H",
        causal=False,
        padding=True,
        exact=False,
        note="Close to softmax attention while attention is smooth; where it is sharp the pseudo-inverse is "
        "ill-conditioned and the error large.",
    )

    conv: nn.Conv2d | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_landmarks: int = 64,
        inverse_steps: int = 6,
        conv_size: int = 0,
        bias: bool = True,
        causal: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if causal:
            refuse_causal(type(self).__name__, _MIXES)
        require_positive(num_landmarks=num_landmarks, inverse_steps=inverse_steps)
        _check_conv_size(conv_size)
        super().__init__(embed_dim, num_heads, bias=bias, backend=backend, device=device, dtype=dtype)
        self.num_landmarks, self.inverse_steps, self.conv_size = num_landmarks, inverse_steps, conv_size
        self.conv = None
        if conv_size:
            self.conv = nn.Conv2d(
                num_heads, num_heads, (conv_size, 1), padding=(conv_size // 2, 0), bias=False, groups=num_heads,
                device=device, dtype=dtype,
            )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Mask | Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, context_length, embed_dim), what is attended to; x when left out. With a convolution it
                has as many tokens as x.
            mask: which of the tokens attended to are real: Padding(lengths), or bool (batch, context_length). Without
                a context it holds for the queries' landmarks as well.

        Returns:
            (batch, length, embed_dim). Where no token is real, the output projection of 0.

        Raises:
            ShapeError, MaskError: tensors or masks that do not fit.
            UnsupportedError: a causal mask, or one of pairs.
            ArgumentError: a convolution, and a context of another length than x.
        """
        attended = check_pair(x, context, self.embed_dim)
        self._check_context(x, attended)
        require_no_order(type(self).__name__, mask, _MIXES)
        real = real_tokens(type(self).__name__, mask, attended)
        query, key, value = self.to_heads(x, context)
        if real is not None:  # what stands in the padding must not come through a mean or a convolution
            key, value = (tensor.masked_fill(~real[:, None, :, None], 0.0) for tensor in (key, value))
        output = self.mix(query, key, value, real=real, query_real=real if context is None else None)
        if self.conv is not None and value.shape[2]:  # torch has no convolution of nothing
            output = output + self.conv(value)
        return self.from_heads(output)

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        real: Tensor | None = None,
        query_real: Tensor | None = None,
    ) -> Tensor:
        """The mechanism without its projections.

        Args:
            query: (batch, heads, length, head_dim).
            key, value: (batch, heads, context_length, head_dim).
            real: bool (batch, context_length), the real keys; all unless given.
            query_real: bool (batch, length), the queries whose means are landmarks; all unless given.
        """
        with in_full_precision(query):
            query_marks, query_there = self._landmarks(query, query_real)
            key_marks, key_there = self._landmarks(key, real)
            inverse = self._inverse(_middle(query_marks, key_marks, query_there, key_there))
        summaries = attention(query_marks, key, value, mask=None if real is None else Keys(real), backend=self.backend)
        with in_full_precision(query):
            spread = (inverse @ summaries.to(inverse.dtype)).to(value.dtype)
        return attention(query, key_marks, spread, mask=_as_keys(key_there), backend=self.backend)

    def _landmarks(self, tokens: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Means of the segments, (batch, heads, num_landmarks, head_dim); which there are, (batch, landmarks)."""
        length = tokens.shape[2]
        if real is None and length and length % self.num_landmarks == 0:
            batch, heads, _, width = tokens.shape
            segments = tokens.reshape(batch, heads, self.num_landmarks, length // self.num_landmarks, width)
            return torch.mean(segments, 3), None
        share = _shares(tokens, real, self.num_landmarks)
        if real is not None:
            tokens = tokens.masked_fill(~real[:, None, :, None], 0.0)
        marks = share.unsqueeze(1) @ tokens.to(share.dtype)
        return marks.to(tokens.dtype), share.sum(-1).expand(tokens.shape[0], -1) > 0

    def _inverse(self, matrix: Tensor) -> Tensor:
        """The pseudo-inverse of (..., l, l) nonnegative matrices whose rows sum to 1 or 0, by iteration."""
        largest = matrix.sum(-2).amax(-1).clamp_min(torch.finfo(matrix.dtype).tiny)
        inverse = matrix.mT / largest[..., None, None]
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        for _ in range(self.inverse_steps):
            product = matrix @ inverse
            inner = 15 * identity - product @ (7 * identity - product)
            inverse = inverse @ (3.25 * identity - 0.25 * (product @ inner))
        return inverse

    def _check_context(self, x: Tensor, attended: Tensor) -> None:
        if self.conv is not None and attended.shape[1] != x.shape[1]:
            raise ArgumentError(
                "context length",
                expected=f"{x.shape[1]}, as x has, where there is a convolution",
                got=str(attended.shape[1]),
                do="Its result is added token by token: make the module with conv_size=0.",
            )

    def extra_repr(self) -> str:
        more = f", num_landmarks={self.num_landmarks}, inverse_steps={self.inverse_steps}"
        return super().extra_repr() + more + (f", conv_size={self.conv_size}" if self.conv_size else "")


def _check_conv_size(conv_size: int) -> None:
    if isinstance(conv_size, bool) or conv_size < 0 or (conv_size and conv_size % 2 == 0):
        raise ArgumentError(
            "conv_size",
            expected="an odd number, or 0 for no convolution",
            got=repr(conv_size),
            do="A token stands in the middle of what the convolution covers.",
        )


def _shares(tokens: Tensor, real: Tensor | None, landmarks: int) -> Tensor:
    """What each token adds to each landmark: (batch or 1, landmarks, length), rows that sum to 1, or 0 without tokens.

    The r-th of R real tokens belongs to segment floor(r l / R), or is a segment itself where there are at most l.
    """
    dtype, length = working_dtype(tokens), tokens.shape[2]
    if real is None:
        rank = torch.arange(length, device=tokens.device).unsqueeze(0)
        count = torch.full((1, 1), length, device=tokens.device)
    else:
        rank, count = real.cumsum(1) - 1, real.sum(1, keepdim=True)
    segment = torch.where(count > landmarks, rank * landmarks // count.clamp_min(1), rank)
    belongs = segment.unsqueeze(1) == torch.arange(landmarks, device=tokens.device).view(1, -1, 1)
    belongs = (belongs if real is None else belongs & real.unsqueeze(1)).to(dtype)
    return belongs / belongs.sum(-1, keepdim=True).clamp_min(1)


def _middle(query_marks: Tensor, key_marks: Tensor, query_there: Tensor | None, key_there: Tensor | None) -> Tensor:
    """softmax(s Q~ K~^T), 0 in rows and columns of landmarks that there are not."""
    working = working_dtype(query_marks)
    scores = (query_marks.to(working) * query_marks.shape[-1] ** -0.5) @ key_marks.to(working).mT
    if key_there is not None:
        scores = scores.masked_fill(~key_there[:, None, None, :], torch.finfo(working).min)
    weights = scores.softmax(-1)
    if key_there is not None:
        weights = weights.masked_fill(~key_there[:, None, None, :], 0.0)
    return weights if query_there is None else weights.masked_fill(~query_there[:, None, :, None], 0.0)


def _as_keys(there: Tensor | None) -> Mask | None:
    return None if there is None else Keys(there)
