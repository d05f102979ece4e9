"""The optimizers: AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon) changes a matrix by its momentum with all singular values brought to about
1, so that directions which gradients rarely take move as fast as the frequent ones:

    M <- 0.95 M + 0.05 G        W <- W - rate * 0.2 sqrt(max(rows, columns)) * orthogonal(0.95 M + 0.05 G)

Matrices that lie on top of each other in one tensor (query, key and value; the gates of a recurrence) are made
orthogonal one by one: together, the value's gradient, which is the largest while attention is still even, would leave
the query and the key next to nothing. A matrix that is spread over processes (FSDP2) is gathered, one at a time, and
each process makes it orthogonal.

The factor gives entries of the change the size that AdamW's have, so both go by one learning rate (Liu et al. 2025,
"Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, section 2.2). As both papers advise, embeddings,
vectors and whatever is no matrix stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

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
        rows = _stacked_rows(model)
        taken = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in taken]
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            rate, decay = config.learning_rate, config.weight_decay
            muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            # By place, not by id: parameters that are spread over processes are put in the places of these.
            muon.param_groups[0]["rows"] = [rows.get(id(matrix), (matrix.shape[0],)) for matrix in matrices]
            self._parts["muon"] = muon
        if rest:
            self._parts["adamw"] = _adamw(rest, config)
        groups = [{**group, "part": name} for name, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - the loop has no closures
        """Change all weights. The groups are handed over each time: whoever loads a state replaces them."""
        if closure is not None:
            raise TypeError("closure: expected None; compute the loss before the step.")
        for group in self.param_groups:
            part = self._parts[group["part"]]
            if group["part"] == "adamw":
                part.param_groups, part.state = [group], self.state
                part.step()
                continue
            for stack, rows in zip(group["params"], group["rows"], strict=True):
                if stack.grad is not None:
                    self._change_stack(part, group, stack, rows)

    def _change_stack(
        self, muon: torch.optim.Optimizer, group: dict[str, Any], stack: nn.Parameter, rows: tuple[int, ...]
    ) -> None:
        """Change each matrix of a stack as a parameter of its own; one that is spread over processes is gathered."""
        state = self.state[stack]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(stack)
        momentum: Tensor = state["momentum_buffer"]
        gradient = cast("Tensor", stack.grad)
        weight, slope, buffer = (_gathered(each.detach()) for each in (stack, gradient, momentum))
        matrices: list[nn.Parameter] = []
        muon.state = cast("Any", {})
        begin = 0
        for count in rows:
            part = slice(begin, begin + count)
            matrix = nn.Parameter(weight[part])
            matrix.grad, muon.state[matrix] = slope[part], {"momentum_buffer": buffer[part]}
            matrices.append(matrix)
            begin += count
        muon.param_groups = [{**group, "params": matrices}]
        muon.step()
        _put_back(stack, weight)
        _put_back(momentum, buffer)


def _gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor; its own memory where it is not spread."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _put_back(spread: Tensor, whole: Tensor) -> None:
    """This process's part of what each has computed alike."""
    if isinstance(spread, DTensor):
        spread.copy_(distribute_tensor(whole, spread.device_mesh, spread.placements, src_data_rank=None))


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
