"""Shapes that scaled_dot_product_attention broadcasts: seen as they ran, and never the reason a model fails."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
import torch.overrides
from torch import Tensor, nn

import regard
from regard.observation import torch_functions


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, **self.options)


SHAPES = {
    "learned queries": ((1, 5, 4), (3, 6, 4), (3, 6, 4), {}),
    "one key for the batch": ((3, 5, 4), (1, 6, 4), (1, 6, 4), {}),
    "one query head": ((2, 1, 5, 4), (2, 8, 6, 4), (2, 8, 6, 4), {}),
    "one value head": ((2, 8, 5, 4), (2, 8, 6, 4), (2, 1, 6, 4), {}),
    "heads without a batch": ((8, 5, 4), (2, 6, 4), (2, 6, 4), {"enable_gqa": True}),
    "five sizes": ((2, 3, 4, 5, 4), (1, 3, 4, 6, 4), (2, 1, 4, 6, 4), {}),
    "two sizes": ((5, 4), (6, 4), (6, 4), {}),
    "two sizes and a mask": ((5, 4), (6, 4), (6, 4), {"attn_mask": torch.ones(5, 6, dtype=torch.bool).tril()}),
    "five sizes and a mask": (
        (2, 3, 4, 5, 4),
        (2, 3, 4, 6, 4),
        (2, 3, 4, 6, 4),
        {"attn_mask": torch.ones(2, 1, 1, 5, 6, dtype=torch.bool).tril()},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_torch_broadcasts_is_seen_as_it_ran(name: str) -> None:
    *sizes, options = SHAPES[name]
    states = [torch.randn(size) for size in sizes]
    model = Attends(**options)
    with regard.observe(model) as seen:
        output = model(*states)
    assert torch.equal(output, model(*states))
    assert seen.missed == []
    (layer,) = seen.layers
    weights = layer.weights()  # checks itself against the output
    value = layer.call.value.repeat_interleave(weights.shape[1] // layer.call.value.shape[1], dim=1)
    torch.testing.assert_close((weights @ value).reshape(output.shape), output)


def test_a_call_that_is_not_understood_does_not_break_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **named: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(torch_functions._TRANSLATORS, F.scaled_dot_product_attention, fails)
    model, states = Attends(), [torch.randn(1, 2, 3, 4)] * 3
    with regard.observe(model) as seen:
        output = model(*states)
    assert torch.equal(output, model(*states))
    assert seen.layers == []
    assert seen.missed == ["scaled_dot_product_attention: RuntimeError: no such thing"]


def test_what_was_picked_up_while_observing_works_afterwards() -> None:
    with regard.observe(nn.Linear(2, 2)):
        kept = torch.overrides.has_torch_function
    assert torch.overrides.has_torch_function is not kept
    assert kept((torch.ones(1),)) is False


def test_closing_does_not_race_with_other_threads() -> None:
    problems: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                torch.overrides.has_torch_function((torch.ones(1),))
        except Exception as problem:
            problems.append(problem)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for _ in range(300):
        with regard.observe(nn.Linear(2, 2)):
            pass
    stop.set()
    for asker in askers:
        asker.join()
    assert problems == []
