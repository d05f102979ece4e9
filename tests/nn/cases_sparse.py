from __future__ import annotations

import torch

from regard.masks import Padding
from regard.nn import (
    BigBirdAttention,
    BlockAttention,
    DilatedAttention,
    LongformerAttention,
    StridedAttention,
    TopKAttention,
)
from tests.nn.cases import Case, tokens


def padding(lengths):
    return {"mask": Padding(lengths)}


def flags(lengths):
    return {"mask": torch.arange(7) < torch.tensor(lengths)[:, None]}


def some_global(_batch, length):
    """The first and the last but one, where the text has them."""
    return {"global_tokens": [place for place in (0, length - 2) if 0 <= place < length]}


def first_global(_batch, length):
    return {"global_tokens": min(1, length)}


CASES = [
    Case(
        "longformer",
        lambda: LongformerAttention(48, 3, window=2, global_projections=False),
        tokens(48),
        with_padding=padding,
    ),
    # 2 * global tokens * heads <= embed_dim: x itself is key and value of the global rows.
    Case("longformer-global", lambda: LongformerAttention(48, 3, window=2), tokens(48), first_global, padding),
    Case("longformer-many-global", lambda: LongformerAttention(6, 2, window=2), tokens(6), first_global, flags),
    Case(
        "longformer-causal", lambda: LongformerAttention(48, 3, window=2, causal=True), tokens(48), some_global,
        # Which token is global must not depend on the padding.
        lambda lengths: {**padding(lengths), "global_tokens": [0, 2]}, causal=True,
    ),
    Case("block", lambda: BlockAttention(12, 3, block_size=4), tokens(12), with_padding=padding),
    Case("block-causal", lambda: BlockAttention(12, 3, block_size=4, causal=True), tokens(12), with_padding=flags,
         causal=True),
    Case("dilated", lambda: DilatedAttention(12, 3, step=3, window=1), tokens(12), with_padding=padding),
    Case("dilated-causal", lambda: DilatedAttention(12, 3, step=2, window=None, causal=True), tokens(12),
         with_padding=flags, causal=True),
    Case("strided", lambda: StridedAttention(12, 3, stride=3), tokens(12), with_padding=padding),
    Case("strided-causal", lambda: StridedAttention(12, 3, stride=3, causal=True), tokens(12), with_padding=flags,
         causal=True),
    Case("bigbird", lambda: BigBirdAttention(12, 3, block_size=2, global_blocks=(1, 0), random_blocks=0), tokens(12),
         with_padding=padding),
    # In bfloat16 another key may be among the best.
    Case("topk", lambda: TopKAttention(12, 3, topk=3, chunk=4), tokens(12), with_padding=padding,
         tolerance={torch.bfloat16: 1.0}),
    Case("topk-causal", lambda: TopKAttention(12, 3, topk=40, chunk=4, causal=True), tokens(12), with_padding=flags,
         causal=True),
]  # fmt: skip
