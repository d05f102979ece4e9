"""Every sentence that an x-ray can show of a backend has its Chinese."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import regard
from regard.backends import flex
from regard.masks import Causal, Padding
from regard.xray.chinese import in_chinese

QUERY = torch.randn(2, 2, 6, 4)
BIAS = torch.zeros(6, 6).requires_grad_()
# What observe() finds in models: masks, biases, softcaps, sinks, values of another width, gradients, NaN.
PROBLEMS: dict[str, tuple[torch.Tensor, dict[str, Any]]] = {
    "plain": (QUERY, {}),
    "causal": (QUERY, {"mask": Causal()}),
    "padding": (QUERY, {"mask": Padding([6, 3])}),
    "softcap": (QUERY, {"softcap": 3.0}),
    "sink": (QUERY, {"sink": torch.zeros(2)}),
    "dropout": (QUERY, {"dropout_p": 0.5}),
    "learned bias": (QUERY, {"bias": BIAS}),
    "wide": (torch.randn(2, 2, 6, 5), {}),
    "not finite": (QUERY * math.nan, {}),
    "empty": (QUERY[:, :, :0], {}),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("fused", [False, True])
def test_every_reason_has_its_chinese(name: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "COMPILE_FROM_SCORES", 1 if fused else 2**62)
    value, options = PROBLEMS[name]
    key = QUERY if value.shape[2] else value
    for choice in regard.dispatch(QUERY, key, value, **options).choices:
        chinese = in_chinese(choice.reason)
        missing = "its dropout takes no seed"  # dropout is off while an x-ray is taken
        assert chinese != choice.reason or choice.reason.startswith(missing), choice.reason


def test_a_sentence_that_is_not_known_stays_as_it_is() -> None:
    assert in_chinese("something new") == "something new"
