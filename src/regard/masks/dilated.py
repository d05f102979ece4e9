"""Dilated attention: each token sees every step-th token around it.

Longformer's dilated window (Beltagy et al. 2020, arXiv:2004.05150, 3.1) and, without bounds, the strided
heads of the Sparse Transformer (Child et al. 2019, arXiv:1904.10509), whose two heads together are
`Causal() & (SlidingWindow(stride, 0) | Dilated(stride))`. The same number of keys reaches `step` times as far
as a window.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.masks._align import Align, known_align, shift
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._numbers import whole


@dataclass(frozen=True, init=False, repr=False)
class Dilated(Mask):
    """Keeps the keys whose distance key - query is a multiple of `step`, within bounds counted in steps.

    `Dilated(3, before=2, after=0)` keeps the distances -6, -3 and 0: two keys before its own and itself, as
    `SlidingWindow(2, 0)` would, but three tokens apart.

    Args:
        step: the distance between two kept keys; 1 skips none.
        before: how many kept keys before its own a query sees; None sets no bound.
        after: how many after it; None takes the same as `before`.
        align: as in SlidingWindow.

    Raises:
        MaskError: `step` below 1; a bound that is negative or no integer; an unknown `align`.
    """

    step: int
    before: int | None
    after: int | None
    align: Align | None

    def __init__(
        self, step: int, before: int | None = None, after: int | None = None, *, align: Align | None = None
    ) -> None:
        before = None if before is None else whole("Dilated before", before)
        assign(
            self,
            step=whole("Dilated step", step, least=1),
            before=before,
            after=before if after is None else whole("Dilated after", after),
            align=known_align("Dilated", align),
        )

    def keep(self, at: Indices) -> Tensor:
        distance = at.key - (at.query + shift(self.align, at.q_len, at.kv_len))
        lowest, highest = self._bounds(at.q_len, at.kv_len)
        return (distance % self.step == 0) & (distance >= lowest) & (distance <= highest)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        beside = shift(self.align, at.q_len, at.kv_len)
        lowest, highest = self._bounds(at.q_len, at.kv_len)
        # Every distance between these two occurs in the rectangle.
        nearest = at.key_first - (at.query_last + beside)
        farthest = at.key_last - (at.query_first + beside)
        some = last_multiple(farthest.clamp(max=highest), self.step) >= nearest.clamp(min=lowest)
        alone = nearest == farthest if self.step > 1 else True
        return kinds_of(some, some & alone & (nearest >= lowest) & (farthest <= highest))

    def _bounds(self, q_len: int, kv_len: int) -> tuple[int, int]:
        """The least and the greatest distance kept; no distance reaches q_len + kv_len."""
        lowest = -(q_len + kv_len) if self.before is None else -self.before * self.step
        highest = q_len + kv_len if self.after is None else self.after * self.step
        return lowest, highest


def last_multiple(number: Tensor, step: int) -> Tensor:
    """The greatest multiple of `step` that is not above `number`."""
    return number.div(step, rounding_mode="floor") * step


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(Dilated(4, before=5))
