"""The selective scan on the native core: equal to the recurrence, for every size, layout and number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import library as operator_library

from regard.backends import _library
from regard.nn import _selective_scan
from regard.nn._selective_scan import Problem, selective_scan

if _library.why_absent() is not None:
    pytest.skip(_library.why_absent(), allow_module_level=True)


def drawn(length, channels=21, numbers=5, batch=2):
    return Problem(
        torch.randn(batch, length, channels),
        torch.rand(batch, length, channels) * 0.3,
        -2 * torch.rand(numbers, channels),
        torch.randn(batch, length, numbers),
        torch.randn(batch, length, numbers),
        torch.randn(batch, numbers, channels),
    )


def recurrence(problem):
    """The definition, token by token, in float64: output and last state."""
    inputs, step, decay, write, read, state = (tensor.double() for tensor in problem)
    outputs = []
    for t in range(inputs.shape[1]):
        state = torch.exp(step[:, t, None] * decay) * state + write[:, t, :, None] * (step * inputs)[:, t, None]
        outputs.append((read[:, t, :, None] * state).sum(1))
    return torch.stack(outputs, 1) if outputs else inputs, state


def assert_near(found, expected, problem):
    """So many roundings, of the largest number."""
    assert found.shape == expected.shape
    roundings = problem.inputs.shape[1] + problem.decay.numel() + 50
    allowed = 2.0**-24 * roundings * expected.abs().max() if expected.numel() else 0
    assert ((found.double() - expected).abs() <= allowed).all()


def compare(problem):
    learned = [tensor.requires_grad_() for tensor in problem]
    found, expected = selective_scan(problem)[:2], recurrence(problem)
    for mine, theirs in zip(found, expected, strict=True):
        assert_near(mine, theirs, problem)
    directions = [torch.randn_like(each) for each in expected]
    mine = torch.autograd.grad(sum((a * b).sum() for a, b in zip(found, directions, strict=True)), learned)
    theirs = torch.autograd.grad(
        sum((a * b).sum() for a, b in zip(expected, directions, strict=True)), learned, materialize_grads=True
    )
    for one, other in zip(mine, theirs, strict=True):
        assert_near(one, other.double(), problem)


@pytest.fixture
def only_native(monkeypatch):
    """The same in torch would be an error."""

    def refuse(*_):
        raise AssertionError("the core was not asked")

    monkeypatch.setattr(_selective_scan, "scan", refuse)
    monkeypatch.setattr(_selective_scan, "scan_gradients", refuse)


@pytest.mark.parametrize(("channels", "numbers"), [(1, 1), (16, 16), (21, 5), (70, 8), (130, 17)])
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 100])
@pytest.mark.usefixtures("only_native")
def test_is_the_recurrence_and_so_are_its_gradients(length, channels, numbers):
    torch.manual_seed(length + channels)
    compare(drawn(length, channels, numbers))


def test_a_long_memory_keeps_as_many_digits_as_in_torch():
    """Decays so close to 1 that the errors of thousands of them add up."""
    torch.manual_seed(0)
    problem = drawn(4000, 64, 4, 1)
    problem = problem._replace(step=problem.step * 3e-3)
    expected = recurrence(problem)[1]
    native, plain = (
        (found.last.double() - expected).norm() / expected.norm()
        for found in (selective_scan(problem), _selective_scan.scan(problem))
    )
    assert native < 1.5 * plain


@pytest.mark.usefixtures("only_native")
def test_piece_by_piece_is_the_whole_and_so_are_its_gradients():
    problem = drawn(90)
    learned, state, pieces = [tensor.requires_grad_() for tensor in problem], problem.state, []
    for place in (slice(0, 40), slice(40, 40), slice(40, 41), slice(41, 90)):
        inputs, step, write, read = (
            each[:, place] for each in (problem.inputs, problem.step, problem.write, problem.read)
        )
        found = selective_scan(Problem(inputs, step, problem.decay, write, read, state))
        state, pieces = found.last, [*pieces, found.output]
    outputs, expected = torch.cat(pieces, 1), recurrence(problem)[0]
    assert_near(outputs, expected, problem)
    direction = torch.randn_like(expected)
    mine = torch.autograd.grad((outputs * direction).sum(), learned)
    theirs = torch.autograd.grad((expected * direction).sum(), learned)
    for one, other in zip(mine, theirs, strict=True):
        assert_near(one, other.double(), problem)


@pytest.mark.usefixtures("only_native")
def test_the_number_of_threads_changes_no_bit():
    problem, before = drawn(100, 200, 6), torch.get_num_threads()
    learned, answers = [tensor.requires_grad_() for tensor in problem], []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = selective_scan(problem)
            gradients = torch.autograd.grad(found.output.square().sum() + found.last.sum(), learned)
            answers.append((found.output, found.last, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(torch.equal(one, another) for one, another in zip(answers[0], other, strict=True))


@pytest.mark.usefixtures("only_native")
def test_nothing_comes_from_the_future():
    problem = drawn(80)
    steered = [tensor.requires_grad_() for tensor in (problem.inputs, problem.step, problem.write)]
    for place in (0, 31, 32, 50):
        gradients = torch.autograd.grad(selective_scan(problem).output[:, place].square().sum(), steered)
        assert all(not gradient[:, place + 1 :].any() for gradient in gradients)
        assert all(gradient[:, : place + 1].any(2).all() for gradient in gradients)


@pytest.mark.parametrize("layout", ["of one projection", "columns", "shared", "turned decay"])
@pytest.mark.usefixtures("only_native")
def test_any_layout(layout):
    problem = drawn(40)
    if layout == "of one projection":
        write, read = torch.cat([problem.write, problem.read], -1).chunk(2, -1)
        problem = problem._replace(write=write, read=read)
    elif layout == "columns":
        problem = problem._replace(**{name: getattr(problem, name).mT.contiguous().mT for name in ("inputs", "write")})
    elif layout == "shared":
        problem = problem._replace(
            step=problem.step[:1, :1].expand(2, 40, -1), state=problem.state[:1].expand(2, -1, -1)
        )
    else:
        problem = problem._replace(decay=problem.decay.T.contiguous().T)
    compare(problem)


@pytest.mark.usefixtures("only_native")
def test_nan_stays_nan_and_huge_steps_forget():
    problem = drawn(20, 3, 2, 1)
    problem.step[0, 4, 1] = torch.nan
    problem.step[0, 6, 2] = 1e9
    output, last, _ = selective_scan(problem)
    assert output[0, 4:, 1].isnan().all()
    assert last[0, :, 1].isnan().all()
    assert output[0, :, ::2].isfinite().all()
    alone = problem._replace(state=torch.zeros_like(problem.state))
    assert torch.equal(selective_scan(alone).output[0, 6:, 2], output[0, 6:, 2])


def test_without_the_core_the_numbers_are_the_same(monkeypatch):
    problem = drawn(50)
    found = selective_scan(problem)
    monkeypatch.setattr(_library, "why_absent", lambda: "it is absent")
    for mine, theirs in zip(found, selective_scan(problem), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_the_operators_keep_torchs_rules():
    given = [tensor.requires_grad_() for tensor in drawn(35, 3, 2)]
    operator_library.opcheck(
        torch.ops.regard.selective_scan.default, tuple(given),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


@pytest.mark.usefixtures("only_native")
def test_float64_is_scanned_in_torch():
    with pytest.raises(AssertionError, match="the core was not asked"):
        selective_scan(Problem(*(tensor.double() for tensor in drawn(5))))
