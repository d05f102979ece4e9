"""Reading side by side, segment by segment: nothing leaks, nothing is lost."""

import pytest
import torch

from regard.recipes.dialogue.config import Config
from regard.recipes.dialogue.model import MEMORIES, DialogueModel, model_of_budget
from regard.recipes.dialogue.segments import Example, collate, read
from regard.recipes.dialogue.tasks import SegmentTask, losses_by_depth

VOCABULARY = 40


def model(memory: str, *, reach: int = 8, slots: int = 4) -> DialogueModel:
    torch.manual_seed(0)
    made = model_of_budget(VOCABULARY, 16, 2, 2, memory=memory, slots=slots, decay=0.5, reach=reach)
    return made.double().eval()


def example(length: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (length + 1,), generator=generator)
    return Example(tokens, torch.arange(length + 1) // 3 + 1)


def states_of(made: DialogueModel, examples: list[Example], size: int) -> torch.Tensor:
    """(conversations, longest, width), 0 where a conversation has ended; rows from the longest."""
    found = torch.zeros(len(examples), max(each.length for each in examples), 16, dtype=torch.float64)
    for segment in read(made, collate(examples), size):
        rows, length = segment.targets.shape
        keep = (segment.targets >= 0)[..., None]
        found[:rows, segment.begin : segment.begin + length] = segment.states * keep
    return found


class Lone(SegmentTask):
    def __init__(self, memory: str, examples: list[Example], **settings):
        self.config = Config(memory=memory, segment=4, dropout_p=0.0, **settings)
        self.model = model(memory)
        self.examples = examples

    def example(self, number):
        return self.examples[number]


EXAMPLES = [example(5, 1), example(14, 2), example(9, 3), example(1, 4)]


@pytest.mark.parametrize("memory", MEMORIES)
def test_conversations_side_by_side_are_as_alone(memory):
    made = model(memory)
    together = states_of(made, EXAMPLES, 4)
    for row, place in enumerate([1, 2, 0, 3]):
        alone = states_of(made, [EXAMPLES[place]], 4)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_one_conversation_says_changes_no_bit_of_another(memory):
    made = model(memory)
    before = states_of(made, [example(14, 2), example(14, 3)], 4)
    after = states_of(made, [example(14, 2), example(14, 9)], 4)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_model_keeps_nothing_between_calls(memory):
    made = model(memory)
    kept = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    first = states_of(made, [example(14, 2)], 4)
    states_of(made, [example(11, 5)], 4)
    assert torch.equal(states_of(made, [example(14, 2)], 4), first)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize("memory", MEMORIES)
def test_only_a_memory_sees_what_was_before_the_segment(memory):
    made = model(memory)
    other = example(12, 2)
    other.tokens[2] = (other.tokens[2] + 1) % VOCABULARY
    changed = (states_of(made, [example(12, 2)], 4) != states_of(made, [other], 4))[0].any(-1)
    assert not changed[:2].any()
    assert changed[2:4].all()
    assert changed[4:8].any() == (memory != "none")


def test_the_cache_reads_segments_as_the_whole_while_it_reaches_so_far():
    made = model("cache", reach=14)
    whole, _ = made(example(14, 2).tokens[None, :-1])
    torch.testing.assert_close(states_of(made, [example(14, 2)], 4), whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("memory", MEMORIES)
def test_one_segment_is_a_plain_causal_model(memory):
    made = model(memory)
    text = example(9, 3).tokens[None, :-1]
    whole, _ = made(text)
    for length in range(1, 10):
        torch.testing.assert_close(made(text[:, :length])[0], whole[:, :length], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_loss_of_a_batch_is_the_sum_over_its_conversations(memory):
    task = Lone(memory, EXAMPLES)
    together = task.loss(task.model, task.batch([0, 1, 2, 3]))
    alone = sum(task.loss(task.model, task.batch([place])) for place in range(4))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert task.units([0, 1, 2, 3]) == 5 + 14 + 9 + 1


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_weight_has_a_gradient_even_of_one_short_segment(memory):
    task = Lone(memory, [example(3, 1)])
    task.loss(task.model.train(), task.batch([0])).backward()
    assert all(weight.grad is not None for weight in task.model.parameters())


def test_the_gradient_ends_where_it_is_cut():
    def gradient(segments: int) -> torch.Tensor:
        task = Lone("recurrent", [example(12, 2)], gradient_segments=segments)
        task.loss(task.model, task.batch([0])).backward()
        return task.model.stack.memory.grad.clone()

    assert not torch.allclose(gradient(1), gradient(3))
    torch.testing.assert_close(gradient(3), gradient(9))


@pytest.mark.parametrize("memory", MEMORIES)
def test_losses_by_depth_are_those_of_a_plain_reading(memory):
    made = model(memory)
    sums, counts = losses_by_depth(made, EXAMPLES, 4)
    for place, each in enumerate(EXAMPLES):
        states = states_of(made, [each], 4)[0]
        losses = torch.nn.functional.cross_entropy(states @ made.embedding.weight.T, each.tokens[1:], reduction="none")
        for depth, (first, last) in enumerate([(1, 4), (5, 8), (9, 16), (17, 32), (33, 10**9)]):
            here = (each.turns[1:] >= first) & (each.turns[1:] <= last)
            torch.testing.assert_close(sums[place, depth], losses[here].sum(), rtol=1e-6, atol=1e-9)
            assert counts[place, depth] == here.sum()
