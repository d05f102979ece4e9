"""Cases of the state spaces."""

from __future__ import annotations

from regard import nn as mechanisms
from regard.masks import Padding
from tests.nn.cases import Case, tokens


def _padding(lengths: list[int]):
    return {"mask": Padding(lengths)}


def _s4d(name: str, *, causal: bool = True, **options) -> Case:
    return Case(
        name=name,
        make=lambda: mechanisms.S4D(6, **{"state_dim": 8, "chunk": 8, **options}),
        inputs=tokens(6),
        with_padding=_padding,
        causal=causal,
    )


CASES = [
    _s4d("s4d"),
    _s4d("s4d_one_chunk", chunk=64, initialisation="lin", dt_max=1.0),
    _s4d("s4d_bilinear_inverse", discretisation="bilinear", initialisation="inv", chunk=3, mixing="linear"),
    _s4d("s4d_real_alone", initialisation="real", mixing="none"),
    _s4d("s4d_bidirectional", causal=False, bidirectional=True, dropout_p=0.1),
    Case(
        name="selective_state_space",
        make=lambda: mechanisms.SelectiveStateSpace(6, state_dim=4, dt_max=1.0),
        inputs=tokens(6),
        with_padding=_padding,
        causal=True,
    ),
    Case(
        name="selective_state_space_narrow",
        make=lambda: mechanisms.SelectiveStateSpace(
            5, state_dim=3, expand=1, conv_width=1, dt_rank=2, bias=True, conv_bias=False
        ),
        inputs=tokens(5),
        with_padding=_padding,
        causal=True,
        lengths=(1, 33, 65),
    ),
]
