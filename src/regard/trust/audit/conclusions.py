"""From probes to an `Audit`: what is looked at, in which order, and which finding says it all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.trust.audit.compare_scores import NEAR, ScoreReading, compare_scores, read_scores
from regard.trust.audit.declared import unseen_parts
from regard.trust.audit.describe_mask import describe
from regard.trust.audit.examination import Examination, Setting, View
from regard.trust.audit.findings import Finding, merged
from regard.trust.audit.heads import HeadReading, neighbours_reached, read_heads
from regard.trust.audit.leaks import FAR, ORDINARY, Leaks, look_for_leaks
from regard.trust.audit.recover import REPEATS, Recovered, allowed_at_random, is_repeatable, strays_from_weights
from regard.trust.audit.result import Audit
from regard.trust.audit.scores import sinks

STRAY = 0.02
"""Relative distance of an output from weights @ value that no rounding explains, of bfloat16 inside neither."""


@dataclass(frozen=True, eq=False)
class Details:
    """What is looked at in the main setting only."""

    heads: HeadReading
    scores: ScoreReading
    leaks: Leaks
    findings: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def concluded(
    examination: Examination,
    lengths: Sequence[tuple[int, int]],
    dtypes: Sequence[torch.dtype],
    *,
    name: str,
    strict: bool,
) -> Audit:
    """Look at everything, and say what was found."""
    setting = Setting(*lengths[0], dtype=dtypes[0])
    main = examination.first_look(setting)
    dropped = _dropped(examination, setting)
    if dropped is not None:
        examination.repeats = REPEATS
        examination.views.clear()
        main = examination.first_look(setting)
    answer = None if dropped is not None else examination.answer(setting)
    _look_around(examination, main, lengths, dtypes)
    details = None if dropped is not None else _details(examination, main)
    findings = [finding for view in examination.views for finding in _told(view, main)]
    if dropped is not None:
        findings.append(_dropout_finding(dropped))
        examination.limits.append("scores, heads and leaks are not examined while weights are dropped")
    if answer is not None:
        findings += _changed_answer(examination, setting, answer)
    if details is not None:
        findings = _without_echoes([*findings, *details.findings])
        findings += [] if findings else _unexplained(examination)
    labels = [view.setting.label for view in examination.views if view.expected is not None and not view.setting.note]
    examination.limits += _unseen(examination, main)
    return _audit(examination, main, details, merged(findings, labels), dropped, name=name, strict=strict)


def _told(view: View, main: View) -> Iterable[Finding]:
    """One query cannot tell a window from a lost key: where more of them have named the fault, theirs is the name."""
    if view.setting.q_len > 1 or not main.findings:
        return view.findings
    named = {finding.code for finding in main.findings}
    return [finding for finding in view.findings if finding.code in named]


# ------------------------------------------------------------------------------------------- other settings


def _look_around(
    examination: Examination, main: View, lengths: Sequence[tuple[int, int]], dtypes: Sequence[torch.dtype]
) -> None:
    examination.look_at_other_mask(main)
    for q_len, kv_len in (*lengths[1:], *_for_the_corner(examination, lengths)):
        examination.look(Setting(q_len, kv_len, dtype=dtypes[0]))
    for dtype in dtypes[1:]:
        examination.look(replace(main.setting, dtype=dtype))
    examination.look(replace(main.setting, gradients=True))
    if examination.module is not None:
        other = replace(main.setting, gradients=True, training=not examination.module.training)
        examination.look(other if _repeats_itself(examination, other) else replace(other, repeats=REPEATS))


def _repeats_itself(examination: Examination, setting: Setting) -> bool:
    """Whether weights are not dropped there; where the target does not answer, `look` will say so."""
    try:
        return is_repeatable(examination.probe(setting))
    except Exception:
        return True


def _for_the_corner(examination: Examination, lengths: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fewer queries than keys, where the target needs no mask to be told to: what it does there is worth knowing."""
    main = lengths[0][1]
    pair = (max(1, main // 2 - 1), main)
    told = examination.declared.mask is not None and "mask" in examination.asked
    tied = examination.declared.bias is not None or examination.declared.position is not None
    return [] if told or tied or any(q_len != kv_len for q_len, kv_len in lengths) or main < 4 else [pair]


def _changed_answer(examination: Examination, setting: Setting, first: Tensor) -> list[Finding]:
    again = examination.answer(setting)
    change = float((again - first).abs().nan_to_num().max()) if again.numel() else 0.0
    if change <= 1e-4 and torch.equal(again.isnan(), first.isnan()):
        return []
    told = f"the same call differs by {change:.3g} after calls with other settings"
    return [Finding("answer_changes", told, {"change": change}, (setting.label,))]


def _dropped(examination: Examination, setting: Setting) -> float | None:
    """The share of weights that are dropped, or None when the same call has the same answer twice."""
    probe = examination.probe(setting)
    if is_repeatable(probe):
        return None
    seen = torch.stack([probe.weights(*probe.zeros()) != 0.0 for _ in range(8)])
    ever = seen.any(0)
    return 1.0 - float(seen[:, ever].double().mean()) if bool(ever.any()) else 0.0


def _dropout_finding(share: float) -> Finding:
    told = f"the same call has another answer each time: about {100 * share:.0f}% of the weights are dropped"
    return Finding("dropout_active", told, {"share": share})


def _unexplained(examination: Examination) -> list[Finding]:
    found: list[Finding] = []
    for view in examination.views:
        if view.expected is not None and not view.setting.note and not view.setting.gradients:
            finding = examination.weights_of(view.setting)
            found += [] if finding is None else [finding]
    return found


def _unseen(examination: Examination, main: View) -> list[str]:
    q_len, kv_len = main.setting.q_len, main.setting.kv_len
    return [
        f"{part} has a side that forbids nothing at {q_len} x {kv_len}: pass longer lengths to see it"
        for part in unseen_parts(examination.declared.mask, q_len, kv_len)
    ]


# ---------------------------------------------------------------------------------------- the main setting


def _details(examination: Examination, main: View) -> Details:
    probe = examination.probe(main.setting)
    declared, base = examination.declared, _judged(main)
    reading = read_heads(probe)
    kv_head = torch.tensor(reading.groups or _declared_groups(examination))
    scores = _sinks_at_all_lengths(examination, read_scores(probe, base, declared, kv_head))
    scale = _scale_of(scores) or 1.0 / math.sqrt(probe.sizes.head_dim)
    capped = scores.bend is not None and any(cap is not None for cap in scores.bend.softcap)
    leaks = look_for_leaks(probe, base, scale, capped=capped)
    findings = [*_head_findings(examination, reading), *compare_scores(scores, base, declared, probe)]
    findings += [*_leak_findings(leaks), *_added_mask(examination, main, scores)]
    lost = base.allowed & ~allowed_at_random(probe, scale=scale)
    if bool(lost.any()):
        share = float(lost.sum() / base.allowed.sum())
        told = f"{100 * share:.0f}% of the pairs that attend at zero scores do not at random ones"
        findings.append(Finding("mask_by_content", told, {"share": share}))
    if (stray := strays_from_weights(probe, kv_head)) > STRAY:
        told = f"the output is off the weights times the values by {100 * stray:.2g}%"
        findings.append(Finding("not_weights_times_value", told, {"relative": stray}))
    if neighbours := neighbours_reached(probe):
        told = f"sample {', '.join(map(str, neighbours))} changes when only sample 0 does"
        findings.append(Finding("batch_mixed", told, {"samples": list(neighbours)}))
    return Details(reading, scores, leaks, tuple(findings), tuple(_leak_warnings(leaks)))


def _judged(view: View) -> Recovered:
    """What was let through in rows that may attend to something: what others do says nothing of scores."""
    if view.expected is None:
        return view.found
    return replace(view.found, allowed=view.found.allowed & view.expected.any(-1, keepdim=True))


def _declared_groups(examination: Examination) -> tuple[int, ...]:
    sizes = examination.sizes
    group = sizes.heads // sizes.kv_heads
    return tuple(head // group for head in range(sizes.heads))


def _head_findings(examination: Examination, reading: HeadReading) -> Iterator[Finding]:
    expected, kv_heads = _declared_groups(examination), examination.sizes.kv_heads
    evidence = {"keys": [list(of) for of in reading.keys], "values": [list(of) for of in reading.values]}
    if reading.reads(expected):
        return
    if reading.reads([head % kv_heads for head in range(len(expected))]):
        told = f"query head h reads key/value head h mod {kv_heads}, declared h // {len(expected) // kv_heads}"
        yield Finding("kv_heads_interleaved", told, evidence)
        return
    told = f"query heads read key/value heads {list(map(list, reading.values))}, declared {list(expected)}"
    if reading.keys != reading.values:
        told += f", and keys of {list(map(list, reading.keys))}"
    yield Finding("kv_heads_differ", told, evidence)


def _sinks_at_all_lengths(examination: Examination, scores: ScoreReading) -> ScoreReading:
    """A weight that is missing is a sink's only when every length gives the same one."""
    if scores.sinks is None or scores.row_sum[0] > 1.0 - NEAR:
        return scores
    for view in examination.views:
        if view.setting.dtype != torch.float32 or view.expected is None:
            continue
        added = examination.declared.added(view.setting.q_len, view.setting.kv_len)
        logits, spread = sinks(view.found, added)
        known = logits.isfinite() & scores.sinks.isfinite()
        if spread > 0.05 or bool(((logits - scores.sinks).abs() > 0.05)[known].any()):
            return replace(scores, sinks=None)
    return scores


def _scale_of(scores: ScoreReading) -> float | None:
    if scores.slope is None:
        return None
    known = [scale for scale in scores.slope.scale if math.isfinite(scale) and scale != 0.0]
    return known[0] if known else None


def _leak_findings(leaks: Leaks) -> Iterator[Finding]:
    if leaks.in_sum > 0.01:
        told = f"allowed keys lose {100 * min(leaks.in_sum, 1):.0f}% of their weight when a forbidden key scores higher"
        yield Finding("mask_after_softmax", told, {"change": leaks.in_sum})
    if leaks.constant is not None and -leaks.constant <= ORDINARY:
        yield _finite(leaks.constant)


def _leak_warnings(leaks: Leaks) -> Iterator[Finding]:
    if leaks.constant is not None and ORDINARY < -leaks.constant <= FAR:
        yield _finite(leaks.constant)
    parts = [name for name, rows in (("key", leaks.nan_of_key), ("value", leaks.nan_of_value)) if rows]
    if parts:
        rows = {"rows_of_key": leaks.nan_of_key, "rows_of_value": leaks.nan_of_value}
        told = f"a NaN in a forbidden {' or '.join(parts)} reaches {max(rows.values())} queries that may not see it"
        yield Finding("nan_leaks", told, rows)


def _finite(constant: float) -> Finding:
    told = f"forbidden keys are held back by about {constant:.3g} only: lower scores give way to them"
    return Finding("finite_mask", told, {"constant": constant})


def _added_mask(examination: Examination, main: View, scores: ScoreReading) -> Iterator[Finding]:
    """All pairs attend, and those that may have one number more than the others: the mask was added."""
    allowed = main.expected
    if allowed is None or bool(allowed.all()) or not bool(main.found.allowed.all()) or not bool(allowed.any()):
        return
    added = examination.declared.added(*allowed.shape[-2:])
    pattern = allowed.double() - allowed.double().mean(-1, keepdim=True)
    left = scores.bias - (added - added.mean(-1, keepdim=True))
    height = float((pattern * left).sum() / (pattern * pattern).sum().clamp(min=1e-30))
    if abs(height) > 0.01 and float((left - height * pattern).abs().max()) < 0.01:
        told = f"the mask is added to the scores as the number {height:.3g}, and forbids nothing"
        yield Finding("mask_added", told, {"added": height}, (main.setting.label,))


_ECHOES = {
    "mask_added": {
        "mask_ignored", "causal_missing", "window_left_ignored", "window_right_ignored", "padding_attended",
        "documents_cross", "mask_differs", "bias_imposed",
    },
    "mask_after_softmax": {"rows_do_not_sum_to_one", "sink_imposed", "sink_differs"},
    "batch_mixed": {"not_weights_times_value", "rows_do_not_sum_to_one", "sink_imposed", "scores_bent"},
    "not_weights_times_value": {"rows_do_not_sum_to_one", "sink_imposed", "scores_bent", "softcap_imposed"},
    "scores_ignore_query": {"mask_by_content"},
}  # fmt: skip
"""What a finding explains: the other ways in which it shows."""


def _without_echoes(findings: Iterable[Finding]) -> list[Finding]:
    kept = list(findings)
    explained = {echo for finding in kept for echo in _ECHOES.get(finding.code, ())}
    return [finding for finding in kept if finding.code not in explained]


# -------------------------------------------------------------------------------------------------- the answer


def _audit(
    examination: Examination,
    main: View,
    details: Details | None,
    findings: tuple[Finding, ...],
    dropped: float | None,
    *,
    name: str,
    strict: bool,
) -> Audit:
    scores = None if details is None else details.scores
    caps = () if scores is None or scores.bend is None else scores.bend.softcap
    return Audit(
        name=name,
        declared=examination.declared.told(),
        findings=findings,
        warnings=() if details is None else details.warnings,
        limits=tuple(dict.fromkeys(examination.limits)),
        mask=main.found.allowed,
        description=describe(main.found.allowed),
        corner=_corner(examination.views),
        scales=() if scores is None or scores.slope is None else scores.slope.scale,
        softcaps=caps,
        sink_logits=None if scores is None or scores.row_sum[0] > 1.0 - NEAR else scores.sinks,
        bias=None if scores is None else scores.bias,
        groups=None if details is None else details.heads.groups,
        dropped=dropped,
        views=tuple(examination.views),
        strict=strict,
    )


def _corner(views: Iterable[View]) -> str | None:
    """Where a causal mask or a window stands with fewer queries than keys, if that was seen."""
    for view in views:
        if view.setting.q_len in (1, view.setting.kv_len):
            continue
        words = describe(view.found.allowed).words
        for corner in ("top-left", "bottom-right"):
            if corner in words:
                return corner
    return None
