"""F46-F47: tensors that lie in memory in other ways than one after another."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.masks import Causal
from tests import oracles
from tests.judging import each_backend

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 9, 8


def transposed(tensor):
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def heads_last(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def every_second(tensor):
    wide = torch.randn(*tensor.shape[:2], 2 * tensor.shape[2], 2 * tensor.shape[3], dtype=tensor.dtype)
    wide[:, :, ::2, ::2] = tensor
    return wide[:, :, ::2, ::2]


def unaligned(tensor):
    storage = torch.randn(tensor.numel() + 3, dtype=tensor.dtype)
    storage[3:] = tensor.flatten()
    return storage[3:].view(tensor.shape)


def fused_projection(tensor):
    whole = torch.randn(tensor.shape[0], tensor.shape[2], 3, *tensor.shape[1::2], dtype=tensor.dtype)
    whole[:, :, 1] = tensor.transpose(1, 2)
    return whole[:, :, 1].transpose(1, 2)


def flipped(tensor):
    return tensor.flip(2).flip(2)


LAYOUTS = (transposed, heads_last, every_second, unaligned, fused_projection, flipped)


def tensors():
    return [torch.randn(BATCH, HEADS, LENGTH, WIDTH) for _ in range(3)]


def run(query, key, value, backend, upstream, **options):
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = regard.attention(*leaves, mask=Causal(), backend=backend, **options)
    return output, torch.autograd.grad(output, leaves, upstream)


@pytest.mark.parametrize("backend", ["native", "eager", "sdpa"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_f46_any_layout_is_as_the_contiguous_one(layout, backend):
    plain = tensors()
    for of in (transposed, heads_last, torch.Tensor.contiguous):  # of the gradient that comes in
        upstream = of(torch.randn(BATCH, HEADS, LENGTH, WIDTH))
        expected, gradients = run(*plain, backend, upstream.contiguous())
        output, found = run(*map(layout, plain), backend, upstream)
        oracles.assert_within(output, expected, 1e-6)
        for one, other in zip(found, gradients, strict=True):
            oracles.assert_within(one, other, 5e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_f46_any_layout_on_flex(layout):
    plain = tensors()
    expected = regard.attention(*plain, backend="flex")
    oracles.assert_within(regard.attention(*map(layout, plain), backend="flex"), expected, 1e-6)


@each_backend
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_f46_stride_zero(dim, backend):
    query, key, value = tensors()
    key, value = (tensor.narrow(dim, 0, 1).expand_as(tensor) for tensor in (key, value))
    expected = regard.attention(query, key.contiguous(), value.contiguous(), backend=backend)
    oracles.assert_within(regard.attention(query, key, value, backend=backend), expected, 1e-6)


@pytest.mark.parametrize("backend", ["native", "eager", "sdpa"])
def test_f46_gradient_of_stride_zero_comes_in(backend):
    plain = tensors()
    one = torch.randn(1, 1, 1, 1)
    upstream = one.expand(BATCH, HEADS, LENGTH, WIDTH)
    expected, gradients = run(*plain, backend, upstream.contiguous())
    output, found = run(*plain, backend, upstream)
    oracles.assert_within(output, expected, 1e-6)
    for one_, other in zip(found, gradients, strict=True):
        oracles.assert_within(one_, other, 5e-6)


@each_backend
@pytest.mark.parametrize("which", [0, 1, 2])
def test_f47_offsets_beyond_32_bits(which, backend):
    # Two samples more than 2**31 elements apart. The pages between them are never touched, so they cost nothing.
    far = 2**31 + 64
    plain = [torch.randn(2, 1, 4, 8).half() for _ in range(3)]
    storage = torch.empty(far + 64, dtype=torch.float16)
    distant = storage.as_strided((2, 1, 4, 8), (far, 32, 8, 1))
    distant.copy_(plain[which])
    expected = regard.attention(*plain, backend=backend)
    plain[which] = distant
    assert torch.equal(regard.attention(*plain, backend=backend), expected)
