"""From a loaded model and an encoded text to the report's payload."""

from __future__ import annotations

import platform
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

import regard
from regard._errors import RegardError
from regard.measure.cost import processor_name
from regard.observation import ObservedLayer, observe
from regard.xray import warnings
from regard.xray.cells import encode_map, fold, pool, pool_limit
from regard.xray.chinese import in_chinese
from regard.xray.costs import BackendCost, at_length, layer_costs, signature
from regard.xray.encode import Encoded
from regard.xray.leaks import future_reaches_past, padding_found
from regard.xray.loading import LoadedModel
from regard.xray.probe import Pattern, describe, probe
from regard.xray.streams import Place, Streams

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
    del stage, done, total


def examine(
    loaded: LoadedModel, encoded: Encoded, *, length: int | None = None, progress: Progress = _silent
) -> dict[str, Any]:
    """Run the model once under observation and take every layer apart.

    Args:
        loaded: the model.
        encoded: its input.
        length: also say what each layer's attention costs at this many tokens.
        progress: told what is being done, how far it is, and how far it goes.

    Returns:
        The payload: facts as `report.json` has them, with `maps` and the cells of every stream.
    """
    progress("run", 0, 1)
    with torch.no_grad(), observe(loaded.model) as seen:
        loaded.model(**encoded.inputs)
    progress("padding", 0, 1)
    padding = padding_found(loaded, encoded)
    examination = _Examination(loaded, Streams(encoded.streams), padding.layers, length)
    for done, layer in enumerate(seen.layers):
        progress("layers", done, len(seen.layers))
        examination.add(done, layer, seen.layers)
    progress("layers", len(seen.layers), len(seen.layers))
    if future_reaches_past(loaded, encoded):
        examination.warn("future_reaches_past", None)
    for missed in dict.fromkeys(seen.missed):
        examination.warn("missed", None, reason=missed)
    for note in (*loaded.notes, *encoded.notes):
        examination.warn("note", None, reason=note)
    return examination.payload()


