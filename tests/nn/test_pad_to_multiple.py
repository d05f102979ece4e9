"""pad_to_multiple: zeros behind, off again, and where they change nothing."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.nn import pad_to_multiple


@pytest.mark.parametrize("dim", [-3, -2, -1, 0, 1, 2])
@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_zeros_behind_and_off_again(dim, multiple):
    tensor = torch.randn(3, 8, 5, requires_grad=True)
    padded, undo = pad_to_multiple(tensor, multiple, dim)
    sizes = list(tensor.shape)
    sizes[dim] = -(-sizes[dim] // multiple) * multiple
    assert list(padded.shape) == sizes
    assert torch.equal(undo(padded), tensor)
    assert not padded.narrow(dim, tensor.shape[dim], sizes[dim] - tensor.shape[dim]).any()
    padded.sum().backward()
    assert torch.equal(tensor.grad, torch.ones_like(tensor))


def test_a_multiple_is_not_copied():
    tensor = torch.randn(2, 32)
    padded, undo = pad_to_multiple(tensor)
    assert padded is tensor
    assert undo(padded) is tensor


def test_undo_serves_what_was_computed_from_it():
    tensor, weight = torch.randn(7, 5), torch.randn(6, 5)
    rows, undo = pad_to_multiple(tensor, 16, dim=0)
    assert torch.equal(undo(rows @ weight.T), tensor @ weight.T)


def test_wider_heads_of_zeros_change_no_attention():
    query, key, value = torch.randn(3, 2, 4, 9, 20)
    wide = [pad_to_multiple(states) for states in (query, key, value)]
    found = wide[2].undo(regard.attention(*(each.tensor for each in wide), scale=20**-0.5))
    torch.testing.assert_close(found, regard.attention(query, key, value), rtol=1e-6, atol=1e-6)


def test_works_compiled():
    compiled = torch.compile(lambda tensor: pad_to_multiple(tensor, 8).tensor, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2, 5)).shape == (2, 8)


def test_refusals():
    with pytest.raises(regard.ArgumentError, match="multiple: expected a whole number of at least 1, got 0"):
        pad_to_multiple(torch.ones(2), 0)
    with pytest.raises(regard.ArgumentError, match=r"dim: expected from -2 to 1 for a tensor of 2 dimensions, got 2"):
        pad_to_multiple(torch.ones(2, 3), 16, 2)
