"""Does attention do what it says? `verify` asks, `audit` looks from outside, `passport` carries answers elsewhere.

A `Question` is one attention problem and knows its answer in float64; a `Target` is whatever computes attention.
"""

from typing import TYPE_CHECKING

from regard._lazy import lazily

if TYPE_CHECKING:
    from regard.trust.question import Question as Question
    from regard.trust.target import Target as Target
    from regard.trust.target import as_target as as_target

__getattr__ = lazily(
    __name__,
    {
        "regard.trust.question": ("Question",),
        "regard.trust.target": ("Target", "as_target"),
    },
)

__all__ = ["Question", "Target", "as_target"]


def __dir__() -> list[str]:
    return __all__
