"""Does what is in some places of the input reach some places of the output? By changing it, and by the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.observation import observe
from regard.trust.model_leaks.editing import Edit, as_leaves, changing, edited, other_ids
from regard.trust.model_leaks.subject import Stream, Subject, named_outputs
from regard.trust.passport.runs import signs
from regard.trust.points import meeting

Places = Callable[[Tensor], Tensor | None]
"""From a tensor of activations to a bool tensor of its leading sizes, True where it is judged; None: not at all."""
GRADIENT = 1e-6
"""A gradient that is so much smaller than the largest is none: sums of zeros may be rounded."""
CHANGE, STEPS = 1e-4, 16
"""A relative change below this, or below so many rounding steps of the dtype, is rounding."""


class NotTestedError(Exception):
    """Why an experiment says nothing of this model."""


@dataclass(frozen=True)
class Reached:
    """What reached the judged places.

    change: the largest change of an output, relative to its size. gradient: the largest gradient there, relative to the
    largest anywhere; None where there is none to be had. output: which changed most. first: the first piece of the
    model whose output changed at these places, or "" where none did.
    """

    change: float
    gradient: float | None
    output: str
    first: str
    limit: float

    @property
    def leaks(self) -> bool:
        """More than rounding."""
        return self.change > self.limit or (self.gradient or 0.0) > GRADIENT

    def told(self) -> str:
        """In words."""
        by_gradient = "" if self.gradient is None else f", gradient {self.gradient:.1e} of the largest"
        first = f"; first seen in {self.first}" if self.first else ""
        return f"{self.output} changes by {self.change:.1e} of its size{by_gradient}{first}"


def reached(
    subject: Subject,
    sources: Mapping[str, Tensor],
    places: Places,
    *,
    gradients: bool,
    seed: int,
    may_be_lost: bool = False,
) -> Reached:
    """Change the vectors of the tokens (or the numbers of the samples) where `sources` is True.

    A model whose vectors are not seen gets other token ids in these places, and has no gradient. With `may_be_lost` the
    model may forget what is there altogether, as some do with padding.

    Raises:
        NotTestedError: the changed tokens reach nothing at all, or what is judged is not finite.
    """
    before = _run(subject, sources, _as_they_are, seed)
    if before.met:
        after = _run(subject, sources, changing(sources, seed), seed)
    else:
        others = {name: other_ids(subject.inputs[name], sources[name]) for name in before.tokens}
        after, gradients = _run(subject.with_inputs(**others), sources, changing(sources, seed), seed), False
    limit = max(CHANGE, STEPS * torch.finfo(next(iter(before.outputs.values())).dtype).eps)
    changes = {name: _change(tensor, after.outputs[name], places) for name, tensor in before.outputs.items()}
    judged = {name: change for name, change in changes.items() if change is not None}
    if not judged:
        raise NotTestedError("no output has a place for each of these tokens")
    if not may_be_lost and not any(_moved(tensor, after.outputs[name]) for name, tensor in before.outputs.items()):
        raise NotTestedError("nothing that the model gives depends on the changed tokens")
    output = max(judged, key=lambda name: judged[name])
    gradient = _gradient(subject, sources, places) if gradients else None
    leaks = judged[output] > limit or (gradient or 0.0) > GRADIENT
    if leaks and _draws(subject, seed):
        raise NotTestedError("it draws random numbers: two runs on the same inputs differ")
    return Reached(judged[output], gradient, output, _first(before, after, places, limit) if leaks else "", limit)


def future_reached(model: nn.Module, inputs: Mapping[str, Tensor], name: str) -> bool:
    """Whether the last token of this input reaches what the model gives for those before it.

    Raises:
        NotTestedError: that cannot be told.
    """
    stream = Stream(name, inputs[name].shape[1], causal=True)
    subject = Subject(model, "decoder", inputs, (stream,), frozenset())
    last = torch.arange(stream.length) == stream.length - 1
    sources = {name: last.expand(inputs[name].shape)}

    def places(tensor: Tensor) -> Tensor | None:
        is_tokens = tensor.dim() >= 3 and tensor.shape[:2] == inputs[name].shape
        return ~sources[name].to(tensor.device) if is_tokens else None

    return reached(subject, sources, places, gradients=False, seed=0).leaks


@dataclass(frozen=True)
class _Seen:
    """One run: outputs, what every module gave in the order in which they end, and what attention gave by layer.

    tokens: the inputs of tokens that are changed; met: whether the vectors of all of them were seen.
    """

    outputs: dict[str, Tensor]
    points: dict[str, Tensor]
    attention: dict[str, Tensor]
    tokens: tuple[str, ...]
    met: bool


def _first(before: _Seen, after: _Seen, places: Places, limit: float) -> str:
    """The first piece whose output changed where it is judged: attention, where that is no module's own."""

    def moves(old: Mapping[str, Tensor], new: Mapping[str, Tensor], name: str) -> bool:
        return name in new and _moves(old[name], new[name], places, limit)

    first = next((name for name in before.points if moves(before.points, after.points, name)), "")
    around = [name for name in before.attention if first == name or first.startswith(f"{name}.")]
    moved = [name for name in around if moves(before.attention, after.attention, name)]
    return f"the attention of {moved[0]}" if moved else first


