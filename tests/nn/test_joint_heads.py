"""Heads of one projection: views of it, and gradients that come back without a copy where they can."""

from __future__ import annotations

import pytest
import torch

from regard import attention
from regard.backends import _library
from regard.nn import _joint_heads
from regard.nn._joint_heads import heads_apart

HEADS, HEAD = 3, 4
native = pytest.mark.skipif(_library.why_absent() is not None, reason="no native core")


def projection(batch=2, length=9, count=3):
    return torch.randn(batch, length, count * HEADS * HEAD, requires_grad=True)


def by_torch(projected, count=3):
    """The same by slices and no function of ours."""
    parts = projected.reshape(*projected.shape[:2], count, HEADS, HEAD)
    return [parts[:, :, place].transpose(1, 2) for place in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_are_the_parts_of_the_projection(count):
    projected = projection(count=count)
    for found, expected in zip(heads_apart(projected, count, HEADS), by_torch(projected, count), strict=True):
        assert torch.equal(found, expected)
        assert found.data_ptr() == expected.data_ptr()


@pytest.fixture
def copied(monkeypatch):
    """For each backward: were the gradients put together by a copy?"""
    told, whole = [], _joint_heads._whole

    def telling(grads):
        found = whole(grads)
        told.append(found is None)
        return found

    monkeypatch.setattr(_joint_heads, "_whole", telling)
    return told


@native
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_on_the_native_core_gives_the_projections_gradient_as_it_lies(copied, batch):
    projected = projection(batch)
    direction = torch.randn(batch, HEADS, 9, HEAD)
    (mine,) = torch.autograd.grad(attention(*heads_apart(projected, 3, HEADS), backend="native"), projected, direction)
    (theirs,) = torch.autograd.grad(attention(*by_torch(projected), backend="native"), projected, direction)
    assert torch.equal(mine, theirs)
    assert copied == [False]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 0, 1)], ids=str)
def test_other_gradients_are_put_together(copied, order):
    projected = projection()
    parts, expected = heads_apart(projected, 3, HEADS), by_torch(projected)
    loss, plain = (
        sum((place + 1) * each[index].square().sum() for place, index in enumerate(order)) for each in (parts, expected)
    )
    mine, theirs = (torch.autograd.grad(each, projected)[0] for each in (loss, plain))
    torch.testing.assert_close(mine, theirs)
    assert copied == [True]


@native
def test_parts_in_another_order_get_gradients_of_their_own(copied):
    projected = projection()
    direction = torch.randn(2, HEADS, 9, HEAD)
    grads = []
    for query, key, value in (heads_apart(projected, 3, HEADS), by_torch(projected)):
        grads += torch.autograd.grad(attention(value, key, query, backend="native"), projected, direction)
    assert torch.equal(*grads)
    assert copied == [True]


@native
def test_a_gradient_more_for_one_part_is_added(copied):
    projected = projection()
    grads = []
    for query, key, value in (heads_apart(projected, 3, HEADS), by_torch(projected)):
        loss = attention(query, key, value, backend="native").sum() + key.square().sum()
        grads += torch.autograd.grad(loss, projected)
    torch.testing.assert_close(*grads)


def test_twice_differentiated():
    projected = projection(1, 3).double().detach().requires_grad_()

    def heads(projected):
        query, key, value = heads_apart(projected, 3, HEADS)
        return (query @ key.mT).sin() @ value

    assert torch.autograd.gradgradcheck(heads, projected)


def test_several_gradients_at_a_time():
    projected = projection()
    directions = torch.randn(4, 2, HEADS, 9, HEAD)
    mine, theirs = (
        torch.autograd.grad(query * key + value, projected, directions, is_grads_batched=True)
        for query, key, value in (heads_apart(projected, 3, HEADS), by_torch(projected))
    )
    torch.testing.assert_close(mine, theirs)
