"""Which text each layer reads: its stack, its kind, and the cells along both axes of its maps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regard.observation import ObservedLayer
from regard.xray.cells import Cell, cells
from regard.xray.encode import Stream

_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|encoder_attention|\bdecoder\b.*multihead_attn", re.IGNORECASE)
_CROSS_IN_DECODER = re.compile(r"cross|enc", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a layer stands in the model."""

    stack: str
    kind: Literal["self", "cross"]
    query_stream: str
    key_stream: str


class Streams:
    """The streams of one run, each with its cells; positions without text get numbers."""

    def __init__(self, found: Mapping[str, Stream]) -> None:
        self._lengths = {name: len(stream.tokens) for name, stream in found.items()}
        self._cells = {name: _cells(stream) for name, stream in found.items()}
        self._facts: dict[str, dict[str, Any]] = {
            name: {"text": stream.text, "truncated": stream.truncated} for name, stream in found.items()
        }

    def place(self, layer: ObservedLayer) -> Place:
        """The layer's stack by its name, its kind by its name or its lengths."""
        if "encoder" in self._lengths and "decoder" in self._lengths:
            return self._place_in_pair(layer)
        stack = next(iter(self._lengths), "input")
        kind = "cross" if _CROSS.search(layer.name) else "self"
        return Place(stack, kind, self._stream(stack, layer.q_len), self._stream(stack, layer.kv_len))

    def _place_in_pair(self, layer: ObservedLayer) -> Place:
        if not layer.name.split(".", 1)[-1].startswith("decoder") and not layer.name.startswith("decoder"):
            encoder = self._stream("encoder", layer.q_len), self._stream("encoder", layer.kv_len)
            return Place("encoder", "self", *encoder)
        is_cross = bool(_CROSS_IN_DECODER.search(layer.name.split("decoder", 1)[-1]))
        is_cross = is_cross or (layer.q_len != layer.kv_len == self._lengths["encoder"])
        keys = self._stream("encoder" if is_cross else "decoder", layer.kv_len)
        return Place("decoder", "cross" if is_cross else "self", self._stream("decoder", layer.q_len), keys)

    def _stream(self, name: str, length: int) -> str:
        """The named stream when the layer's axis has its length, else numbered positions of that length."""
        if self._lengths.get(name) == length:
            return name
        numbered = f"{length} positions"
        if numbered not in self._cells:
            self._cells[numbered] = [Cell(str(i), i, i, (i,), special=True) for i in range(length)]
            self._facts[numbered] = {"text": "", "truncated": False}
        return numbered

    @property
    def names(self) -> set[str]:
        """The streams of tokens, without those of numbered positions."""
        return set(self._lengths)

    def cells_of(self, stream: str) -> list[Cell]:
        """The cells of a stream that `place` named."""
        return self._cells[stream]

    def as_json(self) -> dict[str, Any]:
        """As the report has it."""
        return {
            name: {**facts, "cells": [_cell(cell) for cell in self._cells[name]]} for name, facts in self._facts.items()
        }


def _cells(stream: Stream) -> list[Cell]:
    if stream.text:
        return cells(stream.text, stream.offsets, stream.special, stream.tokens)
    return [Cell(token, i, i, (i,), special=True) for i, token in enumerate(stream.tokens)]


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "text": cell.text,
        "start": cell.start,
        "end": cell.end,
        "tokens": list(cell.tokens),
        "special": cell.special,
    }
