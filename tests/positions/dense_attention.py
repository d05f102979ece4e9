"""How a backend combines the terms of a position, with explicit tables over pairs. For tests only."""

import torch
from torch import Tensor

from regard.positions import Position


def pair_distances(position: Position, q_len: int, kv_len: int) -> Tensor:
    """key position - query position of every pair, (q_len, kv_len)."""
    return torch.arange(kv_len) - position.query_positions(q_len, kv_len)[:, None]


def dense_scores(query: Tensor, key: Tensor, position: Position, *, scale: float = 1.0) -> Tensor:
    """Scores of every pair, (batch, heads, q_len, kv_len)."""
    q_len, kv_len = query.shape[2], key.shape[2]
    position.check(heads=query.shape[1], head_dim=query.shape[3], value_dim=query.shape[3], q_len=q_len, kv_len=kv_len)
    distance = pair_distances(position, q_len, kv_len)
    known, which = distance.unique(return_inverse=True)
    query = position.rotate(query, position.query_positions(q_len, kv_len))
    key = position.rotate(key, torch.arange(kv_len))
    scores = position.content_query(query) @ key.mT
    if "content" in position.terms:
        scores = scores + position.distance_scores(query, known).gather(-1, which.expand(scores.shape))
    scores = scale * scores
    return scores + position.distance_bias(known)[:, which] if "bias" in position.terms else scores


def dense_attention(query: Tensor, key: Tensor, value: Tensor, position: Position, *, scale: float = 1.0) -> Tensor:
    """Attention without a mask, (batch, heads, q_len, value_dim)."""
    weights = dense_scores(query, key, position, scale=scale).softmax(-1)
    output = weights @ value
    if "value" not in position.terms:
        return output
    known, which = pair_distances(position, query.shape[2], key.shape[2]).unique(return_inverse=True)
    return output + torch.einsum("bhqk,qkd->bhqd", weights, position.distance_values(known)[which])


def unit_normal(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit-normal numbers that are the same in every run."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def filled(position: Position) -> Position:
    """The position in float64, its parameters filled with numbers that are the same in every run."""
    position.double()
    with torch.no_grad():
        for seed, parameter in enumerate(position.parameters()):
            parameter.copy_(unit_normal(*parameter.shape, seed=100 + seed))
    return position
