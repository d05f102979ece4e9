"""What torch and transformers themselves do today, as an audit sees it. Fails when upstream changes."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import regard
from regard.masks import Causal, Padding, SlidingWindow

QUICK = {"lengths": [(12, 12)], "dtypes": [torch.float32]}


@pytest.mark.upstream
def test_multihead_attention_has_three_ways_with_a_sample_that_is_all_padding():
    found = regard.audit(nn.MultiheadAttention(64, 4), mask=Padding([12, 0]), **QUICK)
    assert found.codes[0] == "ways_differ"
    ways = found.findings[0].evidence["ways"]
    assert ways == {
        "need_weights=True": "NaN where nothing may be attended to",
        "need_weights=False": "0 where nothing may be attended to",
        "fast path (eval, no gradient)": "NaN where nothing may be attended to",
    }
    assert "empty_row_nan" in found.codes


def test_multihead_attention_agrees_with_itself_where_every_row_sees_a_key():
    found = regard.audit(nn.MultiheadAttention(64, 4), mask=Causal() & Padding([12, 7]), **QUICK)
    assert found.passed, found
    assert len(found.ways) == 3


def test_the_zero_that_multihead_attention_can_add_is_a_sink():
    found = regard.audit(nn.MultiheadAttention(64, 4, add_zero_attn=True), **QUICK)
    assert "sink_imposed" in found.codes
    torch.testing.assert_close(found.sinks, torch.zeros(4, dtype=torch.float64), atol=1e-3, rtol=0.0)


@contextlib.contextmanager
def registered(name: str, *, mask: bool):
    """torch's attention under a name of its own, with or without a function for its masks."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, sdpa_attention_forward)
    if mask:
        AttentionMaskInterface.register(name, sdpa_mask)
    try:
        yield f"huggingface:{name}"
    finally:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name, None)


@pytest.mark.upstream
def test_an_attention_registered_without_its_mask_function_ignores_padding_and_windows():
    pytest.importorskip("transformers")
    with registered("museum_without", mask=False) as target:
        assert regard.audit(target, mask=Padding([12, 7]), **QUICK).codes == ("padding_attended",)
        assert regard.audit(target, mask=Causal() & Padding([12, 7]), **QUICK).codes == ("padding_attended",)
        assert regard.audit(target, mask=Causal() & SlidingWindow(4, 0), **QUICK).codes == ("window_left_ignored",)
        assert regard.audit(target, mask=Causal(), **QUICK).passed


def test_registered_with_its_mask_function_it_does_not():
    pytest.importorskip("transformers")
    with registered("museum_with", mask=True) as target:
        assert regard.audit(target, mask=Padding([12, 7]), **QUICK).passed
        assert regard.audit(target, mask=Causal() & SlidingWindow(4, 0), **QUICK).passed


def test_a_name_that_nobody_registered_is_refused():
    pytest.importorskip("transformers")
    with pytest.raises(regard.ArgumentError, match=r"expected an attention that is registered in transformers: .*sdpa"):
        regard.audit("huggingface:nobody")


def test_what_transformers_makes_no_mask_for_is_refused():
    pytest.importorskip("transformers")
    with pytest.raises(regard.UnsupportedError, match="windows that are causal or reach both ways alike"):
        regard.audit("huggingface:sdpa", mask=SlidingWindow(3, 1), **QUICK)
