"""The translator: an encoder-decoder Transformer with relative positions and absolute ones (the guide's 2.1).

Relative positions say nothing of where in the source a target piece is: attention to the source then has to find by
content alone what is not translated yet. Absolute places in both texts let it go on from one word to the next.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from regard.masks import Padding
from regard.nn import Transformer
from regard.nn.transformer_generate import Generated
from regard.nn.transformer_model import Absolute
from regard.positions import T5Bias
from regard.recipes.translation.vocabulary import BEGIN, END, OTHER, PAD
from regard.training.loss import vocabulary_cross_entropy


class Sentences(NamedTuple):
    """Some pairs, padded: int64 (batch, longest source), (batch,), and (batch, longest target + 1).

    A source is its pieces; `lengths` counts them. `entering` begins with BEGIN; `leaving`, what is to be predicted,
    ends with END and is -1 where there is nothing.
    """

    source: Tensor
    lengths: Tensor
    entering: Tensor
    leaving: Tensor


class Translator(Protocol):
    """What the recipe trains and compares."""

    def states(self, sentences: Sentences) -> Tensor:
        """(batch, longest target + 1, width), from which the vocabulary is predicted."""
        ...

    def vocabulary_weight(self) -> Tensor:
        """(vocabulary, width), the last projection."""
        ...

    def generate(self, source: Tensor, lengths: Tensor, *, beams: int, most_pieces: int) -> Generated:
        """The likeliest translations."""
        ...


class TransformerTranslator(nn.Module):
    """Encoder and decoder with T5's relative positions, and absolute ones if asked; one embedding for all.

    Args:
        pieces: size of the vocabulary.
        embed_dim, num_heads: of both.
        encoder_layers, decoder_layers: blocks.
        absolute: places added to the embeddings, "sinusoid" or None.
        dropout_p: of the blocks.
    """

    def __init__(
        self,
        pieces: int,
        embed_dim: int,
        num_heads: int,
        *,
        encoder_layers: int,
        decoder_layers: int,
        absolute: Absolute | None,
        dropout_p: float,
    ) -> None:
        super().__init__()
        self.transformer = Transformer(
            pieces,
            pieces,
            embed_dim,
            num_heads,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            absolute=absolute,
            position=lambda: T5Bias(num_heads),
            decoder_position=lambda: T5Bias(num_heads, bidirectional=False),
            share=True,
            dropout_p=dropout_p,
        )

    def states(self, sentences: Sentences) -> Tensor:
        """See `Translator`."""
        whole = self.transformer
        mask = real_sources(sentences)
        context = whole.encode(sentences.source, mask=mask)
        return whole.decoder(whole.target_embedding(sentences.entering), context, context_mask=mask)

    def vocabulary_weight(self) -> Tensor:
        """See `Translator`."""
        return self.transformer.head.weight

    def generate(self, source: Tensor, lengths: Tensor, *, beams: int, most_pieces: int) -> Generated:
        """See `Translator`."""
        padded = bool((lengths < source.shape[1]).any())
        return self.transformer.generate(
            source,
            begin=BEGIN,
            end=END,
            pad=PAD,
            never=(PAD, BEGIN, OTHER),
            most_tokens=most_pieces,
            beams=beams,
            mask=Padding(lengths) if padded else None,
        )


def real_sources(sentences: Sentences) -> Padding | None:
    """Which source pieces are real; None where all are, as in most batches of one length."""
    return Padding(sentences.lengths) if bool((sentences.lengths < sentences.source.shape[1]).any()) else None


def translation_loss(model: Translator, sentences: Sentences, smoothing: float) -> Tensor:
    """The sum of cross entropies of all target pieces and ends."""
    return loss_of_states(model, model.states(sentences), sentences, smoothing)


def loss_of_states(model: Translator, states: Tensor, sentences: Sentences, smoothing: float) -> Tensor:
    """The same, of states that are there."""
    real = sentences.leaving >= 0
    return vocabulary_cross_entropy(
        states[real], model.vocabulary_weight(), sentences.leaving[real], smoothing=smoothing
    )


def sentences_of(sources: list[list[int]], targets: list[list[int]]) -> Sentences:
    """Pad pieces to tensors."""
    lengths = torch.tensor([len(source) for source in sources])
    longest = max(len(target) for target in targets) + 1
    entering = torch.full((len(targets), longest), PAD)
    leaving = torch.full((len(targets), longest), -1)
    for row, target in enumerate(targets):
        pieces = torch.tensor([BEGIN, *target, END])
        entering[row, : len(target) + 1] = pieces[:-1]
        leaving[row, : len(target) + 1] = pieces[1:]
    return Sentences(padded(sources), lengths, entering, leaving)


def padded(sources: list[list[int]]) -> Tensor:
    """int64 (batch, longest)."""
    rows = [torch.tensor(source, dtype=torch.int64) for source in sources]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
