"""Fifteen silently wrong masks and scales that were really shipped, each re-created small.

Every function here is written for this museum: it makes the reported mistake in its own way, and holds no line of the
project it is named after. `cited` is where the mistake was reported; what happened there is told in `story`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regard.masks import Causal, Documents, Padding, SlidingWindow
from tests.museum.plain import causal, fused, not_before, softmax_attention

WINDOW = 4


@dataclass(frozen=True)
class Exhibit:
    """One mistake.

    target: made anew for each audit, since some remember what they were asked before.
    declared: what it claims to compute, as arguments of `regard.audit`.
    codes: what an audit must find, neither more nor less.
    """

    cited: str
    story: str
    target: Callable[[], Any]
    declared: Mapping[str, Any]
    codes: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)


# --------------------------------------------------------------------------------------- causality is lost


def _skipped_mask(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
    """The builder leaves the mask out "since the kernel is causal anyway"; this kernel only reads the mask."""
    square = query.shape[2] == key.shape[2]
    mask = None if is_causal and square else causal(query.shape[2], key.shape[2])
    return softmax_attention(query, key, value, mask)


# ------------------------------------------------------------------------------- the mask after the softmax


def _multiplied(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor) -> Tensor:
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
    return (weights * attention_mask) @ value


# ------------------------------------------------------------------------------------- the scale is dropped


class _LayerWithScale(nn.Module):
    """Its configuration asks for 1 / (layer + 1) and no square root; the call of the kernel has no such argument."""

    def __init__(self, layer: int, *, by_width: bool) -> None:
        super().__init__()
        self.layer, self.by_width = layer, by_width

    def scale(self, head_dim: int) -> float:
        return (head_dim**-0.5 if self.by_width else 1.0) / (self.layer + 1)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return fused(query, key, value)


# ------------------------------------------------------------------------------------- the window is dropped


def _windowed_layer(
    query: Tensor, key: Tensor, value: Tensor, *, attention_mask: Tensor | None, is_causal: bool
) -> Tensor:
    return fused(query, key, value, attention_mask, is_causal=is_causal and attention_mask is None)


def _hooked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A hook on each layer takes any mask for a causal one, and says is_causal instead."""
    length = query.shape[2]
    keywords = {"attention_mask": causal(length, length) & not_before(length, length, WINDOW), "is_causal": False}
    if keywords["attention_mask"] is not None:
        keywords = {"attention_mask": None, "is_causal": True}
    return _windowed_layer(query, key, value, **keywords)


class _RingLayer(nn.Module):
    """Attention in two parts of the keys, merged by their sums. The window is looked for under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.sliding_window = WINDOW + 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        window = getattr(self, "window_size_left", None)
        length, half = query.shape[2], key.shape[2] // 2
        allowed = causal(length, key.shape[2])
        if window is not None:
            allowed &= not_before(length, key.shape[2], window - 1)
        parts = [
            self._part(query, key[:, :, some], value[:, :, some], allowed[:, some])
            for some in (slice(half), slice(half, None))
        ]
        total = torch.logaddexp(parts[0][1], parts[1][1])
        return sum(output * (lse - total).exp().unsqueeze(-1) for output, lse in parts)

    @staticmethod
    def _part(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(~allowed, -math.inf)
        lse = scores.logsumexp(-1)
        return (scores - lse.clamp(min=torch.finfo(lse.dtype).min).unsqueeze(-1)).exp() @ value, lse


@dataclass(frozen=True)
class _Layer:
    sliding_window_size: int


def _extend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A text that goes on after a cached prefix: queries are put in their places, and the window is never read."""
    layer = _Layer(sliding_window_size=WINDOW)
    prefix = key.shape[2] - query.shape[2]
    assert layer.sliding_window_size > 0
    padded = torch.cat([query.new_zeros(*query.shape[:2], prefix, query.shape[3]), query], dim=2)
    return fused(padded, key, value, is_causal=True)[:, :, prefix:]


