"""The guide's memory beside its update. What all memories share is in `test_memory_state.py`."""

import pytest
import torch

import regard
from regard.nn import MemoryAttention
from tests.nn.memories import MAKERS, WIDTH, assert_alike, assert_same_gradients, by_hand, drawn, lower, read, seeded


@pytest.mark.parametrize("learned", [False, True])
def test_memory_is_the_guides_update(learned):
    module = seeded(lambda: MemoryAttention(WIDTH, 2, slots=3, decay=0.7, learned_decay=learned, causal=True))
    decay = torch.sigmoid(module.decay_logit)[:, None] if learned else 0.7
    segments = [drawn(2, n, WIDTH, seed=n).requires_grad_() for n in (4, 1, 6)]
    found, state = read(module, segments)
    memory, outputs = torch.zeros(2, 3, WIDTH, dtype=torch.float64), []
    for number, x in enumerate(segments):
        context = by_hand(module.local, x, x, lower(x.shape[1]))
        outputs.append(context + (by_hand(module.recall, x, memory) if number else 0.0))
        new = by_hand(module.write, module.slots.expand(2, -1, -1), context)
        memory = decay * memory + (1 - decay) * new
    expected = torch.cat(outputs, 1)
    assert_alike(found, expected)
    assert_alike(state["memory"], memory)
    assert state.seen.tolist() == [11, 11]
    assert_same_gradients(module, found, expected, *segments)


def test_the_first_segment_is_plain_attention():
    module = seeded(MAKERS["memory"])
    x = drawn(2, 5, WIDTH)
    assert_alike(module(x)[0], by_hand(module.local, x, x))


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_at_its_ends(decay):
    module = seeded(lambda: MemoryAttention(WIDTH, 2, slots=3, decay=decay))
    _, first = module(drawn(1, 4, WIDTH))
    _, second = module(drawn(1, 4, WIDTH, seed=2), state=first)
    if decay == 1.0:
        assert not second["memory"].any()
    else:
        assert_alike(second["memory"], module(drawn(1, 4, WIDTH, seed=2))[1]["memory"])


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_F60_decay_beyond_0_to_1(decay):
    with pytest.raises(regard.ArgumentError, match=r"decay: expected a number from 0 to 1, got .*grows without bound"):
        MemoryAttention(WIDTH, decay=decay)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_F60_learned_decay_stays_between(decay):
    with pytest.raises(regard.ArgumentError, match=r"decay: expected a number between 0 and 1, neither of them, got"):
        MemoryAttention(WIDTH, decay=decay, learned_decay=True)
    module = MemoryAttention(WIDTH, decay=0.9, learned_decay=True)
    torch.testing.assert_close(module.decay, torch.full((16,), 0.9))
    with torch.no_grad():
        module.decay_logit.fill_(50.0)
    assert (module.decay <= 1).all()
