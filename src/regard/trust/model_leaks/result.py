"""What an audit of a whole model found, for programs and for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from regard.trust.audit.findings import Finding

State = Literal["holds", "leaks", "not tested"]


@dataclass(frozen=True)
class Check:
    """One experiment in one way to compute the model.

    name: what would be wrong. way: who computed attention. told: what was seen, or why nothing can be.
    """

    name: str
    code: str
    way: str
    state: State
    told: str = ""


@dataclass(frozen=True)
class ModelAudit:
    """What reaches what in a model.

    name: of its class. kind: "encoder", "decoder", "encoder_decoder" or "vision". ways: who computed attention.
    findings: what leaks. warnings: what leaks and was never promised not to. checks: every experiment.
    """

    name: str
    kind: str
    ways: tuple[str, ...]
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[Finding, ...] = ()
    strict: bool = False

    @property
    def passed(self) -> bool:
        """Nothing leaks (with `strict`: nor is anything warned of), and something was tested."""
        tested = any(check.state != "not tested" for check in self.checks)
        return tested and not self.findings and not (self.strict and self.warnings)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings."""
        return tuple(finding.code for finding in self.findings)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "passed": self.passed,
            "ways": list(self.ways),
            "findings": [finding.facts() for finding in self.findings],
            "warnings": [warning.facts() for warning in self.warnings],
            "checks": [vars(check) for check in self.checks],
        }

    def json(self) -> str:
        """The facts as strict JSON."""
        return json.dumps(self.facts(), ensure_ascii=False, allow_nan=False, indent=2)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """A report for people: what leaks, then what was asked, in which ways, and what came of it."""
        yield f"{'passed' if self.passed else 'failed'}: {self.name} ({self.kind}), by {', '.join(self.ways)}"
        yield from (f"  {finding}" for finding in self.findings)
        yield from (f"  warning: {warning}" for warning in self.warnings)
        for name in dict.fromkeys(check.name for check in self.checks):
            same = [check for check in self.checks if check.name == name]
            for state, told in dict.fromkeys((check.state, check.told) for check in same):
                where = [check.way for check in same if (check.state, check.told) == (state, told)]
                by = "" if len(where) == len(self.ways) else f" ({', '.join(where)})"
                answer = {"holds": "no", "leaks": "YES", "not tested": "not tested"}[state]
                yield f"  {name}? {answer}{by}{f': {told}' if told and state != 'holds' else ''}"
