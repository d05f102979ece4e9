"""The reference itself: against numbers worked out by hand, plain Python loops, and torch's own slow paths."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch.nn.attention import SDPBackend, sdpa_kernel

import regard
from regard import _dropout, reference
from regard.masks import Causal, Dense, GlobalTokens, Padding, SlidingWindow
from regard.positions import ALiBi, ContinuousBias, DynamicNTKScaling, RoPE, Shaw, T5Bias, TransformerXL
from tests.oracles import assert_same_special, assert_within
from tests.scalar_attention import scalar_attention

BATCH, HEADS, WIDTH = 2, 4, 6
INFINITY = math.inf


def normal(*sizes):
    return torch.randn(*sizes, dtype=torch.float64)


def problem(q_len=5, kv_len=5, *, kv_heads=HEADS, value_dim=WIDTH):
    return (
        normal(BATCH, HEADS, q_len, WIDTH),
        normal(BATCH, kv_heads, kv_len, WIDTH),
        normal(BATCH, kv_heads, kv_len, value_dim),
    )


def hand(*, query, key, value):
    return (torch.tensor(t, dtype=torch.float64).view(1, 1, len(t), -1) for t in (query, key, value))


# ------------------------------------------------------------------------------------- by hand


def test_two_keys_by_hand():
    # Scores sqrt(2) * 1 and 0; with scale 1 / sqrt(2) they are 1 and 0, so the weights are e : 1.
    query, key, value = hand(query=[[math.sqrt(2), 0.0]], key=[[1.0, 0.0], [0.0, 1.0]], value=[[4.0], [0.0]])
    result = reference.attention(query, key, value)
    share = math.e / (1 + math.e)
    assert result.scores.flatten().tolist() == pytest.approx([1.0, 0.0])
    assert result.weights.flatten().tolist() == pytest.approx([share, 1 - share])
    assert result.output.item() == pytest.approx(4 * share)
    assert result.lse.item() == pytest.approx(math.log(1 + math.e))


def test_softcap_and_bias_and_sink_by_hand():
    query, key, value = hand(query=[[1.0]], key=[[3.0], [0.0]], value=[[1.0], [10.0]])
    bias = torch.tensor([[[[0.0, 0.5]]]], dtype=torch.float64)
    sink = torch.tensor([0.25], dtype=torch.float64)
    result = reference.attention(query, key, value, scale=2.0, softcap=2.0, bias=bias, sink=sink)
    first, second, silent = math.exp(2 * math.tanh(6 / 2)), math.exp(0.5), math.exp(0.25)
    total = first + second + silent
    assert result.weights.flatten().tolist() == pytest.approx([first / total, second / total])
    assert result.output.item() == pytest.approx((first + 10 * second) / total)
    assert result.lse.item() == pytest.approx(math.log(total))


def test_causal_by_hand():
    query, key, value = hand(query=[[1.0], [1.0]], key=[[0.0], [0.0]], value=[[2.0], [4.0]])
    assert reference.attention(query, key, value, mask=Causal()).output.flatten().tolist() == [2.0, 3.0]


def test_row_that_may_attend_to_nothing_by_hand():
    query, key, value = hand(query=[[1.0], [1.0]], key=[[1.0], [2.0]], value=[[2.0], [4.0]])
    result = reference.attention(query, key, value, mask=Dense(torch.tensor([[False, False], [True, False]])))
    assert result.output.flatten().tolist() == [0.0, 2.0]
    assert result.weights.flatten().tolist() == [0.0, 0.0, 1.0, 0.0]
    assert result.lse.flatten().tolist() == [-INFINITY, 1.0]
    assert result.scores.flatten().tolist() == [-INFINITY, -INFINITY, 1.0, -INFINITY]


def test_grouped_heads_are_neighbours():
    # Query heads 0, 1 read key head 0 and 2, 3 read key head 1: as torch's enable_gqa, and no other order.
    value = torch.arange(2.0).view(1, 2, 1, 1)
    output = reference.attention(torch.ones(1, 4, 1, 1), torch.ones(1, 2, 1, 1), value, enable_gqa=True).output
    assert output.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


# ------------------------------------------------------------------------------------- by plain Python

MASKS = {
    "none": None,
    "causal": Causal("bottom_right"),
    "causal-top-left": Causal("top_left"),
    "window": SlidingWindow(1, 0) | GlobalTokens([1]),
    "padding": Padding([3, 0]),
    "sample-and-head": torch.rand(BATCH, HEADS, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.5,
}
OPTIONS = {
    "plain": {},
    "scale": {"scale": -0.7},
    "scale-zero": {"scale": 0.0},
    "softcap": {"softcap": 0.8},
    "bias": {"bias": normal(BATCH, 1, 5, 5)},
    "bias-keys": {"bias": normal(1, HEADS, 1, 5)},
    "bias-forbids": {"bias": normal(1, 1, 5, 5).masked_fill(torch.eye(5, dtype=torch.bool), -INFINITY)},
    "sink": {"sink": normal(HEADS)},
    "all": {"scale": 0.4, "softcap": 1.5, "bias": normal(BATCH, HEADS, 5, 5), "sink": normal(HEADS)},
}


def agree(inputs, **options):
    expected = dict(zip(("output", "weights", "lse"), scalar_attention(*inputs, **options), strict=True))
    options.pop("kept", None)
    result = reference.attention(*inputs, **options)
    for name, want in expected.items():
        assert_within(getattr(result, name), want, 1e-12, name)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_plain_python(mask, options):
    agree(problem(), mask=mask, **options)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (1, 4), (4, 1)])
def test_equals_plain_python_with_other_sizes(kv_heads, lengths):
    agree(problem(*lengths, kv_heads=kv_heads, value_dim=3), mask=Causal("bottom_right"), enable_gqa=True)


@pytest.mark.parametrize("dropout_p", [0.3, 0.9])
def test_dropout_equals_plain_python(dropout_p):
    kept = _dropout.keep_all(17, dropout_p, torch.Size((BATCH, HEADS, 5, 5)), torch.device("cpu"))
    agree(problem(), mask=Causal(), dropout_p=dropout_p, seed=17, kept=kept)


POSITIONS = {
    "alibi": lambda align: ALiBi(HEADS, form="symmetric", align=align),
    "alibi-causal": lambda align: ALiBi(HEADS, align=align),
    "t5": lambda align: T5Bias(HEADS, buckets=8, max_distance=6, align=align),
    "continuous": lambda align: ContinuousBias(HEADS, hidden=5, align=align),
    "shaw": lambda align: Shaw(WIDTH, 2, align=align),
    "shaw-values": lambda align: Shaw(WIDTH, 2, keys=False, align=align),
    "transformer-xl": lambda align: TransformerXL(HEADS, WIDTH, align=align),
    "rope": lambda align: RoPE(WIDTH, align=align),
    "rope-interleaved-part": lambda align: RoPE(4, style="interleaved", align=align),
    "rope-dynamic": lambda align: RoPE(WIDTH, scaling=DynamicNTKScaling(2.0, 4), align=align),
}


@pytest.mark.parametrize("lengths", [(5, 5), (3, 5), (5, 3), (3, 1), (1, 3)])
@pytest.mark.parametrize("make", POSITIONS.values(), ids=POSITIONS.keys())
def test_position_equals_plain_python(make, lengths):
    position = make("bottom_right").double().requires_grad_(requires_grad=False)
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter)
    agree(problem(*lengths), position=position, softcap=2.0, scale=0.6, mask=Causal("bottom_right"))


@pytest.mark.parametrize("make", POSITIONS.values(), ids=POSITIONS.keys())
def test_position_stays_on_its_device(make):
    query, key = (torch.zeros(1, HEADS, length, WIDTH, device="meta") for length in (3, 5))
    found = regard.attention(query, key, key, position=make("bottom_right").to("meta"), backend="eager")
    assert found.device.type == "meta"
    assert found.shape == query.shape


def test_position_top_left_equals_plain_python():
    position = ALiBi(HEADS, form="symmetric", align="top_left").double()
    agree(problem(3, 5), position=position)


# ------------------------------------------------------------------------------------- by torch


@pytest.mark.parametrize("kind", ["none", "causal", "mask", "bias", "gqa"])
def test_equals_torchs_math_backend(kind):
    query, key, value = problem(kv_heads=2 if kind == "gqa" else HEADS)
    options = {
        "none": ({}, {}),
        "causal": ({"mask": Causal()}, {"is_causal": True}),
        "mask": ({"mask": MASKS["sample-and-head"]}, {"attn_mask": MASKS["sample-and-head"]}),
        "bias": ({"bias": OPTIONS["bias"]["bias"]}, {"attn_mask": OPTIONS["bias"]["bias"]}),
        "gqa": ({"enable_gqa": True, "scale": 0.3}, {"enable_gqa": True, "scale": 0.3}),
    }
    ours, theirs = options[kind]
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(query, key, value, **theirs)
    assert_within(reference.attention(query, key, value, **ours).output, expected, 1e-13)


def test_equals_multi_head_attention_with_the_same_weights():
    layer = torch.nn.MultiheadAttention(HEADS * WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    text = normal(BATCH, 5, HEADS * WIDTH)
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected, weights = layer(text, text, text, key_padding_mask=padded, average_attn_weights=False)
    projected = F.linear(text, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    query, key, value = (part.view(BATCH, 5, HEADS, WIDTH).transpose(1, 2) for part in projected)
    result = reference.attention(query, key, value, mask=Padding.from_key_padding_mask(padded))
    assert_within(layer.out_proj(result.output.transpose(1, 2).flatten(2)), expected, 1e-13)
    assert_within(result.weights, weights, 1e-13)


# ------------------------------------------------------------------------------------- what it promises


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_answers_in_the_dtype_of_the_query_and_half_is_computed_in_float32(dtype):
    inputs = [tensor.to(dtype) for tensor in problem()]
    result = reference.attention(*inputs)
    working = torch.float32 if dtype in {torch.float16, torch.bfloat16} else dtype
    assert result.output.dtype == dtype
    assert {result.weights.dtype, result.scores.dtype, result.lse.dtype} == {working}
    assert torch.equal(result.output, reference.attention(*(t.to(working) for t in inputs)).output.to(dtype))


def test_dropout_of_one_is_zero():
    assert torch.equal(
        reference.attention(*problem(), dropout_p=1.0).output, torch.zeros(BATCH, HEADS, 5, WIDTH, dtype=torch.float64)
    )


def test_dropout_without_a_seed_is_drawn_from_torchs_generator():
    given = problem()
    torch.manual_seed(3)
    first, second = (reference.attention(*given, dropout_p=0.5).output for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(reference.attention(*given, dropout_p=0.5).output, first)
    assert not torch.equal(first, second)


def test_heads_are_grouped_only_when_asked():
    with pytest.raises(RuntimeError, match="size of tensor"):
        reference.attention(*problem(kv_heads=2))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_no_nan_on_the_way_back_through_a_row_that_sees_nothing():
    """Not even one that is masked later: under `detect_anomaly` a user would be told of it."""
    given = tuple(tensor.requires_grad_() for tensor in problem())
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    with torch.autograd.detect_anomaly():
        reference.attention(*given, mask=mask).output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in given)


def test_a_query_that_is_nan_and_sees_a_key_that_is_nan_alone_is_nan():
    nan, one = torch.full((1, 1, 1, 4), torch.nan), torch.ones(1, 1, 1, 4)
    assert regard.attention(nan, nan, one, backend="eager").isnan().all()


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_an_infinite_key_has_a_score_with_its_sign(backend):
    query, value = torch.ones(1, 1, 2, 4), torch.randn(1, 1, 3, 4)
    key = torch.randn(1, 1, 3, 4)
    key[..., 1, 2] = -torch.inf  # a score of -inf: no weight
    found = regard.attention(query, key, value, backend=backend)
    others = [0, 2]
    torch.testing.assert_close(found, regard.attention(query, key[:, :, others], value[:, :, others], backend=backend))
    key[..., 1, 2] = torch.inf  # a score of inf: no softmax
    assert regard.attention(query, key, value, backend=backend).isnan().all()


def test_infinite_values_reach_the_queries_that_may_see_them():
    query, key, value = problem(3, 3)
    value[0, 0, 2, 0], value[0, 0, 1, 1], value[0, 0, 2, 1] = INFINITY, -INFINITY, INFINITY
    output = reference.attention(query, key, value, mask=Causal()).output
    expected = reference.attention(query, key, value.nan_to_num(0, 0, 0), mask=Causal()).output
    expected[0, 0, 2, 0], expected[0, 0, 1, 1], expected[0, 0, 2, 1] = INFINITY, -INFINITY, math.nan
    assert_same_special(output, expected)
