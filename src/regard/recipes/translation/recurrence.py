"""Gated recurrent units over a batch of texts, with torch's parameters, at the speed of products.

Cho et al. 2014, https://arxiv.org/abs/1406.1078, as torch writes it:

    r = sigmoid(i_r + h_r)    z = sigmoid(i_z + h_z)    n = tanh(i_n + r h_n)    h' = (1 - z) n + z h

where i is made from what comes in and h from the state. torch's own GRU makes the gradient of its matrices at every
step (see `repeated_matmul`), and i for one step after another where all are there at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.recipes.translation.repeated_matmul import RepeatedMatmul


def next_state(entering: Tensor, remembered: Tensor, state: Tensor) -> Tensor:
    """h' (..., hidden) of i and h (..., 3 hidden), in the order r, z, n, and the state."""
    size = state.shape[-1]
    of_gates = entering[..., : 2 * size] + remembered[..., : 2 * size]
    reset, update = torch.sigmoid(of_gates).chunk(2, -1)
    proposed = torch.tanh(entering[..., 2 * size :] + reset * remembered[..., 2 * size :])
    return proposed + update * (state - proposed)


def read_both_ways(gru: nn.GRU, texts: Tensor, lengths: Tensor) -> Tensor:
    """States (batch, length, 2 hidden) of a bidirectional GRU of one layer; those of padding mean nothing.

    Args:
        gru: whose parameters are taken.
        texts: (batch, length, size), padded at the end.
        lengths: int64 (batch,).
    """
    places = torch.arange(texts.shape[1], device=texts.device)
    # From the last word on; padding stays at the end, where no word comes after it.
    backwards = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
    both = torch.stack([texts, texts.gather(1, backwards[..., None].expand_as(texts))])
    of_gru = dict(gru.named_parameters())
    weight_ih, weight_hh, bias_ih, bias_hh = (
        torch.stack([of_gru[f"{name}_l0"], of_gru[f"{name}_l0_reverse"]])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    entering = torch.stack([functional.linear(*each) for each in zip(both, weight_ih, bias_ih, strict=True)])
    of_state, bias = RepeatedMatmul(weight_hh.mT.to(entering.dtype)), bias_hh[:, None]
    state = texts.new_zeros(2, texts.shape[0], gru.hidden_size)
    found: list[Tensor] = []
    for each in entering.unbind(2):
        state = next_state(each, of_state(state) + bias, state)
        found.append(state)
    forward, backward = torch.stack(found, 2)
    return torch.cat([forward, backward.gather(1, backwards[..., None].expand_as(backward))], -1)
