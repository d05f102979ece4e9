"""Several ways to run one thing, audited one by one and compared with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from regard.trust.audit.examination import View
from regard.trust.audit.findings import Finding
from regard.trust.audit.result import Audit

TOLERANCE = 1e-3
"""How far the weights of two ways may be apart."""


def together(name: str, ways: Mapping[str, Audit]) -> Audit:
    """One audit of all: every finding says in which ways it was seen, and one more says where the ways disagree."""
    findings: dict[str, Finding] = {}
    for way, audit in ways.items():
        for finding in audit.findings:
            seen = findings.get(finding.code)
            where = (way,) if seen is None else (*seen.where, way)
            findings[finding.code] = replace(finding if seen is None else seen, where=where)
    told = [
        replace(one, sentence=f"{one.sentence} (way: {', '.join(one.where)})") if len(one.where) < len(ways) else one
        for one in findings.values()
    ]
    worst = next((audit for audit in ways.values() if audit.findings), next(iter(ways.values())))
    disagree = _disagreement(ways)
    return replace(
        worst,
        name=name,
        findings=(*([] if disagree is None else [disagree]), *told),
        warnings=tuple({warning.code: warning for audit in ways.values() for warning in audit.warnings}.values()),
        limits=tuple(f"{way}: {limit}" for way, audit in ways.items() for limit in audit.limits),
        ways=dict(ways),
    )


def _disagreement(ways: Mapping[str, Audit]) -> Finding | None:
    views = {name: audit.views[0] for name, audit in ways.items()}
    first = next(iter(views.values()))
    if all(_alike(first, view) for view in views.values()):
        return None
    behaviours = {name: _behaviour(view) for name, view in views.items()}
    told = "; ".join(f"{name}: {words}" for name, words in behaviours.items())
    return Finding("ways_differ", told, {"ways": behaviours}, tuple(views))


def _alike(one: View, other: View) -> bool:
    if not torch.equal(one.found.unknown, other.found.unknown):
        return False
    difference = (one.found.weights - other.found.weights).abs().nan_to_num(0.0)
    return not difference.numel() or float(difference.max()) <= TOLERANCE


def _behaviour(view: View) -> str:
    """What a way does with queries that may attend to nothing, where there are any, and with the others."""
    from regard.trust.audit.describe_mask import describe

    if view.expected is None or bool(view.expected.any(-1).all()):
        return describe(view.found.allowed).words
    empty = ~view.expected.any(-1)
    if bool(view.found.unknown[empty].all()):
        return "NaN where nothing may be attended to"
    if bool(view.found.allowed[empty].any()):
        share = float(view.found.allowed[empty].float().mean())
        return f"attends to {100 * share:.0f}% of the keys where nothing may be attended to"
    return "0 where nothing may be attended to"
