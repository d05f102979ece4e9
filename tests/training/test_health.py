"""The health of attention, against plain definitions and heads made to be dead or alive."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import regard
import regard.nn
from regard._errors import DataError
from regard.masks import Causal, Mask, Padding, SlidingWindow
from regard.training.head_maps import tiled
from regard.training.health import AttentionHealth, LayerHealth, attention_health, task_health


class Given(nn.Module):
    """Attention whose scores are given."""

    def forward(self, scores: Tensor, mask: Mask | None = None) -> Tensor:
        batch, heads, q_len, kv_len = scores.shape
        query, key = torch.zeros(batch, heads, q_len, 4), torch.zeros(batch, heads, kv_len, 4)
        value = torch.randn(batch, heads, kv_len, 4)
        return regard.attention(query, key, value, bias=scores, mask=mask, additive=True)


def _looked(scores: Tensor, mask: Mask | None = None) -> LayerHealth:
    model = Given()
    (layer,) = attention_health(model, lambda: model(scores, mask)).layers
    return layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_statistics_are_means_over_real_queries(causal: bool, padded: bool) -> None:
    scores = 3.0 * torch.randn(2, 3, 7, 7)
    lengths = [7, 4] if padded else [7, 7]
    mask = Padding(torch.tensor(lengths)) & Causal() if causal else Padding(torch.tensor(lengths))
    found = _looked(scores, mask)
    entropies, sinks, largest = [], [], -math.inf
    for example, length in enumerate(lengths):
        for head in range(3):
            for row in range(length):
                seen = scores[example, head, row, : row + 1 if causal else length].double()
                weights = seen.softmax(0)
                entropies.append(float(-(weights * weights.log()).sum()))
                sinks.append(float(weights[0]))
                largest = max(largest, float(seen.max()))
    assert found.entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert found.entropy_part == pytest.approx(found.entropy / math.log(7), rel=1e-12)
    assert found.sink_share == pytest.approx(sum(sinks) / len(sinks), rel=1e-5)
    assert found.max_logit == pytest.approx(largest, rel=1e-6)
    assert (found.heads, found.q_len, found.kv_len) == (3, 7, 7)


LENGTH = 64


def _heads() -> dict[str, Tensor]:
    """Scores of heads, and whether somebody would call them dead ("dead ...")."""
    place = torch.arange(LENGTH)
    alike = torch.zeros(LENGTH, LENGTH)
    sink = alike.clone()
    sink[:, 0] = 12.0
    halves = alike.clone()
    halves[:32, 3], halves[32:, 5] = 9.0, 9.0
    turns = alike.clone()
    turns[::2, 3], turns[1::2, 5] = 9.0, 9.0
    return {
        "dead uniform": alike,
        "dead sink": sink,
        "dead whatever asks": torch.randn(LENGTH).expand(LENGTH, LENGTH),
        "dead but for a breath": 0.05 * torch.randn(LENGTH, LENGTH),
        "content": 2.0 * torch.randn(LENGTH, LENGTH),
        "previous token": 9.0 * (place[:, None] - 1 == place).float(),
        "itself": 9.0 * torch.eye(LENGTH),
        "recent": -0.5 * (place[:, None] - place).abs().float(),
        "neighbours alike": halves,
        "far ones alike": turns,
    }


@pytest.mark.parametrize(
    ("mask", "but"),
    [
        (None, set[str]()),
        (Causal(), set[str]()),
        (SlidingWindow(8), {"dead sink", "neighbours alike", "far ones alike"}),  # key 0 is out of sight there
    ],
)
def test_dead_heads_are_those_that_do_not_look_at_what_asks(mask: Mask | None, but: set[str]) -> None:
    kinds = {name: scores for name, scores in _heads().items() if name not in but}
    found = _looked(torch.stack(list(kinds.values()))[None].repeat(2, 1, 1, 1), mask)
    assert [name for place, name in enumerate(kinds) if place in found.dead_heads] == [
        name for name in kinds if name.startswith("dead")
    ]


def test_dependence_is_that_of_the_definition() -> None:
    """Queries that each copy another token; queries that agree unless they are far apart."""
    eye = 40.0 * torch.eye(LENGTH)[None, None]
    assert _looked(eye).query_dependence == pytest.approx(1.0, abs=1e-6)
    first = torch.linspace(0, LENGTH - 2, 16).round().tolist()
    near = [1.0 - 1.0 / (row + 2.0) for row in first if row > 0]  # query 0 and another share one key only
    assert _looked(eye, Causal()).query_dependence == pytest.approx(sum(near) / len(near), abs=1e-6)
    halves = torch.zeros(1, 1, LENGTH, LENGTH)
    halves[:, :, 32:, :16] = math.log(3.0)
    halves[:, :, 32:, 16:32] = -40.0
    weights = halves[0, 0].double().softmax(-1)
    far = [0.5 * float((weights[row] - weights[row + 32]).abs().sum()) for row in range(32)]
    assert _looked(halves).query_dependence == pytest.approx(sum(far) / len(far), abs=1e-6)
    shared = [0.5 * float((w[0] / w[0].sum() - w[1] / w[1].sum()).abs().sum()) for w in _shared(weights)]
    assert _looked(halves, Causal()).query_dependence == pytest.approx(sum(shared) / len(shared), abs=1e-6)


def _shared(weights: Tensor) -> list[Tensor]:
    rows = torch.linspace(0, 31, 16).round().long().tolist()
    return [weights[[row, row + 32], : row + 1] for row in rows if row > 0]


def test_padding_makes_no_head_dead() -> None:
    """Queries that are padding look alike; they are most of this batch."""
    scores = torch.zeros(2, 1, LENGTH, LENGTH)
    scores[:, :, :10, :10] = 4.0 * torch.randn(2, 1, 10, 10)
    found = _looked(scores, Padding(torch.tensor([10, 10])))
    assert found.dead_heads == []
    assert found.query_dependence > 0.3


def test_what_cannot_be_told_is_no_number_and_nobodys_death() -> None:
    one = _looked(torch.zeros(1, 2, 1, 5))
    assert math.isnan(one.query_dependence)
    assert one.dead_heads == []
    assert one.entropy_part == pytest.approx(1.0)
    assert math.isnan(_looked(torch.zeros(1, 2, 3, 1)).entropy_part)
    broken = _looked(torch.full((1, 2, 5, 5), math.nan))
    assert math.isnan(broken.entropy)
    assert broken.dead_heads == []


class Tokens(nn.Module):
    """What can be seen, what cannot, and what does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = regard.nn.TransformerEncoder(8, 2, 1)
        self.linear = regard.nn.LinearAttention(8, 2)
        self.theirs = HandMadeAttention()
        self.torch = nn.MultiheadAttention(8, 2, batch_first=True)
        self.idle = regard.nn.LinearAttention(8, 2)
        self.loss = regard.nn.CLIPLoss()

    def forward(self, x: Tensor) -> Tensor:
        x = self.theirs(self.linear(self.encoder(x)))
        x = self.torch(x, x, x, need_weights=False)[0]
        return self.loss(x.mean(1), x[:, 0])


class HandMadeAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


def test_layers_that_cannot_be_seen_are_named() -> None:
    model, x = Tokens(), torch.randn(3, 5, 8)
    found = attention_health(model, lambda: model(x))
    assert [layer.name for layer in found.layers] == ["encoder.layers.0.self_attention", "torch"]
    assert found.unseen == ["linear (LinearAttention)", "theirs (HandMadeAttention)"]
    assert set(found.maps) == {layer.name for layer in found.layers}


def test_a_layer_that_wipes_out_what_it_compared_is_named_with_the_reason() -> None:
    class Wipes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found = functional.scaled_dot_product_attention(x, x, x)
            x.zero_()
            return found

    model, x = Wipes(), torch.randn(1, 2, 5, 4)
    found = attention_health(model, lambda: model(x))
    assert found.layers == []
    assert len(found.unseen) == 1
    assert found.unseen[0].startswith("Wipes: query was changed in place")


def test_looking_changes_nothing() -> None:
    model, x = Tokens(), torch.randn(3, 5, 8)
    model.train()
    model.torch.eval()
    before = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inside: list[bool] = []
    attention_health(model, lambda: inside.append(model.encoder.training or torch.is_grad_enabled()) or model(x))
    assert inside == [False]
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ZeroDivisionError):
        attention_health(model, lambda: 1 // 0)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not torch.nn.modules.module._global_forward_hooks


GATED: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "gated": (lambda: regard.nn.GatedAttention(8, 2), lambda layer, x: layer(x, return_gate=True)[1]),
    "output": (lambda: regard.nn.OutputGatedAttention(8, 2), lambda layer, x: torch.sigmoid(layer.gate_proj(x))),
    "multi-head": (
        lambda: regard.nn.MultiHeadAttention(8, 2, gate="head"),
        lambda layer, x: torch.sigmoid(layer.gate_proj(x)),
    ),
    "forgetting": (lambda: regard.nn.ForgettingAttention(8, 2), lambda layer, x: torch.sigmoid(layer.forget(x))),
}


@pytest.mark.parametrize("name", GATED)
def test_gates_of_tokens(name: str) -> None:
    make, gate_of = GATED[name]
    model, x = nn.Sequential(make()), 3.0 * torch.randn(2, 6, 8)
    model.eval()
    with torch.no_grad():
        gate = gate_of(model[0], x).double()
    found = attention_health(model, lambda: model(x))
    (health,) = found.gates
    assert health.name == "0"
    assert health.mean == pytest.approx(float(gate.mean()), rel=1e-5)
    assert health.spread == pytest.approx(math.sqrt(float((gate - gate.mean()).square().mean())), rel=1e-4)
    assert [layer.name for layer in found.layers] == ["0"], "what is computed for the gate is not seen as attention"


