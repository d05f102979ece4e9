r"""From tokens to cells people can read, and from token weights to cell weights.

A vocabulary string is not text: one Chinese character may be three byte pieces (`é ĵ ¶`), a family emoji
may be seven. So a **cell** is shown by character offsets into the original text:

* a cell is the smallest group of consecutive whole tokens that no grapheme (`\X`) straddles: the byte
  pieces of 银 are one cell, so are the pieces of an emoji joined by ZWJ;
* a token is never split: one that covers several characters is one cell, because it is one thing to the model;
* the cell's text is widened to whole graphemes, so an accent that the tokenizer dropped stays on its letter;
* a special token without text (`[CLS]`) is its own cell and shows the token's string; a special token that was
  written in the text is its own cell too, and shows that text;
* any other token without text joins the cell before it, or the one after it when there is none before it.

Weights follow: a row is the **mean** over the pieces of the query, a column the **sum** over the pieces of the
key, so a row that summed to 1 still does. Texts too long to draw are pooled by the same rule.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from regard._errors import ArgumentError, DataError, DependencyError, ShapeError

Span = tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """One readable piece of a text: `text[start:end]`, made of these `tokens` (indices).

    A special token that stands for no text has `start == end`, and its own string as `text`.
    """

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]
    special: bool


class _Piece(NamedTuple):
    """One token, and where it stands in the text."""

    at: int
    start: int
    end: int
    special: bool
    token: str
    is_empty: bool


def cells(text: str, offsets: Sequence[Span], special: Sequence[bool], tokens: Sequence[str]) -> list[Cell]:
    """The cells of a tokenized text; the module's docstring has the rules.

    Args:
        text: the original text.
        offsets: for each token, its first character and one past its last.
        special: for each token, whether it is a special token.
        tokens: for each token, its vocabulary string (shown only for special tokens without text).

    Raises:
        DataError: when the counts differ, or an offset runs backwards or out of the text.
    """
    pieces = _pieces(offsets, special, tokens)
    _check_offsets(text, pieces)
    starts = _grapheme_starts(text, max((piece.end for piece in pieces), default=0))
    found: list[Cell] = []
    for group in _groups(pieces, starts):
        before = found[-1].end if found else 0
        found.append(_cell(text, group, starts, before))
    return found


def fold(weights: Tensor, rows: Sequence[Cell], cols: Sequence[Cell]) -> Tensor:
    """Token weights (heads, q_len, kv_len) as cell weights (heads, row cells, column cells).

    A row is the mean over the query's pieces, a column the sum over the key's pieces.
    """
    _check_weights(weights)
    row_of = _group_of_each(cell.tokens for cell in rows)
    col_of = _group_of_each(cell.tokens for cell in cols)
    if (len(row_of), len(col_of)) != tuple(weights.shape[1:]):
        raise ShapeError(
            "weights",
            expected=f"(heads, {len(row_of)}, {len(col_of)}), as many as the tokens of the cells",
            got=str(tuple(weights.shape)),
            do="Make the cells from the same tokens the layer ran over.",
        )
    return _regroup(weights, row_of, len(rows), col_of, len(cols))


def pool(weights: Tensor, limit: int = 192) -> tuple[Tensor, list[int] | None, list[int] | None]:
    """Weights small enough to draw: at most `limit` rows and columns, and the edges of the groups.

    Pooled row i is the mean over rows `row_edges[i]` to `row_edges[i + 1] - 1`; a pooled column is the sum.
    Edges are None for an axis that was short enough already.
    """
    _check_weights(weights)
    if limit < 1:
        raise ArgumentError("limit", expected="at least 1", got=str(limit), do="Take what pool_limit says.")
    _, rows, cols = weights.shape
    row_edges, col_edges = _edges(rows, limit), _edges(cols, limit)
    if row_edges is None and col_edges is None:
        return weights, None, None
    row_of, row_count = _group_of_edges(rows, row_edges)
    col_of, col_count = _group_of_edges(cols, col_edges)
    return _regroup(weights, row_of, row_count, col_of, col_count), row_edges, col_edges


def pool_limit(head_maps: int, *, k: int = 8, budget: int = 10_000_000, at_most: int = 192) -> int:
    """The largest `limit` of `pool` with which `head_maps` maps (layers times heads) fit in `budget` bytes of page."""
    bytes_a_top_weight = 13  # "123,0.123456,"
    for side in range(at_most, 8, -1):
        one_map = side * side * 4 // 3 + side * k * bytes_a_top_weight
        if head_maps * one_map <= budget:
            return side
    return 8


def encode_map(
    weights: Tensor,
    *,
    layer: int,
    row_edges: Sequence[int] | None = None,
    col_edges: Sequence[int] | None = None,
    k: int = 8,
) -> dict[str, Any]:
    """One entry of the payload's `maps`: weights (heads, rows, cols) as bytes, and the `k` largest of each row.

    A byte is `round(255 * sqrt(weight))`: the square root keeps small weights apart. A value that is no weight
    (NaN, negative, above 1) is drawn as the nearest weight and counted in `unusable`, which the page shows.
    """
    _check_weights(weights)
    heads, rows, cols = weights.shape
    usable = torch.nan_to_num(weights.detach().float(), nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    levels = usable.sqrt().mul(255).round().to(torch.uint8)
    return {
        "layer": layer,
        "heads": heads,
        "rows": rows,
        "cols": cols,
        "row_edges": None if row_edges is None else list(row_edges),
        "col_edges": None if col_edges is None else list(col_edges),
        "data": base64.b64encode(_bytes(levels)).decode("ascii"),
        "top": _top(usable, k),
        "unusable": _unusable_count(weights),
    }


def _pieces(offsets: Sequence[Span], special: Sequence[bool], tokens: Sequence[str]) -> list[_Piece]:
    if not len(offsets) == len(special) == len(tokens):
        raise DataError(
            f"tokens: expected as many offsets and special marks as tokens, got {len(offsets)} offsets, "
            f"{len(special)} special marks and {len(tokens)} tokens. Take all three from one call of the tokenizer."
        )
    told = zip(offsets, special, tokens, strict=True)
    return [_Piece(at, *span, mark, token, span[0] == span[1]) for at, (span, mark, token) in enumerate(told)]


def _check_offsets(text: str, pieces: Sequence[_Piece]) -> None:
    last: Span = (0, 0)
    for piece in pieces:
        span = (piece.start, piece.end)
        if not 0 <= piece.start <= piece.end <= len(text):
            raise DataError(
                f"offsets: expected spans inside a text of {len(text)} characters, "
                f"got {span} for token {piece.at}. Give the offsets of this text."
            )
        if piece.is_empty:
            continue  # special tokens and empty pieces say (0, 0) wherever they stand
        if piece.start < last[0] or piece.end < last[1]:
            raise DataError(
                f"offsets: expected spans that never run backwards, got {span} for token {piece.at} after {last}. "
                "Give one text at a time: a pair has offsets for each of its texts."
            )
        last = span


def _grapheme_starts(text: str, reach: int) -> list[int]:
    """Where graphemes start, to the first that starts at `reach` or after (a text may go on long after its tokens)."""
    try:
        import regex
    except ImportError as error:
        raise DependencyError("regex", "cli") from error
    starts: list[int] = []
    for match in regex.finditer(r"\X", text):
        starts.append(match.start())
        if match.start() >= reach:
            break
    return starts


def _groups(pieces: Sequence[_Piece], starts: list[int]) -> list[list[_Piece]]:
    """The pieces, grouped so that no grapheme straddles two groups."""
    groups: list[list[_Piece]] = []
    reach: int | None = None  # last grapheme of the open group; None while it has no text
    is_open = False
    for piece in pieces:
        first = None if piece.is_empty else bisect_right(starts, piece.start) - 1
        if is_open and not piece.special and (first is None or reach is None or first <= reach):
            groups[-1].append(piece)
        else:
            groups.append([piece])
            reach = None
        if first is not None:
            reach = bisect_right(starts, piece.end - 1) - 1
        is_open = not piece.special
    return groups


def _cell(text: str, group: list[_Piece], starts: list[int], before: int) -> Cell:
    special = group[0].special
    indices = tuple(piece.at for piece in group)
    written = [piece for piece in group if not piece.is_empty]
    if not written:
        return Cell(group[0].token if special else "", before, before, indices, special)
    start, end = written[0].start, written[-1].end
    if not special:
        start, end = _widen(start, end, starts, len(text))
    return Cell(text[start:end], start, end, indices, special)


def _widen(start: int, end: int, starts: list[int], length: int) -> Span:
    """The span, widened to whole graphemes."""
    after = bisect_right(starts, end - 1)
    return starts[bisect_right(starts, start) - 1], starts[after] if after < len(starts) else length


def _check_weights(weights: Tensor) -> None:
    if weights.dim() != 3 or not weights.is_floating_point():
        raise ShapeError(
            "weights",
            expected="floats of shape (heads, queries, keys)",
            got=f"{weights.dtype} of shape {tuple(weights.shape)}",
            do="Take one sample of the batch first.",
        )


def _group_of_each(members: Iterable[Sequence[int]]) -> list[int]:
    """For each token its group; the groups must hold tokens 0, 1, 2 ... in order, each once."""
    group_of: list[int] = []
    for group, indices in enumerate(members):
        for index in indices:
            if index != len(group_of):
                raise DataError(f"cells: expected token {len(group_of)}, got {index}. Keep all cells, in order.")
            group_of.append(group)
    return group_of


def _edges(count: int, limit: int) -> list[int] | None:
    return None if count <= limit else [index * count // limit for index in range(limit + 1)]


def _group_of_edges(count: int, edges: list[int] | None) -> tuple[list[int], int]:
    if edges is None:
        return list(range(count)), count
    groups = len(edges) - 1
    return [group for group in range(groups) for _ in range(edges[group], edges[group + 1])], groups


def _regroup(weights: Tensor, row_of: list[int], row_count: int, col_of: list[int], col_count: int) -> Tensor:
    """Mean over the rows of each group, sum over the columns of each group."""
    values = weights if weights.dtype == torch.float64 else weights.float()
    row_index, col_index = (torch.tensor(of, dtype=torch.int64, device=values.device) for of in (row_of, col_of))
    by_col = values.new_zeros(*values.shape[:2], col_count).index_add(2, col_index, values)
    by_both = values.new_zeros(len(values), row_count, col_count).index_add(1, row_index, by_col)
    pieces = torch.bincount(row_index, minlength=row_count).clamp(min=1)
    return by_both / pieces[:, None]


def _top(usable: Tensor, k: int) -> dict[str, Any] | None:
    count = min(k, int(usable.shape[2]))
    if count < 1:
        return None
    largest = usable.topk(count, dim=2)
    # Six decimals: as exact as float32 softmax is, and half the bytes of all digits.
    values = _nested_list(largest.values.double())
    weights = [[[round(value, 6) for value in row] for row in head] for head in values]
    return {"k": count, "columns": _nested_list(largest.indices), "weights": weights}


def _bytes(levels: Tensor) -> bytes:
    return bytes(cast("list[int]", levels.flatten().tolist()))  # pyright: ignore[reportUnknownMemberType]  torch says list


def _nested_list(tensor: Tensor) -> list[list[list[Any]]]:
    return cast("list[list[list[Any]]]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]  torch says list


def _unusable_count(weights: Tensor) -> int:
    fine = (weights >= -1e-3) & (weights <= 1.001)  # rounding makes a weight of 1.0000001
    return int((~fine).sum())
