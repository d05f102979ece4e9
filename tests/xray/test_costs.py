"""What each backend costs: measured where it is cheap, extrapolated beyond, refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor, nn

import regard
from regard import masks
from regard.measure import Cost
from regard.observation import ObservedLayer
from regard.xray import costs
from regard.xray.chinese import in_chinese
from regard.xray.costs import at_length, layer_costs, signature
from regard.xray.probe import Pattern
from tests.observation.modules import build

CAUSAL = Pattern("causal", causal=True, after=0)
EVERYTHING = Pattern("bidirectional", causal=False)


class Plain(nn.Module):
    """SDPA on what comes in. Wide states make its fixed scratch memory small beside them."""

    def forward(self, states: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(states, states, states)


def observed(name: str) -> ObservedLayer:
    model, states = build(name)
    with torch.no_grad(), regard.observe(model) as seen:
        model(states)
    return seen.layers[0]


@pytest.fixture(autouse=True)
def without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention compiles for seconds: its time is a number made up here."""

    def cost_of(function: Any, **settings: Any) -> Cost:
        return Cost(1.0, 1) if function.__closure__[0].cell_contents == "flex" else original(function, **settings)

    original = costs.cost_of
    monkeypatch.setattr(costs, "cost_of", cost_of)


def test_backends_that_can_are_measured_and_those_that_refuse_say_why() -> None:
    rows = {row.backend: row for row in layer_costs(observed("regard, eager with softcap and sink"))}
    assert not rows["sdpa"].supported
    assert "softcap" in rows["sdpa"].reason
    assert rows["sdpa"].cost is None
    assert rows["eager"].supported
    assert rows["eager"].cost is not None
    assert rows["eager"].cost.milliseconds > 0
    assert rows["eager"].as_json() == {
        "backend": "eager",
        "supported": True,
        "reason": rows["eager"].reason,
        "reason_zh": in_chinese(rows["eager"].reason),
        "milliseconds": rows["eager"].cost.milliseconds,
        "peak_bytes": rows["eager"].cost.peak_bytes,
    }
    assert rows["sdpa"].as_json()["milliseconds"] is None


def test_every_backend_has_a_row() -> None:
    from regard.backends import BACKENDS

    assert {row.backend for row in layer_costs(observed("sdpa, causal"))} == {backend.name for backend in BACKENDS}


def test_sdpa_memory_grows_with_the_length_and_eager_memory_with_its_square() -> None:
    found = at_length(_layer(Plain(), width=64), CAUSAL, 2048)
    rows = {row["backend"]: row for row in found["backends"]}
    assert found["length"] == 2048
    assert rows["sdpa"]["growth"] == pytest.approx(1, abs=0.2)
    assert rows["eager"]["growth"] == pytest.approx(2, abs=0.2)
    for row in rows.values():
        assert row["measured_to"] == 2048
        assert row["extrapolated"] is False
    assert rows["eager"]["peak_bytes"] > 10 * rows["sdpa"]["peak_bytes"]


def test_beyond_what_is_affordable_it_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer(Plain(), width=64)
    monkeypatch.setattr(costs, "FIRST_LENGTH", 128)
    real = at_length(layer, EVERYTHING, 1024)["backends"]
    monkeypatch.setattr(costs, "_affordable", lambda _, length: length <= 512)
    told = at_length(layer, EVERYTHING, 1024)["backends"]
    for row in told:
        assert row["extrapolated"] is True
        assert row["measured_to"] == 512
    peaks = [next(row["peak_bytes"] for row in rows if row["backend"] == "eager") for rows in (told, real)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.1)


LAWS = [lambda n: 7 * n, lambda n: 5e6 + 7 * n, lambda n: 3 * n * n, lambda n: 1e6 + 0.01 * n * n, lambda n: 2 * n**1.5]


@pytest.mark.parametrize(("law", "power"), list(zip(LAWS, (1, 1, 2, 2, 1.5), strict=True)))
def test_growth_is_that_of_the_part_that_grows(law: Any, power: float) -> None:
    points = [(n, float(law(n))) for n in (512, 1024, 2048)]
    assert costs.exponent(points) == pytest.approx(power, abs=1e-6)
    assert costs._continued(points, 16384) == pytest.approx(law(16384), rel=1e-6)
    assert costs._continued(points, 2048) == law(2048)


