"""`regard.verify`: what a report says of a target that is right, one that refuses, one that is absent."""

from __future__ import annotations

import json
import time

import pytest
import torch

import regard
from regard import ArgumentError
from regard.backends import _library
from regard.trust.verify import Report, verify
from regard.trust.verify.cases import PLAIN
from regard.trust.verify.entry import TABLE, schedule
from tests.trust.verify import planted

SECONDS = 20.0


@pytest.fixture(scope="module")
def reports():
    """One quick run of each backend, made when first asked for, with the seconds of processor it took."""
    made = {}

    def report(name):
        if name not in made:
            start = time.process_time()
            made[name] = verify(name), time.process_time() - start
        return made[name]

    return report


@pytest.mark.parametrize("backend", ["native", "sdpa", "flex", "eager"])
def test_every_backend_passes_a_quick_run(backend, reports):
    report, seconds = reports(backend)
    assert [(case.name, case.dtype, case.told) for case in report.failed] == []
    assert report.passed
    assert report.count("passed") > 80
    assert 0.0 < report.worst.ratio <= report.worst.allowed
    assert seconds < SECONDS
    assert {case.name for case in report.cases if case.group != "random"} == {case.name for case in TABLE}


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_these_refuse_nothing_but_a_gradient(backend, reports):
    report, _ = reports(backend)
    assert report.count("not offered") == 0
    assert all(each.what.startswith("gradients of inf-in") for each in report.not_offered)


def offered_not(report):
    return {each.what: each.reason for each in report.not_offered}


def test_sdpa_lists_what_it_does_not_offer(reports):
    told = offered_not(reports("sdpa")[0])
    assert told["softcap"] == "it has no softcap"
    assert told["sink"] == "it has no sink"
    assert "takes no seed" in told["dropout_p"]
    assert any("NaN or Inf" in reason for reason in told.values())


def test_flex_has_no_backward_on_cpu(reports):
    report, _ = reports("flex")
    assert offered_not(report)["gradients"].startswith("it has no backward on CPU")
    assert not any("gradient" in case.worst.what for case in report.cases if case.worst)


def test_what_is_not_offered_is_no_pass(reports):
    report, _ = reports("sdpa")
    refused = {case.name for case in report.cases if case.status == "not offered"}
    assert {"softcap", "sink", "dropout", "shaw", "nan-in-masked-key"} <= refused
    assert all(case.told and case.worst is None for case in report.cases if case.status == "not offered")
    assert set().union(*(each.cases for each in report.not_offered)) >= refused


# ------------------------------------------------------------------------------------------------ callables


def test_a_callable_that_refuses_dtypes_and_gradients():
    report = verify(planted.in_float32_only)
    told = offered_not(report)
    assert report.passed
    assert {"bfloat16", "float16", "float64", "gradients"} <= set(told)
    assert "expected dtype float32" in told["float64"]
    assert told["gradients"] == "its output is detached from what goes in"
    assert told["softcap"] == "it has no parameter for softcap"
    assert {case.dtype for case in report.cases if case.status == "passed"} == {"float32"}


def test_options_that_are_taken_and_dropped_fail():
    report = verify(planted.options_ignored)
    failed = {case.name for case in report.failed}
    assert {"causal", "padding", "bias", "scale-own", "softcap", "sink", "dropout", "alibi", "rope"} <= failed
    assert not failed & {"plain", "long", "grouped", "twice"}
    assert not report.passed


def test_a_causal_flag_with_another_corner():
    failed = {case.name for case in verify(planted.causal_from_the_end, only=CORNERS).failed}
    assert failed == {"causal-top-left", "causal-of-more-queries", "nan-in-key-after-causal"}


CORNERS = ("causal", "causal-top-left", "causal-bottom-right", "causal-of-more-queries", "nan-in-key-after-causal")


def test_sums_in_half_precision_are_found_where_there_are_many_keys():
    failed = {(case.name, case.dtype) for case in verify(planted.sums_in_bfloat16, only=("plain", "many-keys")).failed}
    assert failed == {("many-keys", "bfloat16")}


