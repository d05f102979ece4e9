"""`regard.activate` beside other ways to look at tensors: meta, nested, torch.func, tangents, autocast, observe."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

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


# ------------------------------------------------------------------- views that are not what lies in memory


def unread(tensor):
    """A view whose numbers are minus what lies in memory."""
    view = torch._neg_view(-tensor)  # as the imaginary part of what is conjugated, but with its rows in one piece
    assert view.is_neg()
    return view


OPTIONS = {
    "plain": dict,
    "bool-mask": masked(5, 9),
    "float-mask": masked(5, 9, kind="float"),
    "mask-that-learns": masked(5, 9, kind="float", gradient=True),
    "dropout": lambda: {"dropout_p": 0.4},
    "unbatched": dict,
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_negative_views_are_read_with_their_sign(name, gradient):
    inputs, options = sized(5, 9)(), OPTIONS[name]()
    if name == "unbatched":
        inputs = [tensor[0] for tensor in inputs]
    negative = dict(options)
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        negative["attn_mask"] = unread(mask.detach()).requires_grad_(mask.requires_grad)
    outcomes = []
    for given, extra in ((inputs, options), ([unread(tensor) for tensor in inputs], negative)):
        leaves = [tensor.detach().requires_grad_(gradient) for tensor in given]
        calls = Counted()
        torch.manual_seed(0)
        with regard.activate():
            output = F.scaled_dot_product_attention(*leaves, **extra)
        assert calls.forward == 1
        learned = [*leaves, *(each for each in extra.values() if isinstance(each, torch.Tensor))]
        learned = [tensor for tensor in learned if tensor.requires_grad]
        outcomes.append([output.detach(), *(torch.autograd.grad(output.square().sum(), learned) if learned else ())])
    torch.testing.assert_close(outcomes[1], outcomes[0])


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_zeros_that_have_no_memory(dropout_p):
    query, key, value = sized()()
    empty = torch._efficientzerotensor(query.shape)
    with regard.activate():
        torch.manual_seed(0)
        found = F.scaled_dot_product_attention(empty, key, value, dropout_p=dropout_p)
        torch.manual_seed(0)
        expected = F.scaled_dot_product_attention(torch.zeros_like(query), key, value, dropout_p=dropout_p)
    assert torch.equal(found, expected)


# ------------------------------------------------------------------------- the caller chooses torch's kernels


def test_math_alone_is_torchs_formula():
    inputs = sized()()
    calls = Counted()
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(*inputs)
        with regard.activate():
            found = F.scaled_dot_product_attention(*inputs)
    assert calls.forward == 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value_dim", [WIDTH, 5])
def test_math_alone_has_a_second_derivative(value_dim):
    def twice():
        torch.manual_seed(0)
        query, key, value = (tensor.requires_grad_() for tensor in sized(value_dim=value_dim)())
        with sdpa_kernel(SDPBackend.MATH):
            output = F.scaled_dot_product_attention(query, key, value)
        (gradient,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (query, key, value))

    expected = twice()
    with regard.activate():
        found = twice()
    assert all(torch.equal(have, want) for have, want in zip(found, expected, strict=True))


def test_flash_that_is_switched_off_stays_off():
    inputs = sized()()
    calls = Counted()
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        with regard.activate():
            F.scaled_dot_product_attention(*inputs)
            F.scaled_dot_product_attention(*inputs, dropout_p=0.1)
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    assert calls.forward == 0


def test_a_kernel_that_torch_has_not_is_torchs_own_error():
    inputs = sized()()
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        with pytest.raises(RuntimeError, match="No viable backend") as own:
            F.scaled_dot_product_attention(*inputs)
        with regard.activate(), pytest.raises(own.type) as found:
            F.scaled_dot_product_attention(*inputs)
    assert str(found.value) == str(own.value)


def test_flash_alone_takes_more_than_torchs_does():
    calls = Counted()
    with regard.activate(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        F.scaled_dot_product_attention(*sized(value_dim=5)())
        F.scaled_dot_product_attention(*sized()(), dropout_p=0.1)
    assert calls.forward == 2


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
