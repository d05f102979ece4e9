"""What every mechanism keeps, whatever it computes: its card, lengths, dtypes, state, causality, padding, compiling."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from regard import nn as mechanisms
from tests.nn.cases import CASES

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
CAUSAL = {name: case for name, case in CASES.items() if case.causal}
PADDED = {name: case for name, case in CASES.items() if case.with_padding is not None}


def public_modules() -> dict[str, type]:
    classes = {name: getattr(mechanisms, name) for name in mechanisms.__all__}
    return {name: each for name, each in classes.items() if inspect.isclass(each) and issubclass(each, torch.nn.Module)}


@ALL
def test_has_a_card_that_fits(case):
    card = case.module().card
    assert isinstance(card, mechanisms.Card)
    assert card.source
    assert card.equation
    assert card.time
    assert card.memory
    assert not (case.causal and card.causal is not True)
    assert (case.with_padding is not None) == (card.padding is True)


def test_every_public_module_has_a_case():
    made = {type(case.make()) for case in CASES.values()}
    missing = [name for name, each in public_modules().items() if hasattr(each, "card") and each not in made]
    assert not missing


@ALL
def test_any_length_any_batch(case):
    module = case.module()
    for batch in (1, 2):
        for length in case.lengths:
            inputs = case.inputs(batch, length)
            found = case.call(module, inputs)
            assert found.shape[0] == batch
            assert found.isfinite().all(), length


@ALL
def test_no_samples_at_all(case):
    assert case.call(case.module(), case.inputs(0, 5)).shape[0] == 0


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.empty], ids=lambda case: case.name)
def test_no_tokens_at_all(case):
    module = case.module()
    inputs = tuple(tensor.requires_grad_() for tensor in case.inputs(2, 0))
    found = case.call(module, inputs)
    assert found.numel() == 0
    found.sum().backward()


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(case, dtype):
    module, inputs = case.module(), case.inputs(2, 7)
    expected = case.call(module, inputs)
    module.to(dtype)
    found = case.call(module, tuple(tensor.to(dtype) for tensor in inputs))
    assert found.dtype == dtype
    tolerance = case.tolerance.get(dtype, 1e-5)
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@ALL
def test_gradients_reach_every_weight_and_input(case):
    module = case.module()
    inputs = tuple(tensor.requires_grad_() for tensor in case.inputs(2, 7))
    found = case.call(module, inputs)
    found.backward(torch.randn(found.shape, generator=torch.Generator().manual_seed(2)))
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)
    without = [name for name, weight in module.named_parameters() if weight.grad is None and weight.requires_grad]
    assert not without


@ALL
def test_state_goes_to_another_module_and_back(case):
    module, inputs = case.module(), case.inputs(2, 7)
    torch.manual_seed(99)
    other = case.make().eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(case.call(other, inputs), case.call(module, inputs))


@ALL
def test_a_sample_alone_is_the_sample_in_its_batch(case):
    module, inputs = case.module(), case.inputs(3, 7)
    together = case.call(module, inputs)
    alone = torch.cat([case.call(module, tuple(tensor[i : i + 1] for tensor in inputs)) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CAUSAL.values(), ids=CAUSAL)
def test_no_token_sees_a_later_one(case):
    module = case.module()
    for length in (2, 7, 33):
        (first, *rest) = case.inputs(2, length)
        first.requires_grad_()
        found = case.call(module, (first, *rest))
        for place in {0, length // 2, length - 2}:
            (gradient,) = torch.autograd.grad(found[:, : place + 1].square().sum(), first, retain_graph=True)
            assert not gradient[:, place + 1 :].any(), (length, place)


@pytest.mark.parametrize("case", PADDED.values(), ids=PADDED)
def test_padded_tokens_have_no_influence(case):
    module, lengths = case.module(), [7, 4, 1]
    (first, *rest) = case.inputs(3, 7)
    changed, other = first.clone(), torch.randn(first.shape, generator=torch.Generator().manual_seed(5))
    for sample, length in enumerate(lengths):
        changed[sample, length:] = 100 * other[sample, length:]
    before = case.call(module, (first, *rest), **case.with_padding(lengths))
    after = case.call(module, (changed, *rest), **case.with_padding(lengths))
    for sample, length in enumerate(lengths):
        torch.testing.assert_close(after[sample, :length], before[sample, :length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", PADDED.values(), ids=PADDED)
def test_padded_is_the_same_as_cut_off(case):
    module, lengths = case.module(), [7, 4]
    inputs = case.inputs(2, 7)
    padded = case.call(module, inputs, **case.with_padding(lengths))
    cut = case.call(module, tuple(tensor[1:, :4] for tensor in inputs[:1]) + tuple(t[1:] for t in inputs[1:]))
    torch.testing.assert_close(padded[1:, :4], cut, rtol=1e-5, atol=1e-5)


@ALL
def test_compiles_without_a_graph_break(case):
    if not case.compiles:
        pytest.skip("says in its docstring why not")
    torch._dynamo.reset()
    module, inputs = case.module(), case.inputs(2, 7)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = case.output(compiled(*inputs, **case.options(2, 7)))
    torch.testing.assert_close(found, case.call(module, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMSNorm, on its slow way
@ALL
def test_runs_under_autocast(case):
    module, inputs = case.module(), case.inputs(2, 7)
    expected = case.call(module, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.call(module, tuple(tensor.requires_grad_() for tensor in inputs))
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


@ALL
def test_a_copy_is_a_module_of_its_own(case):
    module, inputs = case.module(), case.inputs(2, 7)
    expected = case.call(module, inputs)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]  # noqa: S301 - its own bytes
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    for each in copies:
        assert torch.equal(case.call(each, inputs), expected)


@ALL
def test_made_without_numbers_and_loaded(case):
    """As large models are: on "meta", then with the weights of a checkpoint. All that is needed has to be in it."""
    module, inputs = case.module(), case.inputs(2, 7)
    with torch.device("meta"):
        empty = case.make().eval()
    empty.load_state_dict(module.state_dict(), assign=True)
    torch.testing.assert_close(case.call(empty, inputs), case.call(module, inputs))


@ALL
def test_inputs_may_lie_anyhow_in_memory(case):
    module, inputs = case.module(), case.inputs(2, 7)
    expected = case.call(module, inputs)
    for other in (
        tuple(tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in inputs),
        tuple(torch.stack([tensor, 7 * tensor], -1)[..., 0] for tensor in inputs),
    ):
        torch.testing.assert_close(case.call(module, other), expected, rtol=1e-5, atol=1e-5)


@ALL
def test_the_same_seed_is_the_same_training_step(case):
    module, inputs = case.module().train(), case.inputs(2, 7)
    found = []
    for each in (module, copy.deepcopy(module)):
        torch.manual_seed(5)
        found.append(case.call(each, inputs))
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.func.jvp itself loads
@ALL
def test_forward_mode_is_right_or_refused(case):
    """A derivative that is silently 0 is the worst answer. What is remembered of an earlier segment has none."""
    if "segments" in case.name:
        pytest.skip("no gradient reaches what is remembered, and a difference of two outputs would see it")
    module, inputs = case.module().double(), tuple(tensor.double() for tensor in case.inputs(2, 7))
    generator = torch.Generator().manual_seed(8)
    tangents = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in inputs)

    def moved(by):
        return case.call(module, tuple(t + by * tangent for t, tangent in zip(inputs, tangents, strict=True)))

    try:
        _, found = torch.func.jvp(lambda *given: case.call(module, given), inputs, tangents)
    except (NotImplementedError, RuntimeError, ValueError) as refusal:
        assert "forward" in str(refusal).lower() or "functorch" in str(refusal)  # noqa: PT017
        return
    # A long step crosses kinks (ReLU), a short one drowns where normalisers are float32: each number takes its best
    by_steps = torch.stack([(moved(step) - moved(-step)) / (2 * step) for step in (1e-3, 1e-4, 1e-5)])
    best = (by_steps - found).abs().argmin(0, keepdim=True)
    torch.testing.assert_close(found, by_steps.gather(0, best)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("held", [torch.nan, torch.inf, 1e30], ids=str)
@pytest.mark.parametrize("case", PADDED.values(), ids=PADDED)
def test_padded_tokens_may_hold_anything(case, held):
    module, lengths = case.module(), [7, 4, 1]
    (first, *rest) = case.inputs(3, 7)
    changed = first.clone()
    for sample, length in enumerate(lengths):
        changed[sample, length:] = held
    before = case.call(module, (first, *rest), **case.with_padding(lengths))
    after = case.call(module, (changed, *rest), **case.with_padding(lengths))
    for sample, length in enumerate(lengths):
        torch.testing.assert_close(after[sample, :length], before[sample, :length], rtol=1e-5, atol=1e-5)


@ALL
def test_wrong_sizes_are_refused_with_a_word_on_what_to_do(case):
    module = case.module()
    (first, *rest) = case.inputs(2, 7)
    for wrong in (first[..., :-1] if first.dim() == 3 else first[:, :-1], first[0]):
        with pytest.raises(mechanisms_errors(), match=r"expected .* got .*\."):
            case.call(module, (wrong, *rest))


def mechanisms_errors():
    import regard

    return regard.ShapeError