def _as_they_are(_: str, vectors: Tensor) -> Tensor:
    return vectors


def _run(subject: Subject, sources: Mapping[str, Tensor], edit: Edit, seed: int) -> _Seen:
    points: dict[str, Tensor] = {}
    begin(seed)

    def meet(name: str, tensor: Tensor) -> Tensor:
        points[name] = tensor.detach().clone()
        return tensor

    tokens = tuple(name for name in sources if name not in subject.floats)
    inputs = _floats_changed(subject, sources, edit)
    with (
        torch.no_grad(),
        edited(subject.model, subject.inputs, tokens, edit) as met,
        observe(subject.model) as looked,
        meeting(subject.model, meet),
    ):
        found = named_outputs(subject.model(**inputs))
    outputs = {name: tensor.detach() for name, tensor in found.items()}
    heads = {layer.name: layer.call.output for layer in looked.layers}
    # Heads side by side, (batch, length, heads * value_dim), as the pieces around them have them.
    attention = {name: output.transpose(1, 2).flatten(2) for name, output in heads.items() if output is not None}
    return _Seen(outputs, points, attention, tokens, met == set(tokens))


def _floats_changed(subject: Subject, sources: Mapping[str, Tensor], edit: Edit) -> dict[str, object]:
    """The inputs, with pictures and sounds edited here: they are looked up nowhere."""
    return {name: edit(name, value) if name in sources and name in subject.floats else value
            for name, value in subject.inputs.items()}  # fmt: skip


def _change(before: Tensor, after: Tensor, places: Places) -> float | None:
    """The largest change where it is judged, relative to the largest number there; None where nothing is judged."""
    where = places(before)
    if where is None or not bool(where.any()):
        return None
    old, new = before[where].double(), after[where].double()
    if not bool(old.isfinite().all()):
        raise NotTestedError("what the model gives there is NaN or Inf")
    if not bool(new.isfinite().all()):
        return math.inf
    return float((new - old).abs().max()) / max(float(old.abs().max()), 1e-6)


def _moves(before: Tensor, after: Tensor, places: Places, limit: float) -> bool:
    if before.shape != after.shape:
        return False
    try:
        change = _change(before, after, places)
    except NotTestedError:
        return False
    return change is not None and change > limit


def begin(seed: int) -> None:
    """The same random numbers for every run."""
    cast("Any", torch).manual_seed(seed)


def _draws(subject: Subject, seed: int) -> bool:
    """Whether random numbers decide what the model gives, even in eval mode."""
    with torch.no_grad():
        begin(seed)
        one = subject.outputs()
        begin(seed + 1)
        return any(_moved(tensor, one[name]) for name, tensor in subject.outputs().items())


def _moved(before: Tensor, after: Tensor) -> bool:
    return not torch.equal(before.nan_to_num(), after.nan_to_num())


def _gradient(subject: Subject, sources: Mapping[str, Tensor], places: Places) -> float | None:
    """The largest gradient of what is judged at the sources, relative to the largest; None where there is none."""
    leaves: list[tuple[str, Tensor]] = []
    edit = as_leaves(leaves)
    tokens = tuple(name for name in sources if name not in subject.floats)
    inputs = _floats_changed(subject, sources, edit)
    try:
        with torch.enable_grad(), edited(subject.model, subject.inputs, tokens, edit):
            found = named_outputs(subject.model(**inputs))
            judged = [(tensor, where) for tensor in found.values() if (where := places(tensor)) is not None]
            total = sum(
                (tensor[where] * signs(tensor[where])).sum() for tensor, where in judged if tensor.requires_grad
            )
            if not isinstance(total, Tensor):
                return None
            found_gradients = torch.autograd.grad(total, [leaf for _, leaf in leaves], allow_unused=True)
    except Exception:  # a kernel without a backward, a model that refuses gradients
        return None
    largest, here = 0.0, 0.0
    gradients = cast("tuple[Tensor | None, ...]", found_gradients)
    for (name, _), gradient in zip(leaves, gradients, strict=True):
        if gradient is not None and bool(gradient.isfinite().all()):
            largest = max(largest, float(gradient.abs().max()))
            at = gradient[sources[name].to(gradient.device)]
            here = max(here, float(at.abs().max()) if at.numel() else 0.0)
    return here / largest if largest else None
