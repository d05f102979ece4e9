"""From scores to weights: scale, softcap, bias and sink, recovered from the logarithm of the weights.

Within a row, log weight = score - log(sum), and the sum is the same for all its keys: so differences of log weights are
differences of scores. Zero queries leave the bias; small ones show the slope, which is the scale; large ones whether
the slope stays (a softcap bends it); and a row that sums to less than one has a sink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.trust.audit.recover import Probe, Recovered

Dots = Callable[[Tensor, Tensor], Tensor]
"""From query and key (batch, heads, length, head_dim) to the dot products, after whatever turns the vectors."""

SMALL, LARGE = 0.05, 30.0
"""Largest scores of the probe for the slope, and of the one for its bend; weights of e^-87 are gone in float32."""
ROUNDS = 4
"""How often the queries are made smaller before the slope is believed."""
CAPS = (0.05, 2e4)
"""Softcaps that are looked for: beyond, scores of LARGE bend by less than float32 shows."""


@dataclass(frozen=True)
class Slope:
    """How log weights follow the dot products.

    scale: of each head; NaN where no row of it has two keys to compare.
    error: of each scale, from the scatter of the points.
    strays: the largest distance of a point from the line, at scores up to SMALL.
    normalised: making queries smaller changes nothing: they are divided by their own length.
    """

    scale: tuple[float, ...]
    error: tuple[float, ...]
    strays: float
    normalised: bool


@dataclass(frozen=True)
class Bend:
    """What becomes of large scores.

    softcap: of each head, None where the line stays straight.
    strays: the largest distance of a point from the best curve, in units of the score.
    reach: the largest score that was met.
    """

    softcap: tuple[float | None, ...]
    strays: float
    reach: float


@dataclass(frozen=True, eq=False)
class Points:
    """Dot products and what they add to the log weights, over pairs that may attend; rows are centred."""

    dots: Tensor
    added: Tensor
    known: Tensor

    def of_head(self, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, kv_len) each, rows of all samples with at least two known keys."""
        parts = (tensor[:, head].flatten(0, 1) for tensor in (self.dots, self.added, self.known))
        dots, added, known = parts
        rows = known.sum(-1) > 1
        return dots[rows], added[rows], known[rows]


def points(probe: Probe, base: Recovered, dots: Dots, kv_head: Tensor, *, factor: float, draw: int = 0) -> Points:
    """Weights at random scores, of queries made `factor` times as large."""
    query, key = probe.normal(draw=draw)
    query = query * factor
    weights = probe.weights(query, key)
    known = base.allowed & (weights > 1e-30) & weights.isfinite()
    added = (weights.clamp(min=1e-300) / base.weights.clamp(min=1e-300)).log()
    met = dots(_exact(query), _exact(key)[:, kv_head])
    return Points(met, added.masked_fill(~known, 0.0), known)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float64)


def centred(numbers: Tensor, known: Tensor) -> Tensor:
    """Numbers less the mean of their row over the known ones; 0 elsewhere."""
    kept = numbers.masked_fill(~known, 0.0)
    mean = kept.sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
    return (kept - mean).masked_fill(~known, 0.0)


def slope(probe: Probe, base: Recovered, dots: Dots, kv_head: Tensor) -> Slope:
    """The scale of each head, measured where a softcap does not bend yet."""
    rough = _lines(points(probe, base, dots, kv_head, factor=1.0))
    largest = max((abs(scale) for scale, _, _ in rough if math.isfinite(scale)), default=math.nan)
    query, key = probe.normal()
    reach = largest * float(dots(_exact(query), _exact(key)[:, kv_head]).abs().max())
    if not reach > 1e-4:  # nothing to compare, or scores that do not hear of the query
        scales = tuple(scale if math.isnan(scale) else 0.0 for scale, _, _ in rough)
        return Slope(scales, tuple(0.0 for _ in rough), 0.0, normalised=False)
    lines, normalised = rough, False
    for _ in range(ROUNDS):  # a softcap flattens the rough line, so that "small" is not small yet
        before, factor = largest, SMALL / reach
        lines = _lines(points(probe, base, dots, kv_head, factor=factor))
        largest = max((abs(scale) for scale, _, _ in lines if math.isfinite(scale)), default=before)
        reach *= largest / before
        normalised = 0.5 < factor * largest / before < 2.0 and factor < 0.1
        if normalised or abs(largest - before) <= 1e-3 * before:
            break
    return Slope(
        scale=tuple(scale for scale, _, _ in lines),
        error=tuple(error for _, error, _ in lines),
        strays=max((strays for _, _, strays in lines), default=0.0),
        normalised=normalised,
    )


def _lines(found: Points) -> list[tuple[float, float, float]]:
    return [_line(found, head) for head in range(found.dots.shape[1])]


