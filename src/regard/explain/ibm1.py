"""IBM model 1: word alignment from counts alone, the baseline that every aligner should beat.

Brown et al. 1993, "The Mathematics of Statistical Machine Translation", https://aclanthology.org/J93-2003, section 4.
Every target word was made by one word of the source sentence, or by an empty one (NULL), all of them equally likely:

    P(target, alignment | source) ~ prod_t  p(target_t | source_a(t))

Expectation-maximisation finds p from pairs of sentences, from all words of a language being equally likely; there is
no maximum of the likelihood but the highest.
Word order means nothing to it. Cost of an iteration: the sum over pairs of source length x target length, in time and
in memory (8 bytes each, and 48 for each different pair of words).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from regard._errors import ArgumentError
from regard.explain.alignment import Links
from regard.explain.alignment_extract import argmax_links

Words = Sequence[Hashable]

TOGETHER = 4096
"""Sentences whose pairs of words are counted at a time."""


class IBM1:
    """p(target word | source word) of the pairs that occur in some sentence pair.

    `IBM1.fit(sources, targets)` makes one. For the other direction exchange the two, and turn its links round with
    `reversed_links`.

    Attributes:
        log_likelihoods: of the texts it was fitted on, before each iteration and after the last, in nats; of each
            target word given the source sentence.
    """

    def __init__(
        self,
        source_ids: dict[Hashable, int],
        target_ids: dict[Hashable, int],
        pairs: Tensor,
        probabilities: Tensor,
        log_likelihoods: list[float],
        *,
        null: bool,
    ) -> None:
        self._source_ids, self._target_ids = source_ids, target_ids
        self._pairs, self._probabilities = pairs, probabilities
        self.null = null
        self.log_likelihoods = log_likelihoods

    @classmethod
    def fit(
        cls, sources: Sequence[Words], targets: Sequence[Words], *, iterations: int = 10, null: bool = True
    ) -> IBM1:
        """Learn from pairs of sentences.

        Args:
            sources, targets: sentences as words, strings or anything else that can be a key.
            iterations: of expectation-maximisation.
            null: have the empty source word, so that a target word may stay without a link.

        Raises:
            ArgumentError: different numbers of sentences, iterations below 1, or no word pair at all.
        """
        if len(sources) != len(targets):
            raise ArgumentError(
                "targets",
                expected=f"{len(sources)} sentences, as sources has",
                got=str(len(targets)),
                do="Line n of one side belongs to line n of the other.",
            )
        if iterations < 1:
            raise ArgumentError("iterations", expected="at least 1", got=str(iterations), do="Five to ten are usual.")
        source_ids, target_ids = _vocabulary(sources), _vocabulary(targets)
        numbered = [_numbered(source, source_ids, null=null) for source in sources]
        parts, pairs = _parts(numbered, [_numbered(t, target_ids) for t in targets], len(target_ids) + 1)
        if not parts:
            raise ArgumentError("sources", expected="at least one pair of words", got="none", do="Give a text.")
        source_of_pair = pairs // (len(target_ids) + 1)
        found, likelihoods = _maximised(parts, source_of_pair, iterations, start=1.0 / len(target_ids))
        return cls(source_ids, target_ids, pairs, found, likelihoods, null=null)

    def probabilities(self, source: Words, target: Words) -> Tensor:
        """p(target word | source word), float64 (target, source + 1): NULL is the first column, 0 without it.

        0 for words that never stood in one pair of sentences.
        """
        source_ids = torch.tensor([0, *(self._source_ids.get(word, -1) for word in source)])
        target_ids = torch.tensor([self._target_ids.get(word, -1) for word in target], dtype=torch.int64)
        known = (source_ids >= 0) & (target_ids >= 0)[:, None]
        keys = source_ids.clamp(min=0) * (len(self._target_ids) + 1) + target_ids.clamp(min=0)[:, None]
        place = torch.searchsorted(self._pairs, keys).clamp(max=self._pairs.numel() - 1)
        return torch.where(known & (self._pairs[place] == keys), self._probabilities[place], 0.0)

    def weights(self, source: Words, target: Words) -> Tensor:
        """The posterior of each alignment, float64 (target, source); rows sum to at most 1, the rest is NULL's."""
        found = self.probabilities(source, target)
        total = found.sum(1, keepdim=True)
        return (found / torch.where(total > 0, total, 1.0))[:, 1:]

    def links(self, source: Words, target: Words) -> Links:
        """For each target word its likeliest source word; none where NULL is likelier, or the word is unknown."""
        found = self.probabilities(source, target)
        return frozenset((place - 1, row) for place, row in argmax_links(found) if place > 0)


