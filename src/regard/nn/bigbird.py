"""BigBird: each block of tokens sees its neighbours, some global blocks, and a few random ones.

Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", arXiv:2007.14062 (the guide's 3.1). With blocks of b
tokens, block i attends to the blocks

    {j : |j - i| <= w}  and  the first and last g  and  r that are drawn for i;   global blocks attend to all

Time n * b * (2 w + 1 + 2 g + r) * d, memory n * d. Valid with padding. Not valid causally: the global and the random
blocks look ahead, and without them BigBird is a window.

What differs from the model in Hugging Face transformers, which also has the paper's authors' way of drawing: there each
head draws blocks of its own, a block may be drawn that is global already and then counts twice, and in evaluation mode
nothing is drawn, but the first block is counted 1 + r times. Here a key counts once, always; all heads share what is
drawn, by default from (seed, block) alone. `random_blocks` may be a table instead, one for each head if need be.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard._shapes import shape_of
from regard.masks import BigBird, Mask
from regard.nn._arguments import require_positive
from regard.nn._block_table import BlockTable
from regard.nn._card import Card
from regard.nn._projections import HeadOptions
from regard.nn.sparse import MaskedAttention


class BigBirdAttention(MaskedAttention):
    """Window, global and random blocks, called on (batch, length, embed_dim).

    Args:
        embed_dim, num_heads: width of a token, and heads that divide it.
        block_size: tokens in a block; the last one may be shorter.
        window_blocks: blocks of the window, an odd number.
        global_blocks: how many of the (first, last) blocks see all and are seen by all.
        random_blocks: how many further blocks each block sees, drawn anew for each length from `seed`; or which ones:
            an int table (blocks, r) or (heads, blocks, r), for texts of as many blocks.
        seed: chooses the random blocks where they are drawn.
        bias, dropout_p, backend, output_projection, device, dtype: see `HeadProjections`. `causal` must stay False.

    Raises:
        ArgumentError: a size below 1, `causal`, a table of another shape.
        MaskError: an even window.
    """

    card: ClassVar[Card] = Card(
        guide="3.1",
        source="Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences, arXiv:2007.14062",
        equation="softmax(q k^T / sqrt(d_h)) v over c = window + global + random blocks of b tokens for each block",
        time="O(n c b d + n d^2)",
        memory="O(n d)",
        causal=False,
        padding=True,
        note="A key counts once, where transformers' model counts some blocks twice; under torch.compile its mask is "
        "n x n booleans.",
    )
    random_table: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        block_size: int = 64,
        window_blocks: int = 3,
        global_blocks: tuple[int, int] = (1, 1),
        random_blocks: int | Tensor = 3,
        seed: int = 0,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(embed_dim, num_heads, **options)
        require_positive(block_size=block_size)
        if self.causal:
            raise ArgumentError(
                "causal",
                expected="False",
                got="True",
                do="Global and random blocks look ahead; take LongformerAttention(causal=True).",
            )
        self.block_size = block_size
        drawn = 0 if isinstance(random_blocks, Tensor) else random_blocks
        self.drawn = BigBird(block_size, window_blocks, global_blocks, drawn, seed)
        table = _checked(random_blocks, num_heads) if isinstance(random_blocks, Tensor) else None
        self.register_buffer("random_table", table)

    @staticmethod
    def from_transformers(
        layer: nn.Module, random_blocks: int | Tensor | None = None, *, output: nn.Linear | None = None, seed: int = 0
    ) -> BigBirdAttention:
        """With copies of the weights of a Hugging Face `BigBirdBlockSparseAttention`.

        Args:
            layer: the self-attention, which has a window of 3 blocks and one global block at either end.
            random_blocks: a table of which random blocks a block sees, for each head if need be; or a number. As many
                as the layer has unless given.
            output: the map behind it, for ours to end with; without it ours has no last map either.
            seed: chooses the random blocks where they are drawn.

        Raises:
            ArgumentError: a module without the projections of a BigBirdBlockSparseAttention.
        """
        maps = [getattr(layer, name, None) for name in ("query", "key", "value")]
        if not all(isinstance(each, nn.Linear) for each in maps) or not hasattr(layer, "num_random_blocks"):
            raise ArgumentError(
                "layer",
                expected="a transformers BigBirdBlockSparseAttention",
                got=type(layer).__name__,
                do="Pass model.encoder.layer[i].attention.self, of a model that has not switched to full attention.",
            )
        theirs = cast("Any", layer)
        made = BigBirdAttention(
            theirs.all_head_size, theirs.num_attention_heads, block_size=theirs.block_size,
            random_blocks=theirs.num_random_blocks if random_blocks is None else random_blocks, seed=seed,
            output_projection=output is not None, device=theirs.query.weight.device, dtype=theirs.query.weight.dtype,
        )  # fmt: skip
        made.copy_maps([theirs.query, theirs.key, theirs.value], output)
        return made.train(layer.training)

    def own_mask(self, length: int) -> Mask:
        if self.random_table is None:
            return self.drawn
        return self.drawn | BlockTable(self._kept(length), self.block_size)

    def _kept(self, length: int) -> Tensor:
        """The table of random blocks as bool (heads or 1, blocks, blocks)."""
        table = self.random_table
        blocks = -(-length // self.block_size)
        if table is None or table.shape[-2] != blocks or bool((table >= blocks).any()):
            raise ArgumentError(
                "random_blocks",
                expected=f"a table for the {blocks} blocks of {length} tokens",
                got="none" if table is None else f"one of shape {shape_of(table)} up to block {int(table.max())}",
                do="Give a number, and blocks are drawn for every length.",
            )
        nowhere = torch.zeros(*table.shape[:2], blocks, dtype=torch.bool, device=table.device)
        return nowhere.scatter(2, table, value=True)


def _checked(table: Tensor, num_heads: int) -> Tensor:
    """int64 (heads or 1, blocks, r), or ArgumentError."""
    table = table[None] if table.dim() == 2 else table
    fits = table.dim() == 3 and table.shape[0] in (1, num_heads)
    if not fits or table.is_floating_point() or table.dtype == torch.bool or (table.numel() and int(table.min()) < 0):
        raise ArgumentError(
            "random_blocks",
            expected=f"a number, or an int table (blocks, r) or (heads {num_heads}, blocks, r) of block numbers",
            got=f"{table.dtype} {shape_of(table)}",
            do="Row i names the blocks that block i sees beside its window and the global ones.",
        )
    return table.to(torch.int64)
