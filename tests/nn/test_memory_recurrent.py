"""Memory tokens that go through a backbone, beside their definition."""

import pytest
import torch

import regard
from regard.masks import PrefixLM
from regard.nn import MultiHeadAttention, RecurrentMemory, TransformerEncoder
from tests.nn.memories import WIDTH, assert_alike, assert_same_gradients, by_hand, drawn, lower, read, seeded


@pytest.mark.parametrize("causal", [False, True])
def test_recurrent_memory_is_its_definition(causal):
    module = seeded(lambda: RecurrentMemory(WIDTH, 2, memory_tokens=3, causal=causal))
    segments = [drawn(2, n, WIDTH, seed=n).requires_grad_() for n in (4, 1, 6)]
    found, state = read(module, segments)
    memory, outputs = module.memory.expand(2, -1, -1), []
    for x in segments:
        n = x.shape[1]
        tokens = torch.cat([memory, x, memory] if causal else [memory, x], 1)
        keep = PrefixLM(3).dense(n + 6, n + 6) if causal else None
        output = by_hand(module.backbone, tokens, tokens, keep)
        outputs.append(output[:, 3 : 3 + n])
        memory = output[:, -3:] if causal else output[:, :3]
    expected = torch.cat(outputs, 1)
    assert_alike(found, expected)
    assert_alike(state["memory"], memory)
    assert_same_gradients(module, found, expected, *segments)


def test_recurrent_memory_takes_any_backbone():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = MultiHeadAttention(WIDTH, 2)

        def forward(self, tokens, *, mask=None):
            return tokens + self.attention(tokens, mask=mask)

    module = seeded(lambda: RecurrentMemory(WIDTH, backbone=Shifted(), memory_tokens=2))
    x = drawn(2, 4, WIDTH)
    tokens = torch.cat([module.memory.expand(2, -1, -1), x], 1)
    assert_alike(module(x)[0], module.backbone(tokens)[:, 2:])
    with pytest.raises(
        regard.ArgumentError, match=r"backbone: expected one that is not causal itself, got .* Say causal"
    ):
        RecurrentMemory(WIDTH, backbone=MultiHeadAttention(WIDTH, 2, causal=True))


def test_in_a_deep_backbone_the_memory_in_front_is_read_both_ways():
    module = seeded(
        lambda: RecurrentMemory(WIDTH, backbone=TransformerEncoder(WIDTH, 2, 2), memory_tokens=3, causal=True)
    )
    x = drawn(2, 4, WIDTH)
    memory = module.memory.expand(2, -1, -1)
    keep = lower(10)
    keep[:3, :3] = True
    output = module.backbone(torch.cat([memory, x, memory], 1), mask=keep)
    found, state = module(x)
    assert_alike(found, output[:, 3:7])
    assert_alike(state["memory"], output[:, 7:])