def test_gates_of_images_are_what_scales_them() -> None:
    image = torch.randn(2, 8, 5, 5)
    image[0, 0] = 0.0  # of these nobody knows what scaled them
    for make in (
        regard.nn.SqueezeExcitation,
        regard.nn.EffectiveSqueezeExcitation,
        regard.nn.EfficientChannel,
        regard.nn.ChannelGate,
        regard.nn.CBAM,
        regard.nn.CoordinateAttention,
        regard.nn.GatherExcite,
        regard.nn.BAM,
    ):
        model = nn.Sequential(make(8)).eval()
        with torch.no_grad():
            ratio = (model(image).double() / image)[image != 0]
        found = attention_health(model, lambda model=model: model(image))
        whole = next(gate for gate in found.gates if gate.name == "0")
        assert (whole.mean, whole.spread) == pytest.approx(
            (float(ratio.mean()), float(ratio.std(correction=0))), rel=1e-4
        )
        assert found.unseen == []


def test_gates_that_are_weights() -> None:
    nearest, memory = regard.nn.KNNMemory(8, 2), regard.nn.MemoryAttention(8, 2, slots=3, learned_decay=True)
    flamingo = regard.nn.GatedCrossAttention(8, 2)
    with torch.no_grad():
        nearest.gate_logit.copy_(torch.tensor([0.0, 2.0]))
        flamingo.attention_gate.fill_(0.5)
    x = torch.randn(2, 6, 8)
    expected = torch.sigmoid(torch.tensor([0.0, 2.0])).double()
    (gate,) = attention_health(nearest, lambda: nearest(x)).gates
    assert gate.mean == pytest.approx(float(expected.mean()), rel=1e-6)
    assert gate.spread == pytest.approx(float(expected.std(correction=0)), rel=1e-6)
    (gate,) = attention_health(memory, lambda: memory(x)).gates
    assert gate.name == "MemoryAttention.decay"
    assert gate.mean == pytest.approx(float(memory.decay.detach().mean()), rel=1e-6)
    two = {gate.name: gate.mean for gate in attention_health(flamingo, lambda: flamingo(x, x)).gates}
    assert two == {
        "GatedCrossAttention.attention_gate": pytest.approx(math.tanh(0.5), rel=1e-6),
        "GatedCrossAttention.feedforward_gate": 0.0,
    }


def test_layers_without_gates_have_none() -> None:
    model = nn.ModuleList([regard.nn.MultiHeadAttention(8, 2), regard.nn.MemoryAttention(8, 2, slots=3)])
    x = torch.randn(2, 6, 8)
    assert attention_health(model, lambda: [layer(x) for layer in model]).gates == []


def test_a_map_shows_heads_side_by_side_each_by_its_own_largest() -> None:
    maps = torch.tensor([[[0.0, 2.0], [1.0, 4.0]], [[0.1, 0.1], [0.1, 0.1]], [[0.0, 0.0], [0.0, math.nan]]])
    line = 96
    assert tiled(maps).tolist() == [
        [0, 128, line, 255, 255],
        [64, 255, line, 255, 255],
        [line, line, line, line, line],
        [0, 0, line, 0, 0],
        [0, 0, line, 0, 0],
    ]


def test_a_map_is_of_the_first_example() -> None:
    scores = torch.zeros(2, 1, 3, 3)
    scores[0, 0, :, 1] = 40.0
    model = Given()
    (image,) = attention_health(model, lambda: model(scores)).maps.values()
    assert image.dtype == torch.uint8
    assert image.tolist() == [[0, 255, 0]] * 3


class CountingTask:
    """Says what it was asked for."""

    metric = "accuracy"

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self.model = regard.nn.MultiHeadAttention(8, 2)
        self.batches, self.asked = batches, [list[int]()]

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        return self.batches

    def units(self, indices: Sequence[int]) -> int:
        return len(indices)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        self.asked.append(list(indices))
        return {"x": torch.randn(len(indices), 4, 8)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"]).sum()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"accuracy": 0.0}


def test_a_task_is_looked_at_in_the_first_of_its_first_batch() -> None:
    task = CountingTask([range(20, 60), range(5)])
    found = task_health(task.model, task)
    assert isinstance(found, AttentionHealth)
    assert task.asked[1:] == [list(range(20, 28))]
    assert [layer.q_len for layer in found.layers] == [4]
    json.dumps(found.facts())


def test_a_task_may_choose_the_examples() -> None:
    class Chosen(CountingTask):
        def health_batch(self) -> dict[str, Tensor]:
            return {"x": torch.randn(2, 9, 8)}

    task = Chosen([])
    assert [layer.q_len for layer in task_health(task.model, task).layers] == [9]
    assert task.asked[1:] == []


def test_a_task_without_batches_has_no_health() -> None:
    task = CountingTask([])
    with pytest.raises(DataError, match="no batches: its data are empty"):
        task_health(task.model, task)
