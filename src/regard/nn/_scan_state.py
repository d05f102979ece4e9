"""What a state space remembers between calls, and which tokens it is told to leave out.

A state has one size, however many tokens were read. It is a value: a call does not change the state that it is given,
it returns the next one. Only what its owner asks for by name changes it: `detach`, `reset`, `reorder`,
`load_state_dict` (the protocol of every state of `regard.nn`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regard._errors import ShapeError
from regard._shapes import shape_of
from regard.nn._cache import Rows, row_numbers


class ScanState:
    """The state of one layer, for each sample of a batch; made by its `make_state`, and zeros at first.

    Attributes:
        tensors: by name; the first dimension of each is the batch. Plain tensors, to be saved as they are.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @property
    def batch(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def detach(self) -> None:
        """Cut the graph of what was read: truncated backpropagation through time."""
        self.tensors = {name: tensor.detach() for name, tensor in self.tensors.items()}

    def reset(self, rows: Rows | None = None) -> None:
        """Forget what these samples have read; without `rows`, what all of them have.

        Raises:
            ArgumentError: a sample that is not there.
        """
        chosen = self._rows(range(self.batch) if rows is None else rows)
        self.tensors = {name: tensor.index_fill(0, chosen, 0) for name, tensor in self.tensors.items()}

    def reorder(self, rows: Rows) -> None:
        """Sample i goes on from what sample rows[i] has read, as beams do; the batch becomes len(rows).

        Raises:
            ArgumentError: a sample that is not there.
        """
        chosen = self._rows(rows)
        self.tensors = {name: tensor.index_select(0, chosen) for name, tensor in self.tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, detached; they share memory with the state, as those of a module do."""
        return {name: tensor.detach() for name, tensor in self.tensors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over copies of what `state_dict` gave, of any batch.

        Raises:
            ShapeError: other names, or other sizes than those of this layer.
        """
        check_names(state, self.tensors)
        for name, tensor in self.tensors.items():
            check_like(name, state[name], tensor.shape[1:])
        self.tensors = {
            name: state[name].to(dtype=tensor.dtype, device=tensor.device, copy=True)
            for name, tensor in self.tensors.items()
        }

    def _rows(self, rows: Rows) -> Tensor:
        device = next(iter(self.tensors.values())).device
        return torch.tensor(row_numbers(rows, self.batch), dtype=torch.int64, device=device)


def check_state(state: ScanState, batch: int, own: ScanState) -> ScanState:
    """A state with the tensors of `own`, the layer's, and this batch; or ShapeError."""
    check_names(state.tensors, own.tensors)
    for name, tensor in own.tensors.items():
        check_like(name, state.tensors[name], tensor.shape[1:])
    if state.batch != batch:
        raise ShapeError(
            "state",
            expected=f"a state of {batch} samples",
            got=str(state.batch),
            do="Make one with make_state(batch), or choose its samples with reorder(rows).",
        )
    return state


def check_names(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """The same names, or ShapeError."""
    if set(given) != set(own):
        raise ShapeError(
            "state",
            expected=f"the tensors {sorted(own)}",
            got=str(sorted(given)),
            do="A state belongs to the layer whose make_state made it.",
        )


def check_like(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """(batch, *shape), or ShapeError."""
    if tuple(tensor.shape[1:]) != tuple(shape):
        raise ShapeError(
            f"state {name}",
            expected=f"(batch, {', '.join(map(str, shape))})",
            got=shape_of(tensor),
            do="A state belongs to the layer whose make_state made it.",
        )


def check_token(token: Tensor, embed_dim: int) -> None:
    """(batch, embed_dim): one token of each sample, or ShapeError."""
    if token.dim() != 2 or token.shape[1] != embed_dim:
        raise ShapeError(
            "x",
            expected=f"(batch, embed_dim {embed_dim}), one token of each sample",
            got=shape_of(token),
            do="Give step x[:, t]; forward takes many tokens at once.",
        )
