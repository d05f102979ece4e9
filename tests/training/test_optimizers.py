"""Which weights Muon changes, and by how much."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regard.nn import LinearAttention, MultiHeadAttention
from regard.recipes.translation.recipe import Config, build
from regard.training import TrainingConfig
from regard.training.optimizers import optimizer_for

MUON = TrainingConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.0)


def parts_of(model: nn.Module, config: TrainingConfig) -> dict[str, set[str]]:
    """Names of parameters by the part of the optimizer that changes them; each has to be in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, set[str]] = {}
    for group in optimizer_for(model, config).param_groups:
        for parameter in group["params"]:
            found.setdefault(group["part"], set()).add(names.pop(id(parameter)))
    assert not names
    return found


def test_hidden_matrices_go_to_muon_and_all_else_to_adamw():
    config = Config(embed_dim=16, num_heads=2, encoder_layers=1, decoder_layers=1)
    model = build(config, 50)
    parts = parts_of(model, MUON)
    kinds = {name.rpartition(".")[2]: part for part, names in parts.items() for name in names}
    assert "transformer.target_embedding.weight" in parts["adamw"]  # tied to the output head, which is no table itself
    assert all(name.endswith(("weight",)) for name in parts["muon"])
    assert kinds["in_proj_weight"] == "muon"
    assert kinds["table"] == "adamw"
    assert kinds["bias"] == "adamw"


def test_what_is_frozen_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(requires_grad=False)
    assert sum(len(group["params"]) for group in optimizer_for(model, MUON).param_groups) == 2


@pytest.mark.parametrize("size", [(24, 8), (8, 24), (16, 16)])
def test_a_change_has_singular_values_of_about_one_size(size):
    torch.manual_seed(0)
    model = nn.Linear(size[1], size[0], bias=False)
    before = model.weight.detach().clone()
    optimizer = optimizer_for(model, MUON)
    model.weight.grad = torch.randn(size) @ torch.diag(torch.logspace(0, -1.5, size[1]))
    optimizer.step()
    change = (before - model.weight.detach()) / (0.01 * 0.2 * math.sqrt(max(size)))
    left, _, right = torch.linalg.svd(model.weight.grad, full_matrices=False)
    within = torch.linalg.svdvals(change)
    assert within.min() > 0.4
    assert within.max() < 1.4
    assert torch.diagonal(left.T @ change @ right.T).min() > 0.4  # along the gradient's own directions, downhill


def step_of(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The change of a matrix that stands alone."""
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model.weight.data.copy_(weight)
    model.weight.grad = gradient
    optimizer_for(model, MUON).step()
    return model.weight.detach()


@pytest.mark.parametrize(
    ("module", "name", "rows"),
    [
        (lambda: MultiHeadAttention(8, 2), "in_proj_weight", (8, 8, 8)),
        (lambda: MultiHeadAttention(8, 4, kv_heads=2, value_dim=3), "in_proj_weight", (8, 4, 6)),
        (lambda: LinearAttention(8, 2), "in_proj_weight", (8, 8, 8)),
        (lambda: nn.MultiheadAttention(8, 2), "in_proj_weight", (8, 8, 8)),
        (lambda: nn.GRU(6, 4), "weight_ih_l0", (4, 4, 4)),
        (lambda: nn.LSTMCell(6, 4), "weight_hh", (4, 4, 4, 4)),
    ],
    ids=["attention", "grouped attention", "linear attention", "torch's attention", "gru", "lstm cell"],
)
def test_matrices_in_one_tensor_are_changed_one_by_one(module, name, rows):
    torch.manual_seed(0)
    model = module()
    weight = getattr(model, name)
    gradient = torch.cat([10.0**-part * torch.randn(count, weight.shape[1]) for part, count in enumerate(rows)])
    begun = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer = optimizer_for(model, MUON)
    optimizer.step()
    alone = [step_of(*each) for each in zip(begun.split(rows), gradient.split(rows), strict=True)]
    assert torch.equal(weight.detach(), torch.cat(alone))
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], 0.05 * gradient)


def test_nothing_that_is_trained_is_forgotten():
    torch.manual_seed(0)
    model = nn.ModuleList([nn.LSTM(4, 6, proj_size=2), nn.MultiheadAttention(4, 2, kdim=3, vdim=5), nn.Conv1d(2, 3, 3)])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = optimizer_for(model, MUON)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert not any(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_vectors_change_as_with_adamw():
    torch.manual_seed(0)
    one, other = nn.LayerNorm(8), nn.LayerNorm(8)
    for model, config in ((one, MUON), (other, MUON.model_copy(update={"optimizer": "adamw"}))):
        optimizer = optimizer_for(model, config)
        for step in range(3):
            model.weight.grad, model.bias.grad = torch.full((8,), 0.5 - step), torch.arange(8.0)
            optimizer.step()
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
    assert not torch.equal(one.bias, torch.zeros(8))


def test_the_learning_rate_of_a_step_is_that_of_the_groups():
    model = nn.Linear(4, 4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = optimizer_for(model, MUON)
    for rate, moves in ((0.0, False), (0.1, True)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert all(torch.equal(now, then) is not moves for now, then in zip(model.parameters(), before, strict=True))


def test_a_state_that_was_loaded_goes_on():
    def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(6, 4)
    parted = nn.Linear(6, 4)
    parted.load_state_dict(whole.state_dict())
    stepped(whole, optimizer_for(whole, MUON), range(4))
    first = optimizer_for(parted, MUON)
    stepped(parted, first, range(2))
    second = optimizer_for(parted, MUON)
    second.load_state_dict(first.state_dict())
    stepped(parted, second, range(2, 4))
    assert torch.equal(whole.weight, parted.weight)
    assert torch.equal(whole.bias, parted.bias)