class _Examination:
    """Collects what is found, layer by layer."""

    def __init__(self, loaded: LoadedModel, streams: Streams, padding: dict[str, Any], length: int | None) -> None:
        self.loaded, self.streams, self.padding, self.length = loaded, streams, padding, length
        self.layers: list[dict[str, Any]] = []
        self.maps: list[dict[str, Any]] = []
        self._costs: dict[tuple[object, ...], tuple[list[BackendCost], dict[str, Any] | None]] = {}
        self._warned: dict[tuple[str, tuple[tuple[str, object], ...]], list[int | None]] = defaultdict(list)

    def warn(self, code: str, layer: int | None, **facts: object) -> None:
        """Remember a warning; the same one about several layers becomes one."""
        self._warned[code, tuple(facts.items())].append(layer)

    def add(self, index: int, layer: ObservedLayer, every: list[ObservedLayer]) -> None:
        """Everything about one layer."""
        place = self.streams.place(layer)
        found, pattern = self._mask(index, layer, place)
        costs, longer = self._cost(layer, pattern)
        statistics = self._statistics(index, layer)
        self.layers.append(
            {
                "index": index,
                "name": layer.name,
                "stack": place.stack,
                "kind": place.kind,
                "query_stream": place.query_stream,
                "key_stream": place.key_stream,
                **_shape(layer),
                "mask": found,
                "backend": _backend(layer),
                "costs": [row.as_json() for row in costs],
                "at_length": longer,
                **(_unknown(layer.heads) if statistics is None else statistics),
            }
        )
        self._warn_of_memory(index, layer, longer)
        if statistics is not None:
            self._draw(index, layer, place, len(every))

    def _mask(self, index: int, layer: ObservedLayer, place: Place) -> tuple[dict[str, Any], Pattern | None]:
        probed = probe(layer.call)
        if probed is None:
            self.warn("not_probed", index)
            pattern = _told(layer)
        else:
            pattern = describe(probed.allowed, probed.keys, layer.q_len, layer.kv_len)
        declared = _declared(layer)
        window = layer.call.declared_window
        self._judge_mask(index, layer, place, pattern, declared)
        return {
            "found": pattern.name,
            "declared": declared.name if declared is not None else _window_words(window),
            "padding": self.padding.get(layer.name, "not probed"),
            "window": pattern.window,
        }, pattern

    def _judge_mask(
        self, index: int, layer: ObservedLayer, place: Place, pattern: Pattern, declared: Pattern | None
    ) -> None:
        window = layer.call.declared_window
        if place.stack == "decoder" and place.kind == "self" and layer.q_len > 1 and not pattern.causal:
            self.warn("causal_leak", index)
        elif window is not None and layer.kv_len > window and (pattern.window is None or pattern.window > window):
            self.warn("window_ignored", index, window=window)
        elif declared is not None and declared.name != pattern.name:
            self.warn("mask_differs", index, declared=declared.name, found=pattern.name)
        if window is not None and layer.kv_len <= window:
            self.warn("window_not_seen", index, window=window)
        if self.padding.get(layer.name) == "attended":
            self.warn("padding_attended", index)

    def _cost(self, layer: ObservedLayer, pattern: Pattern | None) -> tuple[list[BackendCost], dict[str, Any] | None]:
        """Layers alike in shape and options are measured once."""
        key = (signature(layer), pattern)
        if key not in self._costs:
            longer = None if self.length is None else at_length(layer, pattern, self.length)
            self._costs[key] = layer_costs(layer), longer
        return self._costs[key]

    def _statistics(self, index: int, layer: ObservedLayer) -> dict[str, Any] | None:
        """Entropy, share of the first key and largest score, by head; None where they are not known."""
        try:
            found = layer.statistics(want=("entropy", "sink_share", "max_logit"))
        except RegardError as error:  # the weights would not be those the layer used
            self.warn("weights_unexplained", index, reason=str(error))
            return None
        entropy, sink_share, max_logit = (
            torch.empty(0) if rows is None else rows[0] for rows in (found.entropy, found.sink_share, found.max_logit)
        )
        tops = max_logit.amax(-1)
        if not bool(entropy.isfinite().all()) or bool(tops.isnan().any() | (tops == torch.inf).any()):
            self.warn("not_finite", index)
        return {
            "entropy": _mean_and_heads(entropy.mean(-1)),
            "sink_share": _mean_and_heads(sink_share.mean(-1)),
            "max_logit": {**_mean_and_heads(tops), "max": _number(tops.max())},
        }

    def _warn_of_memory(self, index: int, layer: ObservedLayer, longer: dict[str, Any] | None) -> None:
        now = layer.call.implementation
        rows: list[dict[str, Any]] = [] if longer is None else longer["backends"]
        for row in rows:
            if row["backend"] == now and row["growth"] > 1.5:
                size = warnings.as_size(row["peak_bytes"])
                self.warn("quadratic_memory", index, length=self.length, size=size, backend=now)

    def _draw(self, index: int, layer: ObservedLayer, place: Place, layers: int) -> None:
        rows, cols = self.streams.cells_of(place.query_stream), self.streams.cells_of(place.key_stream)
        limit = pool_limit(layers * layer.heads)
        parts: list[Tensor] = []
        row_edges = col_edges = None
        for head in range(layer.heads):
            folded = fold(layer.weights(heads=head)[0], rows, cols)
            pooled, row_edges, col_edges = pool(folded, limit)
            parts.append(pooled)
        self.maps.append(encode_map(torch.cat(parts), layer=index, row_edges=row_edges, col_edges=col_edges))

    def payload(self) -> dict[str, Any]:
        """The report."""
        if not self.layers:
            self.warn("no_attention", None)
        return {
            "regard": regard.__version__,
            "model": _model_facts(self.loaded),
            "machine": _machine_facts(),
            "streams": self.streams.as_json(),
            "layers": self.layers,
            "warnings": [
                warnings.warning(code, [layer for layer in layers if layer is not None], **dict(facts))
                for (code, facts), layers in self._warned.items()
            ],
            "maps": self.maps,
        }