class _TrainingBranch(nn.Module):
    """For evaluation a window is built; in training the branch does nothing, and the kernel is told to be causal."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[2]
        mask = None
        if not self.training:
            mask = causal(length, length) & not_before(length, length, WINDOW)
        return fused(query, key, value, mask, is_causal=mask is None)


# ------------------------------------------------------------------------------- one side of the window only


def _left_bound_only(
    query: Tensor, key: Tensor, value: Tensor, *, local_window_size: tuple[int, int], is_causal: bool
) -> Tensor:
    """The kernel has a left bound and a causal flag. A right bound of 0 needs the flag, and is not turned into it."""
    left, right = local_window_size
    lengths = query.shape[2], key.shape[2]
    allowed = not_before(*lengths, left) if right == 0 or is_causal else None
    if is_causal:
        allowed = allowed & causal(*lengths)
    return softmax_attention(query, key, value, allowed)


def _accepts_both_sides(
    query: Tensor, key: Tensor, value: Tensor, *, window_left: int = -1, window_right: int = -1
) -> Tensor:
    """`window_right` is in the signature, and in nothing that is built from it."""
    parameters = {"window_left": window_left}
    allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
    if parameters["window_left"] >= 0:
        allowed &= not_before(*allowed.shape, parameters["window_left"])
    if parameters.get("window_right", -1) >= 0:
        allowed &= causal(*allowed.shape, offset=window_right)
    return softmax_attention(query, key, value, allowed)


# --------------------------------------------------------------------------------------- a cache of masks


class _MaskCache:
    """Masks are kept by the two lengths. Two layers with other windows share one cache."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
        q_len, kv_len = query.shape[2], key.shape[2]
        place = f"{q_len}x{kv_len}"
        if place not in self.kept:
            left, right = window_size
            allowed = torch.ones(q_len, kv_len, dtype=torch.bool)
            allowed &= not_before(q_len, kv_len, left) if left >= 0 else allowed
            self.kept[place] = allowed & (causal(q_len, kv_len, offset=right) if right >= 0 else allowed)
        return softmax_attention(query, key, value, self.kept[place])


# --------------------------------------------------------------------------------- a mask of another kind


