"""BigBird: a window, some global blocks, and a few random ones for each block.

Zaheer et al. 2020 (arXiv:2007.14062), counted in blocks as there. The random blocks make the path between any two
tokens short, which is what the paper's proof of universality needs.

The random blocks are not drawn from a generator but computed from (seed, block): a stateless hash gives each
row its numbers. So they are the same on every device, in every thread and inside a compiled kernel, no
table is kept, and no random state is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._align import require_equal
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._numbers import Integers, whole, wholes

Number = TypeVar("Number", int, Tensor)


@dataclass(frozen=True, init=False, repr=False)
class BigBird(Mask):
    """Keeps, for each block of queries, whole blocks of keys; blocks are `block_size` tokens, the last shorter.

    Args:
        block_size: tokens in a block.
        window_blocks: blocks of the window, an odd number: 3 is one before, its own, and one after.
        global_blocks: how many of the first blocks see all and are seen by all; or (first, last) to
            have some at both ends.
        random_blocks: further blocks that each block sees, drawn without repetition from those that neither
            the window nor the global blocks hold (all of them, where there are fewer).
        seed: chooses the random blocks. The same seed and length give the same blocks.

    Raises:
        MaskError: a size out of range; an even window; laid over q_len != kv_len.
    """

    block_size: int
    window_blocks: int
    global_blocks: tuple[int, int]
    random_blocks: int
    seed: int

    def __init__(
        self,
        block_size: int,
        window_blocks: int = 3,
        global_blocks: int | Integers = 1,
        random_blocks: int = 3,
        seed: int = 0,
    ) -> None:
        assign(
            self,
            block_size=whole("BigBird block_size", block_size, least=1),
            window_blocks=_odd(whole("BigBird window_blocks", window_blocks, least=1)),
            global_blocks=_both_ends(global_blocks),
            random_blocks=whole("BigBird random_blocks", random_blocks),
            seed=whole("BigBird seed", seed),
        )

    def check(self, q_len: int, kv_len: int) -> None:
        require_equal("BigBird", q_len, kv_len)

    def keep(self, at: Indices) -> Tensor:
        row, col = self._block(at.query), self._block(at.key)
        plan = self._plan(at.kv_len)
        kept = plan.is_global(row) | plan.is_global(col) | ((col - row).abs() <= plan.reach)
        for chosen in self._random_columns(row, plan):
            kept = kept | (col == chosen)
        return kept

    def block_kinds(self, at: Blocks2d) -> Tensor:
        top, bottom = self._block(at.query_first), self._block(at.query_last)
        left, right = self._block(at.key_first), self._block(at.key_last)
        plan = self._plan(at.kv_len)
        height = bottom - top + 1
        count = torch.zeros(1, dtype=torch.int64)
        for offset in range(int(height.max()) if height.numel() else 0):
            row = top + offset
            count = count + torch.where(row <= bottom, self._kept_in_row(row, left, right, plan), 0)
        return kinds_of(count > 0, count == height * (right - left + 1))

    def _kept_in_row(self, row: Tensor, left: Tensor, right: Tensor, plan: _Plan) -> Tensor:
        """How many of the blocks from `left` to `right` a row of blocks keeps."""
        start, end = plan.window(row)
        count = _overlap(left, right, 0, plan.first - 1) + _overlap(left, right, plan.blocks - plan.last, plan.blocks)
        count = count + (torch.minimum(right, end) - torch.maximum(left, start) + 1).clamp(min=0)
        for chosen in self._random_columns(row, plan):
            count = count + ((left <= chosen) & (chosen <= right))
        return torch.where(plan.is_global(row), right - left + 1, count)

    def _random_columns(self, row: Tensor, plan: _Plan) -> list[Tensor]:
        """The random blocks of each row, -1 where there are fewer. Shaped as `row`.

        Floyd's sampling without repetition: each turn has one candidate more to draw from than the turn
        before, and that newest one stands in for a draw that was had already.
        """
        start, end = plan.window(row)
        width = (end - start + 1).clamp(min=0)
        candidates = (plan.blocks - plan.first - plan.last - width).clamp(min=0)
        drawn: list[Tensor] = []
        for turn in range(self.random_blocks):
            newest = candidates - self.random_blocks + turn
            draw = _mix(_mix(row) ^ _mix(_mix(self.seed) ^ turn)) % (newest + 1).clamp(min=1)
            for earlier in drawn:
                draw = torch.where(draw == earlier, newest, draw)
            drawn.append(torch.where(newest < 0, -1, draw))
        # Candidates are numbered past the global blocks and around the window.
        places = (draw + plan.first for draw in drawn)
        return [torch.where(place < plan.first, -1, place + torch.where(place >= start, width, 0)) for place in places]

    def _block(self, index: Tensor) -> Tensor:
        return index.div(self.block_size, rounding_mode="floor")

    def _plan(self, length: int) -> _Plan:
        blocks = -(-length // self.block_size)
        first = min(self.global_blocks[0], blocks)
        last = min(self.global_blocks[1], blocks - first)
        return _Plan(blocks=blocks, first=first, last=last, reach=self.window_blocks // 2)


class _Plan(NamedTuple):
    """How many blocks a length has, how many at either end are global, and how far the window reaches."""

    blocks: int
    first: int
    last: int
    reach: int

    def is_global(self, block: Tensor) -> Tensor:
        return (block < self.first) | (block >= self.blocks - self.last)

    def window(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """First and last block of the window, without those that are global."""
        return (row - self.reach).clamp(min=self.first), (row + self.reach).clamp(max=self.blocks - self.last - 1)


def _overlap(left: Tensor, right: Tensor, start: int, end: int) -> Tensor:
    return (right.clamp(max=end) - left.clamp(min=start) + 1).clamp(min=0)


def _mix(number: Number) -> Number:
    """A 32-bit hash of an integer below 2**32: xor-shift and multiply, as in MurmurHash3's finaliser.

    The multiplier is below 2**31, so that no product leaves int64.
    """
    number = (number ^ (number >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    number = (number ^ (number >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return number ^ (number >> 16)


def _odd(blocks: int) -> int:
    if blocks % 2 == 0:
        raise MaskError(
            "BigBird window_blocks",
            expected="an odd number",
            got=str(blocks),
            do=f"Take {blocks + 1}: as many blocks on either side, and its own.",
        )
    return blocks


def _both_ends(blocks: int | Integers) -> tuple[int, int]:
    ends = (blocks, 0) if isinstance(blocks, int) else wholes("BigBird global_blocks", blocks)
    if len(ends) != 2:
        raise MaskError(
            "BigBird global_blocks",
            expected="a number, or a pair (first, last)",
            got=repr(ends),
            do="Write global_blocks=(1, 1) for one at either end.",
        )
    return whole("BigBird global_blocks", ends[0]), whole("BigBird global_blocks", ends[1])


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(BigBird(4, random_blocks=2))
