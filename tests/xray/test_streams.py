"""Which text a layer reads is told by its name and its lengths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from regard.observation import ObservedLayer
from regard.xray.encode import Stream
from regard.xray.streams import Place, Streams


def stream(length: int, text: str = "") -> Stream:
    offsets = tuple((i, i + 1) for i in range(length)) if text else ((0, 0),) * length
    return Stream(text, tuple(f"t{i}" for i in range(length)), offsets, (False,) * length, truncated=False)


def layer(name: str, q_len: int, kv_len: int) -> ObservedLayer:
    return cast("ObservedLayer", SimpleNamespace(name=name, q_len=q_len, kv_len=kv_len))


PAIR = {"encoder": stream(7), "decoder": stream(5)}
ENCODER, DECODER = Place("encoder", "self", "encoder", "encoder"), Place("decoder", "self", "decoder", "decoder")
CROSS = Place("decoder", "cross", "decoder", "encoder")


@pytest.mark.parametrize(
    ("name", "lengths", "place"),
    [
        ("encoder.block.0.layer.0.SelfAttention", (7, 7), ENCODER),
        ("decoder.block.0.layer.0.SelfAttention", (5, 5), DECODER),
        ("decoder.block.0.layer.1.EncDecAttention", (5, 7), CROSS),
        ("model.encoder.layers.1.self_attn", (7, 7), ENCODER),
        ("model.decoder.layers.1.self_attn", (5, 5), DECODER),
        ("model.decoder.layers.1.encoder_attn", (5, 7), CROSS),
        ("decoder.layers.0.cross_attn", (5, 7), CROSS),
        ("decoder.layers.0.encoder_decoder_attention", (5, 7), CROSS),
        ("decoder.layers.0.attention_two", (5, 7), CROSS),  # by its lengths
    ],
)
def test_layers_of_an_encoder_decoder(name: str, lengths: tuple[int, int], place: Place) -> None:
    assert Streams(PAIR).place(layer(name, *lengths)) == place


def test_cross_attention_is_told_by_its_name_when_the_texts_are_equally_long() -> None:
    streams = Streams({"encoder": stream(6), "decoder": stream(6)})
    assert streams.place(layer("model.decoder.layers.0.encoder_attn", 6, 6)).kind == "cross"
    assert streams.place(layer("model.decoder.layers.0.self_attn", 6, 6)).kind == "self"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.layer.0.attention.self", "self"),
        ("transformer.h.0.attn", "self"),
        ("blocks.0.cross_attention", "cross"),
        ("transformer.decoder.layers.0.multihead_attn", "cross"),
        ("transformer.decoder.layers.0.self_attn", "self"),
        ("multihead_attn", "self"),
    ],
)
def test_layers_of_one_stack(name: str, kind: str) -> None:
    assert Streams({"input": stream(4)}).place(layer(name, 4, 4)) == Place("input", cast("Any", kind), "input", "input")


def test_an_axis_of_another_length_gets_numbered_positions() -> None:
    streams = Streams({"encoder": stream(4, "abcd")})
    place = streams.place(layer("latents", 2, 4))
    assert place == Place("encoder", "self", "2 positions", "encoder")
    assert [cell.text for cell in streams.cells_of("2 positions")] == ["0", "1"]
    assert [cell.text for cell in streams.cells_of("encoder")] == ["a", "b", "c", "d"]
    assert streams.names == {"encoder"}
    assert set(streams.as_json()) == {"encoder", "2 positions"}
    assert streams.as_json()["2 positions"]["text"] == ""


def test_without_any_stream_both_axes_are_numbered() -> None:
    streams = Streams({})
    assert streams.place(layer("attention", 3, 3)) == Place("input", "self", "3 positions", "3 positions")


def test_tokens_without_text_are_cells_of_their_own() -> None:
    streams = Streams({"input": stream(2)})
    assert streams.as_json()["input"]["cells"] == [
        {"text": "t0", "start": 0, "end": 0, "tokens": [0], "special": True},
        {"text": "t1", "start": 1, "end": 1, "tokens": [1], "special": True},
    ]
