"""A question: its truth is attention in float64, its copies are the same numbers, it knows what it asks for."""

from __future__ import annotations

import math

import pytest
import torch

from regard.masks import Causal
from regard.positions import ALiBi, Shaw
from regard.trust import Question


def tensors(dtype=torch.float32):
    return [torch.randn(2, 3, length, 4, dtype=torch.float64).to(dtype) for length in (5, 7, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_truth_is_attention_in_float64_on_the_same_numbers(dtype):
    query, key, value = tensors(dtype)
    bias = torch.randn(1, 3, 5, 7).to(dtype)
    found = Question(query, key, value, {"mask": Causal("bottom_right"), "bias": bias, "softcap": 2.0}).truth()
    scores = torch.tanh(query.double() @ key.double().mT / 2.0 / 2.0) * 2.0 + bias.double()
    later = torch.ones(5, 7, dtype=torch.bool).triu(3)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    torch.testing.assert_close(found.output, weights @ value.double())
    torch.testing.assert_close(found.weights, weights)
    assert found.output.dtype == torch.float64


def test_truth_of_a_position_takes_its_tables_as_they_are():
    position = Shaw(4, 2, align="bottom_right")
    before = {name: table.clone() for name, table in position.named_parameters()}
    Question(*tensors(), {"position": position}).truth()
    for name, table in position.named_parameters():
        assert table.dtype == torch.float32
        assert torch.equal(table, before[name])


LAID = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "every other": lambda tensor: tensor.repeat_interleave(2, 2)[:, :, ::2],
    "stride 0": lambda tensor: tensor[:1].expand(tensor.shape),
    "empty": lambda tensor: tensor[:, :, :0],
}


@pytest.mark.parametrize("laid", LAID.values(), ids=LAID.keys())
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_a_copy_has_the_same_numbers_and_strides_in_memory_of_its_own(laid, dtype):
    question = Question(*map(laid, tensors()))
    copied = question.copied(dtype, gradient=True)
    for name in ("query", "key", "value"):
        have, want = getattr(copied, name), getattr(question, name)
        assert have.stride() == want.stride()
        assert torch.equal(have, want.to(have.dtype))
        assert have.requires_grad
        assert have.is_leaf
        assert have.numel() == 0 or have.data_ptr() != want.data_ptr()


def test_leaves_are_named():
    options = {"bias": torch.randn(1, 3, 5, 7), "sink": torch.randn(3), "position": Shaw(4, 2, align="top_left")}
    question = Question(*tensors(), options)
    assert question.leaves() == {} or all(name.startswith("position.") for name in question.leaves())
    learned = question.copied(gradient=True).leaves()
    assert {"query", "key", "value", "bias", "sink"} < set(learned)
    assert {name for name in learned if name.startswith("position.")}
    assert not any(parameter.grad_fn for parameter in learned.values())


ASKED = [
    ({}, set()),
    ({"mask": None, "enable_gqa": False, "scale": None}, set()),
    ({"scale": 0.0}, {"scale"}),
    ({"dropout_p": 0.0, "seed": 3}, set()),
    ({"dropout_p": 0.1, "seed": 0}, {"dropout_p", "seed"}),
    ({"bias": torch.zeros(1, 1, 5, 7), "position": ALiBi(3, align="top_left")}, {"bias", "position"}),
]


@pytest.mark.parametrize(("options", "asked"), ASKED)
def test_what_is_asked(options, asked):
    assert set(Question(*tensors(), options).asked()) == asked


def test_sizes():
    sizes = Question(*tensors()).sizes
    assert (sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len, sizes.head_dim, sizes.value_dim) == (2, 3, 5, 7, 4, 4)
