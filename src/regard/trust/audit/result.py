"""What an audit found, for programs and for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regard.masks import Mask

if TYPE_CHECKING:
    from regard.trust.audit.describe_mask import Description
    from regard.trust.audit.examination import View
    from regard.trust.audit.findings import Finding


@dataclass(frozen=True, eq=False)
class Audit:
    """What a callable really does, and how it differs from what was declared.

    name: of the target.
    declared: what was declared, in words.
    findings: the differences; none when it does what was declared.
    warnings: what no declaration forbids and still may hurt (a NaN that leaks, a finite -infinity far away).
    limits: what was not examined, and why.
    mask: bool (batch, heads, q_len, kv_len), the pairs that attend at the main lengths.
    description: the mask in words, and as a value of `regard.masks` where it has a name.
    corner: "top-left" or "bottom-right", where a causal mask or a window stands with fewer queries than keys; None
        where there is none, or it was not seen.
    scales, softcaps: of each head; empty where scores were not examined.
    sink_logits: (heads,), or None when rows sum to one.
    bias: float64 (batch, heads, q_len, kv_len), what is added to the scores, each row less its mean.
    groups: the key/value head that each query head reads, or None when it is not one.
    dropped: the share of weights that is dropped, or None when the same call has the same answer twice.
    views: every setting that was looked at, with its own mask.
    ways: the audits of several ways to run the same thing, by name; empty for a single callable.
    """

    name: str
    declared: Mapping[str, str]
    findings: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    limits: tuple[str, ...]
    mask: Tensor
    description: Description
    corner: str | None
    scales: tuple[float, ...]
    softcaps: tuple[float | None, ...]
    sink_logits: Tensor | None
    bias: Tensor | None
    groups: tuple[int, ...] | None
    dropped: float | None
    views: tuple[View, ...]
    strict: bool = False
    ways: Mapping[str, Audit] = field(default_factory=dict[str, "Audit"])

    @property
    def passed(self) -> bool:
        """Whether nothing was found (with `strict`: and nothing warned of)."""
        return not self.findings and not (self.strict and self.warnings)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings."""
        return tuple(finding.code for finding in self.findings)

    @property
    def named_mask(self) -> Mask | None:
        """The recovered mask as a value of `regard.masks`, or None when every pair attends."""
        return self.description.mask

    @property
    def scale(self) -> float | tuple[float, ...] | None:
        """The factor of the dot products: one number where all heads agree, None where it was not recovered."""
        known = [scale for scale in self.scales if not math.isnan(scale)]
        if not known:
            return None
        alike = max(known) - min(known) <= 1e-3 * max(abs(scale) for scale in known)
        return sum(known) / len(known) if alike else self.scales

    @property
    def softcap(self) -> float | tuple[float | None, ...] | None:
        """The softcap: one number where all heads agree, None where there is none."""
        caps = [cap for cap in self.softcaps if cap is not None]
        if not caps:
            return None
        alike = len(caps) == len(self.softcaps) and max(caps) - min(caps) <= 1e-2 * max(caps)
        return sum(caps) / len(caps) if alike else self.softcaps

    @property
    def sinks(self) -> Tensor | None:
        """The logit of each head's sink, (heads,), or None when rows sum to one."""
        return self.sink_logits

    def facts(self) -> dict[str, Any]:
        """Everything that is no tensor of pairs, for JSON: NaN and infinity become None."""
        from regard.trust.audit.report import facts

        return facts(self)

    def json(self) -> str:
        """The facts as strict JSON."""
        return json.dumps(self.facts(), ensure_ascii=False, allow_nan=False, indent=2)

    def markdown(self) -> str:
        """A report in Markdown."""
        from regard.trust.audit.report import markdown

        return markdown(self)

    def __str__(self) -> str:
        """A report for a terminal: the findings, what was recovered, and the two masks side by side."""
        from regard.trust.audit.report import text

        return text(self)

    def draw(self, path: str | Path | None = None) -> object:
        """Draw the declared mask, the recovered one and their difference; write it to `path` (.png, .svg, .pdf).

        Returns the matplotlib figure. Raises DependencyError without matplotlib, DataError when `path` cannot be
        written.
        """
        from regard.trust.audit.picture import draw

        return draw(self, path)

    def shown(self) -> View:
        """The view to be drawn: the first whose mask differs, or the main one."""
        return next((view for view in self.views if _mask_differs(view)), self.views[0])


def _mask_differs(view: View) -> bool:
    return view.expected is not None and bool((view.expected != view.found.allowed).any())


def first_difference(view: View) -> tuple[int, int]:
    """The sample and head to be drawn: the first that differ from what is declared, else those with most to show."""
    if view.expected is not None:
        wrong = (view.expected != view.found.allowed).flatten(2).any(-1).nonzero()
        if wrong.numel():
            sample, head = (int(place) for place in wrong[0])
            return sample, head
    kept = view.found.allowed.flatten(2).sum(-1)
    fewest = kept.masked_fill(kept == 0, kept.max() + 1).flatten().argmin() if kept.numel() else kept.new_zeros(())
    return divmod(int(fewest), kept.shape[1]) if kept.numel() else (0, 0)
