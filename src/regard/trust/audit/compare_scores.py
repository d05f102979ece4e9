"""The recovered way from scores to weights beside the declared one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.trust.audit.declared import Declared
from regard.trust.audit.findings import Finding
from regard.trust.audit.recover import Probe, Recovered
from regard.trust.audit.scores import (
    BENT,
    STRAIGHT,
    Bend,
    Slope,
    added_to_scores,
    bend,
    centred,
    sinks,
    slope,
    turned_by_position,
)

NEAR = 5e-3
"""Relative difference of two scales, softcaps or sinks that are called the same; biases: absolute."""


@dataclass(frozen=True, eq=False)
class ScoreReading:
    """How scores become weights.

    slope, bend: None where dot products alone do not make the scores, or where there was nothing to compare.
    bias: float64 (batch, heads, q_len, kv_len), each row less its mean, 0 where a pair may not attend.
    sinks: (heads,), -inf where rows sum to one; None where the missing weight is no sink.
    turned: how much the same key differs between places.
    """

    slope: Slope | None
    bend: Bend | None
    bias: Tensor
    sinks: Tensor | None
    row_sum: tuple[float, float]
    turned: float


def read_scores(probe: Probe, base: Recovered, declared: Declared, kv_head: Tensor) -> ScoreReading:
    """Recover all of it, at one setting."""
    turned = turned_by_position(probe, base)
    turns = declared.position is not None and "rotation" in declared.position.terms
    plain = not declared.joins_content and (turns or turned < 10 * NEAR)
    line = slope(probe, base, declared.dots, kv_head) if plain else None
    if line is not None and turns and line.strays > NEAR:
        line = None  # another rotation than declared: the points lie on no line
    sums = base.row_sums[base.allowed.any(-1)]
    logits, spread = sinks(base, declared.added(*base.allowed.shape[-2:]))
    return ScoreReading(
        slope=line,
        bend=None if line is None or line.normalised else bend(probe, base, declared.dots, kv_head, line),
        bias=added_to_scores(base),
        sinks=logits if spread < 10 * NEAR else None,
        row_sum=(float(sums.min()), float(sums.max())) if sums.numel() else (1.0, 1.0),
        turned=turned,
    )


def compare_scores(found: ScoreReading, base: Recovered, declared: Declared, probe: Probe) -> list[Finding]:
    """Every difference, named."""
    findings = [*_compare_positions(found, declared)]
    if found.slope is not None:
        findings += _compare_scale(found.slope, declared, probe)
    if found.bend is not None and found.slope is not None:
        findings += _compare_softcap(found.bend, declared)
    findings += _compare_bias(found, base, declared)
    return [*findings, *_compare_sinks(found, declared)]


# ---------------------------------------------------------------------------------------------- positions


def _compare_positions(found: ScoreReading, declared: Declared) -> Iterator[Finding]:
    turns = declared.position is not None and bool(declared.position.terms & {"rotation", "content"})
    if turns and found.turned < NEAR:
        yield Finding(
            "position_missing", f"the same key has the same weight in every place, declared {declared.position}"
        )
    elif not turns and found.turned > 10 * NEAR:
        told = f"the same key scores up to {found.turned:.3g} more in one place than in another, no position declared"
        yield Finding("position_imposed", told, {"difference": found.turned})


# -------------------------------------------------------------------------------------------------- scale


def _compare_scale(found: Slope, declared: Declared, probe: Probe) -> Iterator[Finding]:
    width = probe.sizes.head_dim
    expected = 1.0 / math.sqrt(width) if declared.scale is None else declared.scale
    known = [(scale, error) for scale, error in zip(found.scale, found.error, strict=True) if not math.isnan(scale)]
    if not known:
        return
    if expected and all(scale == 0.0 for scale, _ in known):
        yield Finding(
            "scores_ignore_query", "the weights are the same whatever query and key are", {"declared": expected}
        )
        return
    if found.normalised:
        told = "smaller queries have the same weights: query or key is divided by its own length"
        yield Finding("scores_normalised", told, {"scale": [scale for scale, _ in known]})
        return
    wrong = [scale for scale, error in known if abs(scale - expected) > max(NEAR * abs(expected), 5.0 * error)]
    if not wrong:
        return
    heads = "" if len(wrong) == len(known) else f" in {len(wrong)} of {len(known)} heads"
    evidence = {"found": wrong[0] if len(set(wrong)) == 1 else wrong, "declared": expected, "head_dim": width}
    for code, value, words in _known_scales(expected, width):
        if all(abs(scale - value) <= NEAR * abs(value) for scale in wrong):
            yield Finding(code, f"{words}{heads}: {wrong[0]:.5g}, declared {expected:.5g}", evidence)
            return
    yield Finding("scale_differs", f"scale {_range(wrong)}{heads}, declared {expected:.5g}", evidence)


def _known_scales(expected: float, width: int) -> tuple[tuple[str, float, str], ...]:
    return (
        ("scale_missing", 1.0, "scale missing"),
        ("scale_differs", 1.0 / math.sqrt(width), "scale 1 / sqrt(head_dim)"),  # what is taken where none is heard of
        ("scale_twice", expected * expected, "scale applied twice"),
        ("scale_differs", 1.0 / width, "scale 1 / head_dim"),
    )


def _range(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:.5g}" if abs(high - low) <= NEAR * abs(high) else f"{low:.5g} to {high:.5g}"


# ------------------------------------------------------------------------------------------------ softcap


def _compare_softcap(found: Bend, declared: Declared) -> Iterator[Finding]:
    caps = [cap for cap in found.softcap if cap is not None]
    expected = declared.softcap
    if found.strays > BENT * found.reach:
        told = f"scores up to {found.reach:g} are off any softcap by {found.strays:.3g}"
        yield Finding("scores_bent", told, {"strays": found.strays, "reach": found.reach})
    elif expected is None and caps:
        yield Finding("softcap_imposed", f"softcap {_range(caps)}, declared none", {"found": caps})
    elif expected is not None and not caps:
        if _is_visible(expected, found.reach):
            yield Finding("softcap_missing", f"scores are not capped, declared {expected:g}", {"declared": expected})
    elif expected is not None and any(abs(cap - expected) > 4 * NEAR * expected for cap in caps):
        told = f"softcap {_range(caps)}, declared {expected:g}"
        yield Finding("softcap_differs", told, {"found": caps, "declared": expected})


def _is_visible(softcap: float, reach: float) -> bool:
    """Whether scores of `reach` would have shown this softcap."""
    return reach - softcap * math.tanh(reach / softcap) > 4 * STRAIGHT * reach


# ------------------------------------------------------------------------------------- bias, sinks and sums


def _compare_bias(found: ScoreReading, base: Recovered, declared: Declared) -> Iterator[Finding]:
    known = base.allowed & (base.weights > 0.0)
    wanted = declared.added(*known.shape[-2:]).expand(known.shape)
    expected = centred(wanted.masked_fill(wanted == -math.inf, 0.0), known)
    off = float((found.bias - expected).abs().max()) if known.numel() else 0.0
    if off <= 2 * NEAR:
        return
    size, declares = float(found.bias.abs().max()), bool((expected.abs() > NEAR).any())
    evidence = {"difference": off, "largest_found": size, "largest_declared": float(expected.abs().max())}
    if declares and size <= 2 * NEAR:
        yield Finding(
            "bias_missing", f"nothing is added to the scores, declared up to {expected.abs().max():.3g}", evidence
        )
    elif declares and float((found.bias + expected).abs().max()) <= 2 * NEAR:
        yield Finding("bias_differs", "what is declared to be added is taken away: the sign is wrong", evidence)
    elif declares:
        yield Finding("bias_differs", f"what is added differs by up to {off:.3g} from what is declared", evidence)
    else:
        told = describe_bias(found.bias, known)
        yield Finding("bias_imposed", f"{told} is added to the scores, declared: nothing", evidence)


def describe_bias(bias: Tensor, known: Tensor) -> str:
    """A name for what is added: a slope for each head as ALiBi has it, or its size."""
    q_len, kv_len = bias.shape[-2:]
    distance = (torch.arange(kv_len)[None] - torch.arange(q_len)[:, None]).double().expand(bias.shape)
    across = centred(distance, known)
    slopes = (across * bias).sum((0, 2, 3)) / (across * across).sum((0, 2, 3)).clamp(min=1e-30)
    if float((bias - slopes[None, :, None, None] * across).abs().max()) <= 2 * NEAR:
        return f"a slope of {', '.join(f'{float(slope):.3g}' for slope in slopes)} per token of distance (as ALiBi)"
    return f"something of up to {float(bias.max() - bias.min()):.3g} between keys of a row"


def _compare_sinks(found: ScoreReading, declared: Declared) -> Iterator[Finding]:
    low, high = found.row_sum
    evidence = {"row_sum": [low, high]}
    if found.sinks is None or high > 1.0 + NEAR:
        yield Finding("rows_do_not_sum_to_one", f"the weights of a row sum to {low:.4g} .. {high:.4g}", evidence)
        return
    has = [float(sink) for sink in found.sinks]
    if declared.sink is None:
        if low < 1.0 - NEAR:
            told = (
                f"rows sum to {low:.4g} .. {high:.4g}, as with a sink of {_range([sink for sink in has if sink > -60])}"
            )
            yield Finding("sink_imposed", told, {**evidence, "found": has})
        return
    expected = [float(sink) for sink in declared.sink.detach().double().cpu()]
    if low > 1.0 - NEAR and max(expected) > -4.0:
        yield Finding("sink_missing", f"rows sum to one, declared a sink of {_range(expected)}", {"declared": expected})
    elif any(abs(sink - want) > 4 * NEAR for sink, want in zip(has, expected, strict=True) if want > -8.0):
        told = f"sinks {_listed(has)}, declared {_listed(expected)}"
        yield Finding("sink_differs", told, {"found": has, "declared": expected})


def _listed(numbers: Sequence[float]) -> str:
    shown = ", ".join(f"{number:.3g}" for number in numbers[:4])
    return shown + (" ..." if len(numbers) > 4 else "")
