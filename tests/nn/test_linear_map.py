"""Linear maps on the native core against float64 and torch, and that all the rest is torch's."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from regard.backends import _library
from regard.nn import FeedForward, MultiHeadAttention, _linear_map
from regard.nn._linear_map import LinearMap, linear

if _library.why_absent():
    pytest.skip(_library.why_absent(), allow_module_level=True)

SIZES = [(1, 1, 1), (2, 3, 5), (17, 16, 63), (64, 64, 64), (65, 257, 130), (300, 40, 81), (513, 600, 33)]
"""Tokens, inputs, outputs: on both sides of a vector, of 64 columns, of a tile's 256 rows and a chunk's 256 steps."""


@pytest.fixture
def products(monkeypatch):
    """Every size goes to the core; how often it was asked."""
    asked = []
    multiply = _linear_map._multiply

    def counted(*arguments):
        asked.append(arguments)
        multiply(*arguments)

    monkeypatch.setattr(_linear_map, "_multiply", counted)
    for name in ("_LEAST_WORK", "_LEAST_TOKENS", "_LEAST_INPUTS", "_LEAST_OUTPUTS"):
        monkeypatch.setattr(_linear_map, name, 0)
    return asked


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(function, tensors, direction):
    """The output, and the gradient of each tensor."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    output.backward(direction)
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_as_good_as_torch(tensors, direction):
    mine = results(linear, tensors, direction)
    theirs = results(functional.linear, tensors, direction)
    doubles = [None if tensor is None else tensor.double() for tensor in tensors]
    exact = results(functional.linear, doubles, direction.double())
    for found, torchs, expected in zip(mine, theirs, exact, strict=True):
        assert found.shape == torchs.shape
        assert found.dtype == torchs.dtype
        error, allowed = (found - expected).abs().max(), (torchs - expected).abs().max()
        assert error <= 2 * allowed + 2**-23 * expected.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_is_as_near_to_float64_as_torch(products, sizes, bias):
    tokens, inputs, outputs = sizes
    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
    assert_as_good_as_torch((x, weight, torch.randn(outputs) if bias else None), torch.randn(tokens, outputs))
    assert len(products) == 3  # forward, and the gradients of x and of the weight


def test_many_tokens_are_summed_as_well_as_torch_sums_them(products):
    x, weight = torch.rand(20000, 24), torch.rand(16, 24)
    assert_as_good_as_torch((x, weight, torch.rand(16)), torch.rand(20000, 16))
    assert products


STRIDED = {
    "four dimensions": lambda: torch.randn(2, 3, 5, 24),
    "length first": lambda: torch.randn(7, 4, 24).transpose(0, 1),
    "columns first": lambda: torch.randn(24, 30).t(),
    "every second number": lambda: torch.randn(9, 48)[:, 1::2],
    "a part of each row": lambda: torch.randn(3, 9, 60)[..., 7:31],
    "one token for all": lambda: torch.randn(24).expand(4, 5, 24),
    "joined heads": lambda: torch.randn(2, 3, 9, 8).transpose(1, 2).flatten(2),
    "off every alignment": lambda: torch.randn(1 + 9 * 24)[1:].view(9, 24),
    "a minus sign beside it": lambda: torch.randn(9, 24, dtype=torch.complex64).conj().imag,
}
WEIGHTS = {
    "whole": lambda: torch.randn(33, 24),
    "rows of a larger one": lambda: torch.randn(99, 24)[33:66],
    "columns of a larger one": lambda: torch.randn(33, 50)[:, 3:27],
    "columns first": lambda: torch.randn(24, 33).t(),
    "every second number": lambda: torch.randn(33, 48)[:, ::2],
}


@pytest.mark.parametrize("x", STRIDED)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_any_strides(products, x, weight):
    x, weight = STRIDED[x](), WEIGHTS[weight]()
    bias = torch.randn(34)[1:]
    # `results` keeps the strides: detach is a view.
    assert_as_good_as_torch((x, weight, bias), torch.randn(*x.shape[:-1], 33))
    assert bool(products) == (1 in weight.stride())


