"""The learning rate: a linear rise, then half a cosine down.

    rate(t) = highest t / warmup                                                    t <= warmup
    rate(t) = highest (final + (1 - final) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2)

for t = 1 .. steps (Loshchilov & Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983, with one cycle; the rise is
Vaswani et al. 2017's warm-up).
"""

from __future__ import annotations

import math


def rate_at(step: int, *, highest: float, warmup: int, steps: int, final: float) -> float:
    """The learning rate of step 1 .. steps; `final` is a part of `highest`."""
    if step <= warmup:
        return highest * step / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return highest * (final + (1.0 - final) * (1.0 + math.cos(math.pi * done)) / 2.0)
