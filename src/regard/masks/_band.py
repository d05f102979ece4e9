"""A band of distances: the masks that two numbers say, with nothing to allocate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Band:
    """The pairs with -before <= key - (query + offset) <= after; a side that is None has no bound."""

    before: int | None
    after: int | None
    offset: int

    def meet(self, other: Band) -> Band | None:
        """What both keep, or None when they count the distance from different keys."""
        if self.offset != other.offset:
            return None
        return Band(_least(self.before, other.before), _least(self.after, other.after), self.offset)


def _least(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)
