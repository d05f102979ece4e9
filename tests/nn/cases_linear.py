"""The low-rank and kernel forms: Linformer, Nystrom, Performer, elu-linear and softmax-linear attention."""

from __future__ import annotations

from functools import partial

from regard.masks import Padding
from regard.nn import (
    EfficientAttention,
    LinearAttention,
    LinformerAttention,
    NystromAttention,
    PerformerAttention,
)
from tests.nn.cases import Case, tokens

WIDTH, HEADS = 16, 2


def padding(lengths):
    return {"mask": Padding(lengths)}


def case(name, kind, *, causal=False, **options):
    if causal:
        options["causal"] = True
    make = partial(kind, WIDTH, HEADS, **options)
    return Case(name, make, tokens(WIDTH), with_padding=padding, causal=causal)


CASES = [
    case("linformer", LinformerAttention, max_length=40, projected_length=8),
    case("linformer_none", LinformerAttention, max_length=33, projected_length=5, share="none", bias=False),
    case("linformer_kv", LinformerAttention, max_length=40, projected_length=8, share="kv"),
    case("nystrom", NystromAttention, num_landmarks=3),
    case("nystrom_convolution", NystromAttention, num_landmarks=4, conv_size=3),
    case("performer", PerformerAttention),
    case("performer_shrunk", PerformerAttention, shrink=True),
    case("performer_relu", PerformerAttention, kernel="relu"),
    case("performer_causal", PerformerAttention, causal=True, num_features=24),
    case("performer_causal_shrunk", PerformerAttention, causal=True, shrink=True),
    case("performer_causal_relu", PerformerAttention, causal=True, kernel="relu"),
    case("linear", LinearAttention),
    case("linear_softmax", LinearAttention, feature_map="softmax"),
    case("linear_causal", LinearAttention, causal=True),
    case("linear_causal_square", LinearAttention, causal=True, feature_map="square", bias=False),
    case("efficient", EfficientAttention),
]
