"""Variants of a comparison have as many parameters, and their weights come from the seed alone."""

import pytest
import torch
from torch import nn

from regard import ArgumentError
from regard.recipes.dialogue.model import MEMORIES
from regard.recipes.dialogue.model import model_of_budget as dialogue_model
from regard.recipes.equal_budget import drawn_from, fitted, parameters_of
from regard.recipes.language_model.compare import VARIANTS
from regard.recipes.language_model.model import model_of_budget as language_model


def test_language_models_differ_by_less_than_half_a_per_cent():
    counts = [parameters_of(language_model("abcdef", 32, 4, 2, **options)) for options in VARIANTS.values()]
    assert max(counts) / min(counts) < 1.005


def test_dialogue_models_differ_by_less_than_half_a_per_cent():
    counts = [
        parameters_of(dialogue_model(50, 32, 4, 2, memory=memory, slots=4, decay=0.9, reach=8)) for memory in MEMORIES
    ]
    assert max(counts) / min(counts) < 1.005


def test_fitted_takes_the_width_that_is_closest():
    made = fitted(lambda width: nn.Linear(10, width), like=lambda: nn.Linear(10, 7), near=30)
    assert made.out_features == 7


def test_counting_draws_nothing():
    def build(width: int) -> nn.Linear:
        return nn.Linear(4, width)

    torch.manual_seed(3)
    expected = build(5).weight.detach().clone()
    torch.manual_seed(3)
    made = fitted(build, like=lambda: build(5), near=9)
    assert torch.equal(made.weight, expected)


def test_a_mechanism_beyond_the_budget_is_refused():
    with pytest.raises(ArgumentError, match=r"parameters: expected a mechanism that fits into 8, got 100 without"):
        fitted(lambda width: nn.ParameterList([torch.zeros(100 + width)]), like=lambda: nn.Linear(1, 4), near=3)


def test_numbers_inside_come_from_the_seed_and_outside_as_if_nothing_had_been_drawn():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with drawn_from(7):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with drawn_from(7):
        assert torch.equal(torch.rand(3), first)
