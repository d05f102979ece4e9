"""Masks as one bit for each pair, where a bit is needed: the form for masks that have no short intervals.

Queries are taken 64 at a time, so that the queries of a block that may attend to a key are one 64-bit word.
Blocks of 64 x 64 pairs that hold nothing are absent and those that hold everything need no words, so the size
grows with the partly allowed blocks and not with the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from regard.masks._base import Mask
from regard.masks._block_map import EMPTY, FULL
from regard.masks._indices import Blocks2d, Indices, block_grid
from regard.masks._refine import refine

BLOCK = 64  # queries in a word
CELLS = 1 << 20  # blocks looked at at once
AT_ONCE = 64  # partial blocks laid out at once: 2 MiB of int64 indices, which stay in the cache


@dataclass(frozen=True, eq=False)
class BitTiles:
    """Runs of keys for each block of 64 queries, and the bits of those that are kept in part.

    A row is one (batch, head, query block): row = (batch * heads + head) * blocks + block, where blocks is
    q_len / 64 rounded up. Row r has the runs first[r] up to first[r + 1], ascending and disjoint; pairs in
    none of them are forbidden. No run keeps nothing.

    Args:
        batch: batch of the mask, 1 when it does not depend on the sample.
        heads: heads of the mask, 1 when it does not depend on the head.
        first: int64 (batch * heads * blocks + 1,).
        keys: int32 (runs, 2), first key of each run and the one after its last.
        word: int64 (runs,), index in `words` of the run's first key, or -1 when every pair of it is kept.
        words: int64 (total,); bit i of words[word + key - start] says whether query 64 * block + i may attend
            to the key (bit 63 is the sign). Bits of queries beyond the last are 0.
    """

    batch: int
    heads: int
    first: Tensor
    keys: Tensor
    word: Tensor
    words: Tensor


def bit_tiles(mask: Mask, q_len: int, kv_len: int, *, within: Mask | None = None) -> BitTiles:
    """The tiles of `mask`. Blocks in which `within` keeps nothing by its formula are absent too.

    Cost: O((q_len / 64) * (kv_len / 64)) for the structure in bounded memory, and 64 * 64 for each partial block.
    """
    batch, heads = _batch_and_heads(mask)
    blocks = -(-q_len // BLOCK)
    runs = _runs(mask, within, q_len, kv_len)
    start, end = runs.left * BLOCK, ((runs.right + 1) * BLOCK).clamp(max=kv_len)
    is_full = runs.kind == FULL
    length = torch.where(is_full, 0, end - start)
    counts = torch.bincount(runs.row, minlength=batch * heads * blocks)
    return BitTiles(
        batch=batch,
        heads=heads,
        first=functional.pad(counts.cumsum(0), (1, 0)),
        keys=torch.stack([start, end], 1).to(torch.int32),
        word=torch.where(is_full, -1, length.cumsum(0) - length),
        words=_words(mask, _some(runs, ~is_full), q_len, kv_len, int(length.sum())),
    )


class _Runs(NamedTuple):
    """Runs of blocks of one kind, each int64 (n,): the row, the first block of keys, the last, and the kind."""

    row: Tensor
    left: Tensor
    right: Tensor
    kind: Tensor


def _some(runs: _Runs, where: Tensor) -> _Runs:
    return _Runs(*(each[where] for each in runs))


def _batch_and_heads(mask: Mask) -> tuple[int, int]:
    batch, heads = mask.batch_size, mask.head_count
    return 1 if batch is None else batch, 1 if heads is None else heads


def _runs(mask: Mask, within: Mask | None, q_len: int, kv_len: int) -> _Runs:
    """All runs, ordered by row and key. Found some query blocks at a time: a long text has many blocks of pairs."""
    batch, heads = _batch_and_heads(mask)
    blocks = -(-q_len // BLOCK)
    found = [_Runs(*torch.zeros(4, 0, dtype=torch.int64))]
    step = max(1, CELLS // max(1, batch * heads * -(-kv_len // BLOCK)))
    for top in range(0, blocks, step):
        kinds = _kinds(mask, within, q_len, kv_len, slice(top, top + step))
        place, left, right, kind = _runs_along_rows(kinds)
        row = (place[0] * heads + place[1]) * blocks + place[2] + top
        found.append(_Runs(row, left, right, kind))
    runs = _Runs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return _some(runs, runs.row.argsort(stable=True))


def _kinds(mask: Mask, within: Mask | None, q_len: int, kv_len: int, rows: slice) -> Tensor:
    """int8 (batch, heads, some of the query blocks, key blocks), decided, EMPTY where `within` is."""
    at = _grid(mask, q_len, kv_len, rows)
    kinds = mask.block_kinds(at).expand(at.shape)
    if within is not None:
        around = _grid(within, q_len, kv_len, rows)
        possible = (within.block_kinds(around) != EMPTY).expand(around.shape)
        for dim in (0, 1):  # a mask that is the same for every sample needs what any sample may see
            possible = possible if at.shape[dim] == around.shape[dim] else possible.any(dim, keepdim=True)
        kinds = torch.where(possible, kinds, EMPTY)
    return refine(mask, kinds, at)


def _grid(mask: Mask, q_len: int, kv_len: int, rows: slice) -> Blocks2d:
    whole = block_grid(*_batch_and_heads(mask), q_len, kv_len, BLOCK)
    return replace(whole, query_first=whole.query_first[:, :, rows], query_last=whole.query_last[:, :, rows])


def _runs_along_rows(kinds: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Neighbours of one kind as a run: (batch, head, row) of each, its first and last block, and its kind."""
    edge = torch.full_like(kinds[..., :1], EMPTY)
    before, after = torch.cat([edge, kinds[..., :-1]], -1), torch.cat([kinds[..., 1:], edge], -1)
    starts = ((kinds != EMPTY) & (kinds != before)).nonzero(as_tuple=True)
    ends = ((kinds != EMPTY) & (kinds != after)).nonzero(as_tuple=True)
    return starts[:3], starts[3], ends[3], kinds[starts].long()