@pytest.mark.parametrize("points", [[(512, 3.0), (1024, 2.0), (2048, 2.5)], [(512, 3.0), (1024, 2.0)], [(512, 3.0)]])
def test_noise_neither_shrinks_with_the_length_nor_explodes(points: list[tuple[int, float]]) -> None:
    assert 0 <= costs.exponent(points) <= 2
    assert points[-1][1] < costs._continued(points, 8192) < points[-1][1] * 16.01**2


def test_a_run_that_would_take_long_or_much_memory_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "available_bytes", lambda: 1000 * 2**20)
    cheap, slow, large = Cost(1.0, 2**20), Cost(1000.0, 2**20), Cost(1.0, 200 * 2**20)
    assert costs._affordable([(512, cheap)], 1024)
    assert not costs._affordable([(512, slow)], 1024)
    assert not costs._affordable([(512, large)], 1024)
    monkeypatch.setattr(costs, "available_bytes", lambda: 0)  # a system that does not say
    assert costs._affordable([(512, large)], 1024)


@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_short_lengths_are_measured_and_not_called_quadratic(length: int) -> None:
    rows = {row["backend"]: row for row in at_length(observed("sdpa"), EVERYTHING, length)["backends"]}
    assert rows["sdpa"]["extrapolated"] is False
    assert rows["sdpa"]["measured_to"] == length
    if length == 100:
        assert rows["sdpa"]["growth"] < 1.5


def test_a_relative_bias_over_all_pairs_is_part_of_the_price() -> None:
    class Biased(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(states, states, states, torch.randn(1, 2, 8, 8))

    class Masked(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            lowest = torch.full((8, 8), torch.finfo(torch.float32).min).triu(1)
            return F.scaled_dot_product_attention(states, states, states, lowest)

    def peak(model: nn.Module) -> int:
        with torch.no_grad(), regard.observe(model) as seen:
            model(torch.randn(1, 2, 8, 4))
        rows = at_length(seen.layers[0], EVERYTHING, 1024)["backends"]
        return next(row["peak_bytes"] for row in rows if row["backend"] == "sdpa")

    assert peak(Masked()) < 2 * 1024 * 1024 * 4 < peak(Biased())
    assert costs._bias(_layer(Masked()), 16) is None
    bias = costs._bias(_layer(Biased()), 16)
    assert bias is not None
    assert bias.shape == (1, 2, 16, 16)


def _layer(model: nn.Module, width: int = 4) -> ObservedLayer:
    with torch.no_grad(), regard.observe(model) as seen:
        model(torch.randn(1, 2, 8, width))
    return seen.layers[0]


@pytest.mark.parametrize(
    ("pattern", "mask"),
    [
        (None, None),
        (EVERYTHING, None),
        (CAUSAL, masks.Causal()),
        (Pattern("causal, window 4", causal=True, window=4, after=0), masks.SlidingWindow(3, 0)),
        (Pattern("window -2..+3", causal=False, window=3, after=3), masks.SlidingWindow(2, 3)),
        (Pattern("window -3..-1", causal=True, window=4, after=-1), None),
        (Pattern("other: 40 % of pairs", causal=True), None),
    ],
)
def test_the_mask_at_another_length_is_the_one_that_was_found(pattern: Pattern | None, mask: masks.Mask | None) -> None:
    assert costs._mask(pattern) == mask


def test_layers_that_cost_the_same_have_the_same_signature() -> None:
    model, states = build("encoder")
    with torch.no_grad(), regard.observe(model) as seen:
        model(states)
    assert signature(seen.layers[0]) == signature(seen.layers[1])
    assert hash(signature(seen.layers[0]))
    names = ("sdpa", "sdpa, causal", "sdpa, grouped", "sdpa, scale", "sdpa, float mask", "regard, RoPE", "sdpa, 3-D")
    assert len({signature(observed(name)) for name in names}) == len(names)
