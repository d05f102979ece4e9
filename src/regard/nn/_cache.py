"""What attention remembers between calls: keys and values of the tokens that have been read.

Decoding step by step needs each token's key and value once, and then in every later step. They are kept in two
tensors that are made once, with room for the most tokens that may come; a step writes into them, and attention reads
views of them. Memory: batch * kv_heads * most_tokens * (head_dim + value_dim) numbers for each layer, whatever the
number of steps. Where gradients are wanted nothing may be overwritten: there the tensors are joined anew in each step.

A state that lives between calls keeps one protocol, so that a loop that decodes need not know what is remembered:

    detach()          cut the graph of what was read
    reset(rows)       these samples forget what they have read; reset() forgets everything
    reorder(rows)     sample i goes on from what sample rows[i] has read, as beams do
    state_dict(), load_state_dict(state)
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.masks import Mask, Padding
from regard.nn._arguments import require_positive

Rows = Sequence[int] | Tensor


class State(Protocol):
    """What every state between calls can do; see the head of the file."""

    def detach(self) -> None: ...
    def reset(self, rows: Rows | None = None) -> None: ...
    def reorder(self, rows: Rows) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class KeyValueCache:
    """Keys and values of one attention layer; made by its `make_cache` or `cache_context`.

    Samples that were reset look back to that moment only. Their tokens keep their places, so that all samples have
    read equally many: distances are right, and positions that depend on distances only (all of regard.positions) too.

    Attributes:
        batch: number of samples.
        most_tokens: how many tokens there is room for.
        length: how many have been read.
        grows: False for a context, which was read once and is only looked at after that.
    """

    def __init__(self, owner: nn.Module, batch: int, most_tokens: int, *, grows: bool = True) -> None:
        if grows:
            require_positive(most_tokens=most_tokens)
        self._owner = weakref.ref(owner)
        self.batch, self.most_tokens, self.grows = batch, most_tokens, grows
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._first = [0] * batch  # the first token that each sample remembers

    @classmethod
    def of_context(cls, owner: nn.Module, key: Tensor, value: Tensor) -> KeyValueCache:
        """The keys and values (batch, kv_heads, length, head_dim) of a context that does not grow."""
        made = cls(owner, key.shape[0], key.shape[2], grows=False)
        made._keys, made._values, made.length = key, value, key.shape[2]
        return made

    def require_owner(self, module: nn.Module) -> None:
        """ArgumentError unless this very module made it: another layer's keys mean something else."""
        owner = self._owner()
        if owner is not module:
            raise ArgumentError(
                "cache",
                expected="one that this layer made",
                got="one whose layer is gone" if owner is None else "the cache of another layer",
                do="Call make_cache of each layer, and give each its own.",
            )

    @property
    def keys(self) -> Tensor:
        """(batch, kv_heads, length, head_dim), a view of what is stored."""
        return _seen("keys", self._keys, self.length)

    @property
    def values(self) -> Tensor:
        """(batch, kv_heads, length, value_dim), a view of what is stored."""
        return _seen("values", self._values, self.length)

    def append(self, key: Tensor, value: Tensor) -> None:
        """Read new tokens: key (batch, kv_heads, new, head_dim), value (batch, kv_heads, new, value_dim).

        Raises:
            ShapeError: another batch, heads, widths, dtype or device than before.
            ArgumentError: more tokens than there is room for.
        """
        end = self.length + key.shape[2]
        if not self.grows or end > self.most_tokens:
            raise ArgumentError(
                "cache",
                expected=f"at most {self.most_tokens} tokens" if self.grows else "no tokens after the context",
                got=f"{self.length} and {key.shape[2]} new ones",
                do="Make it with a larger most_tokens, or drop tokens with crop(...) or reset().",
            )
        self._check("key", self._keys, key)
        self._check("value", self._values, value)
        self._keys = _appended(self._keys, self.length, key, self.most_tokens)
        self._values = _appended(self._values, self.length, value, self.most_tokens)
        self.length = end

    def _check(self, name: str, kept: Tensor | None, new: Tensor) -> None:
        if new.shape[0] != self.batch:
            raise ShapeError(
                f"cached {name}",
                expected=f"the batch {self.batch} of the cache",
                got=shape_of(new),
                do="Make a cache for this batch; reorder(rows) makes another batch of it.",
            )
        if kept is None:
            return
        wanted = (kept.shape[1], kept.shape[3], kept.dtype, kept.device)
        if wanted != (new.shape[1], new.shape[3], new.dtype, new.device):
            raise ShapeError(
                f"cached {name}",
                expected=f"{kept.shape[1]} heads of width {kept.shape[3]} in {kept.dtype} on {kept.device}",
                got=f"{shape_of(new)} in {new.dtype} on {new.device}",
                do="Go on in the precision and on the device of the tokens before, or make a new cache.",
            )

    def mask(self) -> Mask | None:
        """Which tokens each sample remembers, or None when it is all of them."""
        if not any(self._first):
            return None
        return Padding([self.length - first for first in self._first], side="left")

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens. A context stays whole."""
        if not 0 <= length <= self.length:
            raise ArgumentError(
                "length", expected=f"0 to {self.length}, the tokens read so far", got=str(length), do="Crop only drops."
            )
        if self.grows:
            self.length = length
            self._first = [min(first, length) for first in self._first]
            if length == 0:
                self._let_go()

    def _let_go(self) -> None:
        """Of tensors in a graph: joined to new tokens, even none of theirs would lead the next backward into it."""
        if self._keys is not None and self._values is not None and (self._keys.grad_fn or self._values.grad_fn):
            self._keys = self._values = None

    def detach(self) -> None:
        """Cut the graph: gradients of later steps stop at what has been read so far."""
        self._keys = None if self._keys is None else self._keys.detach()
        self._values = None if self._values is None else self._values.detach()

    def reset(self, rows: Rows | None = None) -> None:
        """These samples forget everything they have read; all of them when `rows` is None.

        A context is forgotten too: rows of a sample without context attend to nothing and get 0. With `rows`, the
        graph of what the others have read stays; `detach()` cuts it.
        """
        if rows is None and self.grows:
            self.length, self._first = 0, [0] * self.batch
            self._let_go()
            return
        for row in range(self.batch) if rows is None else row_numbers(rows, self.batch):
            self._first[row] = self.length

    def reorder(self, rows: Rows) -> None:
        """Sample i goes on from what sample rows[i] has read. There may be more or fewer rows than samples."""
        chosen = row_numbers(rows, self.batch)
        if chosen == list(range(self.batch)):
            return
        self._keys = _reordered(self._keys, self.length, chosen)
        self._values = _reordered(self._values, self.length, chosen)
        self._first = [self._first[row] for row in chosen]
        self.batch = len(chosen)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what is remembered: `first` (batch,), and once something was read `keys` and `values`."""
        state = {"first": torch.tensor(self._first, dtype=torch.int64)}
        if self._keys is not None and self._values is not None:
            state |= {"keys": self.keys.detach().clone(), "values": self.values.detach().clone()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same layer and batch. Raises ArgumentError when it does not fit."""
        length = state["keys"].shape[2] if "keys" in state else 0
        first = cast("list[int]", state["first"].tolist())  # pyright: ignore[reportUnknownMemberType] - torch's
        if len(first) != self.batch or length > self.most_tokens:
            raise ArgumentError(
                "state of a cache",
                expected=f"batch {self.batch} and at most {self.most_tokens} tokens",
                got=f"batch {len(first)} and {length} tokens",
                do="Make a cache as large as the one that was saved.",
            )
        self.length, self._first = length, first
        self._keys = state["keys"].clone() if "keys" in state else None
        self._values = state["values"].clone() if "values" in state else None


class CacheStack:
    """The caches of several layers, or of a layer's two attentions, as one. `parts` are caches and stacks."""

    def __init__(self, parts: Sequence[KeyValueCache | CacheStack]) -> None:
        self.parts = tuple(parts)

    @property
    def length(self) -> int:
        """How many tokens have been read."""
        return self.parts[0].length

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.parts[0].batch

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens; a context stays whole."""
        for part in self.parts:
            if isinstance(part, CacheStack) or part.grows:
                part.crop(length)

    def detach(self) -> None:
        """Cut the graph of what was read."""
        for part in self.parts:
            part.detach()

    def reset(self, rows: Rows | None = None) -> None:
        """These samples forget everything they have read, the context too; all of them when `rows` is None."""
        for part in self.parts:
            part.reset(rows)

    def reorder(self, rows: Rows) -> None:
        """Sample i goes on from what sample rows[i] has read.

        A context that several beams of a sample share stays as it is: `rows` may not mix samples then.
        """
        chosen = row_numbers(rows, self.batch)
        for part in self.parts:
            if isinstance(part, KeyValueCache) and part.batch != self.batch:
                self._require_own_sample(chosen, part.batch)
            else:
                part.reorder(chosen)

    def _require_own_sample(self, rows: list[int], samples: int) -> None:
        beams = self.batch // samples
        if [row // beams for row in rows] != [place // beams for place in range(self.batch)]:
            raise ArgumentError(
                "rows",
                expected=f"each of the {samples} samples' {beams} beams from the same sample",
                got=str(rows),
                do="They share the sample's context; make the cache with beams=1 to mix samples.",
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what is remembered, the number of the part before each name."""
        return {
            f"{place}.{name}": kept for place, part in enumerate(self.parts) for name, kept in part.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same layers and batch."""
        for place, part in enumerate(self.parts):
            begin = f"{place}."
            part.load_state_dict(
                {name.removeprefix(begin): kept for name, kept in state.items() if name.startswith(begin)}
            )


def row_numbers(rows: Rows, batch: int) -> list[int]:
    """`rows` as a list of whole numbers from 0 to batch - 1, or ArgumentError."""
    # Flags are no numbers: of [False, True] they would be rows 0 and 1, and the wrong dialogue would forget.
    listed = cast("list[object]", rows.flatten().tolist() if isinstance(rows, Tensor) else list(rows))  # pyright: ignore[reportUnknownMemberType] - torch's
    numbers = [row for row in listed if isinstance(row, int) and not isinstance(row, bool)]
    if len(numbers) != len(listed) or any(not 0 <= row < batch for row in numbers):
        raise ArgumentError(
            "rows",
            expected=f"whole numbers from 0 to {batch - 1}",
            got=str(listed),
            do="They count the samples from 0; flags.nonzero().flatten() numbers those that are True.",
        )
    return numbers


def _seen(name: str, stored: Tensor | None, length: int) -> Tensor:
    if stored is None:
        raise ArgumentError(f"cache {name}", expected="some tokens", got="a cache that has read none", do="Read first.")
    return stored[:, :, :length]


def _appended(stored: Tensor | None, length: int, new: Tensor, most_tokens: int) -> Tensor:
    """What was stored with `new` after its first `length` tokens."""
    # Keys may be frozen, and the graph still hold them: for the gradient of a query, a sink or a position.
    if torch.is_grad_enabled():
        return new if stored is None else torch.cat([stored[:, :, :length], new], 2)
    if stored is None or not _may_be_written(stored, most_tokens):
        before, stored = stored, new.new_empty((*new.shape[:2], most_tokens, new.shape[3]))
        if before is not None:
            stored[:, :, :length] = before[:, :, :length]
    stored[:, :, length : length + new.shape[2]] = new
    return stored


def _may_be_written(stored: Tensor, most_tokens: int) -> bool:
    """Has it room, is it in no graph, and is it not one that inference mode made for itself?"""
    foreign = stored.is_inference() and not torch.is_inference_mode_enabled()
    return stored.shape[2] == most_tokens and not stored.requires_grad and not foreign


def _reordered(stored: Tensor | None, length: int, rows: list[int]) -> Tensor | None:
    if stored is None:
        return None
    chosen = stored[:, :, :length].index_select(0, torch.tensor(rows, dtype=torch.int64, device=stored.device))
    fits = len(rows) == stored.shape[0] and _may_be_written(stored, stored.shape[2])
    if torch.is_grad_enabled() or not fits:
        return chosen
    stored[:, :, :length] = chosen
    return stored
