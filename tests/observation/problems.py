"""Attention problems with every option, small enough for the reference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regard import positions
from regard.masks import Causal, GlobalTokens, Padding, SlidingWindow
from regard.positions.rope_scaling import DynamicNTKScaling, LongRoPEScaling, YaRNScaling

BATCH, HEADS, KV_HEADS, Q_LEN, KV_LEN, WIDTH = 2, 4, 2, 11, 13, 8


def randn(*sizes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64).to(dtype)


def states(
    dtype: torch.dtype, *, q_len: int = Q_LEN, kv_len: int = KV_LEN, kv_heads: int = HEADS
) -> tuple[Tensor, Tensor, Tensor]:
    query = randn(BATCH, HEADS, q_len, WIDTH, dtype=dtype)
    key, value = (randn(BATCH, kv_heads, kv_len, WIDTH, dtype=dtype) for _ in range(2))
    return query, key, value


def forbidding_bias() -> Tensor:
    bias = randn(1, HEADS, Q_LEN, KV_LEN)
    bias[:, :, 4] = -math.inf  # a row that may attend to nothing
    bias[:, 1, :, 3:] = -math.inf
    return bias


def ragged_mask() -> Tensor:
    kept = torch.rand(BATCH, HEADS, Q_LEN, KV_LEN) < 0.5
    kept[:, :, 2] = False
    return kept


def filled(position: positions.Position, dtype: torch.dtype) -> positions.Position:
    for parameter in position.parameters():
        parameter.data = torch.randn(parameter.shape)
    return position.to(dtype)


LONG = LongRoPEScaling([1.0, 1.1, 1.2, 1.3], [2.0, 3.0, 4.0, 5.0], original_length=6, factor=2.0)

OPTIONS: dict[str, Any] = {
    "nothing": dict,
    "causal": lambda: {"mask": Causal("bottom_right")},
    "causal, first rows empty": lambda: {"mask": Causal("bottom_right") & Padding([0, 9])},
    "window": lambda: {"mask": SlidingWindow(2, 1, align="bottom_right")},
    "padding": lambda: {"mask": Padding([13, 5])},
    "global tokens": lambda: {"mask": GlobalTokens(2) | SlidingWindow(1, align="top_left")},
    "mask of each head": lambda: {"mask": ragged_mask()},
    "scale": lambda: {"scale": 0.7},
    "negative scale": lambda: {"scale": -0.5},
    "softcap": lambda: {"softcap": 1.5},
    "bias": lambda: {"bias": randn(1, HEADS, Q_LEN, KV_LEN)},
    "bias that forbids": lambda: {"bias": forbidding_bias()},
    "bias and mask": lambda: {"bias": forbidding_bias(), "mask": ragged_mask()},
    "sink": lambda: {"sink": randn(HEADS)},
    "sink and empty rows": lambda: {"sink": randn(HEADS), "mask": ragged_mask()},
    "everything": lambda: {
        "mask": Causal("bottom_right"), "bias": randn(BATCH, 1, 1, KV_LEN), "scale": 0.3, "softcap": 2.0,
        "sink": randn(HEADS), "position": positions.ALiBi(HEADS, align="bottom_right"),
    },
}  # fmt: skip

POSITIONS: dict[str, Any] = {
    "ALiBi": lambda align: positions.ALiBi(HEADS, align=align),
    "T5": lambda align: positions.T5Bias(HEADS, align=align, max_distance=8, buckets=8),
    "continuous": lambda align: positions.ContinuousBias(HEADS, hidden=4, align=align),
    "Shaw": lambda align: positions.Shaw(WIDTH, 3, align=align),
    "Shaw, keys only": lambda align: positions.Shaw(WIDTH, 3, values=False, align=align),
    "TransformerXL": lambda align: positions.TransformerXL(HEADS, WIDTH, align=align),
    "RoPE": lambda align: positions.RoPE(WIDTH, align=align),
    "RoPE, part of the channels": lambda align: positions.RoPE(4, style="interleaved", align=align),
    "RoPE, dynamic NTK": lambda align: positions.RoPE(WIDTH, scaling=DynamicNTKScaling(2.0, 6), align=align),
    "RoPE, LongRoPE": lambda align: positions.RoPE(WIDTH, scaling=LONG, align=align),
    "RoPE, YaRN": lambda align: positions.RoPE(WIDTH, scaling=YaRNScaling(4.0, 6), align=align),
}
