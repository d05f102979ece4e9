"""What torch's own attention fails: exactly what is known. Anything else is news from upstream, not a fault of ours."""

from __future__ import annotations

import pytest

from regard.trust.verify import examiner, verify
from regard.trust.verify.known_faults import TORCH

pytestmark = pytest.mark.upstream


@pytest.fixture(scope="module")
def report():
    """A quick run of torch."""
    before, examiner.REDUCING_SECONDS = examiner.REDUCING_SECONDS, 0.0
    yield verify("torch")
    examiner.REDUCING_SECONDS = before


def test_torch_fails_what_is_known_and_nothing_else(report):
    assert {case.name for case in report.failed} == set(TORCH)
    assert not report.passed


def test_a_known_fault_is_told_with_its_case(report):
    assert {case.name: case.known for case in report.failed} == dict(TORCH)
    assert all(case.known is None for case in report.cases if case.status != "failed")
    assert "\nKnown: a query or key full of NaN gives zeros on CPU" in report.markdown()


def test_what_torch_does_not_offer(report):
    told = {each.what: each.reason for each in report.not_offered}
    assert {"softcap", "sink", "position", "lse"} <= set(told)
    assert told["dropout_p and seed"] == "it has no parameter for seed"


def test_known_faults_belong_to_torch_alone():
    report = verify(lambda query, *_: query.nan_to_num() * 0, only=("nan-in-every-query",))
    assert [case.known for case in report.failed] == [None]
