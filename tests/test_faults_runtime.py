"""F49-F56: autograd, autocast, compilation, threads, processes, repetition, batches, caches."""

from __future__ import annotations

import functools
import multiprocessing
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import regard
from regard.masks import Causal, Padding, SlidingWindow
from regard.positions import ALiBi, RoPE, Shaw
from tests import oracles
from tests.judging import BATCH, HEADS, WIDTH, each_backend, made

composed_or_fused = pytest.mark.parametrize("backend", ["native", "eager", "sdpa", "auto"])
JIT_WARNING = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"  # raised inside inductor


def tensors(*lengths, dtype=torch.float32):
    lengths = lengths or (8, 8, 8)
    return [torch.randn(BATCH, HEADS, length, WIDTH, dtype=dtype) for length in lengths]


# ------------------------------------------------------------------------------------ F49: contexts


@composed_or_fused
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_f49_autocast_computes_in_its_dtype(backend, dtype):
    inputs = tensors()
    with torch.autocast("cpu", dtype):
        output = regard.attention(*inputs, mask=Causal(), backend=backend)
        mixed = regard.attention(inputs[0], inputs[1], inputs[2].to(dtype), mask=Causal(), backend=backend)
        assert torch.is_autocast_enabled("cpu")
    expected = regard.attention(*(tensor.to(dtype) for tensor in inputs), mask=Causal(), backend=backend)
    oracles.assert_same(output, expected)
    oracles.assert_same(mixed, expected)


@composed_or_fused
def test_f49_autocast_leaves_float64_and_gradients_alone(backend):
    inputs = [tensor.requires_grad_() for tensor in tensors(dtype=torch.float64)]
    with torch.autocast("cpu", torch.bfloat16):
        output = regard.attention(*inputs, backend=backend)
    oracles.assert_same(output, regard.attention(*inputs, backend=backend))
    single = [tensor.requires_grad_() for tensor in tensors()]
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(regard.attention(*single, backend=backend).sum(), single)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@each_backend
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_f49_without_gradients(backend, context):
    inputs = [tensor.requires_grad_() for tensor in tensors()]
    with context():
        output = regard.attention(*inputs, mask=Causal(), backend=backend)
    assert not output.requires_grad
    expected = regard.attention(*(tensor.detach() for tensor in inputs), mask=Causal(), backend=backend)
    oracles.assert_same(output.clone(), expected)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "auto"])
