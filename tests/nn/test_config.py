"""AttentionConfig: the guide's table 3.3; DropoutSchedule: from 0.3 to 0.1."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from torch import nn

import regard
from regard.nn import AttentionConfig, DropoutSchedule, EncoderBlock, MultiHeadAttention, StridedAttention
from tests.nn.cases import told

# ------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(("size", "heads"), [("small", 4), ("default", 8), ("large", 16)])
def test_heads_by_the_size_of_the_model(size, heads):
    config = AttentionConfig(size=size)
    assert config.heads == heads
    module = config.build(256)
    assert (module.num_heads, module.head_dim, module.dropout_p) == (heads, 256 // heads, 0.1)
    assert math.isclose(module.scale, 1 / math.sqrt(256 / heads))


def test_scale_of_the_table():
    half = AttentionConfig(scale="1/sqrt(2d)").build(64)
    assert math.isclose(half.scale, 1 / math.sqrt(2 * 8))
    wide = AttentionConfig(scale="1/sqrt(2d)").build(64, head_dim=32)
    assert math.isclose(wide.scale, 1 / math.sqrt(2 * 32))


def test_scores_are_divided_by_the_root_and_not_by_the_width():
    """The guide's code in 1.1 says scores / d_k; its text and the paper say sqrt(d_k)."""
    torch.manual_seed(0)
    module, x = AttentionConfig().build(64).eval(), torch.randn(2, 5, 64)
    query, key, value = (
        part.view(2, 5, 8, 8).mT.mT.transpose(1, 2) for part in (x @ module.in_proj_weight.T).split(64, -1)
    )
    weights = (query @ key.mT / math.sqrt(8)).softmax(-1)
    expected = (weights @ value).transpose(1, 2).reshape(2, 5, 64) @ module.out_proj.weight.T
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_options_go_to_the_module_and_win():
    module = AttentionConfig(num_heads=2, dropout_p=0.2).build(24, causal=True, dropout_p=0.0, kv_heads=1)
    assert (module.num_heads, module.kv_heads, module.causal, module.dropout_p) == (2, 1, True, 0.0)


def test_is_a_value():
    assert AttentionConfig() == AttentionConfig(size="default")
    with pytest.raises(dataclasses.FrozenInstanceError):
        AttentionConfig().dropout_p = 0.3


@pytest.mark.parametrize(
    ("options", "embed_dim", "parts"),
    [
        ({}, 512, []),
        ({"size": "small"}, 128, []),
        ({"num_heads": 12}, 768, []),
        ({}, 500, ["8 heads do not divide embed_dim 500: take 10 heads, or a width of 504."]),
        ({"num_heads": 4}, 100, ["25 wide, an odd number", "25 wide, no multiple of 8: .* want 32"]),
        ({}, 64, ["only 8 wide"]),
        ({"num_heads": 32}, 1024, ["32 heads are not in the guide's table"]),
        ({"num_heads": 6}, 384, ["6 heads are not in"]),
        ({"dropout_p": 0.0}, 512, ["dropout_p 0 is outside the guide's 0.1 to 0.3"]),
        ({"dropout_p": 0.5}, 512, ["dropout_p 0.5 is outside"]),
        ({"scale": "1/sqrt(2d)"}, 512, ["softer"]),
    ],
    ids=told,
)
def test_advice(options, embed_dim, parts):
    config = AttentionConfig(**options)
    english, chinese = config.advice(embed_dim), config.advice(embed_dim, "zh")
    assert len(english) == len(chinese) == len(parts)
    for sentence, translated, part in zip(english, chinese, parts, strict=True):
        assert re.search(part, sentence)
        assert sentence.endswith(".")
        assert re.search(r"[\u4e00-\u9fff].*。$", translated)
        numbers = re.findall(r"\d+(?:\.\d+)?", translated)
        assert set(re.findall(r"\d+(?:\.\d+)?", sentence)) == set(numbers)


