"""What the translator has to beat: a recurrent model with additive attention, and a translation memory.

`GruTranslator` is Bahdanau et al. 2015, "Neural machine translation by jointly learning to align and translate",
https://arxiv.org/abs/1409.0473: a GRU reads the source both ways; a second one writes, and at each step looks at the
source through a softmax of  v . tanh(W state + U source_j).

`TranslationMemory` gives the translation of the training sentence whose words are nearest by TF-IDF cosine.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.nn.transformer_generate import Generated, beam_search
from regard.recipes.translation.model import Sentences
from regard.recipes.translation.recurrence import next_state, read_both_ways
from regard.recipes.translation.repeated_matmul import RepeatedMatmul
from regard.recipes.translation.vocabulary import BEGIN, END, OTHER, PAD


class GruTranslator(nn.Module):
    """A recurrent encoder-decoder with additive attention; one embedding for both languages and for the output.

    Args:
        pieces: size of the vocabulary.
        embed_dim: of embeddings and of what the vocabulary is predicted from.
        hidden: width of each recurrent state.
        dropout_p: of embeddings and of the last states.
    """

    def __init__(self, pieces: int, embed_dim: int, hidden: int, dropout_p: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(pieces, embed_dim)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        self.encoder = nn.GRU(embed_dim, hidden, batch_first=True, bidirectional=True)
        self.begin = nn.Linear(2 * hidden, hidden)
        self.of_source = nn.Linear(2 * hidden, hidden, bias=False)
        self.of_state = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.cell = nn.GRUCell(embed_dim + 2 * hidden, hidden)
        self.last = nn.Linear(3 * hidden + embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout_p)

    def states(self, sentences: Sentences) -> Tensor:
        """See `Translator`."""
        return self.states_and_weights(sentences)[0]

    def states_and_weights(self, sentences: Sentences) -> tuple[Tensor, Tensor]:
        """And how each step looked at the source, (batch, longest target + 1, longest source)."""
        read, state = self._read(sentences.source, sentences.lengths)
        words = self._embedded(sentences.entering)
        found: list[Tensor] = []
        seen: list[Tensor] = []
        for word, entering in zip(words.unbind(1), self._entering(words).unbind(1), strict=True):
            state, context, weights = self._step(entering, state, read)
            found.append(torch.cat([state, context, word], -1))
            seen.append(weights)
        return self.dropout(torch.tanh(self.last(torch.stack(found, 1)))), torch.stack(seen, 1)

    def vocabulary_weight(self) -> Tensor:
        """See `Translator`."""
        return self.embedding.weight

    @torch.no_grad()
    def generate(self, source: Tensor, lengths: Tensor, *, beams: int, most_pieces: int) -> Generated:
        """See `Translator`."""
        self.eval()
        read, state = self._read(source, lengths, beams=beams)

        def step(texts: Tensor) -> Tensor:
            nonlocal state
            word = self._embedded(texts[:, -1:])[:, 0]
            state, context, _ = self._step(self._entering(word), state, read)
            logits = torch.tanh(self.last(torch.cat([state, context, word], -1))) @ self.embedding.weight.T
            logits[:, [PAD, BEGIN, OTHER]] = -math.inf
            return logits

        def reorder(rows: Tensor) -> None:
            nonlocal state
            state = state[rows]

        begin = torch.full((source.shape[0], 1), BEGIN, device=source.device)
        return beam_search(step, begin, end=END, most_tokens=most_pieces, beams=beams, pad=PAD, reorder=reorder)

    def _embedded(self, pieces: Tensor) -> Tensor:
        return self.dropout(self.embedding(pieces) * math.sqrt(self.embedding.embedding_dim))

    def _read(self, source: Tensor, lengths: Tensor, *, beams: int = 1) -> tuple[_Read, Tensor]:
        """What each step of the decoder needs, and its first state (batch * beams, hidden); a source is read once."""
        states = read_both_ways(self.encoder, self._embedded(source), lengths).repeat_interleave(beams, 0)
        lengths = lengths.repeat_interleave(beams, 0)
        real = torch.arange(states.shape[1], device=source.device) < lengths[:, None]
        mean = (states * real[..., None]).sum(1) / lengths[:, None]
        keys = self.of_source(states)
        of_state = torch.cat([self.of_state.weight, self.cell.weight_hh])
        of_context = self.cell.weight_ih[:, self.embedding.embedding_dim :]
        # In the dtype of autocast, to which they would be brought down again at every step.
        shared = [RepeatedMatmul(each.to(keys.dtype)) for each in (states, of_state.mT, of_context.mT)]
        return _Read(keys, real, *shared), torch.tanh(self.begin(mean)).to(mean.dtype)

    def _entering(self, words: Tensor) -> Tensor:
        """What words (..., embed_dim) do to the gates, (..., 3 hidden): of all of a text at once."""
        return functional.linear(words, self.cell.weight_ih[:, : words.shape[-1]], self.cell.bias_ih)

    def _step(self, entering: Tensor, state: Tensor, read: _Read) -> tuple[Tensor, Tensor, Tensor]:
        """The next state (batch, hidden), what it saw of the source (batch, 2 hidden), by which weights."""
        hidden = state.shape[1]
        both = read.of_state(state)
        asking, remembered = both[:, :hidden], both[:, hidden:]
        asked = (asking + self.of_state.bias).to(read.keys.dtype)
        scores = self.score(torch.tanh(read.keys + asked[:, None]))[..., 0]
        weights = scores.masked_fill(~read.real, -math.inf).softmax(-1)
        context = read.states(weights[:, None])[:, 0]
        after = next_state(entering + read.of_context(context), remembered + self.cell.bias_hh, state)
        return after, context, weights


class _Read(NamedTuple):
    """A source that was read.

    Attributes:
        keys: (batch, length, hidden).
        real: bool (batch, length), false for padding.
        states: (batch, length, 2 hidden).
        of_state: (hidden, 4 hidden), to the question and the gates.
        of_context: (2 hidden, 3 hidden), to the gates.
    """

    keys: Tensor
    real: Tensor
    states: RepeatedMatmul
    of_state: RepeatedMatmul
    of_context: RepeatedMatmul


class TranslationMemory:
    """The translation of the nearest training sentence.

    A sentence is a vector of its words' counts times log(sentences / sentences with the word), of length 1. A text
    without any known word gets the translation of the first training sentence: something has to be said.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.targets = targets
        counts = [Counter(_words(source)) for source in sources]
        having = Counter(word for count in counts for word in count)
        self._weights = {word: math.log((1 + len(sources)) / number) for word, number in having.items()}
        self._places: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, count in enumerate(counts):
            for word, value in self._vector(count).items():
                self._places[word].append((place, value))

    def translate(self, source: str) -> str:
        """The nearest sentence's translation; the earliest of several that are equally near."""
        near: defaultdict[int, float] = defaultdict(float)
        for word, value in self._vector(Counter(_words(source))).items():
            for place, other in self._places.get(word, ()):
                near[place] += value * other
        return self.targets[max(near, key=lambda place: (near[place], -place))] if near else self.targets[0]

    def _vector(self, count: Counter[str]) -> dict[str, float]:
        vector = {word: number * self._weights[word] for word, number in count.items() if word in self._weights}
        norm = math.sqrt(sum(value * value for value in vector.values()))
        return {word: value / norm for word, value in vector.items()} if norm else {}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
