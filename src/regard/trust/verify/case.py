"""A case of `verify`: a question that is made from sizes, a seed and named parts, and can write itself as Python.

Value and text of each part come from one place, so that the lines of a reproduction ask exactly what was asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from regard import masks, positions
from regard._shapes import Sizes
from regard.masks import Dense, Mask
from regard.positions import Position
from regard.trust.question import Question
from regard.trust.verify.answers import Incoming
from regard.trust.verify.drawn import LAYOUTS, drawn, drawn_tables

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Check = Literal["right", "same_bits", "drops", "refuses"]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Drawing:
    """What a part is made from: the sizes of the problem, its dtype and the seed of its numbers."""

    sizes: Sizes
    dtype: torch.dtype
    seed: int

    def numbers(self, number: int, *sizes: int) -> Tensor:
        """Unit-normal numbers of their own for each `number`."""
        return drawn(self.seed + number, *sizes, dtype=self.dtype)

    def numbers_code(self, number: int, *sizes: int) -> str:
        """The call that `numbers` is."""
        told = [str(self.seed + number), *map(str, sizes)]
        return f"drawn({', '.join(told + self.dtype_code)})"

    @property
    def dtype_code(self) -> list[str]:
        """The argument that names the dtype, unless it is float32."""
        return [] if self.dtype == torch.float32 else [f"dtype={self.dtype}"]


@dataclass(frozen=True)
class Part:
    """The value of an option, and the expression that makes it."""

    value: Callable[[Drawing], Any]
    code: Callable[[Drawing], str]


def constant(value: object) -> Part:
    """A number, or True."""
    return Part(lambda _: value, lambda _: repr(value))


def mask(make: Callable[[Sizes], Mask]) -> Part:
    """A mask that is made of numbers."""
    return Part(lambda at: make(at.sizes), lambda at: repr(make(at.sizes)))


def random_mask(*shape: str) -> Part:
    """About three pairs of five, in a `Dense` of these sizes."""
    return Part(
        lambda at: Dense(drawn(at.seed + 3, *_sizes(at, shape)) < 0.25),
        lambda at: f"Dense(drawn({', '.join(map(str, (at.seed + 3, *_sizes(at, shape))))}) < 0.25)",
    )


def numbers(number: int, *shape: str) -> Part:
    """Unit-normal numbers of these sizes ("1" is one)."""
    return Part(
        lambda at: at.numbers(number, *_sizes(at, shape)), lambda at: at.numbers_code(number, *_sizes(at, shape))
    )


def forbidding_bias() -> Part:
    """Numbers for each pair, about a third of them -inf."""

    def shape(at: Drawing) -> list[int]:
        return [1, 1, at.sizes.q_len, at.sizes.kv_len]

    def code(at: Drawing) -> str:
        where = f"drawn({', '.join(map(str, (at.seed + 3, *shape(at))))}) < -0.4"
        return f"{at.numbers_code(4, *shape(at))}.masked_fill({where}, -inf)"

    def value(at: Drawing) -> Tensor:
        return at.numbers(4, *shape(at)).masked_fill(drawn(at.seed + 3, *shape(at)) < -0.4, -math.inf)

    return Part(value, code)


def position(make: Callable[[Sizes], Position]) -> Part:
    """A position whose tables hold unit-normal numbers."""
    return Part(
        lambda at: drawn_tables(make(at.sizes), at.seed + 6, at.dtype),
        lambda at: f"drawn_tables({', '.join([repr(make(at.sizes)), str(at.seed + 6), *at.dtype_code])})",
    )


def _sizes(at: Drawing, shape: tuple[str, ...]) -> list[int]:
    return [1 if name == "1" else int(getattr(at.sizes, name)) for name in shape]


# ------------------------------------------------------------------------------- what is done to the tensors


@dataclass(frozen=True)
class Put:
    """Numbers of a tensor that are replaced by one."""

    tensor: str
    at: str
    number: float

    def apply(self, tensors: Tensors) -> None:
        """Replace them."""
        tensors[self.tensor][_index(self.at)] = self.number

    @property
    def code(self) -> str:
        """The statement that does it."""
        return f"{self.tensor}[{self.at}] = {self.number!r}"


@dataclass(frozen=True)
class Cut:
    """A tensor without its last entry along a dimension."""

    tensor: str
    dimension: int

    def apply(self, tensors: Tensors) -> None:
        """Cut it."""
        whole = tensors[self.tensor]
        tensors[self.tensor] = whole.narrow(self.dimension, 0, whole.shape[self.dimension] - 1)

    @property
    def code(self) -> str:
        """The statement that does it."""
        return f"{self.tensor} = {self.tensor}[{':, ' * self.dimension}:-1]"


@dataclass(frozen=True)
class Laid:
    """All three tensors laid out by a function of `drawn.py`."""

    how: Callable[[Tensor], Tensor]

    def apply(self, tensors: Tensors) -> None:
        """Lay them out."""
        tensors.update({name: self.how(tensor) for name, tensor in tensors.items()})

    @property
    def code(self) -> str:
        """The statement that does it."""
        return f"query, key, value = map({self.how.__name__}, (query, key, value))"


Change = Put | Cut | Laid


def _index(text: str) -> tuple[Any, ...]:
    """`0, :, -1` as an index."""
    return tuple(_INDEX.get(part) if part in _INDEX else int(part) for part in text.split(", "))


_INDEX: Mapping[str, Any] = {":": slice(None), "...": ..., ":-1": slice(None, -1), "1:": slice(1, None)}


# ----------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True, eq=False)
class Case:
    """One case.

    name: what reports call it.
    group: the heading it stands under.
    options: parts by option.
    changes: what is done to query, key and value, in order.
    dtypes: those that a quick run asks it in.
    full: those that a full run asks it in.
    check: which function of `checks.py` asks it.
    gradient: the gradient that comes in; None asks for none.
    lse: whether the lse is asked for.
    faults: rows of the fault table that it covers.
    refusal_words: words by which an error refuses the case, beside the names of its options.
    """

    name: str
    group: str
    sizes: Sizes
    options: Mapping[str, Part] = field(default_factory=dict[str, Part])
    changes: tuple[Change, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    full: tuple[torch.dtype, ...] = DTYPES
    check: Check = "right"
    gradient: Incoming | None = "random"
    lse: bool = False
    faults: tuple[str, ...] = ()
    refusal_words: tuple[str, ...] = ()

    def question(self, dtype: torch.dtype, seed: int) -> Question:
        """The question itself."""
        at = Drawing(self.sizes, dtype, seed)
        tensors = {name: at.numbers(number, *sizes) for number, (name, sizes) in enumerate(_tensors(self.sizes))}
        for change in self.changes:
            change.apply(tensors)
        return Question(**tensors, options={name: part.value(at) for name, part in self.options.items()})

    def lines(self, dtype: torch.dtype, seed: int, target: str) -> tuple[str, ...]:
        """Python that asks it of `target`, an expression, and prints what is found."""
        at = Drawing(self.sizes, dtype, seed)
        made = [at.numbers_code(number, *sizes) for number, (_, sizes) in enumerate(_tensors(self.sizes))]
        options = ", ".join(f'"{name}": {part.code(at)}' for name, part in self.options.items())
        asked = f"Question(query, key, value{f', {{{options}}}' if options else ''})"
        body = [f"query, key, value = {', '.join(made)}"]
        body += ["; ".join(change.code for change in self.changes)] if self.changes else []
        body += [f'print(*{self.check}({", ".join([target, asked, *self._keywords()])}), sep="\\n")']
        return (*_imports("\n".join(body)), *body)

    def _keywords(self) -> list[str]:
        if self.check not in {"right", "same_bits"}:
            return []
        told = [] if self.gradient == "random" else [f"gradient={self.gradient!r}"]
        return [*told, "lse=True"] if self.lse else told


def _tensors(sizes: Sizes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return (
        ("query", (sizes.batch, sizes.heads, sizes.q_len, sizes.head_dim)),
        ("key", (sizes.batch, sizes.kv_heads, sizes.kv_len, sizes.head_dim)),
        ("value", (sizes.batch, sizes.kv_heads, sizes.kv_len, sizes.value_dim)),
    )


_LAYOUT_NAMES = [how.__name__ for how in LAYOUTS]


def _imports(body: str) -> list[str]:
    """The import lines of a reproduction."""
    words = set(re.findall(r"\w+", body))
    homes: Mapping[str, list[str]] = {
        "regard.masks": [name for name in masks.__all__ if name != "Mask"],
        "regard.positions": [name for name in positions.__all__ if name != "Position"],
        "regard.trust": ["Question", "as_target"],
        "regard.trust.verify": ["drawn", "drawn_tables", "drops", *_LAYOUT_NAMES, "refuses", "right", "same_bits"],
    }
    used = {home: [name for name in names if name in words] for home, names in homes.items()}
    special = [name for name in ("inf", "nan") if name in words]
    first = f"import torch; from math import {', '.join(special)}" if special else "import torch"
    return [first, "; ".join(f"from {home} import {', '.join(names)}" for home, names in used.items() if names)]
