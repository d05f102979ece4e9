"""Four things to ask of a target about one question: is it right, does it repeat itself, does it drop, does it refuse.

Each check returns findings, one for each thing that was compared; a finding that fails says why. The places of NaN are
compared first, then infinities, then values: a comparison that passes when one side is NaN proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from regard.trust import budget
from regard.trust.question import Question
from regard.trust.target import Target
from regard.trust.verify.answers import Answer, Expected, Incoming, answer, expected

Kind = Literal[
    "within", "error", "nan", "infinity", "shape", "dtype", "no gradient", "bits", "dropout", "no error", "raised"
]


@dataclass(frozen=True)
class Finding:
    """One comparison.

    what: "output", "lse", "gradient of key" ...
    kind: "within" when it passes, or how it fails.
    ratio: the error in units of plain torch's in the same dtype; None where it is no matter of size.
    allowed: the largest ratio that passes.
    error, limit: the error itself, and the largest one that passes.
    """

    what: str
    kind: Kind
    told: str
    ratio: float | None = None
    allowed: float = budget.FORWARD_FACTOR
    error: float = 0.0
    limit: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it fails."""
        return self.kind != "within"

    def __str__(self) -> str:
        return f"{self.what}: {self.told}"


def right(
    target: Target,
    question: Question,
    *,
    lse: bool = False,
    gradient: Incoming | None = "random",
    known: Expected | None = None,
) -> list[Finding]:
    """Output, lse and gradients against the float64 truth, by the budget; `known` saves computing what is expected."""
    found = answer(target, question, lse=lse, gradient=gradient)
    known = expected(question, lse=lse, gradient=gradient) if known is None else known
    plain, truth = known.plain, known.truth
    limit = budget.forward(plain.output, truth.output)
    findings = [_compared(Finding("output", "within", ""), found.output, truth.output, limit, question.dtype)]
    if found.lse is not None and plain.lse is not None and truth.lse is not None:
        limit = budget.forward(plain.lse.to(torch.float32), truth.lse)
        findings.append(_compared(Finding("lse", "within", ""), found.lse, truth.lse, limit, torch.float32))
    return findings + _compared_gradients(found, plain, truth)


def _compared_gradients(found: Answer, plain: Answer, truth: Answer) -> list[Finding]:
    findings: list[Finding] = []
    for name, wanted in truth.gradients.items():
        gradient, what = found.gradients.get(name), f"gradient of {name}"
        if gradient is None and bool((wanted != 0).any()):
            findings.append(Finding(what, "no gradient", "none flows to it", allowed=budget.GRADIENT_FACTOR))
        elif gradient is not None:
            limit = budget.gradient(name, plain.gradients, truth.gradients)
            passing = Finding(what, "within", "", allowed=budget.GRADIENT_FACTOR)
            findings.append(_compared(passing, gradient, wanted, limit, plain.gradients[name].dtype))
    return findings


def _compared(finding: Finding, actual: Tensor, wanted: Tensor, limit: float, dtype: torch.dtype) -> Finding:
    """The finding with what the comparison tells."""
    if actual.shape != wanted.shape:
        told = f"shape {tuple(actual.shape)}, expected {tuple(wanted.shape)}"
        return replace(finding, kind="shape", told=told)
    if actual.dtype != dtype:
        return replace(finding, kind="dtype", told=f"{actual.dtype}, expected {dtype}")
    special = _special_places(actual, wanted)
    if special is not None:
        return replace(finding, kind="nan" if special.startswith("NaN") else "infinity", told=special)
    return _sized(finding, _largest_difference(actual, wanted), limit)


def _sized(finding: Finding, error: float, limit: float) -> Finding:
    ratio = budget.ratio(error, limit, finding.allowed)
    told = f"error {error:.3g}, {ratio:.3g} x plain torch's, {finding.allowed:g} x allowed"
    kind = "within" if ratio <= finding.allowed else "error"
    return replace(finding, kind=kind, told=told, ratio=ratio, error=error, limit=limit)


def pooled(draws: Sequence[list[Finding]]) -> list[Finding]:
    """Findings about the same problem with other numbers, as one: the largest error against the largest limit.

    Both sides of the rule are maxima of rounding errors. Over the few numbers of a small problem plain torch's may be
    small by luck, and a right answer then looks wrong in one draw of some hundreds.
    """
    found: list[Finding] = []
    for finding in draws[0]:
        alike = [each for draw in draws for each in draw if each.what == finding.what]
        other = next((each for each in alike if each.kind not in {"within", "error"}), None)
        largest = max(each.error for each in alike), max(each.limit for each in alike)
        found.append(finding if finding.ratio is None else _sized(finding, *largest) if other is None else other)
    return found


