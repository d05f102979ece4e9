"""Cases drawn by chance: sizes and options together as nobody would think of them. A seed says which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

from regard.masks import Causal, Padding
from regard.masks import SlidingWindow as Window
from regard.trust.verify.case import DTYPES, Case, Part, constant, forbidding_bias, mask, numbers, random_mask
from regard.trust.verify.cases import ALIBI, DROPOUT, GROUPED, ROPE, SINK, sized

T = TypeVar("T")
_LENGTHS = (1, 2, 3, 7, 8, 16, 17, 31, 33, 63, 64, 65, 100)
_WIDTHS = (1, 2, 4, 6, 8, 16, 20, 33, 64)
_MASKS: tuple[Part, ...] = (
    mask(lambda _: Causal("top_left")),
    mask(lambda _: Causal("bottom_right")),
    mask(lambda _: Window(5, 2)),
    mask(lambda _: Window(3, 0, align="bottom_right")),
    mask(lambda at: Padding([at.kv_len // 2, *[at.kv_len] * (at.batch - 1)])),
    mask(lambda at: Padding([at.kv_len // 3, *[at.kv_len] * (at.batch - 1)], side="left") & Causal("bottom_right")),
    random_mask("q_len", "kv_len"),
    random_mask("batch", "heads", "q_len", "kv_len"),
)
_BIASES = (
    numbers(4, "1", "heads", "q_len", "kv_len"),
    numbers(4, "batch", "1", "1", "kv_len"),
    forbidding_bias(),
)


class _Chance:
    """Choices by a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def of(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[int(torch.randint(len(choices), (), generator=self._generator))]

    def happens(self, likely: float) -> bool:
        """True so often."""
        return float(torch.rand((), generator=self._generator)) < likely


def random_cases(seed: int, count: int) -> Iterator[Case]:
    """This many cases, named by seed and number."""
    for number in range(count):
        yield _drawn_case(_Chance(seed * 1_000_003 + number), f"random-{seed}-{number}")


def _drawn_case(chance: _Chance, name: str) -> Case:
    kv_heads, group, head_dim = chance.of((1, 2, 3)), chance.of((1, 1, 2, 4)), chance.of(_WIDTHS)
    sizes = sized(
        chance.of(_LENGTHS),
        chance.of(_LENGTHS),
        batch=chance.of((1, 2, 3)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=head_dim if chance.happens(0.7) else chance.of(_WIDTHS),
    )
    options: dict[str, Part] = dict(GROUPED) if group > 1 else {}
    for chosen, likely in (
        ({"mask": chance.of(_MASKS)}, 0.6),
        ({"bias": chance.of(_BIASES)}, 0.3),
        ({"scale": constant(chance.of((0.3, -0.5, 0.0)))}, 0.2),
        ({"softcap": constant(chance.of((0.5, 5.0)))}, 0.2),
        ({"sink": SINK}, 0.2),
        ({"position": ALIBI if head_dim % 2 or chance.happens(0.5) else ROPE}, 0.2),
        (DROPOUT, 0.2),
    ):
        if chance.happens(likely):
            options |= chosen
    return Case(name, "random", sizes, options, dtypes=(), full=DTYPES[:2])
