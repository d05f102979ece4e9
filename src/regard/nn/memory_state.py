"""What mechanisms with a memory keep between calls, and the one protocol all of them keep. The guide's 4.3.

A dialogue is a row of the batch. A mechanism takes the state of all rows and gives back the next one:

    state = module.create_state(batch)
    output, state = module(x, state=state)

It keeps none itself, so nothing can leak from one dialogue to another, and a call may be repeated from the same state.
Between calls, in place, as for the caches of `regard.nn`:

    state.detach()             cut the graph: the next backward stops here
    state.reset([1])           dialogue 1 forgets everything; what it does next is that of a new dialogue, bit for bit
    state.reorder([0, 0, 2])   row i goes on from what row rows[i] remembers, as beams do
    state.state_dict(), state.load_state_dict(saved)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.nn._arguments import require_positive
from regard.nn._cache import Rows, row_numbers

SEEN = "seen"


class MemoryState:
    """The memory of each dialogue of a batch: named tensors whose first dimension is the batch.

    All zeros are a dialogue that has said nothing; what a mechanism begins with is the mechanism's business.

    Attributes:
        owner: name of the class of mechanisms it belongs to.
        tensors: by name; `seen`, int64 (batch,), counts the tokens that each dialogue has read.
    """

    def __init__(self, owner: str, tensors: Mapping[str, Tensor]) -> None:
        self.owner = owner
        self.tensors = dict(tensors)

    @classmethod
    def create(
        cls,
        owner: str,
        batch: int,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> MemoryState:
        """A state of new dialogues; `shapes` are those of the tensors of one. See the mechanism's `create_state`."""
        tensors = {name: torch.zeros(batch, *shape, device=device, dtype=dtype) for name, shape in shapes.items()}
        return cls(owner, {**tensors, SEEN: torch.zeros(batch, device=device, dtype=torch.int64)})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {shape_of(tensor)}" for name, tensor in self.tensors.items())
        return f"MemoryState of {self.owner}: {held}"

    @property
    def batch(self) -> int:
        """Number of dialogues."""
        return self.tensors[SEEN].shape[0]

    @property
    def seen(self) -> Tensor:
        """int64 (batch,): the tokens that each dialogue has read."""
        return self.tensors[SEEN]

    def detach(self) -> None:
        """Cut the graph: gradients of later calls stop at what is remembered now."""
        self.tensors = {name: tensor.detach() for name, tensor in self.tensors.items()}

    def reset(self, rows: Rows | None = None) -> None:
        """These dialogues forget everything; all of them when `rows` is None. Raises ArgumentError for other rows."""
        chosen = list(range(self.batch)) if rows is None else row_numbers(rows, self.batch)
        place = torch.tensor(chosen, dtype=torch.int64, device=self.seen.device)
        self.tensors = {name: tensor.index_fill(0, place, 0) for name, tensor in self.tensors.items()}

    def reorder(self, rows: Rows) -> None:
        """Row i goes on from what row rows[i] remembers. There may be more or fewer rows than before."""
        place = torch.tensor(row_numbers(rows, self.batch), dtype=torch.int64, device=self.seen.device)
        self.tensors = {name: tensor.index_select(0, place) for name, tensor in self.tensors.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what is remembered, out of any graph: plain tensors for a file."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict` of the same mechanism and batch. Raises ArgumentError when it does not fit."""
        told, wanted = (
            {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
            for tensors in (state, self.tensors)
        )
        if told != wanted:
            raise ArgumentError(
                f"state of {self.owner}",
                expected=_told(wanted),
                got=_told(told),
                do="Create the state with the module and the batch that were saved, then load into it.",
            )
        self.tensors = {name: state[name].detach().to(kept.device).clone() for name, kept in self.tensors.items()}

    def replaced(self, tensors: Mapping[str, Tensor], *, read: Tensor | int) -> MemoryState:
        """The state after one more call, which read so many tokens of each dialogue. This one stays as it is."""
        kept = {name: tensor.to(self.tensors[name].dtype) for name, tensor in tensors.items()}
        return MemoryState(self.owner, {**kept, SEEN: self.seen + read})

    def written(self, memory: Tensor, real: Tensor | None, length: int) -> MemoryState:
        """The state after a segment of `length` tokens that made this memory, (batch, ...).

        `real` is bool (batch, length), or None where all tokens are real. A dialogue without any keeps what it had.
        """
        if real is not None:
            memory = torch.where(real.any(1)[:, None, None], memory, self["memory"])
            return self.replaced({"memory": memory}, read=real.sum(1))
        return self.replaced({"memory": memory if length else self["memory"]}, read=length)


class StatefulMechanism(nn.Module):
    """What mechanisms with a memory share: they make a state, and check the one they are given."""

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor that is kept of one dialogue."""
        raise NotImplementedError

    def create_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MemoryState:
        """A state of `batch` new dialogues, on the device and in the dtype of the weights unless said otherwise."""
        require_positive(batch=batch)
        weight = next(self.parameters())
        return self._new_state(batch, weight.device if device is None else device, dtype or weight.dtype)

    def _new_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> MemoryState:
        return MemoryState.create(type(self).__name__, batch, self.state_shapes(), device=device, dtype=dtype)

    def state_for(self, x: Tensor, state: MemoryState | None) -> MemoryState:
        """The state that x goes on from: the one given, once it is known to fit, or a new one.

        Raises:
            ArgumentError: the state of another mechanism.
            ShapeError: one for another batch, other sizes, another dtype or device.
        """
        if state is None:
            return self._new_state(x.shape[0], x.device, x.dtype)
        name = type(self).__name__
        if not isinstance(state, MemoryState) or state.owner != name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(
                "state",
                expected=f"a state of {name}",
                got=f"one of {state.owner}" if isinstance(state, MemoryState) else type(state).__name__,  # pyright: ignore[reportUnnecessaryIsInstance]
                do="Each layer has its own: take module.create_state(batch), and pass on what the call gives back.",
            )
        if state.batch != x.shape[0]:
            raise ShapeError(
                "state batch",
                expected=f"{x.shape[0]} dialogues, as x has",
                got=str(state.batch),
                do="For other dialogues take module.create_state(batch); state.reorder(rows) keeps some of these.",
            )
        self._require_sizes(state, x)
        return state

    def _require_sizes(self, state: MemoryState, x: Tensor) -> None:
        wanted = {name: (tuple(shape), x.dtype, x.device) for name, shape in self.state_shapes().items()}
        got = {name: (tuple(kept.shape[1:]), kept.dtype, kept.device) for name, kept in state.tensors.items()}
        got.pop(SEEN, None)
        if wanted != got:
            raise ShapeError(
                "state",
                expected=_told(wanted),
                got=_told(got),
                do="It was made by a module of other sizes, or for another dtype or device: create one anew.",
            )


def _told(tensors: Mapping[str, tuple[object, ...]]) -> str:
    return ", ".join(f"{name} {' '.join(str(part) for part in parts)}" for name, parts in sorted(tensors.items()))
