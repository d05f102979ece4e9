"""One target asked case by case: what it passes, what it fails, and what it does not offer."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from dataclasses import replace

import torch

from regard._errors import UnsupportedError
from regard.trust.question import Question
from regard.trust.target import Target, why_refused
from regard.trust.verify import checks
from regard.trust.verify.answers import DetachedError, answer
from regard.trust.verify.case import Case
from regard.trust.verify.cases import PLAIN
from regard.trust.verify.checks import Finding
from regard.trust.verify.known_faults import TORCH
from regard.trust.verify.report import CaseResult, NotOffered, Worst
from regard.trust.verify.smallest_case import smallest_case

REDUCING_SECONDS = 8.0
"""How long all failures together may be made smaller; those that come later are told as they are."""
NEAR, DRAWS = 4.0, 8
"""A failure of less than so many limits is asked again, in so many draws altogether."""
GRADIENT_WORDS = ("derivative", "backward", "grad")


class _RefusedError(Exception):
    """The target does not offer what a case asks; the message is the reason."""


class Examiner:
    """Asks a target, and remembers what it does not offer."""

    def __init__(self, target: Target, *, seed: int) -> None:
        self._target = target
        self._seed = seed
        self._refused_dtypes: dict[torch.dtype, str] = {}
        self._no_gradients: str | None = None
        self._refused_gradients: dict[str, list[Case]] = {}
        self._refused: dict[str, list[Case]] = {}
        self._reducing = 0.0

    def probe(self, dtypes: Iterable[torch.dtype]) -> None:
        """Find out which dtypes are offered, and whether gradients are."""
        for dtype in dtypes:
            question = self._question(PLAIN, dtype)
            try:
                answer(self._target, question, gradient=None)
            except Exception as error:
                reason = why_refused(error, question)
                if reason is not None:
                    self._refused_dtypes[dtype] = reason
        offered = next((dtype for dtype in dtypes if dtype not in self._refused_dtypes), None)
        if offered is not None:
            self._no_gradients = self._why_no_gradients(self._question(PLAIN, offered))

    def _why_no_gradients(self, question: Question) -> str | None:
        try:
            answer(self._target, question)
        except Exception as error:
            return _gradient_refusal(error)
        return None

    def examine(self, case: Case, dtype: torch.dtype) -> CaseResult:
        """Ask one case in one dtype."""
        result = CaseResult(case.name, case.group, str(dtype).removeprefix("torch."), "passed", faults=case.faults)
        if self._no_gradients is not None:
            case = replace(case, gradient=None)
        try:
            case, findings = self._findings(case, dtype)
        except _RefusedError as refusal:
            return replace(result, status="not offered", told=(str(refusal),))
        result = replace(result, worst=_worst(findings, result))
        failed = [finding for finding in findings if finding.failed]
        if not failed:
            return result
        return replace(
            result,
            status="failed",
            told=tuple(map(str, failed)),
            lines=self._reproduction(case, dtype, failed[0]),
            known=TORCH.get(case.name) if self._target.name == "torch" else None,
        )

    def not_offered(self) -> tuple[NotOffered, ...]:
        """What was refused so far, one entry for each reason."""
        dtypes = {str(dtype).removeprefix("torch."): reason for dtype, reason in self._refused_dtypes.items()}
        found = [NotOffered(dtype, reason, ()) for dtype, reason in dtypes.items()]
        if self._no_gradients is not None:
            found.append(NotOffered("gradients", self._no_gradients, ()))
        for reason, cases in self._refused_gradients.items():
            found.append(NotOffered(f"gradients of {_listed(_names(cases))}", reason, _names(cases)))
        for reason, cases in self._refused.items():
            found.append(NotOffered(_in_common(cases), reason, _names(cases)))
        return tuple(found)

    # -------------------------------------------------------------------------------------------- one case

    def _seed_of(self, case: Case) -> int:
        return self._seed * 10_000 + zlib.crc32(case.name.encode()) % 10_000

    def _question(self, case: Case, dtype: torch.dtype) -> Question:
        return case.question(dtype, self._seed_of(case))

    def _findings(self, case: Case, dtype: torch.dtype) -> tuple[Case, list[Finding]]:
        """What was found, and the case as it was asked: without a gradient where only that is refused."""
        if dtype in self._refused_dtypes:
            raise _RefusedError(self._refused_dtypes[dtype])
        question = self._question(case, dtype)
        lacking = self._lacking(case, question)
        if lacking is not None:
            raise self._refusal(case, lacking)
        try:
            return case, self._asked(case, question)
        except Exception as error:
            reason = _gradient_refusal(error)
            if case.gradient is None or reason is None or isinstance(error, DetachedError):
                return case, self._refused_or_raised(case, question, error)
        forward = replace(case, gradient=None)
        try:
            findings = self._asked(forward, question)
        except Exception as error:
            return forward, self._refused_or_raised(forward, question, error)
        self._refused_gradients.setdefault(reason, []).append(case)
        return forward, findings

    def _refused_or_raised(self, case: Case, question: Question, error: Exception) -> list[Finding]:
        if isinstance(error, DetachedError):  # while other cases have gradients
            return [Finding("gradients", "no gradient", "; ".join(error.reasons.values()))]
        reason = why_refused(error, question, also=case.refusal_words)
        if reason is not None:
            raise self._refusal(case, reason) from error
        return [_raised(error)]

    def _refusal(self, case: Case, reason: str) -> _RefusedError:
        self._refused.setdefault(reason, []).append(case)
        return _RefusedError(reason)

    def _lacking(self, case: Case, question: Question) -> str | None:
        """Why the target cannot even be asked, or None."""
        missing = sorted(set(question.asked()) - self._target.offers)
        if missing:
            return f"it has no parameter for {' and '.join(missing)}"
        return "it gives no lse" if case.lse and self._target.call_with_lse is None else None

    def _asked(self, case: Case, question: Question) -> list[Finding]:
        """The findings; a failure that is near the limit is judged by several draws of the same problem."""
        findings = self._one_draw(case, question)
        if not any(finding.failed and 0.0 < finding.error < NEAR * finding.limit for finding in findings):
            return findings
        others = (case.question(question.dtype, self._seed_of(case) + number * 100) for number in range(1, DRAWS))
        return checks.pooled([findings, *(self._one_draw(case, other) for other in others)])

    def _one_draw(self, case: Case, question: Question) -> list[Finding]:
        if case.check == "same_bits":
            return checks.same_bits(self._target, question, gradient=case.gradient)
        if case.check == "drops":
            return checks.drops(self._target, question)
        if case.check == "refuses":
            return checks.refuses(self._target, question)
        return checks.right(self._target, question, lse=case.lse, gradient=case.gradient)

    # --------------------------------------------------------------------------------------------- failures

    def _reproduction(self, case: Case, dtype: torch.dtype, failure: Finding) -> tuple[str, ...]:
        """Lines that ask the smallest case that fails in the same way."""
        start, seed = time.monotonic(), self._seed_of(case)

        def fails(smaller: Case) -> bool:
            try:
                question = smaller.question(dtype, seed)
            except Exception:  # these sizes mean nothing here
                return False
            try:
                findings = self._asked(smaller, question)
            except Exception as error:
                findings = [_raised(error)]
            return any((each.what, each.kind) == (failure.what, failure.kind) for each in findings)

        smallest = smallest_case(case, fails, seconds=min(2.0, REDUCING_SECONDS - self._reducing))
        self._reducing += time.monotonic() - start
        before = () if self._target.code else ("# examined: the callable that was given to verify",)
        lines = smallest.lines(dtype, seed, self._target.code or "as_target(examined)")
        return (*before, *lines, f"# {self._printed(smallest, smallest.question(dtype, seed), failure)}")

    def _printed(self, case: Case, question: Question, failure: Finding) -> str:
        """What the lines print of the failure."""
        try:
            findings = self._one_draw(case, question)
        except Exception as error:
            findings = [_raised(error)]
        return str(next((finding for finding in findings if finding.what == failure.what), failure))


def _gradient_refusal(error: Exception) -> str | None:
    """The reason when an error refuses a gradient, or may."""
    if isinstance(error, UnsupportedError):
        return "; ".join(error.reasons.values())
    told = _told(error)
    refused = isinstance(error, RuntimeError) and any(word in told.lower() for word in GRADIENT_WORDS)
    return told if refused else None


def _raised(error: Exception) -> Finding:
    if isinstance(error, DetachedError):
        return Finding("gradients", "no gradient", "; ".join(error.reasons.values()))
    return Finding(type(error).__name__, "raised", _told(error))


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _worst(findings: list[Finding], result: CaseResult) -> Worst | None:
    sized = [finding for finding in findings if finding.ratio is not None]
    if not sized:
        return None
    worst = max(sized, key=lambda finding: (finding.ratio or 0.0) / finding.allowed)
    return Worst(worst.ratio or 0.0, worst.allowed, worst.what, result.name, result.dtype)


def _names(cases: list[Case]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(case.name for case in cases))


def _in_common(cases: list[Case]) -> str:
    """What the cases that were refused for one reason have in common: options, or their names."""
    asked = [{*case.options, *(["lse"] if case.lse else [])} for case in cases]
    shared = {name for name in asked[0] if all(name in each for each in asked)}
    return " and ".join(sorted(shared)) or _listed(_names(cases))


def _listed(names: tuple[str, ...]) -> str:
    """The first three names, and how many more there are."""
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return ", ".join([*names[:3], *more])
