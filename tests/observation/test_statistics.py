"""`regard.statistics`: what the weights are like, equal to the formulas on the whole map, without the map."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard import reference
from regard.masks import Causal, Padding
from regard.measure import peak_bytes
from regard.observation import tiles
from regard.observation.statistics import KINDS
from tests.observation.problems import BATCH, HEADS, KV_HEADS, KV_LEN, OPTIONS, POSITIONS, Q_LEN, filled, states

pytestmark = pytest.mark.usefixtures("path")


def by_formula(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """Every statistic from the whole map of the reference."""
    result = reference.attention(query, key, value, **options, enable_gqa=True)
    weights = result.weights
    away = (torch.arange(weights.shape[-1]) - torch.arange(weights.shape[-2])[:, None]).abs()
    lengths = value.norm(dim=-1).repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    return {
        "entropy": -(weights * weights.clamp_min(1e-300).log()).sum(-1),
        "received": weights.sum(-2),
        "received_value": weights.sum(-2) * lengths,
        "max_logit": result.scores.amax(-1),
        "sink_share": weights[..., 0],
        "distance": (weights * away).sum(-1),
    }


def pooled_by_loops(weights: Tensor, side: int) -> Tensor:
    rows, cols = weights.shape[-2:]
    found = weights.new_zeros(*weights.shape[:-2], side, side)
    count = [0] * side
    for row in range(rows):
        count[row * side // rows] += 1
        for col in range(cols):
            found[..., row * side // rows, col * side // cols] += weights[..., row, col]
    for index, many in enumerate(count):
        found[..., index, :] /= max(many, 1)
    return found


@pytest.mark.parametrize("chunk", [2**22, 300])
@pytest.mark.parametrize("name", [*OPTIONS, *POSITIONS])
def test_every_statistic_is_its_formula(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = states(torch.float64, kv_heads=KV_HEADS)
    options = OPTIONS[name]() if name in OPTIONS else {"position": filled(POSITIONS[name]("bottom_right"), query.dtype)}
    monkeypatch.setattr(tiles, "CHUNK", chunk)
    found = regard.statistics(query, key, value, want=KINDS, topk=3, pooled=4, **options)
    for statistic, want in by_formula(query, key, value, options).items():
        torch.testing.assert_close(getattr(found, statistic), want, rtol=0, atol=1e-11, msg=statistic)
    weights = regard.weights(query, key, **options)
    assert found.top_weights is not None
    assert found.top_keys is not None
    torch.testing.assert_close(found.top_weights, weights.topk(3).values, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.gather(-1, found.top_keys), found.top_weights, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.pooled, pooled_by_loops(weights, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [1, 3, 11, 40])
def test_a_pooled_map_keeps_the_weight_of_its_rows(side: int) -> None:
    query, key, _ = states(torch.float64)
    pooled = regard.statistics(query, key, want=(), pooled=side).pooled
    assert pooled is not None
    assert pooled.shape == (BATCH, HEADS, side, side)
    sums = pooled.sum(-1)
    used = min(side, Q_LEN)
    assert ((sums - 1).abs() < 1e-12).sum() == BATCH * HEADS * used
    assert float(sums.sum()) == pytest.approx(BATCH * HEADS * used)


def test_only_what_was_asked_for_is_there() -> None:
    query, key, _ = states(torch.float32)
    found = regard.statistics(query, key, want=("entropy",))
    assert found.entropy is not None
    assert [name for name, entry in vars(found).items() if entry is not None] == ["entropy"]


def test_nan_stays_visible_in_the_rows_that_it_reaches() -> None:
    query, key, _ = states(torch.float32, kv_len=Q_LEN)
    query[0, 1, 3] = math.nan
    found = regard.statistics(query, key, mask=Causal())
    for name in ("entropy", "max_logit", "sink_share", "distance"):
        unknown = getattr(found, name).isnan()
        assert unknown[0, 1, 3], name
        assert unknown.sum() == 1, name
    assert found.received is not None
    assert torch.equal(found.received.isnan().nonzero()[:, 2], torch.arange(4))


def test_infinite_scores_are_not_passed_off_as_certainty() -> None:
    query, key, _ = states(torch.float32)
    query[0, 0, 0] = math.inf
    found = regard.statistics(query, key, want=("entropy",)).entropy
    assert found is not None
    assert found[0, 0, 0].isnan()
    assert found.isnan().sum() == 1


def test_a_row_that_attends_to_nothing_has_no_entropy_and_no_distance() -> None:
    query, key, _ = states(torch.float32)
    found = regard.statistics(query, key, mask=Padding([0, KV_LEN]), topk=2, sink=torch.zeros(HEADS))
    assert found.entropy is not None
    assert found.max_logit is not None
    assert found.entropy[0].eq(0).all()
    assert found.max_logit[0].eq(-math.inf).all()
    assert found.entropy[1].gt(0).all()


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 5), (5, 0), (0, 0)])
def test_empty_texts_have_empty_statistics(q_len: int, kv_len: int) -> None:
    query, key, value = states(torch.float32, q_len=q_len, kv_len=kv_len)
    found = regard.statistics(query, key, value, want=KINDS, topk=3, pooled=2)
    for name in ("entropy", "max_logit", "sink_share", "distance"):
        assert getattr(found, name).shape == (BATCH, HEADS, q_len)
    assert found.received is not None
    assert found.received.shape == (BATCH, HEADS, kv_len)
    assert found.top_keys is not None
    assert found.top_keys.shape == (BATCH, HEADS, q_len, min(3, kv_len))


def test_wrong_wishes_are_refused_in_words() -> None:
    query, key, _ = states(torch.float32)
    with pytest.raises(regard.ArgumentError, match=r"want: expected names out of entropy, received.*got 'entropie'"):
        regard.statistics(query, key, want=("entropie",))
    with pytest.raises(regard.ArgumentError, match=r"received_value: expected value, got None"):
        regard.statistics(query, key, want=("received_value",))
    with pytest.raises(regard.ArgumentError, match=r"topk: expected 0 or more, got -1"):
        regard.statistics(query, key, topk=-1)
    with pytest.raises(regard.ArgumentError, match=r"pooled: expected at least 1, got 0"):
        regard.statistics(query, key, pooled=0)


def test_memory_stays_far_below_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CHUNK", 2**18)
    length = 3000
    query, key = torch.randn(1, 1, length, 8), torch.randn(1, 1, length, 8)
    peak = peak_bytes(lambda: regard.statistics(query, key, mask=Causal(), topk=4, pooled=32))
    assert peak < length * length * 4 // 3