def test_a_crash_is_a_failure_by_its_name():
    report = verify(planted.raises_beyond_five_keys, only=("plain", "one-pair"))
    by_name = {case.name: case for case in report.cases}
    assert by_name["one-pair"].status == "passed"
    assert by_name["plain"].told == ("IndexError: index 5 is out of bounds",)


# --------------------------------------------------------------------------------------------------- reports


def test_the_same_seed_asks_the_same():
    one, again, other = (verify("eager", seed=seed, only=("plain", "pairs")).json() for seed in (3, 3, 4))
    assert one["cases"] == again["cases"]
    assert one["cases"] != other["cases"]
    assert (one["seed"], other["seed"]) == (3, 4)


def test_json_is_whole():
    report = verify(planted.softcap_ignored, only=("plain", "softcap", "sink"))
    facts = json.loads(report.to_json())
    assert facts == report.json()
    assert (facts["target"], facts["passed"], facts["mode"], facts["seed"]) == ("softcap_ignored", False, "quick", 0)
    assert facts["counts"] == {"passed": 4, "failed": 2, "not offered": 2}
    assert set(facts["environment"]) == {"regard", "torch", "python", "machine", "native", "threads"}
    softcap = next(case for case in facts["cases"] if case["case"] == "softcap")
    assert softcap["status"] == "failed"
    assert softcap["ratio"] > softcap["allowed"]
    assert (softcap["of"].split()[0], softcap["allowed"]) in {("output", 2.0), ("gradient", 3.0)}
    assert softcap["told"][0].startswith("output: error")
    assert softcap["reproduction"][0].startswith("import torch")
    assert facts["worst"]["case"] == "softcap"
    assert facts["not_offered"] == [
        {"what": "sink", "reason": "it has no parameter for sink", "cases": ["sink"]},
    ]


def test_markdown():
    report = verify(planted.softcap_ignored, only=("plain", "softcap", "sink"))
    told = report.markdown()
    assert told.startswith("## softcap_ignored: failed, 4 cases passed, 2 failed, 2 not offered\n")
    assert "| shapes | 4 | 0 | 0 |" in told
    assert "| options | 0 | 2 | 2 |" in told
    assert "**softcap, float32**: output: error" in told
    assert 'print(*right(as_target("tests.trust.verify.planted:softcap_ignored"), Question(' in told
    assert "- sink: it has no parameter for sink" in told
    assert "seed 0" in told


def test_a_library_that_is_absent_is_told(monkeypatch):
    monkeypatch.setattr(_library, "why_absent", lambda: "no compiler was there")
    report = verify("native")
    assert report.verdict == "native: absent (no compiler was there)"
    assert report.markdown() == "## native: absent (no compiler was there)\n"
    assert not report.passed
    assert report.json()["absent"] == "no compiler was there"
    assert report.worst is None


def test_progress_is_told():
    seen = []
    verify("eager", only=("plain",), progress=lambda *told: seen.append(told))
    assert seen == [("plain", number, 4) for number in range(4)]


@pytest.mark.parametrize(("how", "message"), [({"seed": -1}, "seed: expected 0 or more"), ({"only": ["x"]}, "got x")])
def test_what_cannot_be_asked(how, message):
    with pytest.raises(ArgumentError, match=message):
        verify("eager", **how)


def test_it_is_public():
    assert regard.verify is verify
    assert isinstance(regard.verify("eager", only=["plain"]), Report)


def test_a_full_run_asks_by_chance_too():
    names = ["random-1-0", "random-1-1", "pairs+softcap", "bigbird"]
    report = verify("native", quick=False, seed=1, only=names)
    assert [case.name for case in report.failed] == []
    assert {case.name for case in report.cases} == set(names)
    assert len(report.cases) == len([pair for pair in schedule(quick=False, seed=1) if pair[0].name in names])


def test_a_table_of_groups():
    rows = verify("eager", only=("plain", "causal")).groups()
    assert [row[:4] for row in rows] == [("shapes", "4", "0", "0"), ("masks", "2", "0", "0")]
    assert PLAIN.dtypes == (torch.float32, torch.bfloat16, torch.float16, torch.float64)
