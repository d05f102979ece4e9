"""A failing case made as small as it can be while it fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from regard._shapes import Sizes
from regard.trust.verify.case import Case

MANY_OPTIONS = ("pairs", "random")
"""Groups whose cases are still themselves without one of their options; a NaN without its mask is another story."""
_LEAST: dict[str, int] = {"batch": 1, "q_len": 1, "kv_len": 1, "head_dim": 1, "value_dim": 1}


def smallest_case(case: Case, fails: Callable[[Case], bool], *, seconds: float = 3.0) -> Case:
    """The case with fewer options and smaller sizes; `fails` says whether one still fails in the same way.

    Greedy: of everything that can be taken away, the first that leaves the failure is, until nothing is left to take or
    the time is over.
    """
    end = time.monotonic() + seconds
    while True:
        smaller = next((each for each in _smaller(case) if time.monotonic() < end and fails(each)), None)
        if smaller is None:
            return case
        case = smaller


def _smaller(case: Case) -> Iterator[Case]:
    for name in case.options if case.group in MANY_OPTIONS else ():
        yield replace(case, options={other: part for other, part in case.options.items() if other != name})
    if case.lse:
        yield replace(case, lse=False)
    if case.gradient not in {None, "random"}:
        yield replace(case, gradient="random")
    if case.gradient is not None and case.check == "right":
        yield replace(case, gradient=None)
    for sizes in _smaller_sizes(case.sizes):
        yield replace(case, sizes=sizes)


def _smaller_sizes(sizes: Sizes) -> Iterator[Sizes]:
    """Each size at its least, halved, one less; then the heads, by groups."""
    for name, least in _LEAST.items():
        have: int = getattr(sizes, name)
        for fewer in dict.fromkeys((least, have // 2, have - 1)):
            if least <= fewer < have:
                yield replace(sizes, **{name: fewer})
    for kv_heads in dict.fromkeys((1, sizes.kv_heads // 2)):
        if 1 <= kv_heads < sizes.kv_heads:
            yield replace(sizes, heads=sizes.group * kv_heads, kv_heads=kv_heads)
    for group in dict.fromkeys((1, 2)):
        if group < sizes.group:
            yield replace(sizes, heads=group * sizes.kv_heads)
