"""The one protocol of all memories' states: nothing leaks between dialogues (FAULTS F60), and what all refuse."""

import weakref

import pytest
import torch

import regard
from regard.masks import Causal, Padding
from regard.nn import KNNMemory, MemoryAttention, MemoryState, RecurrentMemory, TransformerXLMemory
from tests.nn.memories import EACH, MAKERS, WIDTH, drawn, read, seeded


def text(seed, batch=3, length=4):
    return drawn(batch, length, WIDTH, seed=seed, dtype=torch.float32)


@EACH
def test_F60_a_row_that_was_reset_is_a_new_dialogue_bit_for_bit(make):
    module = seeded(make, torch.float32)
    _, state = read(module, [text(1), text(2)])
    kept, _ = module(text(3), state=state)
    state.reset([1])
    found, after = read(module, [text(3), text(4)], state)
    fresh, new = read(module, [text(3), text(4)], module.create_state(3))
    assert torch.equal(found[1], fresh[1])
    assert torch.equal(found[[0, 2], :4], kept[[0, 2]])
    assert not torch.equal(found[0], fresh[0])
    assert all(torch.equal(after[name][1], new[name][1]) for name in after.tensors)


@EACH
def test_F60_reset_of_all_rows_and_of_one_that_broke(make):
    module = seeded(make, torch.float32)
    broken = text(1)
    broken[1] = torch.nan
    _, state = module(broken)
    state.reset([1])
    found, _ = module(text(2), state=state)
    assert torch.equal(found[1], module(text(2))[0][1])
    state.reset()
    assert torch.equal(module(text(2), state=state)[0], module(text(2))[0])


@EACH
def test_F60_dialogues_do_not_see_each_other(make):
    module = seeded(make, torch.float32)
    other = text(1)
    other[0] = text(7)[0]
    first, _ = read(module, [text(1), text(2)])
    second, _ = read(module, [other, text(2)])
    assert torch.equal(first[1:], second[1:])
    assert not torch.equal(first[0, 4:], second[0, 4:])


@EACH
def test_F60_detach_lets_go_of_the_graph(make):
    module = seeded(make, torch.float32)
    x = text(1).requires_grad_()
    output, state = module(x)
    state.detach()
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in state.tensors.values())
    gone = weakref.ref(x)
    output.sum().backward()
    del output, x
    assert gone() is None
    module(text(2), state=state)[0].sum().backward()  # does not go back through the first, whose graph was freed


@EACH
def test_F60_another_batch_is_refused_with_a_word_on_what_to_do(make):
    module = make()
    _, state = module(text(1))
    with pytest.raises(regard.ShapeError, match=r"state batch: expected 2 dialogues, as x has, got 3\. .*create_state"):
        module(text(1, batch=2), state=state)


@EACH
def test_a_call_leaves_the_state_it_was_given(make):
    module = seeded(make, torch.float32)
    _, state = module(text(1))
    before = state.state_dict()
    once, twice = module(text(2), state=state)[0], module(text(2), state=state)[0]
    assert torch.equal(once, twice)
    assert all(torch.equal(before[name], state[name]) for name in before)


@EACH
def test_beams_go_on_from_the_rows_they_came_from(make):
    module = seeded(make, torch.float32)
    _, state = module(text(1))
    rows = [2, 2, 0, 1, 0]
    expected = torch.stack([module(text(1)[[row] * 3])[1].tensors[name][0] for row in rows for name in ["seen"]])
    state.reorder(torch.tensor(rows))
    assert state.batch == 5
    assert torch.equal(state.seen, expected)
    found, _ = module(text(2, batch=5), state=state)
    wanted, _ = read(module, [text(1)[rows], text(2, batch=5)])
    torch.testing.assert_close(found, wanted[:, 4:], rtol=1e-5, atol=1e-6)


@EACH
def test_a_state_is_saved_and_loaded(make):
    module = seeded(make, torch.float32)
    _, state = module(text(1))
    saved = state.state_dict()
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in saved.values())
    again = module.create_state(3)
    again.load_state_dict(saved)
    assert torch.equal(module(text(2), state=again)[0], module(text(2), state=state)[0])
    with pytest.raises(
        regard.ArgumentError, match=r"state of \w+: expected .* got .* Create the state with the module"
    ):
        module.create_state(2).load_state_dict(saved)
    saved.popitem()
    with pytest.raises(regard.ArgumentError, match=r"Create the state with the module"):
        again.load_state_dict(saved)


# ------------------------------------------------------------------------------------- memories that are written to


@pytest.mark.parametrize("name", ["memory", "recurrent"])
def test_gradients_go_back_through_segments_until_detach(name):
    module = seeded(MAKERS[name])
    first = drawn(1, 3, WIDTH).requires_grad_()
    _, state = module(first)
    module(drawn(1, 3, WIDTH, seed=2), state=state)[0].sum().backward()
    assert first.grad.any()


@pytest.mark.parametrize("name", ["memory", "recurrent"])
def test_a_dialogue_without_a_real_token_keeps_its_memory(name):
    module = seeded(MAKERS[name])
    _, state = module(drawn(2, 3, WIDTH))
    x = drawn(2, 3, WIDTH, seed=2)
    _, after = module(x, state=state, mask=Padding([2, 0]))
    assert torch.equal(after["memory"][1], state["memory"][1])
    assert not torch.equal(after["memory"][0], state["memory"][0])
    assert after.seen.tolist() == [5, 3]
    _, nothing = module(x[:, :0], state=state)
    assert torch.equal(nothing["memory"], state["memory"])


# -------------------------------------------------------------------------------------------------- refusals


@EACH
def test_states_of_others_are_refused(make):
    module = make()
    for stranger in (MemoryState("Another", {"seen": torch.zeros(3)}), {"memory": torch.zeros(3)}):
        with pytest.raises(
            regard.ArgumentError, match=r"state: expected a state of \w+, got .* Each layer has its own"
        ):
            module(text(1), state=stranger)
    with pytest.raises(regard.ShapeError, match=r"state: expected .*float32.* got .*float64.* create one anew\."):
        module(text(1), state=module.create_state(3, dtype=torch.float64))
    with pytest.raises(regard.ArgumentError, match=r"rows: expected whole numbers from 0 to 2, got \[3\]"):
        module.create_state(3).reset([3])


@EACH
def test_masks_of_pairs_are_refused(make):
    with pytest.raises(regard.UnsupportedError, match=r"honours padding, and no other mask"):
        make()(torch.randn(2, 3, WIDTH), mask=Causal())


def test_sizes_that_make_no_memory():
    for make in (
        lambda: MemoryAttention(WIDTH, slots=0),
        lambda: TransformerXLMemory(WIDTH, memory_length=0),
        lambda: KNNMemory(WIDTH, top_k=0),
        lambda: RecurrentMemory(WIDTH, memory_tokens=0),
    ):
        with pytest.raises(regard.ArgumentError, match=r"expected a whole number of at least 1, got 0\."):
            make()
