"""The selective state space against the plain recurrence in float64, and against transformers' Mamba."""

from __future__ import annotations

import math

import pytest
import torch
from torch import library as operator_library
from torch.nn import functional

import regard
from regard.masks import Causal, Padding
from regard.nn import SelectiveStateSpace
from regard.nn._selective_scan import Problem, selective_scan


def by_recurrence(layer, x):
    """The paper's equations, token by token, in the dtype of x."""
    values, gates = layer.in_proj(x).chunk(2, -1)
    length, width = x.shape[1], layer.conv_width
    padded = functional.pad(values, (0, 0, width - 1, 0))
    weight, bias = layer.conv1d.weight[:, 0], layer.conv1d.bias
    state, outputs = torch.zeros(x.shape[0], layer.inner, layer.state_dim, dtype=x.dtype), []
    for place in range(length):
        convolved = torch.einsum("bkc,ck->bc", padded[:, place : place + width], weight)
        taken = functional.silu(convolved if bias is None else convolved + bias)
        rank, write, read = layer.x_proj(taken).split([layer.dt_rank, layer.state_dim, layer.state_dim], -1)
        step = functional.softplus(layer.dt_proj(rank))
        shrink = torch.exp(step[:, :, None] * -layer.A_log.exp())
        state = shrink * state + step[:, :, None] * write[:, None] * taken[:, :, None]
        outputs.append((state * read[:, None]).sum(-1) + layer.D * taken)
    return layer.out_proj(torch.stack(outputs, 1) * functional.silu(gates))


def assert_same_with_gradients(layer, x):
    found_x, exact_x = x.clone().requires_grad_(), x.double().requires_grad_()
    found = layer(found_x)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    names = ["x", *(name for name, _ in layer.named_parameters())]
    gradients = torch.autograd.grad((found * weight).sum(), [found_x, *layer.parameters()])
    layer.double()
    expected = by_recurrence(layer, exact_x)
    exact = torch.autograd.grad((expected * weight.double()).sum(), [exact_x, *layer.parameters()])
    for name, one, other in zip(["output", *names], [found, *gradients], [expected, *exact], strict=True):
        size = max(1.0, other.abs().max().item())
        assert (one.double() - other).abs().max().item() <= 1e-5 * size, name


@pytest.mark.parametrize("length", [1, 5, 32, 75])
@pytest.mark.parametrize("options", [{}, {"expand": 3, "conv_width": 2, "bias": True, "conv_bias": False}], ids=str)
def test_is_the_recurrence(options, length):
    torch.manual_seed(0)
    layer = SelectiveStateSpace(5, state_dim=4, dt_max=1.0, **options)
    assert_same_with_gradients(layer, torch.randn(3, length, 5))


def test_in_many_blocks(monkeypatch):
    """Blocks of one sample and three channels; two samples and all channels."""
    for numbers in (12, 80):
        torch.manual_seed(0)
        layer = SelectiveStateSpace(5, state_dim=4, dt_max=1.0)
        monkeypatch.setattr("regard.nn._selective_scan._BLOCK_NUMBERS", numbers)
        assert_same_with_gradients(layer, torch.randn(3, 40, 5))


def test_steps_at_the_start_are_between_dt_min_and_dt_max():
    torch.manual_seed(0)
    layer = SelectiveStateSpace(64, dt_min=0.01, dt_max=0.5)
    step = functional.softplus(layer.dt_proj.bias)
    assert 0.01 <= step.min() < 0.02
    assert 0.3 < step.max() <= 0.5 + 1e-6
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17.0).expand(128, 16))


def mamba(**options):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    config = transformers.MambaConfig(hidden_size=12, state_size=4, num_hidden_layers=1, time_step_rank=3, **options)
    return MambaMixer(config, layer_idx=0).eval()


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}], ids=str)
def test_transformers_layer_with_its_weights(options):
    mixer = mamba(**options)
    layer = SelectiveStateSpace.from_transformers(mixer)
    one, other = torch.randn(2, 21, 12).requires_grad_(), None
    other = one.detach().clone().requires_grad_()
    found, expected = layer(one), mixer(other)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(found.shape)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)
    theirs = dict(mixer.named_parameters())
    for name, parameter in layer.named_parameters():
        size = max(1.0, theirs[name].grad.abs().max().item())
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=1e-5 * size)


