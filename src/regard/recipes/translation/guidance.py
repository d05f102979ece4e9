"""One cross-attention head that is taught where to look while the whole model learns to translate.

Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models", https://arxiv.org/abs/1909.02074.
Nobody has linked the pairs of this recipe: `PieceLinks` has IBM model 1 do it, over pieces, in both directions, joined
by grow-diag-final-and. A recurrent model is taught by the weights that it looks at the source with; it looks before it
reads its last piece, so they are those of the piece that it predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import torch as safetensors
from torch import Tensor

from regard._errors import ArgumentError
from regard.explain import (
    IBM1,
    WatchedHead,
    guided_alignment_loss,
    link_tensor,
    reversed_links,
    symmetrised,
    target_rows,
)
from regard.explain.alignment import Link
from regard.explain.alignment_extract import StepRule, Symmetrisation
from regard.nn import MultiHeadAttention
from regard.recipes.translation.baselines import GruTranslator
from regard.recipes.translation.model import Sentences, TransformerTranslator, Translator, loss_of_states
from regard.recipes.translation.vocabulary import OTHER
from regard.training.data_digest import digest_of
from regard.training.order import listed
from regard.training.progress import said, tracked

ITERATIONS = 5
JOINED: Symmetrisation = "grow-diag-final-and"

_files: Any = safetensors


@dataclass(frozen=True)
class Guidance:
    """What is taught, and how strongly.

    Attributes:
        layer, head: of the decoder's cross-attention; a recurrent model has but one.
        rule: by which step's weights (see `regard.explain.target_rows`).
        strength: factor of the guided loss, summed over target pieces as the other one is.
    """

    layer: int
    head: int
    rule: StepRule
    strength: float

    def check(self, layers: int, heads: int) -> None:
        """Raise ArgumentError unless a decoder of so many layers and heads has this head."""
        if not -layers <= self.layer < layers:
            raise ArgumentError(
                "guided_layer",
                expected=f"one of {layers} decoder layers",
                got=str(self.layer),
                do="The last but one, -2, is usual.",
            )
        if not 0 <= self.head < heads:
            raise ArgumentError(
                "guided_head", expected=f"one of {heads} heads", got=str(self.head), do="Heads are numbered from 0."
            )


class GuidedSentences(NamedTuple):
    """Pairs, and the links that are taught, float32 (batch, longest target, longest source), between pieces."""

    sentences: Sentences
    links: Tensor


def guided_sentences(sentences: Sentences, links: Sequence[Iterable[Link]]) -> GuidedSentences:
    """With the links of each pair."""
    longest = sentences.entering.shape[1] - 1, sentences.source.shape[1]
    return GuidedSentences(sentences, link_tensor(links, *longest))


def guided_loss(model: Translator, batch: GuidedSentences, guidance: Guidance, smoothing: float) -> Tensor:
    """The sum of the cross entropies of all target pieces and ends, and of the links."""
    states, weights = _states_and_weights(model, batch.sentences, guidance)
    of_words = loss_of_states(model, states, batch.sentences, smoothing)
    return of_words + guidance.strength * guided_alignment_loss(target_rows(weights, guidance.rule), batch.links)


def _states_and_weights(model: Translator, sentences: Sentences, guidance: Guidance) -> tuple[Tensor, Tensor]:
    """What the vocabulary is predicted from, and the weights (batch, longest target + 1, longest source)."""
    if isinstance(model, GruTranslator):
        return model.states_and_weights(sentences)
    block = cast("TransformerTranslator", model).transformer.decoder.layers[guidance.layer]
    with WatchedHead(cast("MultiHeadAttention", block.cross_attention), guidance.head) as watched:
        return model.states(sentences), watched.weights()


class PieceLinks:
    """Links of many pairs: `links[number]` are those of one, (source piece, target piece).

    Args:
        links: int32 (all links, 2).
        counts: int64 (pairs,), how many links each pair has.
    """

    MADE_BY = f"ibm1-{ITERATIONS}-{JOINED}"

    def __init__(self, links: Tensor, counts: Tensor) -> None:
        self._links, self._counts = links, counts
        self._ends = counts.cumsum(0)

    def __len__(self) -> int:
        """Pairs."""
        return self._counts.numel()

    def __getitem__(self, number: int) -> list[Link]:
        """Of one pair."""
        end, count = int(self._ends[number]), int(self._counts[number])
        sources, targets = self._links[end - count : end].unbind(1)
        return list(zip(listed(sources), listed(targets), strict=True))

    def digest(self) -> str:
        """sha256 of all of them."""
        return digest_of([self._links.flatten(), self._counts])

    @classmethod
    def by_ibm1(cls, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> PieceLinks:
        """Count which pieces stand in pairs together. Minutes for 100,000 pairs, which is told on stderr.

        The piece that marks what is no prose begins a source; it stands for no word, and gets no link.
        """
        begins = [int(source[:1] == [OTHER]) for source in sources]
        plain = [source[begin:] for source, begin in zip(sources, begins, strict=True)]
        said(f"IBM model 1 links the pieces of {len(plain)} pairs, once for these; 100,000 take some minutes.")
        there, back = IBM1.fit(plain, targets, iterations=ITERATIONS), IBM1.fit(targets, plain, iterations=ITERATIONS)
        found: list[Link] = []
        counts: list[int] = []
        for source, target, begin in tracked(list(zip(plain, targets, begins, strict=True)), "links"):
            backward = reversed_links(back.links(target, source))
            joined = symmetrised(there.links(source, target), backward, JOINED)
            found += sorted((at + begin, row) for at, row in joined)
            counts.append(len(joined))
        return cls(torch.tensor(found, dtype=torch.int32).reshape(-1, 2), torch.tensor(counts))

    def save(self, path: Path) -> None:
        """As safetensors."""
        _files.save_file({"links": self._links, "counts": self._counts}, path)

    @classmethod
    def load(cls, path: Path) -> PieceLinks:
        """What `save` wrote."""
        saved: dict[str, Tensor] = _files.load_file(path)
        return cls(saved["links"], saved["counts"])