def _words(mask: Mask, runs: _Runs, q_len: int, kv_len: int, total: int) -> Tensor:
    """int64 (total,): the bits of partial runs, key by key."""
    width = runs.right - runs.left + 1
    owner = torch.repeat_interleave(width)
    block = runs.left[owner] + torch.arange(owner.numel()) - (width.cumsum(0) - width)[owner]
    words = torch.empty(total, dtype=torch.int64)
    filled = 0
    for start in range(0, owner.numel(), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        new = _words_of_blocks(mask, runs.row[owner[part]], block[part], q_len, kv_len)
        words[filled : filled + new.numel()] = new
        filled += new.numel()
    return words


def _words_of_blocks(mask: Mask, row: Tensor, block: Tensor, q_len: int, kv_len: int) -> Tensor:
    """The words of n blocks of 64 x 64 pairs, one for each key that there is."""
    heads, blocks = _batch_and_heads(mask)[1], -(-q_len // BLOCK)
    step = torch.arange(BLOCK)
    # Queries run along the last dimension, where their bits are to lie side by side.
    query = (row % blocks * BLOCK).view(-1, 1, 1) + step
    key = (block * BLOCK).view(-1, 1, 1) + step.view(-1, 1)
    batch_and_head = row.div(blocks, rounding_mode="floor").view(-1, 1, 1)
    at = Indices(
        batch=batch_and_head.div(heads, rounding_mode="floor"),
        head=batch_and_head % heads,
        query=query.clamp(max=q_len - 1),
        key=key.clamp(max=kv_len - 1),
        q_len=q_len,
        kv_len=kv_len,
    )
    kept = mask.keep(at) & (query < q_len)
    return _as_words(kept.expand(row.numel(), BLOCK, BLOCK))[key[..., 0] < kv_len]


def _as_words(kept: Tensor) -> Tensor:
    """Bool (..., 64) as int64 (...): flag i becomes bit i. Little-endian, as every machine with a kernel is."""
    eight = kept.contiguous().view(torch.int64)  # (..., 8): flags at bits 0, 8, 16, ... 56
    eight = eight | (eight >> 7)  # each flag also seven places down, beside its neighbour,
    eight = eight | (eight >> 14)  # and so on, until the lowest byte holds all eight in order
    eight = eight | (eight >> 28)
    return eight.to(torch.uint8).view(torch.int64)[..., 0]
