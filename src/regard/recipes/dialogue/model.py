"""One language model, four memories: what a conversation remembers beyond the segment that is being read.

    none        each segment by itself
    ema         MemoryAttention in one block: slots M <- lambda M + (1 - lambda) new (the guide's 4.3)
    cache       Transformer-XL: the hidden states of the segment before stay within sight of every block
    recurrent   memory tokens that go through the whole stack with each segment

All read a conversation segment by segment, have the same number of parameters, and keep nothing themselves: the state
comes in and goes out with each call, one row for each conversation. MemoryAttention has three times the weights of
attention, so that within one budget it can stand in one block only: the one in the middle, which has words to write
and blocks after it to use what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from regard.nn import (
    EncoderBlock,
    FeedForward,
    MemoryAttention,
    MemoryState,
    RecurrentMemory,
    TokenEmbedding,
    TransformerEncoder,
    TransformerXLMemory,
)
from regard.nn.memory_state import StatefulMechanism
from regard.positions import RoPE
from regard.recipes.equal_budget import fitted

Memory = Literal["none", "ema", "cache", "recurrent"]
MEMORIES: tuple[Memory, ...] = ("none", "ema", "cache", "recurrent")

State = list[MemoryState]
"""What is remembered: one `MemoryState` for each mechanism of the model; empty for "none"."""


class DialogueModel(nn.Module):
    """Tokens of one segment to states, from which the next tokens are predicted with `embedding.weight`.

    The buffer `tokenizer` has the bytes of the tokenizer's JSON, so that weights and words cannot be separated.

    Args:
        vocabulary: number of tokens.
        embed_dim, num_heads, num_layers: sizes of the stack.
        hidden: width of the feed-forward networks.
        memory: one of `MEMORIES`.
        slots: vectors of "ema", or tokens of "recurrent".
        decay: lambda of "ema", where its learning begins.
        reach: tokens of the cache.
        dropout_p: as in `BlockOptions`.
        tokenizer: its JSON, or nothing.
    """

    tokenizer: Tensor

    def __init__(
        self,
        vocabulary: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        hidden: int,
        *,
        memory: Memory = "none",
        slots: int = 16,
        decay: float = 0.9,
        reach: int = 64,
        dropout_p: float = 0.0,
        tokenizer: str = "",
    ) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("tokenizer", torch.tensor(list(tokenizer.encode()), dtype=torch.uint8))
        self.embedding = TokenEmbedding(vocabulary, embed_dim, absolute=None, dropout_p=dropout_p)
        rope = RoPE(embed_dim // num_heads)
        if memory in {"none", "recurrent"}:
            stack = TransformerEncoder(
                embed_dim,
                num_heads,
                num_layers,
                position=rope,
                causal=memory == "none",
                activation="gelu",
                dim_feedforward=hidden,
                dropout_p=dropout_p,
            )
            if memory == "recurrent":
                stack = RecurrentMemory(embed_dim, memory_tokens=slots, backbone=stack, causal=True)
            self.stack: nn.Module = stack
            return

        def mixer() -> StatefulMechanism:
            if memory == "cache":
                return TransformerXLMemory(embed_dim, num_heads, memory_length=reach, dropout_p=dropout_p)
            return MemoryAttention(
                embed_dim, num_heads, slots=slots, decay=decay, learned_decay=True, causal=True, dropout_p=dropout_p
            )

        blocks = [
            MemoryBlock(mixer(), embed_dim, hidden, dropout_p=dropout_p)
            if memory == "cache" or number == num_layers // 2
            else EncoderBlock(
                embed_dim,
                num_heads,
                position=rope,
                causal=True,
                activation="gelu",
                dim_feedforward=hidden,
                dropout_p=dropout_p,
            )
            for number in range(num_layers)
        ]
        self.stack = MemoryStack(blocks, embed_dim)

    def forward(self, tokens: Tensor, state: State | None = None, real: Tensor | None = None) -> tuple[Tensor, State]:
        """Read one segment of each conversation.

        Args:
            tokens: int64 (batch, length).
            state: what the call before gave back; new conversations when left out.
            real: bool (batch, length), False for padding, which stands on the right; None when there is none.

        Returns:
            (batch, length, embed_dim), and the state to go on from.
        """
        x = self.embedding(tokens)
        if isinstance(self.stack, MemoryStack):
            return self.stack(x, state, real)
        if isinstance(self.stack, RecurrentMemory):
            output, after = self.stack(x, state=state[0] if state else None, mask=real)
            return output, [after]
        return self.stack(x), []  # causal: padding on the right has no influence

    def read(self, tokens: Tensor, state: State | None, real: Tensor | None) -> tuple[Tensor, State]:
        """`forward`, hooks included, with its types."""
        return self(tokens, state, real)

    def logits(self, states: Tensor) -> Tensor:
        """(..., vocabulary) of states (..., embed_dim)."""
        return states @ self.embedding.weight.T


class MemoryStack(nn.Module):
    """Blocks with and without a memory, and a norm at the end."""

    def __init__(self, blocks: Sequence[MemoryBlock | EncoderBlock], embed_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, state: State | None, real: Tensor | None) -> tuple[Tensor, State]:
        """As `DialogueModel.forward`, on (batch, length, embed_dim)."""
        after: State = []
        for block in self.blocks:
            if isinstance(block, MemoryBlock):
                x, written = block(x, state[len(after)] if state else None, real)
                after.append(written)
            else:
                x = block(x)  # causal: padding on the right has no influence
        return self.norm(x), after


class MemoryBlock(nn.Module):
    """`regard.nn.EncoderBlock` with a mechanism that remembers in the place of attention."""

    def __init__(self, mixer: StatefulMechanism, embed_dim: int, hidden: int, *, dropout_p: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.feed_forward = FeedForward(embed_dim, hidden, activation="gelu", dropout_p=dropout_p)
        self.mixer_norm, self.feed_forward_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout_p)

    def forward(self, x: Tensor, state: MemoryState | None, real: Tensor | None) -> tuple[Tensor, MemoryState]:
        mixed, after = self.mixer(self.mixer_norm(x), state=state, mask=real)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), after


def model_of_budget(
    vocabulary: int,
    embed_dim: int,
    num_heads: int,
    num_layers: int,
    *,
    memory: Memory,
    slots: int,
    decay: float,
    reach: int,
    dropout_p: float = 0.0,
    tokenizer: str = "",
) -> DialogueModel:
    """The memory, with as many parameters as a model without memory and a hidden width of 4 d."""

    def build(hidden: int, memory: Memory) -> DialogueModel:
        return DialogueModel(
            vocabulary,
            embed_dim,
            num_heads,
            num_layers,
            hidden,
            memory=memory,
            slots=slots,
            decay=decay,
            reach=reach,
            dropout_p=dropout_p,
            tokenizer=tokenizer,
        )

    plain = 4 * embed_dim
    return fitted(lambda hidden: build(hidden, memory), like=lambda: build(plain, "none"), near=plain)


def detached(state: State) -> State:
    """The same state, where later gradients end."""
    for part in state:
        part.detach()
    return state


def first_rows(state: State, count: int) -> State:
    """The state of the first `count` conversations; the others have ended."""
    if not state or state[0].batch == count:
        return state
    rows = torch.arange(count)
    for part in state:
        part.reorder(rows)
    return state
