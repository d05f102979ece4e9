"""An audit names all fifteen exhibits, each by its own code and no other, and raises no alarm on what is right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import regard
from regard.trust.audit import CODES
from tests.masks.mask_cases import any_case
from tests.museum.annex import ANNEX
from tests.museum.correct import CORRECT
from tests.museum.exhibits import EXHIBITS

SLOW = {"lengths": [(12, 12)], "dtypes": [torch.float32]}
"""FlexAttention without its compiler takes a tenth of a second a call."""


@pytest.mark.parametrize("name", EXHIBITS)
def test_every_exhibit_is_named(name):
    exhibit = EXHIBITS[name]
    found = regard.audit(exhibit.target(), **exhibit.declared, **exhibit.options)
    assert set(found.codes) == exhibit.codes, found
    assert not found.passed


@pytest.mark.parametrize("name", ANNEX)
def test_every_exhibit_of_the_annex_is_named(name):
    exhibit = ANNEX[name]
    found = regard.audit(exhibit.target(), **exhibit.declared, **exhibit.options)
    assert set(found.codes) == exhibit.codes, found


@pytest.mark.parametrize("name", CORRECT)
def test_what_is_right_raises_no_alarm(name):
    correct = CORRECT[name]
    slow = SLOW if "flex" in name.lower() else {}
    found = regard.audit(correct.target(), **correct.declared, **{**slow, **correct.options})
    assert found.passed, found


@settings(max_examples=10)
@given(any_case())
def test_no_mask_of_regards_own_raises_an_alarm(case):
    if case.q_len and case.kv_len:
        heads = case.mask.head_count or 3
        lengths = [(case.q_len, case.kv_len)]
        found = regard.audit("eager", mask=case.mask, lengths=lengths, heads=heads, dtypes=[torch.float32])
        assert found.passed, (case.mask, found)


def test_there_are_fifteen_with_fifteen_sources_and_many_that_are_right():
    assert len(EXHIBITS) == 15
    assert len({exhibit.cited for exhibit in EXHIBITS.values()}) == 15
    assert len(CORRECT) >= 20


def test_every_code_of_an_exhibit_is_explained():
    for exhibit in (*EXHIBITS.values(), *ANNEX.values()):
        assert exhibit.codes <= set(CODES)


def test_a_mistake_that_comes_in_training_only_says_so():
    exhibit = EXHIBITS["unsloth-8253"]
    (finding,) = regard.audit(exhibit.target(), **exhibit.declared).findings
    assert finding.where == ("12 x 12, float32, gradients wanted, training",)
    assert finding.sentence.endswith("(seen: 12 x 12, float32, gradients wanted, training)")


def test_a_mistake_in_half_precision_says_so():
    exhibit = EXHIBITS["yue-181"]
    (finding,) = regard.audit(exhibit.target(), **exhibit.declared).findings
    assert set(finding.where) == {"12 x 12, bfloat16", "12 x 12, float16"}
    assert "up to 3 keys ahead" in finding.sentence


def test_the_corner_is_named_as_found_and_as_declared():
    exhibit = EXHIBITS["openvino-36680"]
    found = regard.audit(exhibit.target(), **exhibit.declared)
    assert found.findings[0].sentence.startswith("causal corner bottom-right, declared top-left")
    assert found.corner == "bottom-right"


def test_a_wrong_sign_is_told():
    exhibit = ANNEX["a reward for distance"]
    (finding,) = regard.audit(exhibit.target(), **exhibit.declared).findings
    assert finding.sentence == "what is declared to be added is taken away: the sign is wrong"


def test_what_a_cache_of_masks_remembers_is_told():
    exhibit = EXHIBITS["olmo-core-388"]
    (finding,) = regard.audit(exhibit.target(), **exhibit.declared).findings
    assert "SlidingWindow(before=6, after=0) after SlidingWindow(before=4, after=0)" in finding.sentence
