"""A decoder-only language model of characters, whose mixing of tokens is what is compared.

    states = norm(block_L( .. block_1(embedding(characters))))         logits = states embedding^T

Blocks are those of `regard.nn.TransformerEncoder(causal=True)`, or the same with S4D in the place of attention. Every
variant is made to have the parameters of the plain one: what attention has more, the feed-forward network has less.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.masks import SlidingWindow
from regard.nn import S4D, FeedForward, TokenEmbedding, TransformerEncoder
from regard.positions import ALiBi, Position, RoPE, T5Bias
from regard.recipes.equal_budget import fitted

PositionName = Literal["alibi", "rope", "t5", "sinusoid", "none"]
Gate = Literal["none", "element", "head"]
Mixer = Literal["attention", "s4d"]


class LanguageModel(nn.Module):
    """Characters (batch, length) to states (batch, length, embed_dim), from which `logits` are made.

    The buffer `characters` (vocabulary,) has their code points, so that weights and vocabulary cannot be separated.

    Args:
        vocabulary: the characters, each once.
        embed_dim, num_heads, num_layers: sizes of the stack.
        hidden: width of the feed-forward networks.
        mixer: what mixes characters: causal attention, or a state space.
        position: of attention; "sinusoid" is added to the embeddings, "none" leaves order to the causal mask.
        gate: of the heads' outputs, see `MultiHeadAttention`.
        window: how many characters one sees, itself included; 0 is all before it.
        dropout_p: as in `BlockOptions`.
    """

    characters: Tensor

    def __init__(
        self,
        vocabulary: str,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        hidden: int,
        *,
        mixer: Mixer = "attention",
        position: PositionName = "rope",
        gate: Gate = "none",
        window: int = 0,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        absolute = "sinusoid" if position == "sinusoid" and mixer == "attention" else None
        self.register_buffer("characters", torch.tensor([ord(character) for character in vocabulary]))
        self.embedding = TokenEmbedding(len(vocabulary), embed_dim, absolute=absolute, dropout_p=dropout_p)
        self.mask = SlidingWindow(window - 1, 0) if window else None
        if mixer == "s4d":
            self.stack: nn.Module = StateSpaceStack(embed_dim, num_layers, hidden, dropout_p=dropout_p)
        else:
            self.stack = TransformerEncoder(
                embed_dim,
                num_heads,
                num_layers,
                position=_position(position, num_heads, embed_dim // num_heads),
                causal=True,
                activation="gelu",
                dim_feedforward=hidden,
                gate=None if gate == "none" else gate,
                dropout_p=dropout_p,
            )

    def forward(self, characters: Tensor) -> Tensor:
        return self.stack(self.embedding(characters), mask=self.mask)

    @property
    def vocabulary(self) -> str:
        """The characters, in the order of their numbers."""
        return "".join(map(chr, map(int, self.characters)))

    def logits(self, characters: Tensor) -> Tensor:
        """(batch, length, vocabulary): at each place those of the character after it."""
        return self(characters) @ self.embedding.weight.T


class StateSpaceStack(nn.Module):
    """Blocks of S4D and feed-forward, each with a residual connection and a norm before it."""

    def __init__(self, embed_dim: int, num_layers: int, hidden: int, *, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(S4D(embed_dim, dropout_p=dropout_p) for _ in range(num_layers))
        self.feed_forwards = nn.ModuleList(
            FeedForward(embed_dim, hidden, activation="gelu", dropout_p=dropout_p) for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(2 * num_layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout_p)

    def forward(self, x: Tensor, *, mask: None = None) -> Tensor:
        """(batch, length, embed_dim) to the same; causal by its nature, so that it takes no mask."""
        for number, (mixer, feed_forward) in enumerate(zip(self.mixers, self.feed_forwards, strict=True)):
            x = x + self.dropout(mixer(self.norms[2 * number](x)))
            x = x + self.dropout(feed_forward(self.norms[2 * number + 1](x)))
        return self.norm(x)


def model_of_budget(vocabulary: str, embed_dim: int, num_heads: int, num_layers: int, **options: Any) -> LanguageModel:
    """The variant that `options` describe, with as many parameters as plain attention with a hidden width of 4 d."""

    def build(hidden: int, **options: Any) -> LanguageModel:
        return LanguageModel(vocabulary, embed_dim, num_heads, num_layers, hidden, **options)

    return fitted(lambda hidden: build(hidden, **options), like=lambda: build(4 * embed_dim), near=4 * embed_dim)


def _position(name: PositionName, heads: int, head_dim: int) -> Position | None:
    if name == "alibi":
        return ALiBi(heads)
    if name == "rope":
        return RoPE(head_dim)
    if name == "t5":
        return T5Bias(heads, bidirectional=False)
    return None
