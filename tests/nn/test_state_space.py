"""S4D against the plain recurrence, the plain convolution and the public layer's formula, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import library as operator_library
from torch.nn import functional

import regard
from regard.masks import Causal, Padding
from regard.nn import S4D
from regard.nn._diagonal_scan import Problem, diagonal_scan
from regard.nn.state_space import initial_modes


def discrete(layer):
    """w and C B / scale of a layer, as the paper writes them, from weights in float64."""
    decay = torch.complex(-layer.log_decay.exp(), layer.frequency)
    step = layer.log_dt.exp()[:, None]
    readout = torch.view_as_complex(layer.readout)
    if layer.discretisation == "zoh":
        return torch.exp(step * decay), readout * (torch.exp(step * decay) - 1) / decay
    return (2 + step * decay) / (2 - step * decay), readout * 2 * step / (2 - step * decay)


def mixed(layer, x, output):
    output = output + x * layer.skip
    if layer.mixing == "none":
        return output
    output = functional.linear(functional.gelu(output), layer.out_proj.weight, layer.out_proj.bias)
    if layer.mixing == "linear":
        return output
    left, right = output.chunk(2, -1)
    return left * torch.sigmoid(right)


def by_recurrence(layer, x):
    decay, readout = discrete(layer)
    state, outputs = torch.zeros(x.shape[0], *decay.shape, dtype=torch.complex128), []
    for token in x.unbind(1):
        state = decay * state + token[:, :, None]
        outputs.append(2 * (readout[0] * state).sum(-1).real)
    return mixed(layer, x, torch.stack(outputs, 1))


def by_convolution(layer, x):
    """With every kernel as long as the text; the backward one sees only what comes later."""
    decay, readout = discrete(layer)
    length = x.shape[1]
    kernels = 2 * (readout[..., None] * decay[..., None] ** torch.arange(length)).sum(-2).real
    outputs = torch.zeros_like(x)
    for place in range(length):
        for other in range(length):
            if other <= place:
                outputs[:, place] += kernels[0, :, place - other] * x[:, other]
            elif layer.bidirectional:
                outputs[:, place] += kernels[1, :, other - place - 1] * x[:, other]
    return mixed(layer, x, outputs)


def assert_near(found, expected, tolerance=1e-5):
    size = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert (found.double() - expected).abs().max().item() <= tolerance * size


def assert_same_with_gradients(layer, oracle, x):
    found_x, exact_x = x.clone().requires_grad_(), x.double().requires_grad_()
    found = layer(found_x)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    names = [name for name, _ in layer.named_parameters()]
    gradients = torch.autograd.grad((found * weight).sum(), [found_x, *layer.parameters()])
    layer.double()
    expected = oracle(layer, exact_x)
    exact_gradients = torch.autograd.grad((expected * weight.double()).sum(), [exact_x, *layer.parameters()])
    assert_near(found, expected)
    for name, one, other in zip(["x", *names], gradients, exact_gradients, strict=True):
        size = max(1.0, other.abs().max().item())
        assert (one.double() - other).abs().max().item() <= 1e-5 * size, name


@pytest.mark.parametrize("initialisation", ["legs", "lin", "inv", "real"])
@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
def test_is_the_recurrence(initialisation, discretisation):
    torch.manual_seed(0)
    layer = S4D(5, state_dim=16, initialisation=initialisation, discretisation=discretisation, chunk=16)
    assert_same_with_gradients(layer, by_recurrence, torch.randn(2, 75, 5))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [1, 2, 23])
def test_is_the_convolution(bidirectional, length):
    torch.manual_seed(0)
    layer = S4D(5, state_dim=8, bidirectional=bidirectional, chunk=4, mixing="linear")
    assert_same_with_gradients(layer, by_convolution, torch.randn(2, length, 5))


@pytest.mark.parametrize("chunk", [1, 3, 64, 1000])
def test_the_chunk_changes_nothing(chunk):
    torch.manual_seed(0)
    layer = S4D(20, state_dim=4, chunk=8).double()
    x = torch.randn(2, 50, 20, dtype=torch.float64)
    expected = layer(x)
    layer.chunk = chunk
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_channels_in_several_groups(monkeypatch):
    torch.manual_seed(0)
    layer = S4D(40, state_dim=4, chunk=8)
    monkeypatch.setattr("regard.nn._diagonal_scan._GROUP_NUMBERS", 1)
    assert_same_with_gradients(layer, by_recurrence, torch.randn(2, 13, 40))


def test_a_long_text_with_fast_frequencies_keeps_its_phase():
    """In float32, A dt t is 4e4 radians off by 2e-3: a table made from such products would not pass."""
    torch.manual_seed(0)
    layer = S4D(4, state_dim=64, initialisation="inv", dt_min=0.01, dt_max=0.03, mixing="none")
    x = torch.randn(1, 3000, 4)
    with torch.no_grad():
        layer.log_decay.sub_(2)
        layer.readout[:, :, 0] *= 1000  # the fastest, which turns by 40 radians a token
        found = layer(x)
        layer.double()
        decay, readout = discrete(layer)
        kernel = 2 * (readout[0, ..., None] * decay[..., None] ** torch.arange(3000)).sum(1).real
        spectrum = torch.fft.rfft(kernel, n=6000) * torch.fft.rfft(x.double().transpose(1, 2), n=6000)
        expected = mixed(layer, x.double(), torch.fft.irfft(spectrum, n=6000)[..., :3000].transpose(1, 2))
    assert_near(found, expected)


def test_the_public_layer_with_its_weights():
    torch.manual_seed(0)
    count, modes, length = 5, 4, 30
    public = {
        "D": torch.randn(count),
        "kernel.C": torch.randn(count, modes, 2),
        "kernel.log_dt": torch.empty(count).uniform_(math.log(0.001), math.log(0.1)),
        "kernel.log_A_real": torch.full((count, modes), math.log(0.5)),
        "kernel.A_imag": math.pi * torch.arange(modes).expand(count, modes),
        "output_linear.0.weight": torch.randn(2 * count, count, 1) / 3,
        "output_linear.0.bias": torch.randn(2 * count),
    }
    layer, x = S4D.from_state_spaces(public), torch.randn(2, length, count)

    exact = {name: weight.double() for name, weight in public.items()}
    decay = torch.complex(-exact["kernel.log_A_real"].exp(), exact["kernel.A_imag"])
    rate = decay * exact["kernel.log_dt"].exp()[:, None]
    weights = torch.view_as_complex(exact["kernel.C"]) * (rate.exp() - 1) / decay
    kernel = 2 * torch.einsum("hn,hnl->hl", weights, (rate[..., None] * torch.arange(length)).exp()).real
    channels = x.double().transpose(1, 2)
    spectrum = torch.fft.rfft(kernel, n=2 * length) * torch.fft.rfft(channels, n=2 * length)
    output = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + channels * exact["D"][:, None]
    output = functional.conv1d(functional.gelu(output), exact["output_linear.0.weight"], exact["output_linear.0.bias"])
    assert_near(layer(x), functional.glu(output, dim=-2).transpose(1, 2))


def test_legs_modes_are_eigenvalues_of_hippo():
    """Without its part of rank one, -L of HiPPO-LegS is -1/2 plus a skew matrix."""
    decay, frequency, entry = initial_modes("legs", 8)
    root = (2 * torch.arange(16, dtype=torch.float64) + 1).sqrt()
    legs = -torch.tril(root[:, None] * root, -1) - torch.diag(torch.arange(1.0, 17.0, dtype=torch.float64))
    normal = legs + root[:, None] * root / 2
    found = torch.linalg.eigvals(normal)
    upper = found[found.imag > 0]
    upper = upper[upper.imag.argsort()]
    torch.testing.assert_close(torch.complex(-decay, frequency), upper, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(2 * entry.square().sum(), root.square().sum())


def segments(layer, x, cuts):
    state, outputs = layer.make_state(x.shape[0]), []
    for first, last in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        output, state = layer(x[:, first:last], state=state, return_state=True)
        outputs.append(output)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
def test_segments_and_steps_are_the_whole(discretisation):
    torch.manual_seed(0)
    layer = S4D(6, state_dim=16, chunk=8, discretisation=discretisation)
    x = torch.randn(2, 41, 6)
    whole, last = layer(x, return_state=True)
    found, state = segments(layer, x, [3, 3, 11, 27])
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.tensors["modes"], last.tensors["modes"], rtol=1e-5, atol=1e-5)
    state = layer.make_state(2)
    for place in range(41):
        output, state = layer.step(x[:, place], state)
        torch.testing.assert_close(output, whole[:, place], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.tensors["modes"], last.tensors["modes"], rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_the_state_until_it_is_detached():
    torch.manual_seed(0)
    layer = S4D(6, state_dim=8, chunk=8).double()
    x = torch.randn(2, 21, 6, dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(layer(x)[:, 10:].square().sum(), [x, *layer.parameters()])
    found, _ = segments(layer, x, [10])
    parts = torch.autograd.grad(found[:, 10:].square().sum(), [x, *layer.parameters()])
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)
    _, state = layer(x[:, :10], return_state=True)
    state.detach()
    (cut,) = torch.autograd.grad(layer(x[:, 10:], state=state).square().sum(), x)
    assert not cut[:, :10].any()


def test_the_state_protocol():
    torch.manual_seed(0)
    layer = S4D(6, state_dim=8)
    x, more = torch.randn(3, 9, 6), torch.randn(3, 5, 6)
    with torch.no_grad():
        _, state = layer(x, return_state=True)
        kept = state.state_dict()
        expected = layer(more, state=state)

        state.reorder([2, 0])
        torch.testing.assert_close(layer(more[[2, 0]], state=state), expected[[2, 0]])
        state.reset([1])
        torch.testing.assert_close(layer(more[[2, 0]], state=state)[1], layer(more[[0]])[0])
        state.reset()
        torch.testing.assert_close(layer(more[:2], state=state), layer(more[:2]))

        other = layer.make_state(1)
        other.load_state_dict(kept)
        assert torch.equal(layer(more, state=other), expected)
        other.reset()
        assert kept["modes"].any()
    with pytest.raises(regard.ArgumentError, match=r"rows: expected whole numbers from 0 to 2, got \[0, 3\]"):
        other.reorder([0, 3])
    with pytest.raises(regard.ShapeError, match=r"state: expected the tensors \['modes'\], got \['keys'\]"):
        other.load_state_dict({"keys": kept["modes"]})


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_state_of_a_padded_sample_is_that_of_the_sample_alone(side):
    torch.manual_seed(0)
    layer = S4D(6, state_dim=8, chunk=4)
    lengths, x = [9, 5, 0], torch.randn(3, 9, 6)
    wild = x.masked_fill(~Padding(lengths, side=side).dense(1, 9)[:, 0, 0, :, None], math.nan)
    output, state = layer(wild, mask=Padding(lengths, side=side), return_state=True)
    for sample, length in enumerate(lengths):
        real = slice(0, length) if side == "right" else slice(9 - length, 9)
        alone, after = layer(x[sample : sample + 1, real], return_state=True)
        torch.testing.assert_close(output[sample : sample + 1, real], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state.tensors["modes"][sample : sample + 1], after.tensors["modes"])


def test_padding_may_hold_anything():
    torch.manual_seed(0)
    layer = S4D(6, state_dim=8, bidirectional=True)
    x = torch.randn(2, 9, 6)
    wild = x.clone()
    wild[1, 4:] = math.nan
    real = torch.arange(9) < torch.tensor([[9], [4]])
    found = layer(wild, mask=real)
    assert torch.equal(found[1, :4], layer(x, mask=Padding([9, 4]))[1, :4])
    assert torch.equal(found, layer(wild, mask=Padding.from_attention_mask(real)))


def test_autocast_leaves_the_scan_in_float32():
    torch.manual_seed(0)
    layer, x = S4D(6, state_dim=8, mixing="none"), torch.randn(2, 40, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
        found.sum().backward()
    assert torch.equal(found, layer(x))


def test_the_operators_keep_torchs_rules():
    torch.manual_seed(0)
    problem = Problem(
        torch.randn(2, 11, 3, dtype=torch.float64, requires_grad=True),
        torch.stack([-torch.rand(3, 2), torch.randn(3, 2)], -1).double().requires_grad_(),
        torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True),
        4,
    )
    operator_library.opcheck(torch.ops.regard.diagonal_scan.default, tuple(problem))
    assert torch.autograd.gradcheck(lambda *given: diagonal_scan(Problem(*given, 4)), tuple(problem[:4]))


def test_a_second_derivative_is_refused_by_name():
    layer, x = S4D(4, state_dim=4), torch.randn(1, 5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(regard.UnsupportedError, match=r"no second derivative\. Differentiate through a loop over"):
        gradient.sum().backward()


def test_what_is_refused():
    with pytest.raises(regard.ArgumentError, match=r"state_dim: expected an even number, got 7\. Modes come in"):
        S4D(4, state_dim=7)
    with pytest.raises(regard.ArgumentError, match=r"expected 0 < dt_min <= dt_max, got 0\.2 and 0\.1"):
        S4D(4, dt_min=0.2)
    with pytest.raises(regard.ArgumentError, match=r"initialisation: expected 'legs' or 'lin' or 'inv' or 'real', got"):
        S4D(4, initialisation="hippo")
    layer, x = S4D(4, state_dim=4), torch.randn(2, 5, 4)
    with pytest.raises(
        regard.UnsupportedError, match=r"it honours padding, and no other mask; .* Pass Padding\(lengths\)"
    ):
        layer(x, mask=Causal())
    with pytest.raises(regard.MaskError, match=r"\(batch, length\) = \(2, 5\), .* got \(2, 4\)"):
        layer(x, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(regard.UnsupportedError, match="a state would decay over padded tokens"):
        layer(x, mask=Padding([5, 3]), state=layer.make_state(2))
    with pytest.raises(regard.ShapeError, match=r"state: expected a state of 2 samples, got 3"):
        layer(x, state=layer.make_state(3))
    with pytest.raises(regard.ShapeError, match=r"state modes: expected \(batch, 4, 2, 2\), got \(2, 4, 4, 2\)"):
        layer(x, state=S4D(4, state_dim=8).make_state(2))
    with pytest.raises(regard.ShapeError, match=r"expected \(batch, embed_dim 4\), one token of each sample, got"):
        layer.step(x, layer.make_state(2))
    both = S4D(4, state_dim=4, bidirectional=True)
    with pytest.raises(regard.UnsupportedError, match=r"never looks ahead, and this one is bidirectional\. Make it"):
        both(x, return_state=True)
    with pytest.raises(regard.UnsupportedError, match="decoding needs a layer that never looks ahead"):
        both.step(x[:, 0], layer.make_state(2))
