"""The health of a model's attention: is it flat, stuck, exploding, idle?

A few examples go through the model while `regard.observe` looks on; fused kernels stay on. For each attention layer:

- `entropy`, in nats, mean over heads and queries: near log(kv_len) the layer averages everything, near 0 it copies one
  token. Entropy that collapses goes with training that diverges (Zhai et al. 2023, https://arxiv.org/abs/2303.06296).
- `sink_share`: mean weight on the first key (Xiao et al. 2023, https://arxiv.org/abs/2309.17453).
- `max_logit`: the largest score. Growth beyond some tens comes before a softmax that is one-hot and a loss that jumps
  (Dehghani et al. 2023, https://arxiv.org/abs/2302.05442).
- `dead_heads`: heads whose weights hardly depend on the query (`regard.training.dead_heads`).
- a map of each head, pooled, side by side in one image.

And for each gate of `regard.nn`, mean and spread (`regard.training.gate_values`). Layers that ran and could not be
seen are named. In a layer whose queries are its keys, padded tokens do not count; padded queries of cross attention
cannot be told from others, and do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from accelerate.utils import send_to_device  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from regard._errors import DataError, RegardError
from regard.nn._card import Card
from regard.observation import observe
from regard.observation.layer import ObservedLayer
from regard.training.dead_heads import DEAD_BELOW, query_dependence
from regard.training.gate_values import GateHealth, GateValues
from regard.training.head_maps import MAP_SIDE, tiled
from regard.training.task import Batch, Task

EXAMPLES = 8
"""So many examples are looked at, the first of the first batch, unless the task has a `health_batch()`."""


@dataclass(frozen=True)
class LayerHealth:
    """One attention layer. What cannot be told (of no queries, or NaN) is NaN.

    Attributes:
        name: of the module that attends.
        heads, q_len, kv_len: sizes.
        entropy: nats; `entropy_part` the same as a part of log(kv_len), the most there can be.
        sink_share: mean weight on the first key, 0 to 1.
        max_logit: the largest score of any pair that may attend, as the layer hands it to attention: what it adds to
            all scores of a query alike (ForgettingAttention does) is in it.
        query_dependence: mean over heads, 0 to 1.
        dead_heads: which heads hardly depend on the query.
    """

    name: str
    heads: int
    q_len: int
    kv_len: int
    entropy: float
    entropy_part: float
    sink_share: float
    max_logit: float
    query_dependence: float
    dead_heads: list[int]


@dataclass(frozen=True)
class AttentionHealth:
    """What was seen of a model.

    Attributes:
        layers: in the order in which they ran.
        gates: of the layers of `regard.nn` that have some.
        unseen: attention that ran and could not be seen, "name (class)" or with the reason.
        maps: of each layer an image, uint8 (height, width): the heads of the first example side by side, each
            brightest where its weight is largest.
    """

    layers: list[LayerHealth]
    gates: list[GateHealth]
    unseen: list[str]
    maps: dict[str, Tensor]

    def facts(self) -> dict[str, object]:
        """All but the maps, as plain values."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "gates": [asdict(gate) for gate in self.gates],
            "unseen": self.unseen,
        }

    def curves(self) -> dict[str, float]:
        """What is drawn over the steps, by "attention_KIND/LAYER" and "gate_KIND/NAME"; dead heads are counted."""
        drawn: dict[str, float] = {}
        for layer in self.layers:
            for kind in ("entropy", "entropy_part", "sink_share", "max_logit", "query_dependence"):
                drawn[f"attention_{kind}/{layer.name}"] = getattr(layer, kind)
            drawn[f"attention_dead_heads/{layer.name}"] = float(len(layer.dead_heads))
        for gate in self.gates:
            drawn |= {f"gate_mean/{gate.name}": gate.mean, f"gate_spread/{gate.name}": gate.spread}
        return {name: value for name, value in drawn.items() if math.isfinite(value)}


def task_health(model: nn.Module, task: Task) -> AttentionHealth:
    """`attention_health` on a few examples of a task, through its own loss.

    The examples are `task.health_batch()` where the task has that method (a Batch), else the first of its first batch:
    the same each time, so that looks can be compared. Only the first process looks, so that a loss which gathers over
    processes must not do so in eval mode.

    Raises:
        DataError: the task has no batches.
        RegardError: the model cannot be observed (it is compiled).
    """
    make: Callable[[], Batch] | None = getattr(task, "health_batch", None)
    if make is None:
        order = task.order(0)
        if not order:
            raise DataError("the task has no batches: its data are empty.")
        batch = task.batch(list(order[0])[:EXAMPLES])
    else:
        batch = make()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    there = cast("Batch", send_to_device(batch, device))
    return attention_health(model, lambda: task.loss(model, there))


