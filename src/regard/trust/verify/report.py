"""What `verify` found: for people as Markdown, for machines as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "not offered"]


@dataclass(frozen=True)
class Worst:
    """The largest error: in units of what plain eager torch makes in the same dtype, and how much is allowed."""

    ratio: float
    allowed: float
    what: str
    case: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.ratio:.3g} x of {self.allowed:g} x allowed ({self.what} of {self.case}, {self.dtype})"


@dataclass(frozen=True)
class CaseResult:
    """One case in one dtype.

    told: why it failed or is not offered, sentence by sentence; empty when it passed.
    worst: the finding that came closest to what is allowed, or passed it; None where nothing has a size.
    lines: Python that reproduces a failure, reduced to the smallest problem that fails alike.
    known: what is known of this failure, where it is torch's own.
    """

    name: str
    group: str
    dtype: str
    status: Status
    told: tuple[str, ...] = ()
    worst: Worst | None = None
    lines: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    known: str | None = None

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "case": self.name,
            "group": self.group,
            "dtype": self.dtype,
            "status": self.status,
            "told": list(self.told),
            "ratio": None if self.worst is None else self.worst.ratio,
            "allowed": None if self.worst is None else self.worst.allowed,
            "of": None if self.worst is None else self.worst.what,
            "faults": list(self.faults),
            "known": self.known,
            "reproduction": list(self.lines),
        }


@dataclass(frozen=True)
class NotOffered:
    """Something that the target refuses by name, and the cases that were therefore not asked."""

    what: str
    reason: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What `regard.verify` found.

    target: its name.
    quick: whether only the quick cases were asked.
    seed: of every number that was drawn.
    environment: versions, threads, instruction set.
    cases: one result for each case and dtype.
    not_offered: what the target refuses.
    absent: why the target could not be asked at all, or None.
    seconds: how long it took.
    """

    target: str
    quick: bool
    seed: int
    environment: Mapping[str, str]
    cases: tuple[CaseResult, ...]
    not_offered: tuple[NotOffered, ...]
    absent: str | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing failed, and something was asked: of a target that is absent nothing is known."""
        return not self.failed and self.count("passed") > 0

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases that failed."""
        return tuple(case for case in self.cases if case.status == "failed")

    @property
    def worst(self) -> Worst | None:
        """The error that is the largest part of what is allowed, or None when nothing was measured."""
        found = [case.worst for case in self.cases if case.worst is not None]
        return max(found, key=lambda worst: worst.ratio / worst.allowed, default=None)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.absent is not None:
            return f"{self.target}: absent ({self.absent})"
        told = f"{self.target}: {'passed' if self.passed else 'failed'}, {self.count('passed')} cases passed"
        return f"{told}, {self.count('failed')} failed, {self.count('not offered')} not offered"

    def count(self, status: Status) -> int:
        """How many cases have this status."""
        return sum(case.status == status for case in self.cases)

    def json(self) -> dict[str, Any]:
        """All of it as what `json` writes."""
        worst = self.worst
        return {
            "target": self.target,
            "passed": self.passed,
            "absent": self.absent,
            "worst": None if worst is None else dict(vars(worst)),
            "mode": "quick" if self.quick else "full",
            "seed": self.seed,
            "seconds": round(self.seconds, 2),
            "counts": {
                "passed": self.count("passed"),
                "failed": self.count("failed"),
                "not offered": self.count("not offered"),
            },
            "environment": dict(self.environment),
            "not_offered": [
                {"what": each.what, "reason": each.reason, "cases": list(each.cases)} for each in self.not_offered
            ],
            "cases": [case.facts() for case in self.cases],
        }

    def to_json(self) -> str:
        """`json()` as text."""
        return json.dumps(self.json(), indent=2, ensure_ascii=False, allow_nan=False)

    def markdown(self) -> str:
        """For people: the verdict, a table of groups, what failed with the lines that reproduce it, what is refused."""
        told = [f"## {self.verdict}", ""]
        if self.absent is not None:
            return "\n".join(told)
        told += [f"- largest error: {self.worst}"] if self.worst is not None else []
        told += [f"- seed {self.seed}, {'quick' if self.quick else 'full'} run, {self.seconds:.1f} s"]
        told += [f"- {', '.join(f'{name} {value}' for name, value in self.environment.items())}", ""]
        told += ["| cases | passed | failed | not offered | largest error |", "|---|---|---|---|---|"]
        told += [f"| {' | '.join(row)} |" for row in self.groups()]
        for heading, lines in (("Failed", self._failures()), ("Not offered", self._refusals())):
            told += ["", f"### {heading}", "", *lines] if lines else []
        return "\n".join([*told, ""])

    def groups(self) -> list[tuple[str, str, str, str, str]]:
        """For each group: its name, how many passed, failed and are not offered, and its largest error."""
        rows: list[tuple[str, str, str, str, str]] = []
        for group in dict.fromkeys(case.group for case in self.cases):
            own = [case for case in self.cases if case.group == group]
            part = Report(self.target, self.quick, self.seed, {}, tuple(own), (), None, 0.0)
            passed, failed = str(part.count("passed")), str(part.count("failed"))
            largest = "" if part.worst is None else f"{part.worst.ratio:.2f} x of {part.worst.allowed:g} x"
            rows.append((group, passed, failed, str(part.count("not offered")), largest))
        return rows

    def _failures(self) -> list[str]:
        lines: list[str] = []
        for case in self.failed:
            lines += [f"**{case.name}, {case.dtype}**: {'; '.join(case.told)}"]
            lines += [f"Known: {case.known}"] if case.known else []
            lines += ["", "```python", *case.lines, "```", ""] if case.lines else [""]
        return lines

    def _refusals(self) -> list[str]:
        return [f"- {each.what}: {each.reason}" for each in self.not_offered]
