"""The optimizers: AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon) changes a matrix by its momentum with all singular values brought to about
1, so that directions which gradients rarely take move as fast as the frequent ones:

    M <- 0.95 M + 0.05 G        W <- W - rate * 0.2 sqrt(max(rows, columns)) * orthogonal(0.95 M + 0.05 G)

The factor gives entries of the change the size that AdamW's have, so both go by one learning rate (Liu et al. 2025,
"Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, section 2.2). As both papers advise, embeddings,
vectors and whatever is no matrix stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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
            part.param_groups = [group for group in self.param_groups if group["part"] == name]
            part.state = self.state
            part.step()


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
