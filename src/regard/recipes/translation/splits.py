"""Which pairs are for training, which for validation, which for the test, and that nothing leaks between them.

A pair's place is decided by the sha256 of its source sentence, written without case, punctuation, digits and spaces.
So it does not move when other data are added, and the same sentence from two places goes to one split.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from regard.recipes.translation.cleaning import tokens
from regard.recipes.translation.pairs import Pair

FEWEST_TEST_TOKENS = 5
NEAR = 0.8
_LEFT_OUT = re.compile(r"[\W\d_]+")


def key(text: str) -> str:
    """A sentence without case, punctuation, digits and spaces."""
    return _LEFT_OUT.sub("", text.casefold())


def split(
    pairs: Sequence[Pair], held_out: Mapping[str, int]
) -> tuple[list[Pair], list[Pair], list[Pair], Counter[str]]:
    """Training, validation and test pairs, and how many were left out of training, by "domain/why".

    Args:
        pairs: in the order of preference: of two with one source, the first is held out.
        held_out: by domain, how many pairs the test gets, and validation as many.
    """
    ranked: dict[str, list[tuple[str, Pair]]] = defaultdict(list)
    seen: set[str] = set()
    for pair in pairs:
        name = key(pair.source)
        if pair.domain in held_out and name not in seen and len(tokens(pair.source)) >= FEWEST_TEST_TOKENS:
            ranked[pair.domain].append((hashlib.sha256(name.encode()).hexdigest(), pair))
        seen.add(name)
    test: list[Pair] = []
    validation: list[Pair] = []
    for domain, count in held_out.items():
        chosen = [pair for _, pair in sorted(ranked[domain])[: 2 * count]]
        test += chosen[:count]
        validation += chosen[count:]
    train, left_out = without_leaks(pairs, [*test, *validation])
    return train, validation, test, left_out


def without_leaks(pairs: Iterable[Pair], held_out: Sequence[Pair]) -> tuple[list[Pair], Counter[str]]:
    """The pairs that share neither sentence with a held-out pair, and whose source is no near-duplicate of one."""
    sources = {key(pair.source) for pair in held_out}
    targets = {key(pair.target) for pair in held_out}
    near = NearDuplicates([pair.source for pair in held_out])
    kept: list[Pair] = []
    left_out: Counter[str] = Counter()
    for pair in pairs:
        if key(pair.source) in sources:
            why = "source held out"
        elif key(pair.target) in targets:
            why = "target held out"
        elif near.has(pair.source):
            why = "near-duplicate of held-out source"
        else:
            kept.append(pair)
            continue
        left_out[f"{pair.domain}/{why}"] += 1
    return kept, left_out


class NearDuplicates:
    """Finds sentences whose set of words overlaps one of given sentences by Jaccard's index `least` or more.

    Two sets with such an overlap share a word among the rarest `size - ceil(least * size) + 1` of each (prefix
    filtering, Chaudhuri et al. 2006), so only sentences that share one of those are compared.
    """

    def __init__(self, sentences: Iterable[str], least: float = NEAR) -> None:
        self._least = least
        self._sets = [words(sentence) for sentence in sentences]
        self._count = Counter(word for found in self._sets for word in found)
        self._having: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(self._sets):
            for word in self._rarest(found):
                self._having[word].append(number)

    def has(self, sentence: str) -> bool:
        """Whether a given sentence is a near-duplicate of this one."""
        found = words(sentence)
        candidates = {number for word in self._rarest(found) for number in self._having.get(word, ())}
        return any(_jaccard(found, self._sets[number]) >= self._least for number in candidates)

    def _rarest(self, found: frozenset[str]) -> list[str]:
        many = len(found) - math.ceil(self._least * len(found)) + 1
        return sorted(found, key=lambda word: (self._count[word], word))[:many]


def words(sentence: str) -> frozenset[str]:
    """The words of a sentence without case, punctuation and digits."""
    return frozenset(word for word in tokens(sentence.casefold()) if word.isalpha())


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    together = len(one & other)
    return together / max(len(one) + len(other) - together, 1)