def test_gradients_of_any_strides(products):
    tensors = torch.randn(40, 24), torch.randn(33, 24), torch.randn(33)
    for direction in (torch.randn(33, 40).t(), torch.ones(()).expand(40, 33), torch.randn(40, 66)[:, ::2]):
        assert_as_good_as_torch(tensors, direction)
    assert products


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_only_the_gradients_that_are_wanted(products, wanted):
    x, weight, bias = (
        tensor.requires_grad_(want)
        for tensor, want in zip((torch.randn(9, 24), torch.randn(33, 24), torch.randn(33)), wanted, strict=True)
    )
    output = linear(x, weight, bias)
    assert output.requires_grad == any(wanted)
    if any(wanted):
        output.sum().backward()
    assert [tensor.grad is not None for tensor in (x, weight, bias)] == list(wanted)
    assert len(products) == 1 + wanted[0] + wanted[1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_goes_where_torch_lets_it_go(products, bad):
    for place in range(3):
        tensors = [torch.randn(70, 24), torch.randn(33, 24), torch.randn(33)]
        tensors[place].view(-1)[5] = bad
        found = [result.isfinite() for result in results(linear, tensors, torch.randn(70, 33))]
        expected = [result.isfinite() for result in results(functional.linear, tensors, torch.randn(70, 33))]
        assert all(map(torch.equal, found, expected))
    assert products


def test_a_sum_of_zeros_is_zero(products):
    x, weight = torch.full((3, 24), -0.0), torch.ones(33, 24)
    assert torch.equal(linear(x, weight).signbit(), functional.linear(x, weight).signbit())
    assert torch.equal(linear(torch.ones(3, 24), torch.zeros(33, 24), torch.ones(33)), torch.ones(3, 33))
    assert products


def test_the_same_for_every_number_of_threads(products, threads):
    tensors, direction = (torch.randn(700, 300), torch.randn(260, 300), torch.randn(260)), torch.randn(700, 260)
    found = []
    for count in (1, 2, 7):
        threads(count)
        found.append(results(linear, tensors, direction))
    output, grad_x, grad_weight, _ = zip(*found, strict=True)  # the gradient of the bias is a sum of torch's
    for each in (output, grad_x, grad_weight):
        assert torch.equal(each[0], each[1])
        assert torch.equal(each[0], each[2])
    assert products


@pytest.mark.parametrize("changed", [0, 1])
def test_what_was_changed_since_is_noticed(products, changed):
    tensors = [torch.randn(9, 24, requires_grad=True), torch.randn(33, 24, requires_grad=True)]
    output = linear(*tensors)
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    assert products


def test_second_derivatives_are_torchs(products):
    x, weight, bias = torch.randn(9, 24), torch.randn(33, 24), torch.randn(33)

    def twice(function):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        once = torch.autograd.grad(function(*leaves).tanh().square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in once), leaves)

    torch.testing.assert_close(twice(linear), twice(functional.linear), rtol=1e-4, atol=1e-3)  # of numbers near 20
    assert products


def test_many_directions_at_once(products):
    x, weight = torch.randn(9, 24, requires_grad=True), torch.randn(33, 24, requires_grad=True)
    directions = torch.randn(4, 9, 33)
    found = torch.autograd.grad(linear(x, weight), (x, weight), directions, is_grads_batched=True)
    expected = torch.autograd.grad(functional.linear(x, weight), (x, weight), directions, is_grads_batched=True)
    torch.testing.assert_close(found, expected)
    assert products


# ------------------------------------------------------------------------------------------------ what is torch's


class Tagged(torch.Tensor):
    """A subclass that changes nothing."""


def plain(count=9, inputs=24, outputs=33):
    return torch.randn(count, inputs), torch.randn(outputs, inputs), torch.randn(outputs)


def of_dtype(dtype):
    return lambda map_, tensors: map_(*(tensor.to(dtype) for tensor in tensors))


def under_autocast(map_, tensors):
    with torch.autocast("cpu"):
        return map_(*tensors)


def vectorised(map_, tensors):
    x, weight, bias = tensors
    return torch.func.vmap(map_, in_dims=(0, None, None))(x.unflatten(0, (3, 3)), weight, bias)


def differentiated(map_, tensors):
    return torch.func.grad(lambda x: map_(x, *tensors[1:]).square().sum())(tensors[0])


def forward_mode(map_, tensors):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
        return torch.autograd.forward_ad.unpack_dual(map_(dual, *tensors[1:])).tangent


def traced(map_, tensors):
    return torch.jit.trace(map_, tensors, check_trace=False)(*tensors)


