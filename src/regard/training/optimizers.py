"""The optimizers: AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon) changes a matrix by its momentum with all singular values brought to about
1, so that directions which gradients rarely take move as fast as the frequent ones:

    M <- 0.95 M + 0.05 G        W <- W - rate * 0.2 sqrt(max(rows, columns)) * orthogonal(0.95 M + 0.05 G)

Matrices that lie on top of each other in one tensor (query, key and value; the gates of a recurrence) are made
orthogonal one by one: together, the value's gradient, which is the largest while attention is still even, would leave
the query and the key next to nothing.

The factor gives entries of the change the size that AdamW's have, so both go by one learning rate (Liu et al. 2025,
"Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, section 2.2). As both papers advise, embeddings,
vectors and whatever is no matrix stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.nn.transformer_model import TokenEmbedding
from regard.positions import Position
from regard.training.config import TrainingConfig

_LOOKED_UP = (nn.Embedding, TokenEmbedding, Position)
"""Tables of which a step reads single rows; their weights, tied to an output head or not, are no hidden matrices."""


def optimizer_for(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """What the configuration names, for all parameters that are trained."""
    if config.optimizer == "adamw":
        return _adamw([p for p in model.parameters() if p.requires_grad], config)
    return MuonAdamW(model, config)


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW as one optimizer, whose groups and state hold those of both.

    Args:
        model: matrices of its layers go to Muon, all else to AdamW.
        config: learning rate and weight decay of both, and beta1, beta2 of AdamW.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = _hidden_matrices(model)
        self._rows = _stacked_rows(model)
        taken = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in taken]
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            rate, decay = config.learning_rate, config.weight_decay
            self._parts["muon"] = torch.optim.Muon(
                matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
        if rest:
            self._parts["adamw"] = _adamw(rest, config)
        groups = [{**group, "part": name} for name, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - the loop has no closures
        """Change all weights. The groups are handed over each time: whoever loads a state replaces them."""
        if closure is not None:
            raise TypeError("closure: expected None; compute the loss before the step.")
        for name, part in self._parts.items():
            groups = [group for group in self.param_groups if group["part"] == name]
            part.param_groups, part.state = self._apart(groups) if name == "muon" else (groups, self.state)
            part.step()

    def _apart(self, groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
        """Groups and state in which each matrix of a stack is a parameter of its own, on the same memory."""
        state: dict[nn.Parameter, dict[str, Tensor]] = {}
        return [{**group, "params": list(self._matrices(group["params"], state))} for group in groups], state

    def _matrices(
        self, stacks: list[nn.Parameter], state: dict[nn.Parameter, dict[str, Tensor]]
    ) -> Iterator[nn.Parameter]:
        for stack in stacks:
            if stack.grad is None:
                continue
            momentum: Tensor = self.state[stack].setdefault("momentum_buffer", torch.zeros_like(stack))
            begin = 0
            for count in self._rows.get(id(stack), (stack.shape[0],)):
                rows = slice(begin, begin + count)
                matrix = nn.Parameter(stack.detach()[rows])
                matrix.grad, state[matrix] = stack.grad[rows], {"momentum_buffer": momentum[rows]}
                begin += count
                yield matrix


def _adamw(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms, gains) do not decay."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trained matrices that are no table's, each once."""
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _LOOKED_UP)
        for parameter in module.parameters(recurse=False)
    }
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in tables]


def _stacked_rows(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """How many rows each matrix of a stack has, by the id of the parameter that holds them."""
    found: dict[int, tuple[int, ...]] = {}
    for module in model.modules():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            size = module.hidden_size
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith(("weight_ih", "weight_hh")):  # an LSTM's weight_hr is one matrix
                    found[id(parameter)] = (size,) * (parameter.shape[0] // size)
        elif isinstance(module, nn.MultiheadAttention):
            found[id(module.in_proj_weight)] = (cast("Any", module).embed_dim,) * 3
        elif hasattr(module, "in_proj_widths"):
            found[id(module.in_proj_weight)] = cast("tuple[int, ...]", module.in_proj_widths)
    return found
