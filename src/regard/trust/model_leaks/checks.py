"""The questions that are asked of a whole model, each an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.trust.model_leaks.chunks import chunks_differ
from regard.trust.model_leaks.reaching import NotTestedError, Places, Reached, reached
from regard.trust.model_leaks.subject import Stream, Subject

PADS = 3
"""Tokens of padding, of all samples but the first."""
_BATCH = "samples of a batch reach each other"


@dataclass(frozen=True)
class Question:
    """One experiment.

    name: how reports call it. code: of the finding where it fails. ask: runs it; what is wrong in words with numbers,
    or None where nothing is. Raises NotTestedError where it says nothing of this model.
    """

    name: str
    code: str
    ask: Callable[[Subject], Reached | str | None]


def questions(subject: Subject, *, gradients: bool, seed: int) -> Iterator[Question]:
    """Those that have a meaning for this model, and last those that would have one if more were known of it."""

    def ask(sources: Callable[[Subject], dict[str, Tensor]], places: Places) -> Callable[[Subject], Reached]:
        return lambda subject: reached(subject, sources(subject), places, gradients=gradients, seed=seed)

    for stream in subject.streams:
        what = _of(stream, subject)
        if stream.causal and stream.length > 1:
            for start in sorted({1, stream.length // 2, stream.length - 1}):
                name = f"tokens from {start} on reach those before{what}"
                yield Question(name, "future_reaches_past", ask(_later(stream, start), _before(subject, stream, start)))
        if stream.mask is not None and stream.length > PADS + 1:
            for side in ("right", "left"):
                name = f"padding on the {side} reaches tokens{what}"
                yield Question(name, "padding_reaches_tokens", _padded(stream, side, gradients=gradients, seed=seed))
        if subject.kind == "decoder" and stream.causal and stream.positions is not None:
            name = f"a packed document reaches the next{what}"
            yield Question(name, "documents_cross", _packed(stream, gradients=gradients, seed=seed))
        if stream.causal and subject.kind in ("decoder", "encoder_decoder"):
            yield Question(f"the border of a chunk is seen{what}", "chunks_differ", _chunked(stream))
    if subject.batch > 1:
        yield Question(_BATCH, "batch_mixed", ask(_last_sample, _others(subject)))
    yield from _unasked(subject)


def _unasked(subject: Subject) -> Iterator[Question]:
    """What nothing is known of, so that a report does not pass over it."""
    for stream in subject.streams:
        what = _of(stream, subject)
        if stream.unsaid:
            why = "nothing says that they must not, so it is taken for an encoder; causal=True says it"
            yield _untested(f"later tokens reach earlier ones{what}", "future_reaches_past", why)
        if stream.mask is None:
            why = "it takes no mask of padding that is known"
            yield _untested(f"padding reaches tokens{what}", "padding_reaches_tokens", why)
    if subject.batch == 1:
        yield _untested(_BATCH, "batch_mixed", "there is one sample: it takes two or more")


def _of(stream: Stream, subject: Subject) -> str:
    return "" if len(subject.streams) == 1 else f" ({stream.name})"


def _untested(name: str, code: str, why: str) -> Question:
    def ask(_: Subject) -> None:
        raise NotTestedError(why)

    return Question(name, code, ask)


# ------------------------------------------------------------------------------------------ places


def _later(stream: Stream, start: int) -> Callable[[Subject], dict[str, Tensor]]:
    def sources(subject: Subject) -> dict[str, Tensor]:
        return {stream.name: (torch.arange(stream.length) >= start).expand(subject.batch, -1)}

    return sources


def _before(subject: Subject, stream: Stream, start: int) -> Places:
    before = (torch.arange(stream.length) < start).expand(subject.batch, -1)

    def places(tensor: Tensor) -> Tensor | None:
        is_tokens = tensor.dim() >= 2 and tensor.shape[:2] == before.shape
        return before.to(tensor.device) if is_tokens else None

    return places


def _last_sample(subject: Subject) -> dict[str, Tensor]:
    """Everything that the last sample gives to the model."""
    found: dict[str, Tensor] = {}
    for name in (*(stream.name for stream in subject.streams), *subject.floats):
        given: Tensor = subject.inputs[name]
        found[name] = torch.zeros(given.shape, dtype=torch.bool)
        found[name][-1] = True
    return found


def _others(subject: Subject) -> Places:
    """All of a batch but its last."""
    where = torch.arange(subject.batch) < subject.batch - 1

    def places(tensor: Tensor) -> Tensor | None:
        return where.to(tensor.device) if tensor.dim() >= 2 and tensor.shape[0] == subject.batch else None

    return places


# ----------------------------------------------------------------------------------------- padding


def _padded(stream: Stream, side: str, *, gradients: bool, seed: int) -> Callable[[Subject], Reached]:
    def ask(subject: Subject) -> Reached:
        given: Tensor = subject.inputs[stream.name]
        if given.shape[0] < 2:
            raise NotTestedError("the first sample stays whole: it takes two or more")
        real = torch.ones(given.shape[:2], dtype=torch.bool)
        real[1:, slice(0, PADS) if side == "left" else slice(stream.length - PADS, None)] = False
        changed: dict[str, Any] = {
            stream.name: _filled(given, real, subject.pad),
            str(stream.mask): _as_given(real, subject, stream),
        }
        if stream.positions is not None:  # else those on the left would push the others on
            changed[stream.positions] = (real.long().cumsum(-1) - 1).clamp_min(0)
        others = [other.length for other in subject.streams if other is not stream]

        def places(tensor: Tensor) -> Tensor | None:
            if tensor.dim() >= 2 and tensor.shape[:2] == real.shape:
                return real.to(tensor.device)
            if tensor.shape[0] != subject.batch:
                return None
            pooled = tensor.dim() == 2 and side == "right"  # what sums up a text from its first token pads on the right
            if pooled or (tensor.dim() >= 3 and tensor.shape[1] in others):
                return torch.ones(tensor.shape[0], dtype=torch.bool, device=tensor.device)
            return None

        padded = subject.with_inputs(**changed)
        return reached(padded, {stream.name: ~real}, places, gradients=gradients, seed=seed, may_be_lost=True)

    return ask


def _filled(given: Tensor, real: Tensor, pad: int) -> Tensor:
    """Ids with the padding's, vectors with zeros."""
    return given.masked_fill(~real, pad) if given.dim() == 2 else given.masked_fill(~real[..., None], 0.0)