def attention_health(model: nn.Module, run: Callable[[], object]) -> AttentionHealth:
    """The health of the attention of `model` in what `run` does with it.

    The model is in eval mode meanwhile, each of its modules is afterwards as it was, and no gradient is made.

    Args:
        model: any model that is not compiled.
        run: calls the model, as often as it likes; of a layer that runs several times the last pass counts.

    Raises:
        RegardError: the model is compiled, or changes q, k or its output in place while it runs.
    """
    training = [module for module in model.modules() if module.training]
    ran: set[nn.Module] = set()
    model.eval()
    try:
        with torch.no_grad(), observe(model) as seen, GateValues(model, seen) as gates, _noting(ran):
            run()
    finally:
        for module in training:
            module.training = True
    unseen = list(seen.missed)
    layers: list[LayerHealth] = []
    maps: dict[str, Tensor] = {}
    for layer in seen.layers:
        try:
            health, image = _of_layer(layer)
        except RegardError as problem:
            unseen.append(f"{layer.name}: {problem}")
        else:
            layers.append(health)
            maps[layer.name] = image
    covered = [layer.name.partition(" (call ")[0] for layer in seen.layers]
    covered += [gate.name for gate in gates.found()]
    return AttentionHealth(layers, gates.found(), unseen + _not_covered(model, ran, covered), maps)


@contextmanager
def _noting(ran: set[nn.Module]) -> Generator[None]:
    """While open, every module that runs is added. A hook for all modules: one of its own takes fast paths away."""

    def note(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001 - torch's signature
        ran.add(module)

    handle = register_module_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _of_layer(layer: ObservedLayer) -> tuple[LayerHealth, Tensor]:
    side = max(1, min(MAP_SIDE, layer.q_len, layer.kv_len))
    found = layer.statistics(want=("entropy", "received", "max_logit", "sink_share"), pooled=side)
    entropy, received, largest, sink, pooled = (
        cast("Tensor", part)
        for part in (found.entropy, found.received, found.max_logit, found.sink_share, found.pooled)
    )
    real = _real_queries(layer, received)
    counts = real.unsqueeze(1) & (largest > -math.inf)
    dependence = query_dependence(layer, real)
    mean_entropy = _mean(entropy, counts)
    health = LayerHealth(
        name=layer.name,
        heads=layer.heads,
        q_len=layer.q_len,
        kv_len=layer.kv_len,
        entropy=mean_entropy,
        entropy_part=mean_entropy / math.log(layer.kv_len) if layer.kv_len > 1 else math.nan,
        sink_share=_mean(sink, counts),
        max_logit=float(largest[counts].max()) if bool(counts.any()) else math.nan,
        query_dependence=float(dependence.nanmean()),
        dead_heads=[head for head in range(layer.heads) if float(dependence[head]) < DEAD_BELOW],
    )
    return health, tiled(pooled[0])


def _real_queries(layer: ObservedLayer, received: Tensor) -> Tensor:
    """bool (batch, q_len). Where there are as many keys as queries, a token that no query looks at is padding."""
    if layer.q_len != layer.kv_len:
        return torch.ones(received.shape[0], layer.q_len, dtype=torch.bool, device=received.device)
    return (received != 0).any(1)


def _mean(values: Tensor, counts: Tensor) -> float:
    return float(values[counts].double().mean())


def _not_covered(model: nn.Module, ran: set[nn.Module], covered: list[str]) -> list[str]:
    """Attention that ran while nothing was seen of it, nor below it, nor of what it is a part of."""
    unseen: dict[str, str] = {}
    for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        kind = type(module).__name__
        own = name or kind
        if module in ran and _attends(module) and not any(_within(own, other) for other in (*covered, *unseen)):
            unseen[own] = kind
    return [f"{name} ({kind})" for name, kind in unseen.items()]


def _within(one: str, other: str) -> bool:
    """Whether one module is the other, or a part of it, either way."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _attends(module: nn.Module) -> bool:
    """A mechanism of regard.nn (losses have cards too, and attend to nothing), or what calls itself attention."""
    card: Any = getattr(module, "card", None)
    kind = type(module).__name__
    return "Attention" in kind or (isinstance(card, Card) and not kind.endswith("Loss"))
