"""The vectors of chosen tokens, changed or taken as leaves where the model has just looked them up.

Changing a vector instead of a token id leaves alone what models work out from ids: positions, masks, where text ends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

Edit = Callable[[str, Tensor], Tensor]
"""From the name of an input and its vectors to those that go on in their place."""
STRENGTH = 3.0
"""Changed vectors are random, of so many times the size of those they replace."""


@contextmanager
def edited(model: nn.Module, inputs: Mapping[str, Any], tokens: tuple[str, ...], edit: Edit) -> Generator[set[str]]:
    """While open, the vectors of these token inputs go through `edit`; which were met is in the set that it gives.

    Every embedding that is called with exactly the ids of an input has one of its tokens' vectors.
    """
    met: set[str] = set()

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        ids = args[0] if args else None
        if not isinstance(ids, Tensor) or ids.dim() != 2 or not isinstance(output, Tensor):
            return None
        if output.shape[:-1] != ids.shape:
            return None
        for name in tokens:
            for transposed in (False, True):  # some models have the tokens first
                if _is_same(ids.mT if transposed else ids, inputs[name]):
                    met.add(name)
                    return edit(name, output.transpose(0, 1)).transpose(0, 1) if transposed else edit(name, output)
        return None

    with ExitStack() as stack:
        for module in cast("Any", model.modules()):
            if isinstance(module, nn.Embedding) or ("Embedding" in type(module).__name__ and _has_table(module)):
                stack.callback(module.register_forward_hook(leave).remove)
        yield met


def other_ids(ids: Tensor, where: Tensor) -> Tensor:
    """The lowest token in each of these places, or the highest where that stands, for a model whose vectors hide."""
    lowest, highest = int(ids.min()), int(ids.max())
    highest = highest if highest > lowest else lowest + 1
    return torch.where(where.to(ids.device), torch.where(ids == lowest, highest, lowest), ids)


def changing(sources: Mapping[str, Tensor], seed: int) -> Edit:
    """Random vectors in the place of those of the tokens where `sources` (batch, length) is True.

    Of a picture or a sound `sources` says which numbers.
    """

    def edit(name: str, vectors: Tensor) -> Tensor:
        where = sources.get(name)
        if where is None or not bool(where.any()):
            return vectors
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(vectors.shape, generator=generator).to(vectors)
        size = STRENGTH * float(vectors.detach().float().std().clamp_min(1e-3))
        where = where.to(vectors.device)
        return torch.where(where if where.shape == vectors.shape else where[..., None], noise * size, vectors)

    return edit


def as_leaves(leaves: list[tuple[str, Tensor]]) -> Edit:
    """Keeps the vectors, with the name of their input, as leaves that want a gradient."""

    def edit(name: str, vectors: Tensor) -> Tensor:
        leaf = vectors.detach().clone().requires_grad_()
        leaves.append((name, leaf))
        return leaf * 1.0  # a leaf may not be written into, as some models do

    return edit


def _is_same(ids: Tensor, given: Tensor) -> bool:
    return ids.shape == given.shape and torch.equal(ids, given)


def _has_table(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2
