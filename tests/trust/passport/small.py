"""A decoder small enough to be recorded in a moment, and what it reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WIDTH, HEADS, VOCABULARY, LENGTH, BATCH = 16, 2, 11, 7, 2


class Attention(nn.Module):
    """Attention through torch's function, as models of today have it."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.scale = (WIDTH // HEADS) ** -0.5
        self.causal = True

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = self.into(states).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal, scale=self.scale)
        return self.out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.wide = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.5)

    def forward(self, states: Tensor) -> tuple[Tensor, None]:
        states = states + self.dropout(self.attention(self.before(states)))
        found = self.narrow(F.gelu(self.wide(states)))
        found += states  # in place, as some models do
        return found, None


class Decoder(nn.Module):
    """Token ids to logits, {"logits": ..., "states": ...}."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        states = self.embedding(ids)
        for block in self.blocks:
            states, _ = block(states)
        states = self.norm(states)
        return {"logits": self.head(states), "states": states}


def decoder(seed: int = 3) -> Decoder:
    """In eval mode, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder().eval()


def ids(seed: int = 5) -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))


def states(*sizes: int, seed: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def made() -> tuple[Decoder, dict[str, Tensor]]:
    """What the command line is given."""
    return decoder(), {"ids": ids()}


def changed() -> tuple[Decoder, dict[str, Tensor]]:
    """The same with one weight changed."""
    model = decoder()
    model.blocks[1].narrow.weight.data[3, 5] += 1e-3
    return model, {"ids": ids()}
