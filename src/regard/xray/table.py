"""The x-ray in a terminal: one row for each group of like layers, and the warnings in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Language = Literal["en", "zh"]
Layer = Mapping[str, Any]

_COLUMNS = {
    "en": ("layer", "kind", "heads", "size", "q × kv", "mask", "padding", "runs on", "fastest (ms)", "entropy", "sink"),
    "zh": ("层", "类型", "头数", "维度", "查询×键", "掩码", "填充", "后端", "最快（毫秒）", "熵", "首词元"),
}
_RIGHT = {2, 3, 4, 9, 10}
_WORDS = {
    "en": {
        "title": "attention of {name}: {count} layers",
        "none": "No warnings.",
        "declared": "{found} (declared: {declared})",
        "statistics": "entropy in nats; sink = weight on the first token; a range spans the layers of its row",
    },
    "zh": {
        "title": "{name} 的注意力：{count} 层",
        "none": "没有警告。",
        "declared": "{found}（声明：{declared}）",
        "statistics": "熵以奈特计；首词元 = 落在第一个词元上的权重占比；范围跨该行各层",
    },
}


def print_table(payload: Mapping[str, Any], console: Console, *, language: Language = "en") -> None:
    """Print the layers, grouped where only their statistics differ, and then the warnings."""
    words = _WORDS[language]
    layers: Sequence[Layer] = payload["layers"]
    console.print(_plain(words["title"].format(name=payload["model"]["name"], count=len(layers)), "bold"))
    console.print(_table(layers, language))
    console.print(_plain(words["statistics"], "dim"))
    for line in _warnings(payload["warnings"], language):
        console.print(line)


def _table(layers: Sequence[Layer], language: Language) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, name in enumerate(_COLUMNS[language]):
        is_number = index in _RIGHT
        table.add_column(name, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    for facts, members in _groups(layers, language).items():
        row = (_span(members), *facts, _fastest(members), _range(members, "entropy"), _range(members, "sink_share"))
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _groups(layers: Sequence[Layer], language: Language) -> dict[tuple[str, ...], list[Layer]]:
    """Layers by what is shown of them; not only neighbours, because decoders alternate self and cross."""
    several_stacks = len({layer["stack"] for layer in layers}) > 1
    groups: dict[tuple[str, ...], list[Layer]] = {}
    for layer in layers:
        kind = f"{layer['stack']} {layer['kind']}" if several_stacks else str(layer["kind"])
        groups.setdefault((kind, *_facts(layer, language)), []).append(layer)
    return groups


def _facts(layer: Layer, language: Language) -> tuple[str, ...]:
    """What is shown of a layer apart from its number, kind, times and statistics."""
    mask = layer["mask"]
    return (
        _pair(layer["heads"], layer["kv_heads"]),
        _pair(layer["head_dim"], layer["value_dim"]),
        f"{layer['q_len']}×{layer['kv_len']}",
        _mask(mask["found"], mask["declared"], language),
        str(mask["padding"]),
        str(layer["backend"]["now"]),
    )


def _pair(first: int, second: int, between: str = "/") -> str:
    return str(first) if first == second else f"{first}{between}{second}"


def _mask(found: str, declared: str | None, language: Language) -> str:
    if declared is None or declared == found:
        return found
    return _WORDS[language]["declared"].format(found=found, declared=declared)


def _span(layers: Sequence[Layer]) -> str:
    """Layer numbers, runs as ranges: `0-5`, or `12, 14, 16`."""
    runs: list[list[int]] = []
    for index in (int(layer["index"]) for layer in layers):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(_pair(run[0], run[-1], "-") for run in runs)


def _fastest(layers: Iterable[Layer]) -> str:
    """The backend that was fastest in these layers, and its range of times; several, when they differ."""
    times: dict[str, list[float]] = {}
    for layer in layers:
        timed = [cost for cost in layer["costs"] if cost["supported"] and cost["milliseconds"] is not None]
        if timed:
            best = min(timed, key=lambda cost: cost["milliseconds"])
            times.setdefault(str(best["backend"]), []).append(float(best["milliseconds"]))
    return ", ".join(f"{name} {_between(taken, 2)}" for name, taken in times.items()) or "–"


def _range(layers: Iterable[Layer], statistic: str) -> str:
    means = (layer[statistic]["mean"] for layer in layers)
    return _between([float(mean) for mean in means if mean is not None and math.isfinite(mean)], 2)


def _between(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}–{high}"


def _warnings(warnings: Sequence[Mapping[str, Any]], language: Language) -> list[Text]:
    if not warnings:
        return [_plain(_WORDS[language]["none"])]
    return [_warning(warning, language) for warning in warnings]


def _warning(warning: Mapping[str, Any], language: Language) -> Text:
    message = (warning.get("message_zh") if language == "zh" else None) or warning["message"]
    return Text.assemble(Text("! ", "bold yellow"), _plain(str(message)))


def _plain(text: str, style: str = "") -> Text:
    """Text that is no markup and steers no terminal: an escape character is shown, not obeyed."""
    return Text("".join(map(_sign, text)), style)


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    turns_text = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or turns_text:
        return "\N{REPLACEMENT CHARACTER}"
    return character