def test_what_advice_says_is_so():
    with pytest.raises(regard.ArgumentError, match="num_heads"):
        AttentionConfig().build(500)
    AttentionConfig(num_heads=10).build(500)
    AttentionConfig().build(504)
    padded = AttentionConfig(num_heads=4).build(100, pad_to=8)
    assert padded(torch.randn(1, 3, 100)).shape == (1, 3, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "size: expected one of 'small', 'default', 'large', got 'huge'"),
        ({"scale": "d"}, r"scale: expected one of '1/sqrt\(d\)', '1/sqrt\(2d\)', got 'd'"),
        ({"initialization": "normal"}, "initialization: expected one of 'xavier', got 'normal'"),
        ({"num_heads": 0}, "num_heads: expected a whole number of at least 1"),
        ({"dropout_p": 2}, "dropout_p: expected a number from 0 to 1"),
    ],
    ids=told,
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(regard.ArgumentError, match=message):
        AttentionConfig(**options)


def test_bad_questions_are_refused():
    with pytest.raises(regard.ArgumentError, match="language: expected 'en' or 'zh', got 'de'"):
        AttentionConfig().advice(512, "de")
    with pytest.raises(regard.ArgumentError, match="embed_dim"):
        AttentionConfig().advice(0)
    with pytest.raises(regard.ArgumentError, match="num_heads: expected a divisor of embed_dim 4"):
        AttentionConfig().build(4)


# ----------------------------------------------------------------------------------------------- schedule


def model():
    return nn.Sequential(
        EncoderBlock(8, 2, dropout_p=0.5), nn.Dropout(0.5), nn.MultiheadAttention(8, 2), MultiHeadAttention(8, 2)
    )


def rates(found):
    block, dropout, theirs, ours = found
    of_block = block.self_attention.dropout_p, block.around_attention.dropout.p, block.feed_forward.dropout.p
    return {*of_block, block.around_feed_forward.dropout.p, dropout.p, theirs.dropout, ours.dropout_p}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.3, 0.25, 0.2, 0.15, 0.1, 0.1]),
        ("cosine", [0.3, 0.2 + 0.1 / math.sqrt(2), 0.2, 0.2 - 0.1 / math.sqrt(2), 0.1, 0.1]),
    ],
)
def test_rates_fall(shape, expected):
    made = model()
    schedule = DropoutSchedule(made, steps=4, shape=shape)
    for place, rate in enumerate(expected):
        (found,) = rates(made)
        assert math.isclose(found, rate, abs_tol=1e-12)
        assert schedule.rate == found
        if place < len(expected) - 1:
            assert schedule.step() == schedule.rate


def test_the_rate_is_what_drops():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Dropout(0.0))
    schedule = DropoutSchedule(made, 0.8, 0.2, steps=1)
    ones = torch.ones(10000)
    assert math.isclose(float((made(ones) == 0).float().mean()), 0.8, abs_tol=0.02)
    schedule.step()
    assert math.isclose(float((made(ones) == 0).float().mean()), 0.2, abs_tol=0.02)


def test_a_rate_that_is_a_whole_number_follows():
    module = StridedAttention(8, 2, dropout_p=0)
    DropoutSchedule(module, 0.3, 0.1, steps=2)
    assert module.dropout_p == 0.3


def test_only_some_follow():
    made = model()
    schedule = DropoutSchedule(made, steps=2, only=lambda name, module: isinstance(module, nn.Dropout) and name != "1")
    assert made[0].around_attention.dropout.p == 0.3
    assert made[0].self_attention.dropout_p == made[1].p == 0.5
    schedule.step()
    assert made[0].around_attention.dropout.p == schedule.rate == 0.2


def test_goes_on_from_its_state():
    first = DropoutSchedule(model(), steps=4)
    first.step()
    made = model()
    second = DropoutSchedule(made, steps=4)
    second.load_state_dict(first.state_dict())
    assert rates(made) == {first.rate}
    assert second.step() == first.step()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": 1.2}, "start: expected a number from 0 to 1"),
        ({"end": -0.1}, "end: expected a number from 0 to 1"),
        ({"steps": 0}, "steps: expected a whole number of at least 1"),
        ({"shape": "step"}, "shape: expected 'linear' or 'cosine', got 'step'"),
        ({"model": nn.Linear(2, 2)}, "model: expected a model with dropout, got Linear, in which nothing follows"),
        ({"only": lambda _name, _module: False}, "in which nothing follows"),
    ],
    ids=told,
)
def test_schedule_refuses(given, message):
    with pytest.raises(regard.ArgumentError, match=message):
        DropoutSchedule(**{"model": model(), "steps": 4, **given})