@pytest.mark.parametrize("options", [{}, {"mask": Causal()}, {"position": ALiBi(HEADS)}], ids=str)
def test_f49_vmap(backend, options):
    inputs = [torch.randn(3, *tensor.shape) for tensor in tensors()]
    function = functools.partial(regard.attention, backend=backend, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # of torch's vmap over its kernel
        together = torch.vmap(function)(*inputs)
    oracles.assert_within(together, torch.stack([function(*each) for each in zip(*inputs, strict=True)]), 1e-6)


def test_f49_vmap_is_refused_by_flex_by_name():
    inputs = [torch.randn(3, *tensor.shape) for tensor in tensors()]
    with pytest.raises(regard.UnsupportedError, match=r"flex: inside torch\.compile and vmap"):
        torch.vmap(functools.partial(regard.attention, backend="flex"))(*inputs)


def test_f49_second_derivative_is_right_or_refused_by_name():
    inputs = [tensor.requires_grad_() for tensor in tensors()]
    refusals = {
        "native": (regard.UnsupportedError, "native: it has no second derivative"),
        "sdpa": (RuntimeError, r"derivative for .*flash_attention_for_cpu_backward"),
    }
    for backend in ("native", "eager", "sdpa"):
        output = regard.attention(*inputs, backend=backend)
        (gradient,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
        if backend == "eager":
            (second,) = torch.autograd.grad(gradient.square().sum(), inputs[0])
            assert second.isfinite().all()
            assert second.abs().max() > 0
        else:
            kind, words = refusals[backend]
            with pytest.raises(kind, match=words):
                torch.autograd.grad(gradient.square().sum(), inputs[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # in torch.func.jvp
def test_f49_forward_mode_is_right_or_refused_by_name():
    query, key, value = tensors(dtype=torch.float64)
    tangent = torch.randn_like(query)

    def attend(query, backend):
        return torch.func.jvp(lambda q: regard.attention(q, key, value, backend=backend), (query,), (tangent,))[1]

    step = 1e-6
    ends = [regard.attention(query + sign * step * tangent, key, value, backend="eager") for sign in (1, -1)]
    for backend in ("eager", "auto"):
        oracles.assert_within(attend(query, backend), (ends[0] - ends[1]) / (2 * step), 1e-8)
    with pytest.raises(regard.UnsupportedError, match="sdpa: it has no forward-mode derivative"):
        attend(query, "sdpa")
    with pytest.raises(regard.UnsupportedError, match=r"native: it has no rule for torch\.func"):
        attend(query, "native")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_f49_transforms_within_transforms_are_right_or_refused_by_name():
    query, key, value = (tensor[:1, :1, :2] for tensor in tensors(dtype=torch.float64))

    def total(query, backend):
        return regard.attention(query, key, value, backend=backend).square().sum()

    ways = {
        "hessian": lambda loss: torch.func.hessian(loss)(query),
        "slope of slope": lambda loss: torch.func.grad(lambda q: torch.func.grad(loss)(q).sum())(query),
    }
    for way in ways.values():
        expected = way(functools.partial(total, backend="eager"))
        assert expected.abs().max() > 0
        torch.testing.assert_close(way(functools.partial(total, backend="auto")), expected, rtol=0, atol=1e-12)
        with pytest.raises(regard.UnsupportedError, match=r"sdpa: it has no (second|forward-mode) derivative"):
            way(functools.partial(total, backend="sdpa"))


# ------------------------------------------------------------------------------------ F50: compilation

COMPILED = {
    "plain": {},
    "mask": {"mask": Causal() & SlidingWindow(3)},
    "alibi": {"position": ALiBi(HEADS)},
    "rope": {"position": RoPE(WIDTH)},
    "dropout": {"dropout_p": 0.1},
    "shaw": {"position": Shaw(WIDTH, 2), "softcap": 3.0},
}


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("eager", "shaw"),
        ("eager", "dropout"),
        ("sdpa", "alibi"),
        ("sdpa", "mask"),
        ("auto", "plain"),
        ("auto", "rope"),
        *(("native", name) for name in COMPILED),
    ],
)
def test_f50_twenty_lengths_compile_at_most_twice_again(backend, name):
    torch._dynamo.reset()
    counter = CompileCounter()
    function = functools.partial(regard.attention, backend=backend, **COMPILED[name])
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for length in range(5, 25):
        compiled(*tensors(length, length, length))
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs for 20 lengths"


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("eager", "shaw"),
        ("sdpa", "mask"),
        ("auto", "rope"),
        *(("native", name) for name in COMPILED if name != "dropout"),  # whose seed is drawn
    ],
)
@pytest.mark.parametrize("poison", [None, 0, 1, 2])
def test_f50_compiled_is_as_not_compiled_also_with_nan(backend, name, poison):
    torch._dynamo.reset()
    inputs = tensors()
    if poison is not None:
        inputs[poison][0, 1, 2, 3] = torch.nan
    function = functools.partial(regard.attention, **COMPILED[name])
    compiled = torch.compile(functools.partial(function, backend=backend), fullgraph=True, backend="aot_eager")
    expected = oracles.answer(functools.partial(function, backend="eager"), oracles.Case(*inputs))
    actual = oracles.answer(compiled, oracles.Case(*inputs))
    oracles.assert_within(actual.output, expected.output, 1e-5)
    if poison is None or backend == "eager":
        for gradient in expected.gradients:
            oracles.assert_within(actual.gradients[gradient], expected.gradients[gradient], 1e-4, gradient)


@pytest.mark.filterwarnings(JIT_WARNING)
def test_f50_inductor():
    torch._dynamo.reset()
    inputs = tensors()
    compiled = torch.compile(functools.partial(regard.attention, mask=Causal(), softcap=3.0), fullgraph=True)
    oracles.assert_within(compiled(*inputs), regard.attention(*inputs, mask=Causal(), softcap=3.0), 1e-5)


# ------------------------------------------------------------------------------------ F51: derivatives

DERIVED = {
    "bias": lambda: {"bias": torch.randn(1, 2, 3, 1, dtype=torch.float64)},
    "sink": lambda: {"sink": torch.randn(2, dtype=torch.float64), "softcap": 1.3},
    "mask-with-empty-row": lambda: {"mask": torch.eye(4, 4, dtype=torch.bool)[:3].roll(1, 0)[None, None]},
    "causal": lambda: {"mask": ~Causal("bottom_right"), "scale": -0.5},
    "dropout": lambda: {"dropout_p": 0.4, "seed": 3},
}


@pytest.mark.parametrize("name", DERIVED)
def test_f51_first_and_second_derivatives(name):
    options = DERIVED[name]()
    inputs = [torch.randn(1, 2, length, 2, dtype=torch.float64, requires_grad=True) for length in (3, 4, 4)]
    learned = [option for option in ("bias", "sink") if option in options]
    extra = [options.pop(option).requires_grad_() for option in learned]

    def attend(query, key, value, *more):
        named = dict(zip(learned, more, strict=True))
        output, lse = regard.attention(query, key, value, backend="eager", return_lse=True, **options, **named)
        return output, lse.masked_fill(lse.isinf(), 0.0).double()

    def output_only(*everything):
        return attend(*everything)[0]

    assert torch.autograd.gradcheck(output_only, (*inputs, *extra))
    assert torch.autograd.gradgradcheck(output_only, (*inputs, *extra))


