"""A few queries that see all tokens: against the definition, once and twice differentiated; and who takes that way."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.nn import LongformerAttention, _few_queries


def drawn(rows=3, length=17, width=6, batch=2):
    return (torch.randn(batch, size, width, dtype=torch.float64, requires_grad=True) for size in (rows, length))


def defined(query, tokens):
    return (query @ tokens.transpose(1, 2)).softmax(2) @ tokens


def test_is_the_definition_and_so_are_its_gradients():
    query, tokens = drawn()
    found, expected = _few_queries.attend_to_tokens(query, tokens), defined(query, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    direction = torch.randn_like(expected)
    mine, theirs = (torch.autograd.grad(each, (query, tokens), direction) for each in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(wanted):
    query, tokens = drawn()
    given = [each if place == wanted else each.detach() for place, each in enumerate((query, tokens))]
    mine, theirs = (
        torch.autograd.grad(way(*given).square().sum(), given[wanted])
        for way in (_few_queries.attend_to_tokens, defined)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_twice_differentiated():
    query, tokens = drawn(rows=2, length=5, width=3, batch=1)
    assert torch.autograd.gradgradcheck(_few_queries.attend_to_tokens, (query, tokens))


def test_several_gradients_at_a_time():
    query, tokens = drawn()
    found, expected = _few_queries.attend_to_tokens(query, tokens), defined(query, tokens)
    directions = torch.randn(4, *expected.shape, dtype=torch.float64)
    mine, theirs = (
        torch.autograd.grad(each, (query, tokens), directions, is_grads_batched=True) for each in (found, expected)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_serves_training_alone():
    query, tokens = drawn()
    assert _few_queries.serves(query, tokens)
    assert not _few_queries.serves(query, tokens.detach())
    assert not _few_queries.serves(query.bfloat16(), tokens.bfloat16())
    assert not _few_queries.serves(query.float(), tokens)
    with torch.no_grad():
        assert not _few_queries.serves(query, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert not _few_queries.serves(query, tokens)


def test_global_rows_of_longformer_are_seen_by_whoever_observes():
    module, x = LongformerAttention(36, 3, window=3), torch.randn(1, 21, 36, requires_grad=True)
    with regard.observe(module) as seen:
        module(x, global_tokens=1)
    with regard.observe(module) as without_gradient, torch.no_grad():
        module(x, global_tokens=1)
    assert len(seen.layers) == len(without_gradient.layers)
