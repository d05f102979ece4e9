"""Dropout by counter: which weights are kept is a function of (seed, batch, head, query, key).

Every backend, every tile, the backward pass and a checkpoint's recomputation ask the same function
and get the same answer, without storing a mask. The generator is Philox-4x32 with seven rounds
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": seven rounds pass BigCrush); one
call gives the four numbers of four neighbouring keys.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

ROUNDS = 7
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def draw_seed() -> Tensor:
    """A seed from torch's default generator, as a tensor so that torch.compile and checkpoint see it drawn."""
    return torch.randint(2**62, (), dtype=torch.int64)


def keep_all(seed: int | Tensor, dropout_p: float, shape: torch.Size, device: torch.device) -> Tensor:
    """Bool tensor of `shape` = (batch, heads, q_len, kv_len): True where the weight is kept."""
    batch, heads, q_len, kv_len = shape
    numbers = philox(
        (
            torch.arange((kv_len + 3) // 4, device=device).view(1, 1, 1, -1),
            torch.arange(q_len, device=device).view(1, 1, -1, 1),
            torch.arange(heads, device=device).view(1, -1, 1, 1),
            torch.arange(batch, device=device).view(-1, 1, 1, 1),
        ),
        seed,
    )
    lanes = _lanes(numbers).flatten(-2)
    return lanes[..., :kv_len] >= round(dropout_p * 2**32)


def keep_tile(
    seed: int | Tensor, dropout_p: float, *, batch: Tensor, head: Tensor, rows: Tensor, cols: Tensor
) -> Tensor:
    """`keep_all` restricted to these samples, heads, queries and keys (1-D int64 indices each)."""
    counters = (cols.view(1, 1, 1, -1) >> 2, rows.view(1, 1, -1, 1), head.view(1, -1, 1, 1), batch.view(-1, 1, 1, 1))
    lanes = _lanes(philox(counters, seed))
    lane = (cols & 3).view(1, 1, 1, -1, 1).expand(*lanes.shape[:-1], 1)
    return lanes.gather(-1, lane).squeeze(-1) >= round(dropout_p * 2**32)


def _lanes(numbers: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The four numbers of each counter, last: one for each of four neighbouring keys."""
    return torch.stack(cast("Any", torch).broadcast_tensors(*numbers), dim=-1)


def philox(
    counters: tuple[Tensor, Tensor, Tensor, Tensor], seed: int | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-7: four 32-bit numbers, held in int64, for each counter (four broadcastable int64 tensors)."""
    a, b, c, d = counters
    key_low, key_high = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(ROUNDS):
        high_a, low_a = _multiply(a, _MULTIPLIERS[0])
        high_c, low_c = _multiply(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ key_low, low_c, high_a ^ d ^ key_high, low_a
        key_low, key_high = (key_low + _WEYL[0]) & _LOW, (key_high + _WEYL[1]) & _LOW
    return a, b, c, d


def _multiply(number: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low half of a 32 x 32 bit product; the int64 product may wrap, its bits are right all the same."""
    product = number * multiplier
    return (product >> 32) & _LOW, product & _LOW
