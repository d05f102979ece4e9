"""A summarizer: one of three encoders, and either scores for sentences or a decoder that writes. The guide's 4.1.

Both kinds end in their loss, so that whatever wraps the model (data parallelism, sharding) sees one forward:

    extractive    score(sentence) = MLP(mean of its tokens' states);  - sum over the oracle's m sentences of
                  1/m log softmax over the document's scores
    abstractive   - sum over the summary's tokens of log p(token | document, tokens before it)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from regard.masks import Padding
from regard.nn import Generated, Ragged, TokenEmbedding, TransformerDecoder, beam_search
from regard.positions import RoPE
from regard.recipes.summarization.encoders import EncoderName, cells_of, make_encoder, owners
from regard.training.loss import vocabulary_cross_entropy

Style = Literal["extractive", "abstractive"]
IGNORED = -1
"""The target of a place behind the end of a summary."""


class Documents(NamedTuple):
    """A batch of documents as numbers, with what is wanted of them.

    Attributes:
        tokens: int64 (documents, longest), each from the start of its row.
        structure: tokens of sentences, sentences of paragraphs, paragraphs of documents.
        labels: float32 (sentences,), how the oracle spreads 1 over a document's sentences; zeros where it chose none.
        written: int64 (documents, most), a begin token and the summary.
        targets: int64 (documents, most), the summary and the end token, `IGNORED` behind it.
    """

    tokens: Tensor
    structure: Ragged
    labels: Tensor
    written: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Sizes:
    """What a `Summarizer` is made from.

    Attributes:
        vocabulary: how many tokens there are.
        embed_dim, num_heads: width and heads of every block.
        encoder_layers, decoder_layers: blocks; of the encoder at least 5, so that the hierarchy has two over tokens.
        window: tokens seen on either side by the windowed encoder.
        dropout_p: as in `BlockOptions`.
    """

    vocabulary: int
    embed_dim: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    window: int
    dropout_p: float


class Summarizer(nn.Module):
    """Documents to a loss; `scores` and `write` are what it is for."""

    def __init__(self, sizes: Sizes, *, encoder: EncoderName, style: Style, smoothing: float = 0.0) -> None:
        super().__init__()
        width, heads, dropout_p = sizes.embed_dim, sizes.num_heads, sizes.dropout_p
        self.style: Style = style
        self.smoothing = smoothing
        self.embedding = TokenEmbedding(sizes.vocabulary, width, dropout_p=dropout_p)
        self.encoder = make_encoder(
            encoder, width, heads, sizes.encoder_layers, window=sizes.window, dropout_p=dropout_p
        )
        self.scorer: nn.Module | None = None
        self.decoder: TransformerDecoder | None = None
        if style == "extractive":
            self.scorer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        else:
            self.decoder = TransformerDecoder(
                width,
                heads,
                sizes.decoder_layers,
                position=RoPE(width // heads),
                activation="gelu",
                dropout_p=dropout_p,
            )

    def forward(self, batch: Documents) -> Tensor:
        """The sum of the losses of these documents, a float32 number."""
        states = self.encode(batch)
        if self.style == "extractive":
            return _listwise(self._scores(states, batch), batch)
        decoder = self._decoder()
        states = decoder(self.embedding(batch.written), states, context_mask=Padding(batch.structure.of_documents()))
        return vocabulary_cross_entropy(
            states.flatten(0, 1), self.embedding.weight, batch.targets.flatten(), smoothing=self.smoothing
        )

    def encode(self, batch: Documents) -> Tensor:
        """(documents, longest, embed_dim)."""
        return self.encoder(self.embedding(batch.tokens), batch.structure)

    def scores(self, batch: Documents) -> Tensor:
        """One float32 number for each sentence, (sentences,), end to end. The higher, the sooner it is extracted."""
        return self._scores(self.encode(batch), batch)

    def write(
        self, batch: Documents, *, begin: int, end: int, most_tokens: int, beams: int, length_penalty: float = 1.0
    ) -> Generated:
        """Summaries by beam search, best first; `beams=1` is greedy. Nothing that was written is forbidden."""
        decoder = self._decoder()
        context = self.encode(batch)
        mask = Padding(batch.structure.of_documents())
        cache = decoder.make_cache(context, most_tokens, beams=beams)

        def step(texts: Tensor) -> Tensor:
            new = self.embedding(texts[:, cache.length :], first=cache.length)
            states = decoder(new, context_mask=mask, cache=cache, beams=beams)
            return states[:, -1].to(self.embedding.weight.dtype) @ self.embedding.weight.T

        return beam_search(
            step,
            torch.full((context.shape[0], 1), begin, dtype=torch.int64, device=context.device),
            end=end,
            most_tokens=most_tokens,
            beams=beams,
            length_penalty=length_penalty,
            reorder=cache.reorder,
        )

    def _scores(self, states: Tensor, batch: Documents) -> Tensor:
        if self.scorer is None:
            raise TypeError("an abstractive model writes; it has no scores of sentences")
        counts = batch.structure.counts[0]
        cells = cells_of(batch.structure.of_documents(), states.shape[1], states.device)
        tokens = states.flatten(0, 1).index_select(0, cells).to(torch.float32)
        sums = tokens.new_zeros(len(counts), tokens.shape[1]).index_add(0, owners(counts, states.device), tokens)
        means = sums / torch.tensor(counts, device=states.device)[:, None]
        return self.scorer(means).squeeze(1).to(torch.float32)

    def _decoder(self) -> TransformerDecoder:
        if self.decoder is None:
            raise TypeError("an extractive model scores sentences; it does not write")
        return self.decoder


def sentences_of_documents(structure: Ragged) -> tuple[int, ...]:
    """How many sentences each document has."""
    counts = iter(structure.counts[1])
    return tuple(sum(next(counts) for _ in range(paragraphs)) for paragraphs in structure.counts[2])


def _listwise(scores: Tensor, batch: Documents) -> Tensor:
    """Cross entropy between the oracle's choice and the scores of each document's sentences."""
    counts = sentences_of_documents(batch.structure)
    document = owners(counts, scores.device)
    largest = scores.new_full((len(counts),), -torch.inf).scatter_reduce(0, document, scores.detach(), "amax")
    shares = torch.exp(scores - largest[document])
    lse = scores.new_zeros(len(counts)).index_add(0, document, shares).log() + largest
    return (batch.labels * (lse[document] - scores)).sum()