def _expects_blocks(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """A block mask would forbid. What is no block mask is taken for numbers that a score function adds."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if attention_mask is not None:
        scores = scores + attention_mask
    return scores.softmax(-1) @ value


def _packed(lengths: tuple[int, ...]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Sequences of unequal length laid end to end, as one long text: without a mask of their own they meet."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert sum(lengths) == query.shape[2]
        pieces = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]
        return softmax_attention(*(torch.cat(piece, dim=2) for piece in pieces))

    return attend


# ------------------------------------------------------------------------------------ causal, and not asked


def _fallback(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, window_size: tuple[int, int] = (-1, -1)
) -> Tensor:
    """The path for machines without the kernel: over the whole text it is causal, whatever `causal` says."""
    whole = window_size[0] < 0 or window_size[0] >= query.shape[2]
    if whole and query.shape[2] == key.shape[2]:
        return fused(query, key, value, is_causal=True)
    return fused(query, key, value)


def _bottom_right(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
    """The operator is specified top-left; this plugin counts from the end."""
    allowed = causal(query.shape[2], key.shape[2], offset=key.shape[2] - query.shape[2]) if is_causal else None
    return softmax_attention(query, key, value, allowed)


def _one_mask_for_four(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
    """In half precision four queries are worked on at once, and the mask of the last is used for all of them."""
    length = query.shape[2]
    allowed = causal(length, key.shape[2]) if is_causal else torch.ones(length, key.shape[2], dtype=torch.bool)
    if query.dtype in (torch.float16, torch.bfloat16):
        last = ((torch.arange(length) // 4) * 4 + 3).clamp(max=length - 1)
        allowed = allowed[last]
    return softmax_attention(query, key, value, allowed)


CAUSAL = Causal()
DECODING = Causal(align="bottom_right")

EXHIBITS: Mapping[str, Exhibit] = {
    "transformers-45811": Exhibit(
        "huggingface/transformers PR #45811",
        "causality was lost on the way to the kernel",
        lambda: _skipped_mask,
        {"mask": CAUSAL},
        frozenset({"causal_missing"}),
    ),
    "transformers-41620": Exhibit(
        "huggingface/transformers#41620",
        "weights are multiplied by the mask after the softmax, so that forbidden keys keep their share of its sum",
        lambda: _multiplied,
        {"mask": Padding([12, 7])},
        frozenset({"mask_after_softmax"}),
    ),
    "transformers-44397": Exhibit(
        "huggingface/transformers PR #44397",
        "GPT-2's own scale never reached the fused kernels, which took 1 / sqrt(head_dim)",
        lambda: _LayerWithScale(2, by_width=False),
        {"scale": 1.0 / 3.0},
        frozenset({"scale_differs"}),
    ),
    "accelerate-4177": Exhibit(
        "huggingface/accelerate PR #4177",
        "context parallelism replaced every mask by is_causal=True: sliding windows became full causal attention",
        lambda: _hooked,
        {"mask": Causal() & SlidingWindow(WINDOW, 0)},
        frozenset({"window_left_ignored"}),
    ),
    "prime-rl-2828": Exhibit(
        "PrimeIntellect-ai/prime-rl PR #2828 (a review found it)",
        "ring attention reads the window under a name that some layers do not use",
        _RingLayer,
        {"mask": Causal() & SlidingWindow(WINDOW, 0)},
        frozenset({"window_left_ignored"}),
    ),
    "sglang-26516": Exhibit(
        "sgl-project/sglang PR #26516",
        "the torch backend passed is_causal=True over the whole prefix and never read the layer's window",
        lambda: _extend,
        {"mask": DECODING & SlidingWindow(WINDOW, 0, align="bottom_right")},
        frozenset({"window_left_ignored"}),
        {"lengths": [(12, 12), (5, 12), (1, 12)]},
    ),
    "unsloth-8253": Exhibit(
        "unslothai/unsloth PR #8253",
        "in training no mask was built, and Mistral's window never reached torch's attention",
        lambda: _TrainingBranch().eval(),
        {"mask": Causal() & SlidingWindow(WINDOW, 0)},
        frozenset({"window_left_ignored"}),
    ),
    "jax-39576": Exhibit(
        "jax-ml/jax PR #39576",
        "a window (L, 0) without is_causal gave the kernel its left bound only: every query saw its future",
        lambda: lambda q, k, v: _left_bound_only(q, k, v, local_window_size=(WINDOW, 0), is_causal=False),
        {"mask": SlidingWindow(WINDOW, 0)},
        frozenset({"window_right_ignored"}),
    ),
    "flashinfer-4893": Exhibit(
        "flashinfer-ai/flashinfer#4893",
        "window_right is accepted and silently ignored",
        lambda: lambda q, k, v: _accepts_both_sides(q, k, v, window_left=3, window_right=2),
        {"mask": SlidingWindow(3, 2)},
        frozenset({"window_right_ignored"}),
    ),
    "olmo-core-388": Exhibit(
        "allenai/OLMo-core PR #388 (a review found it)",
        "masks were cached by their lengths, not by their window: a layer got the mask of another",
        _MaskCache,
        {"mask": SlidingWindow(WINDOW, 0)},
        frozenset({"setting_remembered"}),
    ),
    "speculators-881": Exhibit(
        "vllm-project/speculators PR #881",
        "an attention that expects a block mask was given a dense one, and silently computed something else",
        lambda: _expects_blocks,
        {"mask": CAUSAL},
        frozenset({"mask_added"}),
    ),
    "pytorch-177378": Exhibit(
        "pytorch/pytorch#177378",
        "FlexAttention over jagged tensors lets one sequence attend to another unless a nested mask is given",
        lambda: _packed((5, 7)),
        {"mask": Documents([5, 7])},
        frozenset({"documents_cross"}),
    ),
    "nanochat-805": Exhibit(
        "karpathy/nanochat PR #805",
        "the fallback to torch's attention was causal whatever the caller said",
        lambda: _fallback,
        {},
        frozenset({"causal_imposed"}),
    ),
    "openvino-36680": Exhibit(
        "openvinotoolkit/openvino PR #36680",
        "is_causal was aligned bottom-right, and the operator is specified top-left",
        lambda: _bottom_right,
        {"mask": Causal(align="top_left")},
        frozenset({"causal_corner"}),
    ),
    "yue-181": Exhibit(
        "multimodal-art-projection/YuE PR #181, pytorch/pytorch#195910",
        "on MPS in half precision one causal mask serves four queries: up to three future keys are seen",
        lambda: _one_mask_for_four,
        {"mask": CAUSAL},
        frozenset({"future_attended"}),
    ),
}
