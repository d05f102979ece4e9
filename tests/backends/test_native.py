"""What only the native backend can get wrong: its operators, the two ways to it, what it keeps, threads, forks."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import regard
from regard._front_door import build_problem
from regard.backends import _direct, _library, _native_call, _native_inputs
from regard.backends._native_call import DIFFERENTIABLE
from regard.backends._native_struct import Inputs
from regard.masks import Causal, Dense, Documents, Padding, SlidingWindow
from regard.positions import ALiBi, RoPE, Shaw, T5Bias, TransformerXL
from tests import oracles
from tests.oracles import Case

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 9, 8
attend = functools.partial(regard.attention, backend="native")

OPTIONS = {
    "plain": dict,
    "band": lambda: {"mask": Causal() & SlidingWindow(3), "scale": 0.3},
    "intervals": lambda: {"mask": Padding([4, 9]) & Documents([4, 5])},
    "bits": lambda: {"mask": ~Causal() | SlidingWindow(2)},
    "dense": lambda: {"mask": Dense(torch.rand(BATCH, HEADS, LENGTH, LENGTH) < 0.6)},
    "bias": lambda: {"bias": torch.randn(BATCH, 1, LENGTH, LENGTH), "softcap": 2.0},
    "bias-of-keys": lambda: {"bias": torch.randn(1, HEADS, 1, LENGTH)},
    "sink": lambda: {"sink": torch.randn(HEADS), "mask": Causal()},
    "dropout": lambda: {"dropout_p": 0.3, "seed": torch.tensor(5)},
    "alibi": lambda: {"position": ALiBi(HEADS), "mask": Causal()},
    "t5": lambda: {"position": T5Bias(HEADS)},
    "rope": lambda: {"position": RoPE(WIDTH), "mask": Causal()},
    "shaw": lambda: {"position": Shaw(WIDTH, 2), "mask": SlidingWindow(4)},
    "transformer-xl": lambda: {"position": TransformerXL(HEADS, WIDTH)},
}
each_option = pytest.mark.parametrize("name", OPTIONS)


def states(length=LENGTH, dtype=torch.float32):
    return [torch.randn(BATCH, HEADS, length, WIDTH, dtype=dtype) for _ in range(3)]


def case(name):
    return Case(*states(), OPTIONS[name]())


def inputs_of(made):
    """What the operators are given for a case that learns."""
    fresh = made.copied(gradient=True)
    problem = build_problem(fresh.query, fresh.key, fresh.value, **fresh.options)
    return _native_inputs.inputs_of(problem)


def detached(inputs):
    return [value.detach() if isinstance(value, torch.Tensor) else value for value in inputs]


# ------------------------------------------------------------------------------------------- the operators


@each_option
def test_opcheck_of_the_operator(name):
    from regard.backends import _ops  # noqa: F401 - registers them

    inputs = inputs_of(case(name))
    leaves = [
        value.detach().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value
        for value in inputs
    ]
    torch.library.opcheck(torch.ops.regard.attention.default, tuple(leaves))


@each_option
def test_opcheck_of_its_backward(name):
    from regard.backends import _ops  # noqa: F401 - registers them

    inputs = Inputs(*detached(inputs_of(case(name))))
    results = _native_call.forward(inputs)
    wanted = [getattr(inputs, field) is not None for field in DIFFERENTIABLE]
    arguments = (torch.randn_like(results[0]), torch.randn_like(results[1]), *results, wanted, *inputs)
    torch.library.opcheck(
        torch.ops.regard.attention_backward.default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@each_option
def test_the_long_way_gives_the_bits_of_the_short_way(name, monkeypatch):
    made = case(name)
    function = functools.partial(attend, return_lse=True)
    short = oracles.answer(function, made)
    taken = []
    monkeypatch.setattr(_direct, "_is_plain", lambda inputs: taken.append(inputs) and False)
    long = oracles.answer(function, made)
    assert taken
    oracles.assert_same(long.output, short.output)
    oracles.assert_same(long.lse, short.lse)
    for leaf, gradient in short.gradients.items():
        oracles.assert_same(long.gradients[leaf], gradient, leaf)


@each_option
def test_compiled_without_a_graph_break(name):
    torch._dynamo.reset()
    made = case(name)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    found, expected = oracles.answer(compiled, made), oracles.answer(attend, made)
    oracles.assert_within(found.output, expected.output, 1e-5)
    for leaf, gradient in expected.gradients.items():
        oracles.assert_within(found.gradients[leaf], gradient, 1e-4, leaf)


def test_the_first_call_of_a_process_may_be_compiled():
    code = (
        "import torch, regard\n"
        "inputs = [torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3)]\n"
        "attend = lambda *given: regard.attention(*given, mask=regard.masks.Causal(), backend='native')\n"
        "output = torch.compile(attend, fullgraph=True, backend='aot_eager')(*inputs)\n"
        "output.sum().backward()\n"
        "torch.testing.assert_close(output, attend(*inputs))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_second_derivative_of_the_operator_is_refused_by_name():
    inputs = [tensor.requires_grad_() for tensor in states()]
    output = torch.ops.regard.attention(*inputs_of(Case(*inputs)))[0]
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs_with_graph(output), create_graph=True)
    with pytest.raises(regard.UnsupportedError, match="native: it has no second derivative"):
        gradient.sum().backward()


def inputs_with_graph(output):
    """The leaf that the first argument of the operator was."""
    return [output.grad_fn.next_functions[0][0].variable]


# ------------------------------------------------------------------------------------------- torch.func, tangents


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", ["vmap", "grad", "vmap-of-grad"])
def test_transforms_are_refused_by_name_and_auto_finds_another(transform):
    inputs = [torch.stack([tensor, tensor]) for tensor in states()] if "vmap" in transform else states()

    def summed(*given, backend):
        return regard.attention(*given, mask=Causal(), backend=backend).square().sum()

    def transformed(backend):
        function = functools.partial(summed, backend=backend)
        if "grad" in transform:
            function = torch.func.grad(function)
        return torch.vmap(function) if "vmap" in transform else function

    with pytest.raises(regard.UnsupportedError, match=r"native: it has no rule for torch\.func's transforms"):
        transformed("native")(*inputs)
    oracles.assert_within(transformed("auto")(*inputs), transformed("eager")(*inputs), 1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["query", "bias", "table"])
def test_a_tangent_of_anything_is_refused(name):
    position = T5Bias(HEADS)
    query, key, value = states()
    given = {"query": query, "bias": torch.randn(LENGTH, LENGTH), "table": position.table.detach()}
    with torch.autograd.forward_ad.dual_level():
        given[name] = torch.autograd.forward_ad.make_dual(given[name], torch.ones_like(given[name]))
        options = {"position": position, "bias": given["bias"], "backend": "native"}

        class Attend(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.position = position

            def forward(self):
                return regard.attention(given["query"], key, value, **options)

        with pytest.raises(regard.UnsupportedError, match="native: it has no forward-mode derivative"):
            torch.func.functional_call(Attend(), {"position.table": given["table"]})


# ------------------------------------------------------------------------------------------- what it keeps


@pytest.mark.parametrize("which", ["query", "key", "value", "bias", "sink"])
def test_a_tensor_written_to_before_backward_is_noticed(which):
    tensors = dict(zip(("query", "key", "value"), states(), strict=True))
    tensors |= {"bias": torch.randn(1, 1, LENGTH, LENGTH), "sink": torch.randn(HEADS)}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    output = attend(**leaves)
    with torch.no_grad():
        leaves[which].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_gives_the_same_bits(use_reentrant):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(5)
        leaves = [tensor.requires_grad_() for tensor in states()]
        function = functools.partial(attend, mask=Causal(), dropout_p=0.4)
        torch.manual_seed(6)
        output = checkpoint(function, *leaves, use_reentrant=use_reentrant) if recompute else function(*leaves)
        output.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_inference_mode_leaves_nothing_behind_that_training_trips_over():
    inputs, mask = states(), SlidingWindow(3) & ~Causal()
    with torch.inference_mode():
        first = attend(*inputs, mask=mask)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    again = attend(*leaves, mask=mask)
    again.sum().backward()
    assert torch.equal(again.detach(), first)


# ------------------------------------------------------------------------------------------- threads and processes


@each_option
def test_five_runs_give_the_same_bits(name):
    made = Case(*states(), OPTIONS[name]())
    first = oracles.answer(attend, made)
    for _ in range(4):
        again = oracles.answer(attend, made)
        assert torch.equal(again.output, first.output)
        assert all(torch.equal(again.gradients[leaf], first.gradients[leaf]) for leaf in first.gradients)


def test_many_blocks_give_the_same_bits_each_time():
    made = Case(*(torch.randn(2, 4, 300, 64) for _ in range(3)), {"mask": Causal()})
    first = oracles.answer(attend, made)
    for _ in range(4):
        again = oracles.answer(attend, made)
        assert torch.equal(again.output, first.output)
        assert all(torch.equal(again.gradients[leaf], first.gradients[leaf]) for leaf in first.gradients)


def test_threads_that_all_compute():
    made = Case(*(torch.randn(1, 4, 200, 64) for _ in range(3)), {"mask": Causal()})
    expected, failures = oracles.answer(attend, made), []

    def work():
        for _ in range(5):
            found = oracles.answer(attend, made)
            same = all(torch.equal(found.gradients[leaf], expected.gradients[leaf]) for leaf in expected.gradients)
            if not (same and torch.equal(found.output, expected.output)):
                failures.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_child_after_fork_computes_with_several_threads():
    code = (
        "import os, torch, regard\n"
        "torch.set_num_threads(4)\n"
        "inputs = [torch.randn(1, 4, 100, 64) for _ in range(3)]\n"  # so few that torch compares them on one thread
        "attend = lambda: regard.attention(*inputs, mask=regard.masks.Causal(), backend='native')\n"
        "expected = attend()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if all(attend().equal(expected) for _ in range(3)) else 3)\n"
        "assert attend().equal(expected)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
