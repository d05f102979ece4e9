"""Mechanisms with a memory: new dialogues, and two segments, of which the second reads what the first wrote."""

import torch
from torch import nn

from regard.masks import Padding
from regard.nn import KNNMemory, MemoryAttention, RecurrentMemory, TransformerXLMemory
from regard.positions import ALiBi
from tests.nn.cases import Case, tokens

WIDTH = 8


class InTwoSegments(nn.Module):
    """Reads the first 3 tokens, then the rest, and gives the outputs of both."""

    FIRST = 3

    def __init__(self, module):
        super().__init__()
        self.module, self.card = module, module.card

    def forward(self, x, mask=None):
        halves = [x[:, : self.FIRST], x[:, self.FIRST :]]
        masks = [None, None]
        if mask is not None:
            masks = [
                Padding([min(n, self.FIRST) for n in mask.lengths]),
                Padding([max(n - self.FIRST, 0) for n in mask.lengths]),
            ]
        first, state = self.module(halves[0], mask=masks[0])
        second, state = self.module(halves[1], state=state, mask=masks[1])
        return torch.cat([first, second], 1), state


def padding(lengths):
    return {"mask": Padding(lengths)}


def with_memory(found):
    """The output, with what was written mixed in: laws on the output hold the memory too."""
    output, state = found
    return output + state["memory"].mean(1, keepdim=True)


def case(name, make, **more):
    return Case(name, make, tokens(WIDTH), with_padding=padding, **more)


def both_ways(name, make, *, causal, output=None):
    alone = {} if output is None else {"output": output}
    return [
        case(name, make, causal=causal and output is None, **alone),
        case(f"{name}_in_two_segments", lambda: InTwoSegments(make()), causal=causal),
    ]


CASES = [
    *both_ways(
        "memory",
        lambda: MemoryAttention(WIDTH, 2, slots=3, learned_decay=True, causal=True),
        causal=True,
        output=with_memory,
    ),
    case("memory_with_fixed_decay", lambda: MemoryAttention(WIDTH, slots=2, decay=0.5, bias=False), output=with_memory),
    *both_ways("memory_transformer_xl", lambda: TransformerXLMemory(WIDTH, 2, memory_length=5), causal=True),
    *both_ways(
        "memory_transformer_xl_same_length",
        lambda: TransformerXLMemory(WIDTH, 2, memory_length=2, same_length=True),
        causal=True,
    ),
    *both_ways("memory_knn", lambda: KNNMemory(WIDTH, 2, memory_length=6, top_k=2, causal=True), causal=True),
    *both_ways(
        "memory_knn_plain",
        lambda: KNNMemory(WIDTH, 2, memory_length=4, top_k=9, normalize=False, position=ALiBi(2)),
        causal=False,
    ),
    *both_ways("memory_recurrent", lambda: RecurrentMemory(WIDTH, 2, memory_tokens=3, causal=True), causal=True),
    *both_ways("memory_recurrent_encoder", lambda: RecurrentMemory(WIDTH, 2, memory_tokens=3), causal=False),
]
