from __future__ import annotations

import base64
import itertools
import sys

import pytest
import torch

from regard._errors import ArgumentError, DataError, DependencyError, ShapeError
from regard.xray.cells import Cell, cells, encode_map, fold, pool, pool_limit

FAMILY = "👩\u200d👩\u200d👧"


def texts_of(found: list[Cell]) -> list[str]:
    return [cell.text for cell in found]


def plain(text: str, offsets: list[tuple[int, int]]) -> list[Cell]:
    """Cells of tokens of which none is special."""
    return cells(text, offsets, [False] * len(offsets), ["?"] * len(offsets))


def byte_level(text: str) -> list[Cell]:
    """Cells from a real byte-level tokenizer without any merges: one token for each byte."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: index for index, sign in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoded = tokenizer.encode(text)
    assert len(encoded.ids) == len(text.encode())
    return cells(text, encoded.offsets, [False] * len(encoded.ids), encoded.tokens)


def softmax_weights(heads: int, q_len: int, kv_len: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(heads, q_len, kv_len, generator=generator).softmax(-1)


def test_words_are_cells_of_the_original_text() -> None:
    found = cells(
        "He said HI",
        [(0, 0), (0, 2), (3, 7), (8, 10), (0, 0)],
        [True, False, False, False, True],
        ["[CLS]", "he", "said", "hi", "[SEP]"],
    )
    assert texts_of(found) == ["[CLS]", "He", "said", "HI", "[SEP]"]
    assert [cell.special for cell in found] == [True, False, False, False, True]
    assert found[-1] == Cell("[SEP]", 10, 10, (4,), special=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a银行b", ["a", "银", "行", "b"]),
        (f"x{FAMILY}y", ["x", FAMILY, "y"]),
        ("𠮷野", ["𠮷", "野"]),
        ("e\u0301a", ["e\u0301", "a"]),
        ("नमस्ते", None),
        ("\r\n", ["\r\n"]),
        ("שלום", ["ש", "ל", "ו", "ם"]),
        ("\0<", ["\0", "<"]),
    ],
)
def test_bytes_of_one_grapheme_are_one_cell(text: str, expected: list[str] | None) -> None:
    found = byte_level(text)
    assert "".join(texts_of(found)) == text
    assert expected is None or texts_of(found) == expected
    assert [index for cell in found for index in cell.tokens] == list(range(len(text.encode())))


def test_a_token_of_several_characters_stays_whole() -> None:
    assert texts_of(plain("银行在河边", [(0, 2), (2, 3), (3, 5)])) == ["银行", "在", "河边"]


def test_an_accent_the_tokenizer_dropped_stays_on_its_letter() -> None:
    assert texts_of(plain("cafe\u0301 au", [(0, 4), (6, 8)])) == ["cafe\u0301", "au"]


def test_tokens_that_overlap_share_a_cell() -> None:
    assert plain("ab", [(0, 1), (0, 2)]) == [Cell("ab", 0, 2, (0, 1), special=False)]


def test_tokens_without_text_join_a_neighbour() -> None:
    assert [cell.tokens for cell in plain("ab", [(0, 0), (0, 1), (0, 0), (1, 2)])] == [(0, 1, 2), (3,)]


def test_a_token_without_text_never_joins_a_special_one() -> None:
    found = cells("", [(0, 0)] * 3, [True, False, True], ["<s>", "▁", "</s>"])
    assert [(cell.text, cell.tokens) for cell in found] == [("<s>", (0,)), ("", (1,)), ("</s>", (2,))]


def test_a_special_token_written_in_the_text_shows_the_text() -> None:
    found = cells("a [MASK]", [(0, 1), (2, 8)], [False, True], ["a", "[MASK]"])
    assert found[1] == Cell("[MASK]", 2, 8, (1,), special=True)


@pytest.mark.parametrize(
    "text", ["", "</script>", "<img src=x onerror=alert(1)>", "'\"&", "a\u2028b", "\0", "\ud800", "e\u0301" * 3]
)
def test_any_text_of_one_token_is_one_cell(text: str) -> None:
    assert texts_of(plain(text, [(0, len(text))])) == [text]


def test_a_token_of_a_megabyte() -> None:
    text = "x" * 1_000_000
    assert len(plain(text, [(0, len(text))])[0].text) == 1_000_000


def test_nothing_and_only_specials() -> None:
    assert cells("", [], [], []) == []
    assert texts_of(cells("", [(0, 0), (0, 0)], [True, True], ["[CLS]", "[SEP]"])) == ["[CLS]", "[SEP]"]


def test_counts_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="2 offsets, 1 special marks and 2 tokens"):
        cells("ab", [(0, 1), (1, 2)], [False], ["a", "b"])


@pytest.mark.parametrize("offsets", [[(2, 3), (0, 1)], [(0, 3), (1, 2)]])
def test_offsets_that_run_backwards_are_refused(offsets: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match="never run backwards"):
        plain("abc", offsets)


@pytest.mark.parametrize("span", [(0, 4), (-1, 2), (2, 1)])
def test_offsets_out_of_the_text_are_refused(span: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="inside a text of 3 characters"):
        plain("abc", [span])


def test_without_regex_the_group_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(DependencyError, match="cli"):
        plain("a", [(0, 1)])


def test_fold_keeps_row_sums_and_agrees_with_a_loop() -> None:
    rows = plain("abc", [(0, 1), (0, 1), (1, 2), (2, 3)])
    cols = plain("xy", [(0, 1), (1, 2), (1, 2)])
    weights = softmax_weights(2, 4, 3)
    weights[:, 3] = 0  # a query that may attend to nothing
    folded = fold(weights, rows, cols)
    assert folded.shape == (2, 3, 2)
    for head in range(2):
        for i, row in enumerate(rows):
            for j, col in enumerate(cols):
                piece = weights[head][list(row.tokens)][:, list(col.tokens)]
                torch.testing.assert_close(folded[head, i, j], piece.sum(1).mean(0))
    torch.testing.assert_close(folded.sum(-1), torch.tensor([[1.0, 1.0, 0.0]] * 2))


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 3, 2), (3, 3)])
def test_fold_refuses_other_sizes(shape: tuple[int, ...]) -> None:
    three = plain("abc", [(0, 1), (1, 2), (2, 3)])
    with pytest.raises(ShapeError, match="weights: expected"):
        fold(torch.zeros(shape), three, three)


def test_fold_refuses_missing_cells() -> None:
    three = plain("abc", [(0, 1), (1, 2), (2, 3)])
    with pytest.raises(DataError, match="Keep all cells"):
        fold(torch.zeros(1, 3, 3), three[1:], three)


def test_pool_leaves_a_short_text_alone() -> None:
    weights = softmax_weights(1, 5, 7)
    pooled, row_edges, col_edges = pool(weights, limit=7)
    assert pooled is weights
    assert row_edges is None
    assert col_edges is None


def test_pool_one_long_axis_only() -> None:
    weights = softmax_weights(2, 3, 10)
    pooled, row_edges, col_edges = pool(weights, limit=4)
    assert row_edges is None
    assert col_edges == [0, 2, 5, 7, 10]
    torch.testing.assert_close(pooled[:, :, 1], weights[:, :, 2:5].sum(-1))


@pytest.mark.parametrize("length", [193, 400, 1001])
def test_pool_keeps_row_sums_and_covers_everything(length: int) -> None:
    pooled, row_edges, col_edges = pool(softmax_weights(1, length, length))
    assert pooled.shape == (1, 192, 192)
    assert row_edges == col_edges
    assert row_edges is not None
    assert (row_edges[0], row_edges[-1], len(row_edges)) == (0, length, 193)
    assert all(low < high for low, high in itertools.pairwise(row_edges))
    torch.testing.assert_close(pooled.sum(-1), torch.ones(1, 192))


def test_pool_refuses_a_limit_of_nothing() -> None:
    with pytest.raises(ArgumentError, match="limit: expected at least 1, got 0"):
        pool(torch.zeros(1, 2, 2), limit=0)


def test_pool_limit_shrinks_with_the_number_of_maps() -> None:
    assert pool_limit(12 * 12) == 192
    assert 32 < pool_limit(32 * 32) < 192
    assert pool_limit(10**9) == 8


def decoded(entry: dict[str, object]) -> torch.Tensor:
    levels = torch.tensor(list(base64.b64decode(str(entry["data"]))))
    return (levels / 255).square().reshape([int(str(entry[size])) for size in ("heads", "rows", "cols")])


def test_an_encoded_map_comes_back_within_a_level() -> None:
    weights = softmax_weights(3, 5, 9)
    entry = encode_map(weights, layer=4)
    assert (entry["layer"], entry["row_edges"], entry["unusable"]) == (4, None, 0)
    torch.testing.assert_close(decoded(entry).sqrt(), weights.sqrt(), atol=0.5 / 255 + 1e-6, rtol=0)


def test_the_largest_weights_are_exact() -> None:
    weights = softmax_weights(2, 4, 20)
    top = encode_map(weights, layer=0, k=3)["top"]
    values, columns = weights.topk(3, dim=-1)
    assert top["k"] == 3
    assert top["columns"] == columns.tolist()
    torch.testing.assert_close(torch.tensor(top["weights"]), values, atol=1e-6, rtol=0)


def test_values_that_are_no_weights_are_counted() -> None:
    weights = torch.tensor([[[0.5, float("nan"), -0.2, 7.0, float("inf"), 1.0000001]]])
    entry = encode_map(weights, layer=0)
    assert entry["unusable"] == 4
    assert decoded(entry).flatten().tolist() == pytest.approx([0.5, 0, 0, 1, 1, 1], abs=0.01)


def test_a_map_of_nothing() -> None:
    entry = encode_map(torch.zeros(2, 0, 0), layer=0)
    assert (entry["data"], entry["top"]) == ("", None)


def test_half_precision_weights_are_folded_in_float32() -> None:
    two = plain("ab", [(0, 1), (1, 2)])
    assert fold(torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16), two, two).dtype == torch.float32