def _as_given(real: Tensor, subject: Subject, stream: Stream) -> Tensor:
    """A mask of the dtype of the one in its place; where there was none, of bool as torch has it or whole numbers."""
    given = subject.inputs.get(str(stream.mask))
    usual = torch.bool if stream.marks_padding else torch.long
    return (~real if stream.marks_padding else real).to(given.dtype if isinstance(given, Tensor) else usual)


# --------------------------------------------------------------------------------------- documents


def _packed(stream: Stream, *, gradients: bool, seed: int) -> Callable[[Subject], Reached]:
    """Two documents in one row, told by positions that begin again, as transformers has it."""

    def ask(subject: Subject) -> Reached:
        first = stream.length // 2
        ids: Tensor = subject.inputs[stream.name][:1]
        positions = torch.cat([torch.arange(first), torch.arange(stream.length - first)])[None]
        one = {name: value[:1] if isinstance(value, Tensor) else value for name, value in subject.inputs.items()}
        more: dict[str, Any] = {**one, stream.name: ids, str(stream.positions): positions}
        if "use_cache" in subject.accepts or "**" in subject.accepts:
            more["use_cache"] = False
        if stream.mask is not None:
            more[stream.mask] = None
        sources = (torch.arange(stream.length) < first)[None]

        def places(tensor: Tensor) -> Tensor | None:
            is_tokens = tensor.dim() >= 2 and tensor.shape[:2] == sources.shape
            return (~sources).to(tensor.device) if is_tokens else None

        return reached(subject.with_inputs(**more), {stream.name: sources}, places, gradients=gradients, seed=seed)

    return ask


def _chunked(stream: Stream) -> Callable[[Subject], str | None]:
    def ask(subject: Subject) -> str | None:
        if "past_key_values" not in subject.accepts:
            raise NotTestedError("it takes no past_key_values")
        return chunks_differ(subject, stream)

    return ask
