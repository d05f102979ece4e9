"""`regard.weights`: any tile of any problem, equal to the reference's weights, in memory of the tile's size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard import reference
from regard._front_door import build_problem
from regard.masks import Causal
from regard.measure import peak_bytes
from regard.observation import tiles
from tests.observation.problems import BATCH, HEADS, KV_HEADS, KV_LEN, OPTIONS, POSITIONS, Q_LEN, filled, states

pytestmark = pytest.mark.usefixtures("path")

ROWS, COLS = [0, 4, -1, 4], slice(2, 12, 3)
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5}


def expected(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    query, key, value = (tensor.double() for tensor in (query, key, value))
    if options.get("position") is not None:
        options = options | {"position": options["position"].double()}
    result = reference.attention(query, key, value, **options, enable_gqa=True)
    return result.weights


def check(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    dtype = query.dtype
    found = regard.weights(query, key, **options)
    tile = regard.weights(query, key, **options, heads=[3, 0], rows=ROWS, cols=COLS)
    lse = regard.attention(query, key, value, **options, enable_gqa=True, return_lse=True, backend="eager")[1]
    with_lse = regard.weights(query, key, **options, lse=lse, heads=[3, 0], rows=ROWS, cols=COLS)
    want = expected(query, key, value, options)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), want, rtol=0, atol=ALLOWED[dtype])
    part = want[:, [3, 0]][:, :, ROWS][..., COLS]
    torch.testing.assert_close(tile.double(), part, rtol=0, atol=ALLOWED[dtype])
    torch.testing.assert_close(with_lse.double(), part, rtol=0, atol=1e-6)  # the lse is float32


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_the_weights_of_the_reference(name: str, dtype: torch.dtype, kv_heads: int) -> None:
    check(*states(dtype, kv_heads=kv_heads), OPTIONS[name]())


@pytest.mark.parametrize("align", ["bottom_right", "top_left"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", POSITIONS)
def test_every_position_gives_the_weights_of_the_reference(name: str, dtype: torch.dtype, align: Any) -> None:
    # scalings that depend on the text's length know no top_left with two lengths
    kv_len = Q_LEN if align == "top_left" else KV_LEN
    check(*states(dtype, kv_heads=KV_HEADS, kv_len=kv_len), {"position": filled(POSITIONS[name](align), dtype)})


@pytest.mark.parametrize("chunk", [2**22, 50])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_normaliser_is_the_lse_of_the_reference(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = states(torch.float64, kv_heads=KV_HEADS)
    options = OPTIONS[name]()
    monkeypatch.setattr(tiles, "CHUNK", chunk)
    problem = build_problem(query, key, value, **options, enable_gqa=True)
    found = tiles.row_normaliser(problem, torch.arange(HEADS), torch.arange(Q_LEN)).lse
    want = reference.attention(query, key, value, **options, enable_gqa=True).lse
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_a_row_of_nothing_but_large_negative_numbers_is_uniform() -> None:
    """How eager models forbid: in one number, the log of the count would be lost beside it."""
    query, key, _ = states(torch.float32)
    bias = torch.full((1, 1, Q_LEN, KV_LEN), torch.finfo(torch.float32).min)
    bias[..., 1:, :4] = 0.0
    found = regard.weights(query, key, bias=bias)
    torch.testing.assert_close(found[:, :, 0], torch.full_like(found[:, :, 0], 1 / KV_LEN), rtol=0, atol=1e-6)
    assert found[:, :, 1:, 4:].eq(0).all()
    entropy = regard.statistics(query, key, bias=bias, want=("entropy",)).entropy
    assert entropy is not None
    torch.testing.assert_close(entropy[..., 0], torch.full_like(entropy[..., 0], math.log(KV_LEN)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*OPTIONS, *POSITIONS])
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, _ = states(torch.float64)
    options = OPTIONS[name]() if name in OPTIONS else {"position": filled(POSITIONS[name]("bottom_right"), query.dtype)}
    whole = regard.weights(query, key, **options)
    monkeypatch.setattr(tiles, "CHUNK", 50)
    torch.testing.assert_close(regard.weights(query, key, **options), whole, rtol=0, atol=1e-13)


def test_no_weights_where_nothing_may_be_attended_to() -> None:
    query, key, _ = states(torch.float32)
    assert regard.weights(query, key, mask=torch.zeros(Q_LEN, KV_LEN, dtype=torch.bool)).eq(0).all()
    rows = regard.weights(query, key, mask=Causal("bottom_right"), rows=0)
    assert rows[..., KV_LEN - Q_LEN + 1 :].eq(0).all()
    assert rows.sum(-1).sub(1).abs().max() < 1e-6


def test_numbers_that_are_not_finite_stay_where_the_reference_has_them() -> None:
    query, key, value = states(torch.float64)
    query[0, 0, 3, 1], key[1, 2, 5, 0], key[0, 1, 7, 2] = math.nan, math.inf, -math.inf
    for options in ({}, {"mask": Causal("bottom_right")}, {"sink": torch.zeros(HEADS, dtype=torch.float64)}):
        found = regard.weights(query, key, **options)
        want = expected(query, key, value, options)
        assert torch.equal(found.isnan(), want.isnan())
        torch.testing.assert_close(found, want, rtol=0, atol=1e-12, equal_nan=True)


def test_a_masked_key_has_no_influence_whatever_it_holds() -> None:
    query, key, _ = states(torch.float32)
    mask = torch.ones(Q_LEN, KV_LEN, dtype=torch.bool)
    mask[:, 5] = False
    clean = regard.weights(query, key, mask=mask)
    key[:, :, 5] = math.nan
    assert torch.equal(regard.weights(query, key, mask=mask), clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    query, key, _ = states(dtype)
    found = regard.weights(query, key)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, regard.weights(query.float(), key.float()), rtol=0, atol=1e-7)


def test_autocast_casts_what_goes_in_and_nothing_else() -> None:
    query, key, _ = states(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = regard.weights(query, key)
    want = regard.weights(query.bfloat16(), key.bfloat16())
    assert torch.equal(found, want)


SELECTIONS: dict[str, Any] = {
    "one": 3,
    "one from the end": -2,
    "a slice": slice(1, 9, 2),
    "a slice from the end": slice(-3, None),
    "a list": [5, 0, -1],
    "the same twice": [2, 2],
    "a tensor": torch.tensor([1, 3]),
    "a short tensor": torch.tensor([1, 3], dtype=torch.int16),
    "a number in a tensor": torch.tensor(4),
    "a range": range(2, 5),
    "none": [],
    "an empty slice": slice(5, 5),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections(name: str) -> None:
    query, key, _ = states(torch.float32)
    whole, selection = regard.weights(query, key), SELECTIONS[name]
    index = selection if isinstance(selection, slice) else torch.as_tensor(selection, dtype=torch.int64).reshape(-1)
    torch.testing.assert_close(regard.weights(query, key, rows=selection), whole[:, :, index], rtol=0, atol=1e-6)
    torch.testing.assert_close(regard.weights(query, key, cols=selection), whole[..., index], rtol=0, atol=1e-6)


def test_heads_are_query_heads() -> None:
    query, key, _ = states(torch.float32, kv_heads=KV_HEADS)
    whole = regard.weights(query, key)
    assert whole.shape == (BATCH, HEADS, Q_LEN, KV_LEN)
    torch.testing.assert_close(regard.weights(query, key, heads=-1), whole[:, 3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [11, -12, [0, 11], 1.5, [0.5], True, "all", torch.zeros(2, 2, dtype=torch.int64)])
def test_a_wrong_selection_is_refused_in_words(wrong: Any) -> None:
    query, key, _ = states(torch.float32)
    with pytest.raises(regard.ArgumentError, match=r"(?s)rows: expected indices from -11 to 10, got .* Give an int, a"):
        regard.weights(query, key, rows=wrong)


def test_a_wrong_lse_is_refused_in_words() -> None:
    query, key, _ = states(torch.float32)
    wanted = r"lse: expected \(batch, heads, q_len\) = \(2, 4, 11\), got \(2, 4, 13\)\. Take it from regard.attention"
    with pytest.raises(regard.ShapeError, match=wanted):
        regard.weights(query, key, lse=torch.zeros(2, 4, 13))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_f68_a_right_lse_gives_the_weights_and_one_in_base_2_is_refused(name: str, dtype: torch.dtype) -> None:
    query, key, value = states(dtype, kv_heads=KV_HEADS)
    options = OPTIONS[name]()
    _, lse = regard.attention(query, key, value, **options, enable_gqa=True, return_lse=True, backend="native")
    close = {"rtol": 0, "atol": 0.02 if dtype == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(
        regard.weights(query, key, **options, lse=lse), regard.weights(query, key, **options), **close
    )
    with pytest.raises(
        regard.ArgumentError,
        match=r"lse: expected .* for query \d+ of sample \d, head \d: the natural "
        r"logarithm of its sum, got .* one in base 2 times 0\.6931 is one",
    ):
        regard.weights(query, key, **options, lse=lse / math.log(2))


def test_f68_an_lse_of_other_keys_or_of_none_is_refused() -> None:
    query, key, _ = states(torch.float32)
    _, causal = regard.attention(query, key, key, mask=Causal("bottom_right"), return_lse=True)
    assert regard.weights(query, key, mask=Causal("bottom_right"), lse=causal).sum(-1).sub(1).abs().max() < 1e-5
    with pytest.raises(regard.ArgumentError, match="lse: expected"):
        regard.weights(query, key, lse=causal)
    with pytest.raises(regard.ArgumentError, match="got -inf"):
        regard.weights(query, key, lse=torch.full_like(causal, -math.inf))
    nothing = torch.zeros(Q_LEN, KV_LEN, dtype=torch.bool)
    assert regard.weights(query, key, mask=nothing, lse=torch.full_like(causal, -math.inf)).eq(0).all()


def test_wrong_tensors_are_refused_before_anything_runs() -> None:
    query, key, _ = states(torch.float32)
    with pytest.raises(regard.ShapeError):
        regard.weights(query, key[..., :-1])
    with pytest.raises(regard.MaskError):
        regard.weights(query, key, mask=Causal())
    with pytest.raises(regard.ShapeError):
        regard.weights(query[0], key[0])


def test_nothing_to_attend_to_and_nobody_who_asks() -> None:
    query, key, _ = states(torch.float32)
    assert regard.weights(query, key[:, :, :0]).shape == (BATCH, HEADS, Q_LEN, 0)
    assert regard.weights(query[:, :, :0], key).shape == (BATCH, HEADS, 0, KV_LEN)
    assert regard.weights(query, key[:, :, :0], sink=torch.zeros(HEADS)).shape == (BATCH, HEADS, Q_LEN, 0)


LONG = 8192


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", dict),
        ("causal", lambda: {"mask": Causal()}),
        ("T5", lambda: {"position": regard.positions.T5Bias(2)}),
        ("Shaw", lambda: {"position": regard.positions.Shaw(16, 4)}),
        ("TransformerXL", lambda: {"position": regard.positions.TransformerXL(2, 16)}),
    ],
)
def test_a_tile_costs_the_memory_of_a_tile(name: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CHUNK", 2**19)
    query, key = torch.randn(1, 2, LONG, 16), torch.randn(1, 2, LONG, 16)
    given = options()

    def few_rows() -> Tensor:
        with torch.no_grad():
            return regard.weights(query, key, **given, heads=0, rows=slice(100, 116), cols=slice(0, 64))

    def few_columns() -> Tensor:
        with torch.no_grad():
            return regard.weights(query, key, **given, rows=slice(0, 1024), cols=[5, 8000])

    whole_map = 2 * LONG * LONG * 4
    assert peak_bytes(few_rows) < whole_map // 16
    if name in ("plain", "Shaw"):  # as wide as the text, for each row is normalised over all keys
        assert peak_bytes(few_columns) < whole_map // 16
