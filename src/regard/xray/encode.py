"""Text to model inputs, with the place of every token in the text.

Streams are named after the attention that reads them: "encoder", "decoder" (both for encoder-decoder
models), or "input" for a custom model. In the decoder stream of an encoder-decoder model position i holds
the token that the decoder *consumes* there: the start token, then the target's words. What row i of its
attention helps to *predict* is therefore the token at position i + 1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, DataError
from regard._text import check_text
from regard.xray.loading import LoadedModel
from regard.xray.pretrained import import_transformers, one_line, quiet

CHARACTER_LIMIT = 1_000_000
"""Longer texts are cut before the tokenizer sees them. One "word" of that length takes the slowest tokenizer
tried (byte-level BPE, WordPiece, Unigram) 3 s and 0.5 GB; time and memory grow in proportion."""

ANSWER_TOKENS = 32
"""How far a greedy answer goes when no target is given."""

UNBOUNDED = 1_000_000_000
"""Tokenizers that know no limit state a number beyond this one."""


@dataclass(frozen=True)
class Stream:
    """One sequence of tokens and where they lie in `text`.

    `offsets` count Unicode code points, end exclusive; several tokens may share one character (byte-level
    pieces of 银). Special tokens lie nowhere: (0, 0). `tokens` are written as in the vocabulary.
    """

    text: str
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    truncated: bool

    def shown(self, index: int) -> str:
        """A token as a reader expects it: the piece of text it covers, or its own name when it covers none."""
        start, end = self.offsets[index]
        return self.text[start:end] or self.tokens[index]


@dataclass(frozen=True)
class Encoded:
    """What to call the model with (`model(**inputs)`, batch of 1), and the streams its attention runs over."""

    inputs: dict[str, Tensor]
    streams: dict[str, Stream]
    notes: tuple[str, ...] = ()


class _Tokenized(NamedTuple):
    fields: dict[str, list[int]]
    stream: Stream
    notes: tuple[str, ...]


def encode(loaded: LoadedModel, text: str | None, pair: str | None = None, limit: int | None = None) -> Encoded:
    """Inputs and streams for `text`; `pair` is the target of an encoder-decoder model, `limit` the most tokens.

    Texts longer than the model's positions or `limit` are cut at the end and marked `truncated`. Without
    `pair`, the decoder is shown the model's own greedy answer (at most 32 tokens), which a note says; that runs
    the model, so encode before observing it.
    """
    if loaded.inputs is not None:
        return _given(loaded.inputs)
    if loaded.tokenizer is None:
        raise DataError(
            f"{loaded.name!r}: the factory gave no tokenizer: return (model, tokenizer) or (model, inputs)."
        )
    if pair is not None and loaded.kind != "encoder_decoder":
        raise DataError(f"{loaded.name!r}: a pair needs an encoder-decoder model, and this is a {loaded.kind} model.")
    source = _tokenize(loaded, check_text(text or ""), limit)
    inputs = _accepted(loaded, {key: torch.tensor([values]) for key, values in source.fields.items()})
    if loaded.kind == "encoder_decoder":
        return _with_target(loaded, source, inputs, pair, limit)
    name = "input" if loaded.kind == "custom" else loaded.kind
    return Encoded(inputs, {name: source.stream}, source.notes)


def token_room(loaded: LoadedModel, limit: int | None = None) -> int | None:
    """The most tokens one stream may have: the least of the model's, the tokenizer's and the user's limit."""
    limits = [_positions(loaded.model), getattr(loaded.tokenizer, "model_max_length", None), limit]
    known = [int(value) for value in limits if isinstance(value, int | float) and 0 < value < UNBOUNDED]
    return min(known, default=None)


def _positions(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    stated: Any = getattr(config, "max_position_embeddings", None)
    if not isinstance(stated, int):
        return None
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in modules:
        # RoBERTa and its kin start counting after the padding index, and lose those rows of the table
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return stated - module.padding_idx - 1
    return stated


def _room(loaded: LoadedModel, limit: int | None, tokenizer: Any) -> int | None:
    least = int(tokenizer.num_special_tokens_to_add(pair=False)) + 1
    if limit is not None and limit < least:
        do = "Give a larger limit."
        raise ArgumentError("limit", expected=f"at least {least} tokens for this tokenizer", got=str(limit), do=do)
    return token_room(loaded, limit)


def _tokenize(loaded: LoadedModel, text: str, limit: int | None, *, target: bool = False) -> _Tokenized:
    tokenizer: Any = loaded.tokenizer
    room = _room(loaded, limit, tokenizer)
    room = room - 1 if target and room is not None else room  # the decoder's start token takes one place
    cut = len(text) > CHARACTER_LIMIT
    text = text[:CHARACTER_LIMIT]
    try:
        with quiet(import_transformers()):
            batch: Any = tokenizer(
                **{"text_target" if target else "text": text},
                truncation=room is not None,
                max_length=room,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )
    except Exception as problem:
        raise DataError(f"{loaded.name!r}: the tokenizer failed on the text: {one_line(problem)}") from problem
    stream = _stream(tokenizer, text, batch, cut=cut)
    _check_tokens(loaded, batch["input_ids"], stream, target=target)
    fields = {key: list(batch[key]) for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
    return _Tokenized(fields, stream, _cut_notes(cut=cut, truncated=stream.truncated, tokens=len(stream.tokens)))


def _stream(tokenizer: Any, text: str, batch: Any, *, cut: bool) -> Stream:
    ids: list[int] = list(batch["input_ids"])
    borders = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id}
    borders |= {tokenizer.sep_token_id, tokenizer.pad_token_id}
    added: list[int] = list(batch["special_tokens_mask"])
    special = tuple(bool(mark) or token in borders for token, mark in zip(ids, added, strict=True))
    offsets = tuple((int(start), int(end)) for start, end in batch["offset_mapping"])
    truncated = cut or bool(batch.encodings[0].overflowing)
    return Stream(text, _names(tokenizer, ids), offsets, special, truncated)


def _names(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    return tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids))


