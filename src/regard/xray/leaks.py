"""Two experiments on the whole model: does padding reach the text, and does the future reach the past?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from regard.observation import ObservedLayer, observe
from regard.trust.model_leaks.reaching import NotTestedError, future_reached
from regard.xray.encode import Encoded, Stream
from regard.xray.loading import LoadedModel
from regard.xray.probe import probe
from regard.xray.streams import Streams

Padding = Literal["honoured", "attended", "not probed"]

TOKENS = 24
"""The experiments run on this many tokens of the text."""
PADS = 3


@dataclass(frozen=True)
class PaddingFound:
    """What each layer did with padded keys, by layer name; empty when the model could not be run padded."""

    layers: dict[str, Padding] = field(default_factory=dict[str, Padding])


def padding_found(loaded: LoadedModel, encoded: Encoded) -> PaddingFound:
    """Run the model on the text with PADS padded tokens and probe every layer for them.

    Encoders are padded on the right; decoders on the left, because on the right a causal mask alone would
    hide the padding from every real token.
    """
    padded = _padded(loaded, encoded)
    if padded is None:
        return PaddingFound()
    inputs, streams = padded
    try:
        with torch.no_grad(), observe(loaded.model) as seen:
            loaded.model(**inputs)
    except Exception:
        return PaddingFound()
    return PaddingFound({layer.name: _judge(layer, streams) for layer in seen.layers})


def _padded(loaded: LoadedModel, encoded: Encoded) -> tuple[dict[str, Tensor], Streams] | None:
    ids = encoded.inputs.get("input_ids")
    if ids is None or loaded.kind == "custom" or ids.shape[0] != 1:
        return None
    named = _parameters(loaded)
    on_left = loaded.kind == "decoder"
    token = _pad_token(loaded)
    inputs = _with_pads(ids, encoded.inputs, token, on_left=on_left)
    if "decoder_input_ids" in encoded.inputs:
        decoder = _with_pads(encoded.inputs["decoder_input_ids"], {}, token, on_left=True)
        inputs["decoder_input_ids"] = decoder["input_ids"]
        inputs["decoder_attention_mask"] = decoder["attention_mask"]
    if not set(inputs) <= named and "**" not in named:
        return None
    lengths: dict[str, int] = dict.fromkeys(encoded.streams, inputs["input_ids"].shape[1])
    if "decoder_input_ids" in inputs:
        lengths["decoder"] = inputs["decoder_input_ids"].shape[1]
    return inputs, Streams({name: _of_length(count) for name, count in lengths.items()})


def _of_length(count: int) -> Stream:
    """A stream of which only the length is used."""
    return Stream("", ("",) * count, ((0, 0),) * count, (True,) * count, truncated=False)


def _with_pads(ids: Tensor, others: Mapping[str, Tensor], token: int, *, on_left: bool) -> dict[str, Tensor]:
    ids = ids[:, :TOKENS]
    real, pads = torch.ones_like(ids), torch.zeros(1, PADS, dtype=ids.dtype)
    found = {"input_ids": (ids, torch.full_like(pads, token)), "attention_mask": (real, pads)}
    if "token_type_ids" in others:
        found["token_type_ids"] = (others["token_type_ids"][:, :TOKENS], pads)
    return {name: torch.cat(pair[::-1] if on_left else pair, dim=1) for name, pair in found.items()}


def _parameters(loaded: LoadedModel) -> set[str]:
    found = inspect.signature(loaded.model.forward).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values())
    return set(found) | ({"**"} if open_ended else set())


def _pad_token(loaded: LoadedModel) -> int:
    token = getattr(loaded.tokenizer, "pad_token_id", None)
    return token if isinstance(token, int) else 0


def _judge(layer: ObservedLayer, streams: Streams) -> Padding:
    place = streams.place(layer)
    if not {place.query_stream, place.key_stream} <= streams.names:
        return "not probed"  # it reads something else than the tokens, so where their padding is cannot be told
    on_left = place.stack == "decoder" and place.kind == "self"
    pads = torch.arange(PADS) if on_left else torch.arange(layer.kv_len - PADS, layer.kv_len)
    found = probe(layer.call, pads)
    if found is None:
        return "not probed"
    rows = slice(PADS, None) if place.stack == "decoder" else slice(0, layer.q_len - PADS)
    return "attended" if bool(found.allowed[:, :, rows].any()) else "honoured"


def future_reaches_past(loaded: LoadedModel, encoded: Encoded) -> bool | None:
    """Change the last token of a decoder's input: does any earlier output change? None when it cannot be told."""
    name = "decoder_input_ids" if loaded.kind == "encoder_decoder" else "input_ids"
    ids = encoded.inputs.get(name)
    if loaded.kind not in ("decoder", "encoder_decoder") or ids is None or ids.shape[1] < 2:
        return None
    inputs = {key: tensor[:, :TOKENS] if key != name else tensor for key, tensor in encoded.inputs.items()}
    inputs[name] = ids[:, :TOKENS]
    try:
        return future_reached(loaded.model, inputs, name)
    except NotTestedError:
        return None