def compiled(map_, tensors):
    return torch.compile(map_, backend="eager", fullgraph=True, dynamic=True)(*tensors)


def rounded(map_, tensors):
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        return map_(*tensors)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


TORCHS = {
    "float64": of_dtype(torch.float64),
    "bfloat16": of_dtype(torch.bfloat16),
    "autocast": under_autocast,
    "vmap": vectorised,
    "torch.func.grad": differentiated,
    "forward mode": forward_mode,
    "trace": traced,
    "compile": compiled,
    "rounded factors": rounded,
    "subclass": lambda map_, tensors: map_(tensors[0].as_subclass(Tagged), *tensors[1:]),
    "subclass of a weight": lambda map_, tensors: map_(tensors[0], tensors[1].as_subclass(Tagged), tensors[2]),
    "one token, no batch": lambda map_, tensors: map_(tensors[0][0], *tensors[1:]),
    "bias for all": lambda map_, tensors: map_(tensors[0], tensors[1], tensors[2][:1]),
    "sparse": lambda map_, tensors: map_(tensors[0].to_sparse(), *tensors[1:]).to_dense(),
    "meta": lambda map_, tensors: torch.zeros(map_(*(each.to("meta") for each in tensors)).shape),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", TORCHS)
def test_everything_else_is_torchs(products, way):
    tensors = plain()
    found, expected = (TORCHS[way](function, tensors) for function in (linear, functional.linear))
    assert type(found) is type(expected)
    assert torch.equal(found, expected)
    assert not products


def test_an_operator_counter_sees_it(products):
    tensors = plain()
    with FlopCounterMode(display=False) as counter:
        linear(*tensors)
    assert counter.get_total_flops() == 2 * 9 * 24 * 33
    assert not products


def test_without_the_core(products, monkeypatch):
    monkeypatch.setattr(_library, "why_absent", lambda: "no compiler")
    tensors = plain()
    assert torch.equal(linear(*tensors), functional.linear(*tensors))
    assert not products


@pytest.mark.parametrize(
    "given", [(torch.ones(3, 4), torch.ones(5, 3)), (torch.ones(3, 4), torch.ones(5, 4), torch.ones(4))]
)
def test_what_does_not_fit_is_refused_in_torchs_words(products, given):
    with pytest.raises(RuntimeError) as theirs:
        functional.linear(*given)
    with pytest.raises(RuntimeError) as mine:
        linear(*given)
    assert str(mine.value) == str(theirs.value)
    assert not products


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "ours"),
    [(512, 512, 512, True), (128, 512, 512, False), (1, 8192, 8192, False), (8192, 128, 512, False)],
)
def test_small_maps_are_torchs(monkeypatch, tokens, inputs, outputs, ours):
    asked = []
    monkeypatch.setattr(_linear_map, "_mapped", lambda *_: asked.append(1))
    linear(torch.empty(tokens, inputs), torch.empty(outputs, inputs))
    assert bool(asked) == ours


# ------------------------------------------------------------------------------------------------------ the module


def test_the_module_is_torchs_to_everyone_else(products):
    theirs, mine = nn.Linear(24, 33), LinearMap(24, 33)
    mine.load_state_dict(theirs.state_dict())
    assert isinstance(mine, nn.Linear)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    x = torch.randn(9, 24)
    for each in (mine, copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):  # noqa: S301 - its own
        torch.testing.assert_close(each(x), theirs(x))
    assert len(products) == 3


def test_hooks_and_parametrizations_see_their_part(products):
    layer, seen = LinearMap(24, 33), []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape) or output + 1)
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    x = torch.randn(9, 24, requires_grad=True)
    output = layer(x)
    torch.testing.assert_close(output, functional.linear(x, layer.weight, layer.bias) + 1)
    output.sum().backward()
    assert seen == [(9, 33), "backward"]

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    before = layer(x).detach()
    parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(layer(x) - 1 - layer.bias, 2 * (before - 1 - layer.bias))
    assert products


@pytest.mark.parametrize("make", [lambda: MultiHeadAttention(24, 3), lambda: FeedForward(24, 33)])
def test_mechanisms_map_with_it(products, make):
    module = make()
    x = torch.randn(2, 9, 24, requires_grad=True)
    module(x).sum().backward()
    assert len(products) == 6  # two maps, each with the gradients of its input and its weight
