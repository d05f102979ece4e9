"""`regard.activate` under whole modules, compiled graphs and Hugging Face models: same numbers, and the core ran."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import nn

import regard
from regard.backends import _library
from tests.integrations.calls import Counted, sized
from tests.observation.hf_models import FAMILIES, build, outputs

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))
INDUCTOR_WARNING = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"


@pytest.fixture(autouse=True)
def off_afterwards():
    torch._dynamo.reset()
    yield
    regard.deactivate()


def trained(module, *inputs, **options):
    """The output and every gradient of a module."""
    module = copy.deepcopy(module)
    found = module(*inputs, **options)
    output = found[0] if isinstance(found, tuple) else found
    output.square().sum().backward()
    return [output.detach(), *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_multihead_attention(training, need_weights):
    module = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    states, padding = torch.randn(2, 7, 16), torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    expected = trained(module, states, states, states, **options)
    calls = Counted()
    with regard.activate():
        found = trained(module, states, states, states, **options)
    torch.testing.assert_close(found, expected)
    # With its weights asked for, torch multiplies matrices itself.
    assert (calls.forward, calls.backward) == ((0, 0) if need_weights else (1, 1))


@pytest.mark.parametrize("gradient", [False, True])
def test_encoder_in_eval_in_its_fast_path_and_beside_it(gradient):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    states = torch.randn(2, 7, 16)
    with torch.set_grad_enabled(gradient):
        expected = encoder(states)
        calls = Counted()
        with regard.activate():
            found = encoder(states)
        assert calls.forward == 2
        torch.testing.assert_close(found, expected)
        assert torch.equal(encoder(states), expected)


def block(query, key, value):
    return F.scaled_dot_product_attention(query.sin(), key, value, is_causal=True).cos()


def compiled_outcome(function, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]


@pytest.mark.filterwarnings(INDUCTOR_WARNING)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_while_active(backend):
    inputs = sized()()
    expected = compiled_outcome(block, inputs)
    calls = Counted()
    with regard.activate():
        compiled = torch.compile(block, fullgraph=True, backend=backend)
        found = compiled_outcome(compiled, inputs)
        assert (calls.forward, calls.backward) == (1, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings(INDUCTOR_WARNING)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_before_it_was_active(backend):
    inputs = sized()()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    expected = compiled_outcome(compiled, inputs)
    calls = Counted()
    with regard.activate():
        found = compiled_outcome(compiled, inputs)
        assert (calls.forward, calls.backward) == (1, 1)
    torch.testing.assert_close(found, expected)
    again = compiled_outcome(compiled, inputs)
    assert all(torch.equal(have, want) for have, want in zip(again, expected, strict=True))


@pytest.mark.filterwarnings(INDUCTOR_WARNING)
def test_compiled_after_it_was_active():
    inputs = sized()()
    expected = compiled_outcome(torch.compile(block, fullgraph=True, backend="aot_eager"), inputs)
    torch._dynamo.reset()
    with regard.activate():
        compiled_outcome(torch.compile(block, fullgraph=True, backend="aot_eager"), inputs)
    torch._dynamo.reset()
    calls = Counted()
    found = compiled_outcome(torch.compile(block, fullgraph=True, backend="aot_eager"), inputs)
    assert calls.forward == 0
    assert all(torch.equal(have, want) for have, want in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if "sdpa" in family.implementations])
def test_hugging_face_models_give_the_same(name):
    model, inputs = build(name)
    with torch.no_grad():
        expected = outputs(model, inputs)
        calls = Counted()
        with regard.activate():
            found = outputs(model, inputs)
    assert calls.forward == FAMILIES[name].layers
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
