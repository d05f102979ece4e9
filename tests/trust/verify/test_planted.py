"""Copies of the backends with one bug each: `verify` fails, and names the right case."""

from __future__ import annotations

import pytest

from regard.backends import BACKENDS, Eager
from regard.trust.verify import examiner, verify
from tests.trust.verify.planted import BUGS, Planted, changed, right

PLANTED = [(name, backend) for name, (_, _, backends) in BUGS.items() for backend in backends]


@pytest.fixture(autouse=True)
def not_reduced(monkeypatch):
    monkeypatch.setattr(examiner, "REDUCING_SECONDS", 0.0)  # tests/trust/verify/test_reproduction.py reduces


@pytest.mark.parametrize(("name", "backend"), PLANTED)
def test_a_planted_bug_is_found(name, backend):
    bug, case, _ = BUGS[name]
    report = verify(Planted(backend, bug), only=(case,))
    failed = {result.name for result in report.failed}
    assert failed == {case}, [(result.name, result.dtype, result.status, result.told) for result in report.cases]
    assert not report.passed


@pytest.mark.parametrize("backend", [backend.name for backend in BACKENDS])
def test_a_copy_without_a_bug_passes_them(backend):
    asked = {case for _, case, backends in BUGS.values() if backend in backends}
    report = verify(Planted(backend, right), only=asked)
    assert [(case.name, case.dtype, case.told) for case in report.failed] == []
    assert report.count("not offered") == 0


def test_every_backend_has_bugs():
    assert {backend for _, backend in PLANTED} == {backend.name for backend in BACKENDS}
    assert all(sum(name == backend.name for _, name in PLANTED) >= 15 for backend in BACKENDS)


REFUSALS_TAKEN_AWAY = [
    ("sdpa", "softcap"),
    ("sdpa", "sink"),
    ("sdpa", "dropout"),
    ("sdpa", "transformer-xl"),
    ("flex", "sink"),
    ("flex", "dropout"),
    ("flex", "nan-in-masked-value"),
]


@pytest.mark.parametrize(("backend", "case"), REFUSALS_TAKEN_AWAY)
def test_a_backend_that_no_more_refuses_what_it_cannot_do_is_found(backend, case):
    report = verify(Planted(backend, right, refuses=False), only=(case,))
    assert {result.name for result in report.failed} == {case}


def test_a_bug_fails_its_own_cases_and_no_others():
    report = verify(Planted("eager", changed(mask=None)))
    failed = {case.name for case in report.failed}
    masked = {case.name for case in report.cases if case.group == "masks"}
    assert masked <= failed
    assert not failed & {case.name for case in report.cases if case.group in {"shapes", "options", "memory"}}


def test_the_bugs_are_no_part_of_the_backend():
    assert verify(Eager(), only=("causal", "softcap")).passed
