"""Gated attention: the guide's convex gate, the output gate, the forget gate."""

from regard.masks import Padding
from regard.nn import ForgettingAttention, GatedAttention, OutputGatedAttention
from regard.positions import ALiBi
from tests.nn.cases import Case, tokens

WIDTH = 8


def padding(lengths):
    return {"mask": Padding(lengths)}


def case(name, make, **more):
    return Case(name, make, tokens(WIDTH), with_padding=padding, **more)


CASES = [
    case("gated", lambda: GatedAttention(WIDTH, 2)),
    case("gated_as_in_the_guide", lambda: GatedAttention.as_in_the_guide(WIDTH)),
    case("gated_causal", lambda: GatedAttention(WIDTH, bias=False, causal=True), causal=True),
    case("output_gated", lambda: OutputGatedAttention(WIDTH, 2)),
    case(
        "output_gated_by_head",
        lambda: OutputGatedAttention(WIDTH, 2, gate="head", bias=False, causal=True, position=ALiBi(2)),
        causal=True,
    ),
    case("forgetting", lambda: ForgettingAttention(WIDTH, 2), causal=True),
    case("forgetting_in_blocks", lambda: _in_blocks_of_4(ForgettingAttention(WIDTH, 2, forget_bias=3.0)), causal=True),
]


def _in_blocks_of_4(module):
    module.ROWS = 4
    return module
