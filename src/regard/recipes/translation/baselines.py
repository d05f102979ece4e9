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

import torch
from torch import Tensor, nn

from regard.nn.transformer_generate import Generated, beam_search
from regard.recipes.translation.model import Sentences
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
        source, keys, real, state = self._read(sentences.source, sentences.lengths)
        words = self._embedded(sentences.entering)
        found: list[Tensor] = []
        for word in words.unbind(1):
            state, context = self._step(word, state, source, keys, real)
            found.append(torch.cat([state, context, word], -1))
        return self.dropout(torch.tanh(self.last(torch.stack(found, 1))))

    def vocabulary_weight(self) -> Tensor:
        """See `Translator`."""
        return self.embedding.weight

    @torch.no_grad()
    def generate(self, source: Tensor, lengths: Tensor, *, beams: int, most_pieces: int) -> Generated:
        """See `Translator`."""
        self.eval()
        read, keys, real, state = (each.repeat_interleave(beams, 0) for each in self._read(source, lengths))

        def step(texts: Tensor) -> Tensor:
            nonlocal state
            word = self._embedded(texts[:, -1:])[:, 0]
            state, context = self._step(word, state, read, keys, real)
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

    def _read(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Source states (batch, length, 2 hidden), their keys, which are real, and the first state."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self._embedded(source), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
        real = torch.arange(states.shape[1], device=source.device) < lengths[:, None]
        mean = (states * real[..., None]).sum(1) / lengths[:, None]
        keys = self.of_source(states)
        # Autocast would bring the states down to its dtype again at every step of the decoder.
        return states.to(keys.dtype), keys, real, torch.tanh(self.begin(mean))

    def _step(self, word: Tensor, state: Tensor, source: Tensor, keys: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The next state (batch, hidden), and what it saw of the source (batch, 2 hidden)."""
        scores = self.score(torch.tanh(keys + self.of_state(state)[:, None]))[..., 0]
        weights = scores.masked_fill(~real, -math.inf).softmax(-1)
        context = (weights[:, None] @ source)[:, 0]
        return self.cell(torch.cat([word, context], -1), state), context


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
