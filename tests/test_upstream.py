"""What torch itself does today with hostile input: tripwires, each on raw torch.

A failure here is news from upstream, not a fault of ours: read the new behaviour, then change the row and what
`regard.backends` guards against. The IDs R1-R19 are those of the tests' fault table; the rest was found here.
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = pytest.mark.upstream
sdpa = F.scaled_dot_product_attention
NAN, INFINITY = math.nan, math.inf


def normal(*sizes):
    return torch.randn(*sizes)


def math_backend(*arguments, **options):
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(*arguments, **options)


def problem(q_len=5, kv_len=5):
    return normal(1, 2, q_len, 8), normal(1, 2, kv_len, 8), normal(1, 2, kv_len, 8)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("gradient", [False, True])
def test_r01_query_or_key_full_of_nan_becomes_zero(which, gradient):
    """Documents upstream: the fused kernel hides divergence, the math backend shows it."""
    tensors = list(problem())
    tensors[which] = torch.full_like(tensors[which], NAN).requires_grad_(gradient)
    assert (sdpa(*tensors) == 0).all()
    assert math_backend(*tensors).isnan().all()


def test_r02_one_nan_in_one_key_is_nan():
    """Documents upstream: the same kernel that hides a key full of NaN shows a single one."""
    query, key, value = problem()
    key[0, 0, 2, 3] = NAN
    assert sdpa(query, key, value)[0, 0].isnan().all()


def test_r03_scale_of_nan_becomes_zero():
    """Documents upstream: nobody checks the scale."""
    assert (sdpa(*problem(), scale=NAN) == 0).all()
    assert math_backend(*problem(), scale=NAN).isnan().all()


def test_r04_value_longer_than_key_reads_or_writes_out_of_bounds():
    """Documents upstream: the kernel reads as many keys as there are values, here past the end of the process's memory.

    How many it takes to leave mapped memory depends on the machine; the value here has stride 0 and costs nothing.
    """
    code = (
        "import torch; q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 1, 8);"
        "torch.nn.functional.scaled_dot_product_attention(q, k, k.expand(1, 1, 20_000_000, 8)); print('survived')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == -11, f"returned {ended.returncode}: {ended.stdout} {ended.stderr[-300:]}"


def test_r05_value_shorter_than_key_drops_keys():
    """Documents upstream: no error, and the last keys are as if they were not there."""
    query, key, value = problem()
    assert torch.equal(sdpa(query, key, value[:, :, :3]), sdpa(query, key[:, :, :3], value[:, :, :3]))


def test_r06_mask_with_causal_depends_on_the_backend():
    """Documents upstream: the documentation says error; the fused kernel applies both."""
    query, key, value = problem()
    mask = normal(5, 5)
    both = mask.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -INFINITY)
    torch.testing.assert_close(sdpa(query, key, value, mask, is_causal=True), sdpa(query, key, value, both))
    with pytest.raises(RuntimeError, match="should not be set when is_causal"):
        math_backend(query, key, value, mask, is_causal=True)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize("function", [sdpa, math_backend])
def test_r07_empty_row_is_zero_with_finite_gradients(kind, function):
    """Documents upstream: right since about 2.5, and relied on here."""
    tensors = [tensor.requires_grad_() for tensor in problem()]
    allowed = torch.ones(5, 5, dtype=torch.bool)
    allowed[2] = False
    mask = allowed if kind == torch.bool else torch.zeros(5, 5).masked_fill(~allowed, -INFINITY)
    output = function(*tensors, mask)
    assert (output[:, :, 2] == 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), tensors))


def test_r08_empty_row_by_the_smallest_number_is_the_mean():
    """Documents upstream: a mask of finfo.min looks like one of -inf and means another thing."""
    query, key, value = problem()
    mask = torch.full((5, 5), torch.finfo(torch.float32).min)
    torch.testing.assert_close(sdpa(query, key, value, mask), value.mean(2, keepdim=True).expand_as(value))


def test_r09_multi_head_attention_has_three_behaviours_for_one_padded_sample():
    """Documents upstream: NaN with weights, no NaN without, NaN again in the fast path of inference."""
    layer, text = torch.nn.MultiheadAttention(8, 2, batch_first=True), normal(2, 4, 8)
    padded = torch.tensor([[False] * 4, [True] * 4])
    ask = {"key_padding_mask": padded}
    assert layer(text, text, text, need_weights=True, **ask)[0][1].isnan().all()
    assert layer(text, text, text, need_weights=False, **ask)[0].isfinite().all()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert layer.eval()(text, text, text, need_weights=False, **ask)[0][1].isnan().all()


@pytest.mark.parametrize("function", [sdpa, math_backend])
@pytest.mark.parametrize("which", [1, 2])
def test_r10_nan_in_a_masked_key_or_value_leaks(function, which):
    """Documents upstream: padding must be filled with numbers before it comes here."""
    tensors = problem()
    tensors[which][:, :, 4] = NAN
    allowed = torch.ones(5, 5, dtype=torch.bool)
    allowed[:, 4] = False
    assert function(*tensors, allowed).isnan().any()


def test_r11_causal_with_other_lengths_is_top_left():
    """Documents upstream: other libraries put the last query beside the last key."""
    query, key, value = problem(3, 5)
    expected = sdpa(query, key, value, torch.ones(3, 5, dtype=torch.bool).tril())
    torch.testing.assert_close(sdpa(query, key, value, is_causal=True), expected)


def test_r12_float_mask_of_zeros_and_ones_is_added():
    """Documents upstream: nothing is masked and nothing is said."""
    query, key, value = problem()
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    assert (sdpa(query, key, value, allowed.float()) - sdpa(query, key, value, allowed)).abs().max() > 0.1


@pytest.mark.parametrize("number", [NAN, INFINITY])
def test_r13_nan_or_infinity_in_a_mask_is_not_diagnosed(number):
    """Documents upstream: the row of that pair is NaN."""
    mask = torch.zeros(5, 5)
    mask[1, 2] = number
    output = sdpa(*problem(), mask)
    assert output[:, :, 1].isnan().all()
    assert output[:, :, [0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize("probability", [-0.1, NAN])
def test_r14_math_backend_accepts_an_impossible_dropout(probability):
    """Documents upstream: no error."""
    try:
        math_backend(*problem(), dropout_p=probability)
    except RuntimeError as refusal:
        pytest.fail(f"upstream checks dropout_p now: {refusal}")


def test_r15_no_key_heads_are_accepted():
    """Documents upstream: enable_gqa with 0 key/value heads gives a tensor."""
    none = torch.zeros(1, 0, 5, 8)
    assert sdpa(normal(1, 4, 5, 8), none, none, enable_gqa=True).shape == (1, 4, 5, 8)


def test_r16_key_and_value_with_other_numbers_of_heads_are_accepted():
    """Documents upstream: enable_gqa repeats each by its own factor."""
    output = sdpa(normal(1, 4, 5, 8), normal(1, 2, 5, 8), normal(1, 1, 5, 8), enable_gqa=True)
    assert output.shape == (1, 4, 5, 8)


def test_r17_choosing_a_kernel_in_one_thread_changes_it_in_the_others():
    """Documents upstream: the flags of sdpa_kernel belong to the process, so a library must not use it."""
    inside, looked, seen = threading.Event(), threading.Event(), []

    def choose():
        with sdpa_kernel(SDPBackend.MATH):
            inside.set()
            looked.wait(10)

    before = torch.backends.cuda.flash_sdp_enabled()
    thread = threading.Thread(target=choose)
    thread.start()
    inside.wait(10)
    seen.append(torch.backends.cuda.flash_sdp_enabled())
    looked.set()
    thread.join()
    assert before
    assert seen == [False]


@pytest.mark.parametrize("sizes", [(0, 2, 5, 5), (1, 0, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)])
def test_r18_empty_input_has_the_right_shape(sizes):
    """Documents upstream: batch, heads, q_len or kv_len of 0; zeros for no keys. It crashed in 2.5."""
    batch, heads, q_len, kv_len = sizes
    keys = torch.ones(batch, heads, kv_len, 8)
    output = sdpa(torch.ones(batch, heads, q_len, 8), keys, keys)
    assert output.shape == (batch, heads, q_len, 8)
    assert (output == 0).all()


def test_r19_threads_and_batches_give_the_same_bits():
    """Documents upstream: the CPU path is repeatable for a fixed number of threads."""
    query, key, value = normal(4, 2, 33, 8), normal(4, 2, 33, 8), normal(4, 2, 33, 8)
    alone = torch.cat([sdpa(*(tensor[i : i + 1] for tensor in (query, key, value))) for i in range(4)])
    different = []

    def repeat():
        different.extend(n for n in range(50) if not torch.equal(sdpa(query, key, value), alone))

    threads = [threading.Thread(target=repeat) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert different == []


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_causal_flag_with_a_scale_that_is_not_positive_is_nan(scale):
    """Documents upstream: the CPU kernel scales the -inf of is_causal too; a mask in its place is right."""
    query, key, value = problem()
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    assert sdpa(query, key, value, is_causal=True, scale=scale).isnan().any()
    assert sdpa(query, key, value, allowed, scale=scale).isfinite().all()


def test_fused_cpu_kernel_has_no_second_derivative():
    """Documents upstream: it says so by name."""
    query, key, value = (tensor.requires_grad_() for tensor in problem())
    (gradient,) = torch.autograd.grad(sdpa(query, key, value).sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative for .*flash_attention_for_cpu_backward"):
        torch.autograd.grad(gradient.sum(), query)
