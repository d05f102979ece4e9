"""The translator that comes with regard, as a model to look at: what `regard xray` shows when none is named."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, DataError
from regard._text import check_text
from regard.recipes.translation.packaged import packaged_translator
from regard.recipes.translation.translate import MOST_PIECES, TrainedTranslator, readable
from regard.recipes.translation.vocabulary import BEGIN, Vocabulary
from regard.xray.encode import Encoded, Stream
from regard.xray.loading import LoadedModel

NAME = "English-Chinese translator (comes with regard)"

SENTENCE = "My teacher likes to drink tea in the morning."
"""What is read when no text is given: Chinese puts the morning before the tea."""


class CallableTranslator(nn.Module):
    """A translator that is called as the encoder-decoders of transformers are: numbers and masks in, logits out."""

    def __init__(self, translator: TrainedTranslator) -> None:
        super().__init__()
        self.transformer = translator.model.transformer

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, target length, vocabulary).

        Args:
            input_ids, decoder_input_ids: int64 (batch, length); the target begins with the begin token.
            attention_mask, decoder_attention_mask: (batch, length), 0 where a token is padding.
        """
        source_mask, target_mask = (
            None if mask is None else mask.bool()[:, None, None] for mask in (attention_mask, decoder_attention_mask)
        )
        return self.transformer(input_ids, decoder_input_ids, source_mask=source_mask, target_mask=target_mask)


def translator_and_text(source: str | None, target: str | None, limit: int) -> tuple[LoadedModel, Encoded]:
    """The translator, and what it reads: the source, and the target or its own translation.

    Args:
        source: English; `SENTENCE` if None.
        target: what the decoder reads; the translator's own answer if None.
        limit: the most pieces of each.

    Raises:
        CheckpointError: the weights are absent or damaged.
        DataError: nothing to read, too much, or Chinese.
        ArgumentError: a limit of less than 2.
    """
    if limit < 2:
        raise ArgumentError("--limit", expected="at least 2 tokens", got=str(limit), do="Leave it out for 512.")
    return read_by(packaged_translator(), source, target, limit)


def read_by(
    translator: TrainedTranslator, source: str | None, target: str | None, limit: int
) -> tuple[LoadedModel, Encoded]:
    """See `translator_and_text`."""
    loaded = LoadedModel(NAME, CallableTranslator(translator).eval(), None, "encoder_decoder")
    text = " ".join(readable(SENTENCE if source is None else source).splitlines())
    numbers, read, notes = _pieces(translator.vocabulary, text, min(limit, MOST_PIECES), "the text")
    if target is None:
        target = translator.one(text[: read.offsets[-1][1]]).translation
        notes += ("no target was given: the decoder reads the model's own answer, of 4 beams",)
    answer, written, cut = _pieces(translator.vocabulary, check_text(target, "the target"), limit - 1, "the target")
    decoder = Stream(
        written.text, ("<s>", *written.tokens), ((0, 0), *written.offsets), (True, *written.special), written.truncated
    )
    inputs = {"input_ids": torch.tensor([numbers]), "decoder_input_ids": torch.tensor([[BEGIN, *answer]])}
    return loaded, Encoded(inputs, {"encoder": read, "decoder": decoder}, notes + cut)


def _pieces(vocabulary: Vocabulary, text: str, most: int, what: str) -> tuple[list[int], Stream, tuple[str, ...]]:
    """Numbers of the first `most` pieces, where they lie in the text, and a note where some were left out."""
    pieces = vocabulary.pieces(text)
    if not pieces:
        raise DataError(f"{what} holds nothing that can be read. Give at least one word.")
    kept = pieces[:most]
    stream = Stream(
        text,
        tuple(vocabulary.name(piece.number) for piece in kept),
        tuple((piece.first, piece.last) for piece in kept),
        (False,) * len(kept),
        truncated=len(pieces) > most,
    )
    note = f"{what} was cut to its first {most} tokens"
    return [piece.number for piece in kept], stream, (note,) if stream.truncated else ()
