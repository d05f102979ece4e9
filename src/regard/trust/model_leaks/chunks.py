"""Is a text that is read in chunks, with a cache, read as in one pass?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from regard.observation import observe
from regard.trust.model_leaks.reaching import CHANGE, NotTestedError
from regard.trust.model_leaks.subject import Stream, Subject, named_outputs

STEPS = 4
"""Rounding steps of the coarsest dtype in the model that a chunk may be away: its sums are taken in another order."""


def chunks_differ(subject: Subject, stream: Stream) -> str | None:
    """What differs and where, or None where nothing does.

    Raises:
        NotTestedError: the model gives nothing for each token, or no cache.
    """
    with torch.no_grad():
        whole = _of_tokens(subject.outputs(), stream)
        if not whole:
            raise NotTestedError("no output has a place for each of these tokens")
        name, expected = next(iter(whole.items()))
        limit = max(10 * CHANGE, STEPS * _widest_step(subject.model, expected))
        size = max(float(expected.abs().max()), 1e-6)
        for (begin, end), found, keys in _in_chunks(subject, stream, name):
            change = float((found.double() - expected[:, begin:end].double()).abs().max()) / size
            if not change <= limit:
                seen = f"; its attention sees {', '.join(map(str, sorted(keys)))} keys" if keys else ""
                where = f"tokens {begin} to {end - 1}, read after {begin} others" if begin else f"tokens 0 to {end - 1}"
                return f"{name} of {where}, differs by {change:.1e} of its size from one pass{seen}"
    return None


def _in_chunks(subject: Subject, stream: Stream, name: str) -> Iterator[tuple[tuple[int, int], Tensor, set[int]]]:
    """Of each chunk: where it lies, the output, and how many keys self-attention saw."""
    past: Any = None
    fixed = dict(subject.inputs)
    if subject.kind == "encoder_decoder":
        fixed |= _encoded(subject)
    for begin, end in _borders(stream.length):
        inputs = {**_cut(fixed, subject, stream, begin, end), "use_cache": True}
        if past is not None:
            inputs["past_key_values"] = past
        with observe(subject.model) as seen:
            output = subject.model(**inputs)
        past = getattr(output, "past_key_values", None)
        if past is None:
            raise NotTestedError("it gives no past_key_values")
        found = named_outputs(output).get(name)
        if found is None or found.shape[1] != end - begin:
            raise NotTestedError(f"{name} has another length than the chunk")
        keys = {layer.kv_len for layer in seen.layers if layer.q_len == end - begin}
        yield (begin, end), found, keys


def _cut(fixed: dict[str, Any], subject: Subject, stream: Stream, begin: int, end: int) -> dict[str, Any]:
    """What stands for each token, cut alike; a mask of padding reaches over what was read before."""
    shape = subject.inputs[stream.name].shape
    found = dict(fixed)
    for name, given in fixed.items():
        alike = isinstance(given, Tensor) and given.shape in (shape, shape[:2])
        if alike and (name == stream.name or not _of_other(name, stream)):
            found[name] = given[:, :end] if name == stream.mask else given[:, begin:end]
    return found


def _of_other(name: str, stream: Stream) -> bool:
    """Whether an input of the same sizes belongs to the encoder, while the decoder's is cut."""
    return stream.name.startswith("decoder") and not name.startswith(("decoder", "labels"))


def _widest_step(model: nn.Module, output: Tensor) -> float:
    kinds = {output.dtype, *(each.dtype for each in model.parameters() if each.is_floating_point())}
    return max(torch.finfo(kind).eps for kind in kinds)


def _borders(length: int) -> list[tuple[int, int]]:
    """A long chunk, a short one, then token by token."""
    cuts = sorted({0, length // 2, max(length - 3, length // 2), max(length - 2, 1), length - 1, length})
    return [(begin, end) for begin, end in pairwise(cuts) if begin < end]


def _encoded(subject: Subject) -> dict[str, Any]:
    """The encoder runs once."""
    encoder: Any = getattr(subject.model, "get_encoder", None)
    if encoder is None:
        return {}
    main = next(name for name in subject.inputs if not name.startswith("decoder"))
    names = (main, "attention_mask")
    return {"encoder_outputs": encoder()(**{key: subject.inputs[key] for key in names if key in subject.inputs})}


def _of_tokens(outputs: dict[str, Tensor], stream: Stream) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in outputs.items() if tensor.dim() >= 3 and tensor.shape[1] == stream.length}
