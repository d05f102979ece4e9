"""Three ways to read a document, of equally many parameters: what is compared. The guide's 3.1 and 4.1.

    flat          every token sees every token of the document, whose end is cut off
    windowed      every token sees its neighbours and the document's first token, which sees all (Longformer's pattern)
    hierarchical  every token sees its sentence; sentences are joined to paragraphs and these to the document
                  (`regard.nn.HierarchicalAttention`), and each token is told what its sentence, paragraph and document
                  came to before it looks at its sentence once more

Flat and windowed have the same weights, and only the mask differs. The hierarchy has two blocks over tokens (one before
and one after, or more of each) and one for each level; as its joining costs parameters, the feed-forward networks of
its token blocks are narrower. All know a token's place in the document by the sinusoids of its embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regard.masks import Documents, GlobalTokens, Mask, Padding, SlidingWindow
from regard.nn import HierarchicalAttention, Ragged, TransformerEncoder
from regard.positions import RoPE
from regard.recipes.equal_budget import fitted

EncoderName = Literal["flat", "windowed", "hierarchical"]
LEVELS = 3
"""Sentence, paragraph, document."""


class FlatEncoder(nn.Module):
    """Self-attention over a document, padded: all pairs, or a window and the first token.

    Args:
        embed_dim, num_heads, num_layers: of the blocks.
        window: tokens seen on either side; None for all.
        dropout_p: as in `BlockOptions`.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, num_layers: int, *, window: int | None = None, dropout_p: float = 0.0
    ) -> None:
        super().__init__()
        self.pattern: Mask | None = None if window is None else SlidingWindow(window) | GlobalTokens(1)
        self.blocks = TransformerEncoder(
            embed_dim,
            num_heads,
            num_layers,
            position=RoPE(embed_dim // num_heads),
            activation="gelu",
            dropout_p=dropout_p,
        )

    def forward(self, states: Tensor, structure: Ragged) -> Tensor:
        """(documents, length, embed_dim) to the same. Rows behind a document's end hold what nobody should read."""
        lengths = structure.of_documents()
        even = min(lengths) == states.shape[1]
        mask: Mask | None = None if even else Padding(lengths)
        if self.pattern is not None:
            mask = self.pattern if mask is None else self.pattern & mask
        return self.blocks(states, mask=mask)


class HierarchicalEncoder(nn.Module):
    """Tokens within their sentence, sentences within their paragraph, paragraphs within the document, and back down.

    Args:
        embed_dim, num_heads: of the blocks.
        num_layers: blocks in all: one for each of the three levels, the others over tokens.
        hidden: width of the feed-forward networks of the blocks over tokens.
        dropout_p: as in `BlockOptions`.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, num_layers: int, *, hidden: int | None = None, dropout_p: float = 0.0
    ) -> None:
        super().__init__()
        of_tokens = num_layers - LEVELS
        before = (of_tokens + 1) // 2
        position = RoPE(embed_dim // num_heads)

        def blocks(count: int) -> TransformerEncoder:
            return TransformerEncoder(
                embed_dim,
                num_heads,
                count,
                position=position,
                activation="gelu",
                dim_feedforward=hidden,
                dropout_p=dropout_p,
            )

        self.before, self.after = blocks(before), blocks(of_tokens - before)
        self.levels = HierarchicalAttention(
            embed_dim, num_heads, form="transformer", levels=LEVELS, positions=[position] * LEVELS, dropout_p=dropout_p
        )
        self.told = nn.Linear(LEVELS * embed_dim, embed_dim)

    def forward(self, states: Tensor, structure: Ragged) -> Tensor:
        """(documents, length, embed_dim) to the same, zeros behind a document's end."""
        cells = cells_of(structure.of_documents(), states.shape[1], states.device)
        flat = states.flatten(0, 1)
        tokens = self._within(self.before, flat.index_select(0, cells), structure)
        sentences, paragraphs, documents = self.levels(tokens, structure).vectors
        sentence = owners(structure.counts[0], states.device)
        paragraph = owners(structure.counts[1], states.device)
        document = owners(structure.counts[2], states.device)[paragraph]
        above = self.told(torch.cat([sentences, paragraphs[paragraph], documents[document]], 1))
        tokens = self._within(self.after, tokens + above[sentence], structure)
        return flat.new_zeros(flat.shape).index_copy(0, cells, tokens.to(flat.dtype)).view(states.shape)

    def _within(self, blocks: TransformerEncoder, tokens: Tensor, structure: Ragged) -> Tensor:
        """Each sentence by itself."""
        return blocks(tokens.unsqueeze(0), mask=Documents(structure.counts[0])).squeeze(0)


def make_encoder(
    name: EncoderName, embed_dim: int, num_heads: int, num_layers: int, *, window: int, dropout_p: float
) -> nn.Module:
    """The encoder of this name; all have as many parameters as the flat one, up to the width of a few channels."""

    def flat() -> FlatEncoder:
        return FlatEncoder(embed_dim, num_heads, num_layers, dropout_p=dropout_p)

    if name == "flat":
        return flat()
    if name == "windowed":
        return FlatEncoder(embed_dim, num_heads, num_layers, window=window, dropout_p=dropout_p)

    def hierarchical(hidden: int) -> HierarchicalEncoder:
        return HierarchicalEncoder(embed_dim, num_heads, num_layers, hidden=hidden, dropout_p=dropout_p)

    return fitted(hierarchical, like=flat, near=4 * embed_dim)


def owners(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """The group of each item, int64 (items,): 0 counts[0] times, then 1 counts[1] times, and so on."""
    times = torch.tensor(counts, dtype=torch.int64, device=device)
    return torch.repeat_interleave(torch.arange(len(counts), device=device), times, output_size=sum(counts))


def cells_of(lengths: list[int], longest: int, device: torch.device) -> Tensor:
    """Where the tokens of all documents lie in padded rows, flattened: int64 (tokens,)."""
    real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    return real.flatten().nonzero().squeeze(1)
