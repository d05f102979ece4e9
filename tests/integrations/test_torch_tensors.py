"""`regard.activate` beside other ways to look at tensors: meta, nested, torch.func, tangents, autocast, observe."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch.autograd import forward_ad

import regard
from regard.backends import _library
from tests.integrations.calls import BATCH, HEADS, WIDTH, Counted, assert_near, masked, sized

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))


def test_meta_tensors_stay_meta():
    inputs = [tensor.to("meta") for tensor in sized()()]
    with regard.activate():
        output = F.scaled_dot_product_attention(*inputs)
    assert (output.device.type, output.shape) == ("meta", (BATCH, HEADS, 9, WIDTH))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_torchs():
    parts = [torch.randn(length, HEADS, WIDTH) for length in (3, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    expected = F.scaled_dot_product_attention(nested, nested, nested)
    with regard.activate():
        found = F.scaled_dot_product_attention(nested, nested, nested)
    torch.testing.assert_close(found.values(), expected.values())


def squares(query, key, value):
    return F.scaled_dot_product_attention(query, key, value).square().sum()


TRANSFORMS = {
    "vmap": torch.vmap(F.scaled_dot_product_attention),
    "grad": torch.func.grad(squares),
    "vmap-of-grad": torch.vmap(torch.func.grad(squares)),
    "grad-of-vmap": torch.func.grad(lambda *given: torch.vmap(squares)(*given).sum()),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func(name):
    inputs = [torch.randn(3, *tensor.shape) for tensor in sized()()]
    inputs = inputs if "vmap" in name else [tensor[0] for tensor in inputs]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        expected = TRANSFORMS[name](*inputs)
        with regard.activate():
            found = TRANSFORMS[name](*inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_is_refused_as_torch_refuses_it():
    query, key, value = sized()()
    with regard.activate(), forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match="forward AD"):
            F.scaled_dot_product_attention(dual, key, value)


def test_second_derivative_is_refused_as_torch_refuses_it():
    def twice():
        query, key, value = (tensor.requires_grad_() for tensor in sized()())
        output = F.scaled_dot_product_attention(query, key, value)
        (gradient,) = torch.autograd.grad(output.sum(), query, create_graph=True)
        torch.autograd.grad(gradient.sum(), query)

    with pytest.raises(RuntimeError, match="is not implemented") as own:
        twice()
    with regard.activate(), pytest.raises(RuntimeError) as found:
        twice()
    assert str(found.value) == str(own.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(dtype):
    inputs = sized()()
    expected = F.scaled_dot_product_attention(*(tensor.to(dtype) for tensor in inputs))
    calls = Counted()
    with regard.activate(), torch.autocast("cpu", dtype):
        found = F.scaled_dot_product_attention(*inputs)
    assert calls.forward == 1
    assert found.dtype == dtype
    exact = F.scaled_dot_product_attention(*(tensor.to(dtype).double() for tensor in inputs))
    assert_near([found], [exact], [expected])


def test_observe_sees_what_runs_on_the_core():
    module = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    states = torch.randn(2, 7, 16)
    calls = Counted()
    with torch.no_grad(), regard.activate():
        alone = module(states, states, states, need_weights=False)[0]
        with regard.observe(module) as seen:
            watched = module(states, states, states, need_weights=False)[0]
    assert calls.forward >= 2
    assert torch.equal(watched, alone)
    (layer,) = seen.layers
    expected = module(states, states, states, average_attn_weights=False)[1]
    torch.testing.assert_close(layer.weights(), expected, atol=1e-5, rtol=0)


def test_a_mask_written_to_before_backward_is_noticed():
    query, key, value = (tensor.requires_grad_() for tensor in sized(5, 9)())
    bias = masked(5, 9, kind="float", gradient=True)()["attn_mask"]
    for changed in (key, bias):
        with regard.activate():
            output = F.scaled_dot_product_attention(query, key, value, bias)
        with torch.no_grad():
            changed.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
