"""`regard.activate`: what torch's own attention gives, from the native core, and torch as it was afterwards."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch.nn import attention as torch_attention

import regard
from regard.backends import _library
from regard.integrations import torch_sdpa
from tests.integrations.calls import (
    BATCH,
    HEADS,
    INVALID,
    NOT_DENSE,
    PASSED_ON,
    SERVED,
    WIDTH,
    Counted,
    assert_near,
    kernels,
    outcome,
    sized,
)

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    before = kernels()
    yield
    regard.deactivate()
    assert kernels() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_gives_what_torch_gives(name, dtype):
    call = SERVED[name]
    exact = rounded_truth(call, dtype)
    plain = outcome(call, dtype, gradient=True)
    calls = Counted()
    with regard.activate():
        found = outcome(call, dtype, gradient=True)
        without = outcome(call, dtype, gradient=False)[0]
    assert (calls.forward, calls.backward) == (2, 1), "or torch computed it"
    assert torch.equal(without, found[0])
    assert_near(found, exact, plain)


def rounded_truth(call, dtype):
    """In float64, on the numbers that `dtype` can hold."""
    tensors, options = call.made(dtype, gradient=True)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options["attn_mask"] = mask.detach().double().requires_grad_(mask.requires_grad)
    output = F.scaled_dot_product_attention(*wide, **options)
    learned = [*wide, *(each for each in options.values() if isinstance(each, torch.Tensor) and each.requires_grad)]
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad((output * weights.to(dtype).double()).sum(), learned)]


@pytest.mark.parametrize("name", PASSED_ON)
def test_what_is_not_served_goes_on_to_torch(name):
    plain = outcome(PASSED_ON[name], torch.float32, gradient=True)
    calls = Counted()
    with regard.activate():
        found = outcome(PASSED_ON[name], torch.float32, gradient=True)
    if calls.forward == 0:  # with no key or with sizes that broadcast, torch's own formula ran
        assert all(torch.equal(have, want) for have, want in zip(found, plain, strict=True))
    else:  # torch's way led to its own fused kernel, which is replaced too
        assert_near(found, [each.double() for each in plain], plain)


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_call_is_torchs_own_error(name):
    tensors, options = INVALID[name]
    with pytest.raises((RuntimeError, IndexError, ValueError)) as own:
        F.scaled_dot_product_attention(*tensors, **options)
    with regard.activate(), pytest.raises(own.type) as found:
        F.scaled_dot_product_attention(*tensors, **options)
    assert str(found.value) == str(own.value)


@pytest.mark.parametrize("name", NOT_DENSE)
def test_what_is_not_dense_is_refused(name):  # in words that name the kernels that there are, which are others now
    tensors, options = NOT_DENSE[name]
    for refused in (nullcontext(), regard.activate()):
        calls = Counted()
        with refused, pytest.raises(RuntimeError):
            F.scaled_dot_product_attention(*tensors, **options)
        assert calls.forward == 0


def test_a_query_without_keys_gives_zero_and_finite_gradients():
    query, key, value = (tensor.requires_grad_() for tensor in sized()())
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[4] = False
    with regard.activate():
        output = F.scaled_dot_product_attention(query, key, value, mask)
    gradients = torch.autograd.grad(output.sum(), (query, key, value))
    assert (output[:, :, 4] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


# ------------------------------------------------------------------------------------------- dropout


def test_dropout_keeps_its_share_and_the_mean():
    query = torch.zeros(1, 4, 128, 8)
    value = torch.eye(128).expand(1, 4, 128, 128)  # so that the output is the weights
    with regard.activate():
        weights = F.scaled_dot_product_attention(query, query, value, dropout_p=0.3)
    kept = weights > 0
    deviation = math.sqrt(0.3 * 0.7 / kept.numel())
    assert abs(float(kept.double().mean()) - 0.7) < 5 * deviation
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / 128 / 0.7))


def test_dropout_follows_manual_seed_in_both_directions():
    inputs = [tensor.requires_grad_() for tensor in sized()()]
    results = []
    with regard.activate():
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            output = F.scaled_dot_product_attention(*inputs, dropout_p=0.4)
            results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    assert all(torch.equal(*pair) for pair in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


def test_no_dropout_leaves_the_generator_alone():
    before = torch.get_rng_state()
    with regard.activate():
        F.scaled_dot_product_attention(*sized_zeros())
    assert torch.equal(torch.get_rng_state(), before)


def sized_zeros():
    return [torch.zeros(BATCH, HEADS, 9, WIDTH) for _ in range(3)]


# ------------------------------------------------------------------------------------------- on and off


def switch_by_name():
    torch_attention.activate_flash_attention_impl("regard")
    return torch_attention.restore_flash_attention_impl


def switch_by_call():
    regard.activate()
    return regard.deactivate


def switch_by_handle():
    return regard.activate().remove


@pytest.mark.parametrize("switch", [switch_by_name, switch_by_call, switch_by_handle], ids=lambda made: made.__name__)
def test_on_and_off_again(switch):
    inputs, own = sized()(), kernels()
    before = F.scaled_dot_product_attention(*inputs)
    off = switch()
    assert torch_sdpa.is_active()
    assert kernels() != own
    assert torch.backends.mha.get_fastpath_enabled()
    calls = Counted()
    F.scaled_dot_product_attention(*inputs)
    off()
    assert calls.forward == 1
    assert not torch_sdpa.is_active()
    assert kernels() == own
    calls = Counted()
    assert torch.equal(F.scaled_dot_product_attention(*inputs), before)
    assert calls.forward == 0


def test_it_is_in_torchs_list():
    assert "regard" in torch_attention.list_flash_attention_impls()
    torch_attention.activate_flash_attention_impl("regard")
    assert torch_attention.current_flash_attention_impl() == "regard"
    torch_attention.restore_flash_attention_impl()


def test_the_inner_of_two_contexts_leaves_it_on():
    with regard.activate():
        with regard.activate():
            pass
        assert torch_sdpa.is_active()
    assert not torch_sdpa.is_active()
    regard.deactivate()  # once more than it was activated: nothing happens
    assert not torch_sdpa.is_active()


def test_an_error_inside_restores_torch():
    own = kernels()
    with pytest.raises(KeyError), regard.activate():
        raise KeyError
    assert kernels() == own


def test_without_the_core_it_says_why_and_changes_nothing(monkeypatch):
    own = kernels()
    monkeypatch.setattr(_library, "why_absent", lambda: "the native core is absent: no compiler")
    with pytest.raises(regard.NativeError, match="no compiler"):
        regard.activate()
    assert kernels() == own


def test_threads_that_switch_and_compute():
    inputs = sized(40, 40)()
    expected, failures = F.scaled_dot_product_attention(*inputs), []

    def compute():
        found = [F.scaled_dot_product_attention(*inputs) for _ in range(30)]
        failures.extend(output for output in found if not torch.allclose(output, expected, atol=1e-5))

    def switch():
        for _ in range(10):
            with regard.activate():
                F.scaled_dot_product_attention(*inputs)

    with regard.activate():  # the others switch what is on already, as a library inside a program would
        threads = [threading.Thread(target=work) for work in (compute, switch, compute, switch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch_sdpa.is_active()
    assert failures == []


def test_the_fused_operators_need_no_python():
    before = kernels()
    with regard.activate():
        assert kernels().count("torch_kernels.cpp") >= 2, "or torch's C interface was not found, and Python took over"
    assert "torch_kernels.cpp" not in before