def _vocabulary(texts: Sequence[Words]) -> dict[Hashable, int]:
    """Numbers from 1; 0 is NULL."""
    words = dict.fromkeys(word for text in texts for word in text)
    return {word: number for number, word in enumerate(words, 1)}


def _numbered(text: Words, ids: dict[Hashable, int], *, null: bool = False) -> Tensor:
    numbers = [ids[word] for word in text]
    return torch.tensor([0, *numbers] if null else numbers, dtype=torch.int64)


class _Part(NamedTuple):
    """Some sentences. For each two words of a sentence pair the number of the target token (within the part) and of
    the pair of words, int32; and for each target token of how many source words it may come, float64.
    """

    rows: Tensor
    which: Tensor
    choices: Tensor


def _parts(sources: list[Tensor], targets: list[Tensor], span: int) -> tuple[list[_Part], Tensor]:
    """All sentences, part by part, and the different pairs of words as source word * span + target word, sorted."""
    parts: list[_Part] = []
    own_pairs: list[Tensor] = []
    for first in range(0, len(sources), TOGETHER):
        some = slice(first, first + TOGETHER)
        rows, keys, choices = _co_occurrences(sources[some], targets[some], span)
        if rows.numel():
            own, which = cast("tuple[Tensor, Tensor]", cast("Any", torch).unique(keys, return_inverse=True))
            parts.append(_Part(rows, which.to(torch.int32), choices))
            own_pairs.append(own)
    if not parts:
        return [], torch.empty(0)
    pairs = cast("Tensor", cast("Any", torch).unique(torch.cat(own_pairs)))
    for number, own in enumerate(own_pairs):
        place = torch.searchsorted(pairs, own).to(torch.int32)
        parts[number] = parts[number]._replace(which=place[parts[number].which])
    return parts, pairs


def _co_occurrences(sources: list[Tensor], targets: list[Tensor], span: int) -> tuple[Tensor, Tensor, Tensor]:
    """The number of the target token and the key of the two words, for each two words of a sentence pair; choices."""
    rows: list[Tensor] = []
    keys: list[Tensor] = []
    choices: list[Tensor] = []
    tokens = 0
    for source, target in zip(sources, targets, strict=True):
        if source.numel():
            numbers = torch.arange(tokens, tokens + target.numel(), dtype=torch.int32)
            rows.append(numbers.repeat_interleave(source.numel()))
            keys.append((source * span + target[:, None]).flatten())
            choices.append(torch.full((target.numel(),), float(source.numel()), dtype=torch.float64))
            tokens += target.numel()
    if not rows:
        return torch.empty(0), torch.empty(0), torch.empty(0)
    return torch.cat(rows), torch.cat(keys), torch.cat(choices)


def _maximised(
    parts: list[_Part], source_of_pair: Tensor, iterations: int, *, start: float
) -> tuple[Tensor, list[float]]:
    """p of each pair, and the log likelihoods."""
    source_count = int(source_of_pair.max()) + 1
    found = torch.full((source_of_pair.numel(),), start, dtype=torch.float64)
    likelihoods: list[float] = []
    for turn in range(iterations + 1):
        counts, likelihood = torch.zeros_like(found), 0.0
        for rows, which, choices in parts:
            joint = found[which]
            evidence = _sums(joint, rows, choices.numel())
            likelihood += float((evidence / choices).log().sum())
            if turn < iterations:
                counts.index_add_(0, which, joint / evidence[rows])
        likelihoods.append(likelihood)
        if turn < iterations:
            found = counts / _sums(counts, source_of_pair, source_count)[source_of_pair]
    return found, likelihoods


def _sums(values: Tensor, places: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=values.dtype).index_add_(0, places, values)