@pytest.mark.parametrize("options", [{}, {"mask": Causal()}], ids=str)
@pytest.mark.parametrize("backend", ["native", "sdpa"])
def test_f51_derivative_of_the_fused_backends(options, backend):
    inputs = [torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(functools.partial(regard.attention, backend=backend, **options), inputs)


# ------------------------------------------------------------------------------------ F52, F53: threads, processes


def test_f52_threads_with_different_backends_flip_no_flag():
    inputs = tensors(33, 33, 33)
    flags = (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.math_sdp_enabled)
    before = [flag() for flag in flags]
    names = ("native", "eager", "sdpa", "flex")
    expected = {name: regard.attention(*inputs, mask=Causal(), backend=name) for name in names}
    failures = []

    def work(name):
        for _ in range(10 if name != "flex" else 2):
            if not torch.equal(regard.attention(*inputs, mask=Causal(), backend=name), expected[name]):
                failures.append(name)
            if [flag() for flag in flags] != before:
                failures.append("flags")

    threads = [threading.Thread(target=work, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_f53_fork_after_use():
    # The threads of torch's own operations do not survive a fork, so the child asks for one, as its data loader does.
    code = (
        "import os, torch, regard\n"
        "inputs = [torch.randn(1, 2, 64, 8) for _ in range(3)]\n"
        "mask = regard.masks.Causal()\n"
        "expected = regard.attention(*inputs, mask=mask)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    torch.set_num_threads(1)\n"
        "    same = torch.allclose(regard.attention(*inputs, mask=mask), expected, atol=1e-6)\n"
        "    os._exit(0 if same else 3)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr


def in_another_process(inputs, options):
    """What a spawned worker does."""
    return regard.attention(*inputs, **options)


def test_f53_spawn_with_masks_and_positions():
    inputs = [tensor.numpy() for tensor in tensors()]
    options = {"mask": Causal() & Padding([3, 8]), "position": ALiBi(HEADS)}
    expected = regard.attention(*map(torch.from_numpy, inputs), **options)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        output = pool.apply(_spawned, (inputs, options))
    oracles.assert_within(torch.from_numpy(output), expected, 1e-6)


def _spawned(inputs, options):
    return in_another_process([torch.from_numpy(array) for array in inputs], options).numpy()


# ------------------------------------------------------------------------------------ F54-F56: repeats, batches, caches


@pytest.mark.parametrize("backend", ["native", "eager", "sdpa"])
def test_f54_a_hundred_repetitions_give_the_same_bits(backend):
    case = made(33, 33, mask=Causal())
    function = functools.partial(regard.attention, backend=backend)
    first = oracles.answer(function, case)
    for _ in range(100):
        again = oracles.answer(function, case)
        assert torch.equal(again.output, first.output)
        assert all(torch.equal(again.gradients[name], first.gradients[name]) for name in first.gradients)
    case.query[0, 0, 5, 0] += 1e-3  # the comparison can tell a difference
    assert not torch.equal(oracles.answer(function, case).output, first.output)


@each_backend
def test_f55_alone_or_in_a_batch_or_padded(backend):
    query, key, value = tensors(5, 5, 5)
    function = functools.partial(regard.attention, backend=backend)
    together = function(query, key, value)
    alone = torch.cat([function(*(t[i : i + 1] for t in (query, key, value))) for i in range(BATCH)])
    oracles.assert_within(alone, together, 1e-6)
    for side, at in (("right", slice(0, 5)), ("left", slice(3, 8))):
        padded = [torch.randn(BATCH, HEADS, 8, WIDTH) for _ in range(3)]
        for whole, part in zip(padded, (query, key, value), strict=True):
            whole[:, :, at] = part
        output = function(*padded, mask=Padding([5, 5], side=side))
        oracles.assert_within(output[:, :, at], together, 1e-6)


@each_backend
@pytest.mark.parametrize("position", [None, ALiBi(HEADS, align="bottom_right"), RoPE(WIDTH, align="bottom_right")])
def test_f56_step_by_step_with_a_cache_is_the_full_pass(backend, position):
    query, key, value = tensors()
    options = {"mask": Causal("bottom_right"), "position": position, "backend": backend}
    full = regard.attention(query, key, value, **options)
    for start, end in ((0, 3), (3, 4), (4, 8)):
        part = regard.attention(query[:, :, start:end], key[:, :, :end], value[:, :, :end], **options)
        oracles.assert_within(part, full[:, :, start:end], 2e-6)