def _special_places(actual: Tensor, wanted: Tensor) -> str | None:
    for name, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        have, want = test(actual), test(wanted)
        if not torch.equal(have, want):
            return f"{name} in {int(have.sum())} of {have.numel()} places, expected in {int(want.sum())}" + (
                "" if int(have.sum()) != int(want.sum()) else ", and elsewhere"
            )
    return None


def _largest_difference(actual: Tensor, wanted: Tensor) -> float:
    finite = wanted.isfinite()
    if not bool(finite.any()):
        return 0.0
    return float((actual.to(torch.float64) - wanted.to(torch.float64)).abs()[finite].max())


# ------------------------------------------------------------------------------------------- the other checks


def same_bits(
    target: Target, question: Question, *, runs: int = 3, gradient: Incoming | None = "random"
) -> list[Finding]:
    """The same bits in every run, of the output and of every gradient."""
    first = _by_name(answer(target, question, gradient=gradient))
    findings = {name: Finding(name, "within", f"the same bits in {runs} runs") for name in first}
    for _ in range(runs - 1):
        for name, again in _by_name(answer(target, question, gradient=gradient)).items():
            one = first[name]
            if not torch.equal(one.isnan(), again.isnan()) or not torch.equal(one.nan_to_num(), again.nan_to_num()):
                told = f"other bits in a second run, {_largest_difference(again, one):.3g} apart"
                findings[name] = Finding(name, "bits", told)
    return list(findings.values())


def _by_name(given: Answer) -> dict[str, Tensor]:
    gradients = {f"gradient of {name}": found for name, found in given.gradients.items()}
    return {"output": given.output, **gradients}


def drops(target: Target, question: Question, *, seed: int = 0) -> list[Finding]:
    """Dropout that takes no seed of ours: each weight is dropped or scaled up, as many as should be, anew each time.

    The value of the question is replaced by an identity, so that the output is the dropped weights themselves.
    """
    probability = float(question.options["dropout_p"])
    kv_len = question.key.shape[2]
    identity = torch.eye(kv_len, dtype=question.dtype).expand(*question.key.shape[:2], kv_len, kv_len).contiguous()
    asked = {name: value for name, value in question.options.items() if name != "seed"}
    question = replace(question, value=identity, options=asked)
    weights = replace(question, options={**asked, "dropout_p": 0.0}).truth().weights
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        first, second = (target.call(question.copied()).to(torch.float64) for _ in range(2))
    finally:
        torch.set_rng_state(state)
    if first.shape != weights.shape:
        return [Finding("output", "shape", f"shape {tuple(first.shape)}, expected {tuple(weights.shape)}")]
    kept = first * (1.0 - probability) / weights
    half_way = torch.finfo(question.dtype).eps * 16
    odd = int(((kept.abs() > half_way) & ((kept - 1.0).abs() > half_way)).sum())
    share = float((kept.abs() <= half_way).double().mean())
    noise = 5.0 * math.sqrt(probability * (1.0 - probability) / kept.numel())
    if odd:
        told = f"{odd} of {kept.numel()} weights are neither dropped nor scaled by 1 / (1 - dropout_p)"
    elif abs(share - probability) > noise:
        told = f"{share:.1%} of the weights are dropped, expected {probability:.0%}"
    elif torch.equal(first, second):
        told = "two calls drop the same weights"
    else:
        return [Finding("dropout", "within", f"{share:.1%} of the weights are dropped, the others scaled up")]
    return [Finding("dropout", "dropout", told)]


def refuses(target: Target, question: Question) -> list[Finding]:
    """A question that means nothing gets an error, or NaN everywhere, and no numbers."""
    try:
        output = target.call(question)
    except Exception as error:  # any kind will do: what counts is that somebody is told
        return [Finding("refusal", "within", type(error).__name__)]
    if bool(output.isnan().all()) and output.numel():
        return [Finding("refusal", "within", "NaN everywhere")]
    return [Finding("refusal", "no error", f"numbers of shape {tuple(output.shape)}, expected an error")]