def test_transformers_mask():
    mixer = mamba()
    layer, x = SelectiveStateSpace.from_transformers(mixer), torch.randn(2, 9, 12)
    real = torch.arange(9) >= torch.tensor([[0], [4]])
    found, expected = layer(x, mask=real), mixer(x, attention_mask=real.long())
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, 4:], expected[1, 4:], rtol=1e-5, atol=1e-5)


def test_what_transformers_has_and_this_layer_has_not():
    with pytest.raises(regard.UnsupportedError, match=r"Linear has other weights than a MambaMixer\. Pass model\."):
        SelectiveStateSpace.from_transformers(torch.nn.Linear(2, 2))
    with pytest.raises(regard.UnsupportedError, match="the activation 'gelu' is not 'silu'"):
        SelectiveStateSpace.from_transformers(mamba(hidden_act="gelu"))


def test_segments_and_steps_are_the_whole():
    torch.manual_seed(0)
    layer, x = SelectiveStateSpace(6, state_dim=4, dt_max=1.0), torch.randn(2, 41, 6)
    whole, last = layer(x, return_state=True)
    state, outputs = layer.make_state(2), []
    for first, end in ((0, 2), (2, 2), (2, 3), (3, 36), (36, 41)):
        output, state = layer(x[:, first:end], state=state, return_state=True)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-5, atol=1e-5)
    stepped = layer.make_state(2)
    for place in range(41):
        output, stepped = layer.step(x[:, place], stepped)
        torch.testing.assert_close(output, whole[:, place], rtol=1e-5, atol=1e-5)
    for name, tensor in last.tensors.items():
        torch.testing.assert_close(state.tensors[name], tensor, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stepped.tensors[name], tensor, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_the_state_until_it_is_detached():
    torch.manual_seed(0)
    layer = SelectiveStateSpace(6, state_dim=4, dt_max=1.0).double()
    x = torch.randn(2, 21, 6, dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(layer(x)[:, 10:].square().sum(), [x, *layer.parameters()])
    _, state = layer(x[:, :10], return_state=True)
    parts = torch.autograd.grad(layer(x[:, 10:], state=state).square().sum(), [x, *layer.parameters()])
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)
    _, state = layer(x[:, :10], return_state=True)
    state.detach()
    (cut,) = torch.autograd.grad(layer(x[:, 10:], state=state).square().sum(), x)
    assert not cut[:, :10].any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_state_of_a_padded_sample_is_that_of_the_sample_alone(side):
    torch.manual_seed(0)
    layer = SelectiveStateSpace(6, state_dim=4, dt_max=1.0, bias=True)
    lengths, x = [9, 5, 2, 0], torch.randn(4, 9, 6)
    wild = x.masked_fill(~Padding(lengths, side=side).dense(1, 9)[:, 0, 0, :, None], math.nan)
    output, state = layer(wild, mask=Padding(lengths, side=side), return_state=True)
    for sample, length in enumerate(lengths):
        real = slice(0, length) if side == "right" else slice(9 - length, 9)
        alone, after = layer(x[sample : sample + 1, real], return_state=True)
        torch.testing.assert_close(output[sample : sample + 1, real], alone, rtol=1e-5, atol=1e-5)
        for name, tensor in after.tensors.items():
            torch.testing.assert_close(state.tensors[name][sample : sample + 1], tensor, rtol=1e-5, atol=1e-5)


def test_the_state_protocol():
    torch.manual_seed(0)
    layer = SelectiveStateSpace(6, state_dim=4)
    x, more = torch.randn(3, 9, 6), torch.randn(3, 5, 6)
    with torch.no_grad():
        _, state = layer(x, return_state=True)
        expected = layer(more, state=state)
        other = layer.make_state(1)
        other.load_state_dict(state.state_dict())
        assert torch.equal(layer(more, state=other), expected)
        state.reorder(torch.tensor([2, 0]))
        torch.testing.assert_close(layer(more[[2, 0]], state=state), expected[[2, 0]])
        state.reset([1])
        torch.testing.assert_close(layer(more[[2, 0]], state=state)[1], layer(more[[0]])[0])


def test_huge_steps_and_no_steps():
    """A decay of exp(-1e6) is 0 and no NaN; padding, a step of 0, keeps the state."""
    torch.manual_seed(0)
    problem = Problem(
        torch.randn(1, 40, 3, requires_grad=True),
        torch.tensor([0.0, 1e6]).repeat(20)[None, :, None].expand(1, 40, 3).clone().requires_grad_(),
        -torch.rand(2, 3).sub(-1).requires_grad_(),
        torch.randn(1, 40, 2, requires_grad=True),
        torch.randn(1, 40, 2, requires_grad=True),
        torch.randn(1, 2, 3, requires_grad=True),
    )
    output, last, _ = selective_scan(problem)
    gradients = torch.autograd.grad(output.sum() + last.sum(), tuple(problem))
    assert all(tensor.isfinite().all() for tensor in (output, last, *gradients))
    torch.testing.assert_close(output[:, 0], (problem.state * problem.read[:, 0, :, None]).sum(1))


def test_autocast_leaves_the_scan_in_float32():
    torch.manual_seed(0)
    given = [torch.randn(1, 40, 3), torch.rand(1, 40, 3), -torch.rand(2, 3), torch.randn(1, 40, 2)]
    problem = Problem(*given, torch.randn(1, 40, 2), torch.randn(1, 2, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = selective_scan(problem)
        layer, x = SelectiveStateSpace(6, state_dim=4), torch.randn(2, 9, 6)
        low = layer(x)
        low.float().sum().backward()
    assert torch.equal(found.output, selective_scan(problem).output)
    torch.testing.assert_close(low.float(), layer(x), rtol=5e-2, atol=5e-2)


def test_the_operators_keep_torchs_rules():
    torch.manual_seed(0)
    shapes = [(2, 35, 3), (2, 35, 3), (2, 3), (2, 35, 2), (2, 35, 2), (2, 2, 3)]
    inputs, step, decay, write, read, state = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    given = [tensor.requires_grad_() for tensor in (inputs, step.abs(), -decay.abs(), write, read, state)]
    operator_library.opcheck(torch.ops.regard.selective_scan.default, tuple(given))
    assert torch.autograd.gradcheck(lambda *tensors: selective_scan(Problem(*tensors))[:2], given)


def test_a_second_derivative_is_refused_by_name():
    layer, x = SelectiveStateSpace(4), torch.randn(1, 5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(regard.UnsupportedError, match=r"no second derivative\. Differentiate through a loop over"):
        gradient.sum().backward()


def test_what_is_refused():
    with pytest.raises(regard.ArgumentError, match=r"state_dim: expected a whole number of at least 1, got 0"):
        SelectiveStateSpace(4, state_dim=0)
    with pytest.raises(regard.ArgumentError, match=r"expected 0 < dt_min <= dt_max, got 0\.0 and 0\.1"):
        SelectiveStateSpace(4, dt_min=0.0)
    layer, x = SelectiveStateSpace(4), torch.randn(2, 5, 4)
    with pytest.raises(regard.UnsupportedError, match=r"SelectiveStateSpace: it honours padding, and no other mask"):
        layer(x, mask=Causal())
    with pytest.raises(regard.UnsupportedError, match="its convolution would see padded tokens between"):
        layer(x, mask=Padding([5, 3]), state=layer.make_state(2))
    with pytest.raises(regard.ShapeError, match=r"state: expected a state of 2 samples, got 1"):
        layer(x, state=layer.make_state(1))
    with pytest.raises(
        regard.ShapeError, match=r"state: expected the tensors \['numbers', 'window'\], got \['modes'\]"
    ):
        layer(x, state=regard.nn.S4D(4).make_state(2))
    with pytest.raises(regard.ShapeError, match=r"one token of each sample, got \(2, 5, 4\)\. Give step x\[:, t\]"):
        layer.step(x, layer.make_state(2))
