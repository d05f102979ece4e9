"""From attention weights to links.

A decoder reads [begin, y_1 .. y_n]: its step t has consumed y_t and predicts y_(t+1). So there are two rules for the
row of weights that aligns y_t, and mixing them up shifts every link by one word:

    "predicting"    the step that predicts y_t and has not seen it (Bahdanau et al. 2015 and most since)
    "consuming"     the step after, which has read y_t: "shift-att" of Chen et al. 2020, "Accurate Word Alignment
                    Induction from Neural Machine Translation", https://arxiv.org/abs/2004.14837

To align two given texts either may be used; the second knows the word that it aligns.

Two directions are joined as Koehn, Och & Marcu 2003 do ("Statistical Phrase-Based Translation",
https://aclanthology.org/N03-1017, section 4.5): from the links that both have towards those that one has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.explain.alignment import Link, Links

StepRule = Literal["predicting", "consuming"]
Symmetrisation = Literal["intersection", "union", "grow-diag", "grow-diag-final", "grow-diag-final-and"]

_BESIDE = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


def target_rows(weights: Tensor, rule: StepRule) -> Tensor:
    """The row of each target token, out of the rows of all decoder steps.

    Args:
        weights: (..., n + 1, source): the steps that read [begin, y_1 .. y_n].
        rule: "predicting" or "consuming", as above.

    Returns:
        (..., n, source), a view: row t - 1 aligns y_t.

    Raises:
        ArgumentError: another rule.
        ShapeError: no step at all: the begin token is one.
    """
    if rule not in ("predicting", "consuming"):
        raise ArgumentError("rule", expected="'predicting' or 'consuming'", got=repr(rule), do="Name one of these.")
    if weights.dim() < 2 or weights.shape[-2] < 1:
        raise ShapeError(
            "weights",
            expected="(..., 1 + target tokens, source tokens)",
            got=shape_of(weights),
            do="Run the decoder on the begin token and all target tokens.",
        )
    return weights[..., :-1, :] if rule == "predicting" else weights[..., 1:, :]


def argmax_links(weights: Tensor, *, each: Literal["target", "source"] = "target", least: float = 0.0) -> Links:
    """For each target word the source word with most weight; or the other way round.

    Args:
        weights: (target, source), rows as `target_rows` or `word_weights` give them.
        each: whose word gets one link: "target" takes the largest of each row, "source" of each column.
        least: a word whose largest weight is not above this gets no link. Equal weights: the first word.

    Raises:
        ShapeError: not two-dimensional.
        ArgumentError: NaN among the weights, or another side.
    """
    if each not in ("target", "source"):
        raise ArgumentError("each", expected="'target' or 'source'", got=repr(each), do="Name the side.")
    values = _checked(weights)
    if each == "source":
        values = values.T
    if 0 in values.shape:
        return frozenset()
    most, place = values.max(1)
    rows = (most > least).nonzero()[:, 0]
    pairs = _listed(torch.stack([place[rows], rows], 1))
    return frozenset((at, row) if each == "target" else (row, at) for at, row in pairs)


def threshold_links(weights: Tensor, least: float) -> Links:
    """All pairs whose weight is at least `least`, above 0.

    Args:
        weights: (target, source).
        least: weights sum to 1 over the source, so 0.5 gives each target word at most two links, in a tie.

    Raises:
        ShapeError: not two-dimensional.
        ArgumentError: NaN among the weights, or a `least` that is not above 0: then every pair is a link.
    """
    if not least > 0:
        raise ArgumentError("least", expected="a weight above 0", got=str(least), do="Every pair has a weight of 0.")
    return frozenset((source, target) for target, source in _listed((_checked(weights) >= least).nonzero()))


def symmetrised(one: Iterable[Link], other: Iterable[Link], how: Symmetrisation) -> Links:
    """Join the links of the two directions, both given as (source, target).

    Args:
        one: links of the first direction, such as source to target.
        other: of the second.
        how: "intersection": in both. "union": in any. "grow-diag": the intersection, and again and again a link of
            the union that touches one that is in (also diagonally), while one of its two words has none yet.
            "grow-diag-final": then each link of `one`, then of `other`, while one of its words has none.
            "grow-diag-final-and": the same while both have none.

    Links are tried target word by target word, each from the first source word on, neighbours above, left, below, right
    and then diagonally: where several are in one another's way this decides, and tools differ in it.

    Raises:
        ArgumentError: another way.
    """
    first, second = frozenset(one), frozenset(other)
    if how == "intersection":
        return first & second
    if how == "union":
        return first | second
    if how not in ("grow-diag", "grow-diag-final", "grow-diag-final-and"):
        raise ArgumentError(
            "how",
            expected="'intersection', 'union', 'grow-diag', 'grow-diag-final' or 'grow-diag-final-and'",
            got=repr(how),
            do="Name one of these.",
        )
    grown = _Growing(first & second)
    grown.grow(first | second)
    if how != "grow-diag":
        for direction in (first, second):
            grown.finish(direction, both=how == "grow-diag-final-and")
    return frozenset(grown.links)


class _Growing:
    """Links, and the words that have one."""

    def __init__(self, links: Links) -> None:
        self.links: set[Link] = set()
        self.sources: set[int] = set()
        self.targets: set[int] = set()
        for link in links:
            self._add(link)

    def grow(self, allowed: Links) -> None:
        order = _in_order(allowed)
        growing = True
        while growing:
            growing = False
            for source, target in order:
                if (source, target) not in self.links:
                    continue
                for down, right in _BESIDE:
                    near = (source + right, target + down)
                    if near in allowed and near not in self.links and self._free(near) > 0:
                        self._add(near)
                        growing = True

    def finish(self, direction: Links, *, both: bool) -> None:
        for link in _in_order(direction):
            if self._free(link) >= (2 if both else 1):
                self._add(link)

    def _free(self, link: Link) -> int:
        """How many of its two words have no link."""
        return (link[0] not in self.sources) + (link[1] not in self.targets)

    def _add(self, link: Link) -> None:
        self.links.add(link)
        self.sources.add(link[0])
        self.targets.add(link[1])


def _in_order(links: Links) -> list[Link]:
    return sorted(links, key=lambda link: (link[1], link[0]))


def _listed(pairs: Tensor) -> list[list[int]]:
    return cast("list[list[int]]", cast("Any", pairs).tolist())


def _checked(weights: Tensor) -> Tensor:
    if weights.dim() != 2:
        raise ShapeError(
            "weights",
            expected="(target words, source words)",
            got=shape_of(weights),
            do="Choose one sample and one head, or their mean.",
        )
    values = weights.detach()
    if bool(torch.isnan(values).any()):
        raise ArgumentError("weights", expected="numbers", got="NaN", do="Look where the model makes NaN first.")
    return values