def _unknown(heads: int) -> dict[str, Any]:
    """What stands for the statistics of a layer whose weights are not known."""
    blank: dict[str, Any] = {"mean": None, "per_head": [None] * heads}
    return {"entropy": blank, "sink_share": blank, "max_logit": {**blank, "max": None}}


def _shape(layer: ObservedLayer) -> dict[str, Any]:
    query, value = layer.call.query, layer.call.value
    scale = layer.call.options.get("scale")
    return {
        "heads": layer.heads,
        "kv_heads": layer.kv_heads,
        "head_dim": query.shape[-1],
        "value_dim": value.shape[-1],
        "q_len": layer.q_len,
        "kv_len": layer.kv_len,
        "batch": query.shape[0],
        "scale": query.shape[-1] ** -0.5 if scale is None else scale,
        "dtype": str(query.dtype).removeprefix("torch."),
    }


def _told(layer: ObservedLayer) -> Pattern:
    """The pattern that the layer's own arguments say, for layers that cannot be probed."""
    mask = layer.call.options.get("mask")
    allowed = torch.ones(layer.q_len, layer.kv_len, dtype=torch.bool)
    if isinstance(mask, regard.masks.Mask):
        allowed = mask.dense(layer.q_len, layer.kv_len)
    return describe(allowed, torch.arange(layer.kv_len), layer.q_len, layer.kv_len)


def _declared(layer: ObservedLayer) -> Pattern | None:
    """The mask that the model asked its mask function for, in words."""
    asked = None if layer.call.declared is None else layer.call.declared()
    return None if asked is None else describe(asked, torch.arange(layer.kv_len), layer.q_len, layer.kv_len)


def _window_words(window: int | None) -> str | None:
    return None if window is None else f"window {window}"


def _backend(layer: ObservedLayer) -> dict[str, Any]:
    """Who computes this layer now, and why."""
    why = _why(layer)
    return {"now": layer.call.implementation, "why": why, "why_zh": in_chinese(why)}


def _why(layer: ObservedLayer) -> str:
    call = layer.call
    if call.implementation.startswith("nn."):
        return "the module's own path"
    if call.implementation == "eager":
        return "the model's setting: plain torch operations; memory grows with q_len x kv_len"
    if call.implementation != "sdpa":
        return "the model's setting"
    key, value = (tensor[:, :1].expand(-1, layer.heads, -1, -1) for tensor in (call.key, call.value))
    choice: int = cast("Any", torch)._fused_sdp_choice(call.query, key, value)  # noqa: SLF001 - nobody else tells
    if call.query.shape[-1] == value.shape[-1] and choice != 0:
        return "the model's setting: torch's fused kernel"
    return "the model's setting: torch's unfused path; memory grows with q_len x kv_len"


def _mean_and_heads(per_head: Tensor) -> dict[str, Any]:
    return {"mean": _number(per_head.mean()), "per_head": [_number(entry) for entry in per_head]}


def _number(entry: Tensor) -> float | None:
    number = float(entry)
    return number if abs(number) < float("inf") else None


def _model_facts(loaded: LoadedModel) -> dict[str, Any]:
    parameters = list(loaded.model.parameters())
    config: Any = getattr(loaded.model, "config", None)
    return {
        "name": loaded.name,
        "class": type(loaded.model).__name__,
        "kind": loaded.kind,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "dtype": str(parameters[0].dtype).removeprefix("torch.") if parameters else None,
        "implementation": getattr(config, "_attn_implementation", None),
    }


def _machine_facts() -> dict[str, Any]:
    transformers: Any = sys.modules.get("transformers")
    return {
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": None if transformers is None else transformers.__version__,
        "python": platform.python_version(),
    }
