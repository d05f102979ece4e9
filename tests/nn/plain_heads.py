"""Attention with projections, written out: the oracle of the mechanisms that are attention with a mask."""

from __future__ import annotations

import torch


def projected(module, tokens, first, count=1):
    """`count` of the stacked maps from the `first` on, heads apart: each (batch, heads, length, head_dim)."""
    width, heads = module.embed_dim, module.num_heads
    maps = []
    for place in range(first, first + count):
        rows = slice(place * width, (place + 1) * width)
        out = tokens @ module.in_proj_weight[rows].T
        if module.in_proj_bias is not None:
            out = out + module.in_proj_bias[rows]
        maps.append(out.reshape(*tokens.shape[:2], heads, width // heads).transpose(1, 2))
    return maps


def weighted(query, key, value, keep):
    """softmax(q k^T / sqrt(d) where keep) v, joined; a row that keeps nothing is 0."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~keep, float("-inf")).softmax(-1)
    weights = torch.where(keep.any(-1, keepdim=True), weights, 0.0)
    return (weights @ value).transpose(1, 2).flatten(2)


def plain(module, tokens, keep, context=None):
    """The whole mechanism on (batch, length, embed_dim); keep is bool and broadcasts to (batch, heads, q, kv)."""
    context = tokens if context is None else context
    (query,) = projected(module, tokens, 0)
    key, value = projected(module, context, 1, 2)
    return module.out_proj(weighted(query, key, value, keep))


def written_out(length, rule):
    """Bool (length, length) from a rule about a query's and a key's place."""
    return torch.tensor([[rule(query, key) for key in range(length)] for query in range(length)])


def drawn(module, *shapes, dtype=torch.float64):
    """The module in this dtype, with biases that are not zero, and unit-normal tensors."""
    generator = torch.Generator().manual_seed(3)
    module = module.to(dtype)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "bias" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return module, *(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)


def same(found, expected, inputs, weights, *, tolerance):
    """Two results are equal, and the gradients that a random direction sends to inputs and weights."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(4)).to(found.dtype)
    wanted = [*inputs, *weights]
    ours = torch.autograd.grad(found, wanted, direction, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, wanted, direction, allow_unused=True, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1.0, float(other.abs().max())))