def _check_tokens(loaded: LoadedModel, ids: list[int], stream: Stream, *, target: bool) -> None:
    if all(stream.special) and not target:
        raise DataError(f"{loaded.name!r}: the tokenizer made no token of the text {stream.text[:40]!r}.")
    table: Any = getattr(loaded.model, "get_input_embeddings", lambda: None)()
    rows = getattr(table, "num_embeddings", math.inf)
    if ids and max(ids) >= rows:
        raise DataError(
            f"{loaded.name!r}: the tokenizer gives token number {max(ids)}, the model has {rows} rows: "
            "tokenizer and model do not belong together."
        )


def _cut_notes(*, cut: bool, truncated: bool, tokens: int) -> tuple[str, ...]:
    if cut:
        return (f"the text is longer than {CHARACTER_LIMIT} characters; at most its first {tokens} tokens were read",)
    return (f"the text was cut to its first {tokens} tokens",) if truncated else ()


def _accepted(loaded: LoadedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only what the model's forward names: DistilBERT, for one, takes no token types."""
    named = inspect.signature(loaded.model.forward).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in named.values())
    if "input_ids" not in named and not open_ended:
        raise DataError(
            f"{loaded.name!r}: the model's forward takes no input_ids but ({', '.join(named)}). "
            "Return (model, inputs) from the factory."
        )
    return {key: value for key, value in inputs.items() if key in named or key == "input_ids"}


def _given(inputs: Mapping[str, Tensor]) -> Encoded:
    ids = inputs.get("input_ids")
    if ids is None or ids.dim() != 2:
        return Encoded(dict(inputs), {})
    tokens = tuple(str(int(number)) for number in ids[0])
    stream = Stream("", tokens, ((0, 0),) * len(tokens), (False,) * len(tokens), truncated=False)
    return Encoded(dict(inputs), {"input": stream})


def _with_target(
    loaded: LoadedModel, source: _Tokenized, inputs: dict[str, Tensor], pair: str | None, limit: int | None
) -> Encoded:
    start, notes = _start_token(loaded), source.notes
    if pair is None:
        pair = _greedy_answer(loaded, inputs, start, token_room(loaded, limit))
        notes += ("no target was given: the decoder reads the model's own greedy answer",)
        target = _tokenize(loaded, pair, limit, target=True)
    else:
        target = _tokenize(loaded, check_text(pair, "the target"), limit, target=True)
    ids, stream = _shifted(loaded.tokenizer, target, start)
    notes += tuple(note.replace("the text", "the target") for note in target.notes)
    return Encoded(
        inputs | {"decoder_input_ids": torch.tensor([ids])}, {"encoder": source.stream, "decoder": stream}, notes
    )


def _start_token(loaded: LoadedModel) -> int:
    model: Any = loaded.model
    for settings in (model.config, getattr(model, "generation_config", None)):
        for key in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(token := getattr(settings, key, None), int):
                return token
    raise DataError(f"{loaded.name!r}: config.json names no decoder_start_token_id, so the decoder cannot be started.")


def _shifted(tokenizer: Any, target: _Tokenized, start: int) -> tuple[list[int], Stream]:
    """The target one place to the right: the start token first, the final end token (which none consumes) gone."""
    ids, stream = target.fields["input_ids"], target.stream
    keep = len(ids) - 1 if ids and ids[-1] in {tokenizer.eos_token_id, tokenizer.sep_token_id} else len(ids)
    return [start, *ids[:keep]], Stream(
        stream.text,
        (*_names(tokenizer, [start]), *stream.tokens[:keep]),
        ((0, 0), *stream.offsets[:keep]),
        (True, *stream.special[:keep]),
        stream.truncated,
    )


def _greedy_answer(loaded: LoadedModel, inputs: dict[str, Tensor], start: int, room: int | None) -> str:
    """The likeliest next token, again and again. Plain: no beams, no forced tokens, nothing sampled."""
    tokenizer: Any = loaded.tokenizer
    model, ends, ids = loaded.model, _end_tokens(loaded.model), [start]
    hidden: dict[str, Any] = {}
    with torch.inference_mode(), quiet(import_transformers()):
        for _ in range(min(ANSWER_TOKENS, (room or UNBOUNDED) - 1)):
            output: Any = model(**inputs, **hidden, decoder_input_ids=torch.tensor([ids]), use_cache=False)
            if getattr(output, "logits", None) is None:
                raise DataError(f"{loaded.name!r}: this model has no head to answer with: give --pair SOURCE TARGET.")
            hidden = {"encoder_outputs": (output.encoder_last_hidden_state,)}  # the source is read once
            best = int(output.logits[0, -1].argmax())
            if best in ends:
                break
            ids.append(best)
    return str(tokenizer.decode(ids[1:], skip_special_tokens=True))


def _end_tokens(model: Any) -> set[int]:
    stated: Any = model.config.eos_token_id
    return set(cast("list[int]", stated)) if isinstance(stated, list) else {stated}
