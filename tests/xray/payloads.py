"""Made-up reports for the page and the table, hostile text among them."""

from __future__ import annotations

from typing import Any

import torch

from regard.xray.cells import encode_map, pool

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'`&amp;&lt;",
    "<!--<script>",
    "line\u2028separator\u2029",
    "nul\0bell\a",
    "lone\ud800surrogate",
    "{{data}}{{script}}",
    "\u202eright to left",
    "שלום",
    "e\u0301",
    "👩\u200d👩\u200d👧",
    " ",
    "",
    "银",
]


def make_cells(texts: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """A text of these pieces with a space between them, and its cells."""
    made: list[dict[str, Any]] = []
    at = 0
    for index, text in enumerate(texts):
        made.append({"text": text, "start": at, "end": at + len(text), "tokens": [index], "special": index == 0})
        at += len(text) + 1
    return " ".join(texts), made


def make_layer(index: int, length: int, heads: int) -> dict[str, Any]:
    statistic = {"mean": 1.5, "per_head": [1.5] * heads}
    return {
        "index": index,
        "name": f"encoder.layer.{index}.attention",
        "stack": "encoder",
        "kind": "self",
        "query_stream": "encoder",
        "key_stream": "encoder",
        "heads": heads,
        "kv_heads": heads,
        "head_dim": 32,
        "value_dim": 32,
        "q_len": length,
        "kv_len": length,
        "batch": 1,
        "scale": 0.1767,
        "dtype": "float32",
        "mask": {"found": "bidirectional", "declared": None, "padding": "honoured"},
        "backend": {"now": "sdpa", "why": "the model asks for it"},
        "costs": [
            {"backend": "sdpa", "supported": True, "reason": "", "milliseconds": 0.5, "peak_bytes": 1024},
            {"backend": "flex", "supported": False, "reason": "no compiler", "milliseconds": None, "peak_bytes": None},
        ],
        "at_length": None,
        "entropy": statistic,
        "sink_share": statistic,
        "max_logit": statistic | {"max": 2.5},
    }


def make_payload(texts: list[str], *, layers: int = 2, heads: int = 2) -> dict[str, Any]:
    text, made = make_cells(texts)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(heads, len(texts), len(texts), generator=generator).softmax(-1)
    pooled, row_edges, col_edges = pool(weights)
    entry = encode_map(pooled, layer=0, row_edges=row_edges, col_edges=col_edges)
    return {
        "regard": "0.1.0",
        "model": {
            "name": "tiny",
            "class": "BertModel",
            "parameters": 12,
            "dtype": "float32",
            "implementation": "sdpa",
        },
        "machine": {"cpu": "a CPU", "threads": 2, "torch": "2.13", "transformers": None, "python": "3.11"},
        "streams": {"encoder": {"text": text, "truncated": False, "cells": made}},
        "layers": [make_layer(index, len(texts), heads) for index in range(layers)],
        "warnings": [
            {"code": "causal_leak", "layer": 1, "message": "It looks ahead.", "message_zh": "它看到了后面。"},
        ],
        "maps": [{**entry, "layer": index} for index in range(layers)],
    }