def _line(found: Points, head: int) -> tuple[float, float, float]:
    """Least squares through the rows of a head: slope, its standard error, the largest stray."""
    dots, added, known = found.of_head(head)
    across, up = centred(dots, known), centred(added, known)
    spread = float((across * across).sum())
    if spread == 0.0:
        return math.nan, math.nan, 0.0
    fitted = float((across * up).sum()) / spread
    left = up - fitted * across
    freedom = max(int(known.sum()) - known.shape[0] - 1, 1)
    error = math.sqrt(float((left * left).sum()) / freedom / spread)
    return fitted, error, float(left.abs().max())


def bend(probe: Probe, base: Recovered, dots: Dots, kv_head: Tensor, found: Slope) -> Bend:
    """Whether large scores follow the line of small ones, or softcap * tanh(score / softcap)."""
    finite = [abs(scale) for scale in found.scale if math.isfinite(scale) and scale != 0.0]
    if not finite:
        return Bend(tuple(None for _ in found.scale), 0.0, 0.0)
    query, key = probe.normal()
    reach = max(finite) * float(dots(_exact(query), _exact(key)[:, kv_head]).abs().max())
    largest = points(probe, base, dots, kv_head, factor=LARGE / reach)
    curves = [_curve(largest, head, scale) for head, scale in enumerate(found.scale)]
    return Bend(
        softcap=tuple(cap for cap, _ in curves), strays=max((strays for _, strays in curves), default=0.0), reach=LARGE
    )


STRAIGHT, BENT = 2e-4, 0.02
"""Parts of the reach: within the first, float32 weights stay on a straight line; beyond the second, no rounding and no
softcap explains where they are."""


def _curve(found: Points, head: int, scale: float) -> tuple[float | None, float]:
    """The softcap that explains the points best, or None when a line does; and the largest stray."""
    if not math.isfinite(scale) or scale == 0.0:
        return None, 0.0
    dots, added, known = found.of_head(head)
    scores, up = scale * dots, centred(added, known)

    def strays(cap: float) -> float:
        bent = scores if math.isinf(cap) else cap * torch.tanh(scores / cap)
        return float((up - centred(bent, known)).abs().max()) if up.numel() else 0.0

    straight = strays(math.inf)
    if straight <= STRAIGHT * LARGE:
        return None, straight
    cap = _least(strays)
    # Rounding strays on both sides of a line: a curve explains it no better.
    return (cap, strays(cap)) if strays(cap) < straight / 4 else (None, straight)


def _least(function: Callable[[float], float]) -> float:
    """The argument in CAPS at which a function with one valley is least, searched on a logarithmic scale."""
    low, high = (math.log(cap) for cap in CAPS)
    grid = [low + (high - low) * step / 120 for step in range(121)]
    best = min(range(len(grid)), key=lambda place: function(math.exp(grid[place])))
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, 120)]
    for _ in range(60):
        third = (right - left) / 3
        if function(math.exp(left + third)) <= function(math.exp(right - third)):
            right -= third
        else:
            left += third
    return math.exp((left + right) / 2)


def added_to_scores(base: Recovered) -> Tensor:
    """The bias: what log weights differ by at zero scores, each row less its mean; 0 where a pair may not attend."""
    known = base.allowed & (base.weights > 0.0)
    return centred(base.weights.clamp(min=1e-300).log(), known)


def sinks(base: Recovered, bias: Tensor) -> tuple[Tensor, float]:
    """The logit that takes each row's missing weight, (heads,), and how far rows disagree on it.

    bias: what is declared to be added, broadcastable to the weights: a constant in a row hides nothing but the sink.
    """
    known = base.allowed & (base.weights > 0.0)
    level = (base.weights.clamp(min=1e-300).log() - bias).masked_fill(~known, 0.0).sum(-1) / known.sum(-1).clamp(min=1)
    missing = 1.0 - base.row_sums
    rows = known.any(-1) & (missing > 1e-6)
    logits = (missing.clamp(min=1e-300).log() - level).masked_fill(~rows, 0.0)
    counts = rows.sum((0, 2))
    mean = logits.sum((0, 2)) / counts.clamp(min=1)
    spread = (logits - mean[None, :, None]).abs().masked_fill(~rows, 0.0)
    return torch.where(counts > 0, mean, -math.inf), float(spread.max()) if spread.numel() else 0.0


def turned_by_position(probe: Probe, base: Recovered) -> float:
    """How much log weights differ over keys that are all the same vector: 0 unless positions turn or join vectors."""
    query, key = probe.normal(draw=6)
    same = key[:, :, :1].expand(key.shape).contiguous()
    weights = probe.weights(query, same)
    known = base.allowed & (weights > 1e-30) & weights.isfinite()
    added = (weights.clamp(min=1e-300) / base.weights.clamp(min=1e-300)).log().masked_fill(~known, 0.0)
    return float(centred(added, known).abs().max()) if bool(known.any()) else 0.0
