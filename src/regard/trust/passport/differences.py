"""What is known about the layer that differs first: other weights, or attention that is asked something else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.masks import Mask
from regard.observation import ObservedLayer
from regard.trust.passport.call_replay import question_of
from regard.trust.passport.calls import as_question
from regard.trust.passport.folder import Passport
from regard.trust.passport.plan import module_of
from regard.trust.question import Question

_NAMED = 3


def weights_differ(name: str, passport: Passport, weights: Mapping[str, str]) -> list[str]:
    """Whether the weights of a layer are those that were recorded; nothing where that cannot be told.

    weights: digests of the model's tensors as it is replayed; none where they are in another dtype.
    """
    return _weights(module_of(name), passport.contents.weights, weights)


def asked_otherwise(name: str, passport: Passport, layers: Iterable[ObservedLayer]) -> dict[str, list[str]]:
    """Of the attention around or inside of a layer: what it is asked here that it was not when it was recorded."""
    module = module_of(name)
    seen = {layer.name: layer for layer in layers}
    told: dict[str, list[str]] = {}
    for call in passport.contents.calls:
        place = module_of(call.name)
        if call.name in seen and not call.kept and (_is_in(place, module) or _is_in(module, place)):
            told[call.name] = _options(question_of(call, passport), as_question(seen[call.name].call).question)
    return {name: lines for name, lines in told.items() if lines}


def _weights(module: str, recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    if not here:
        return []
    inside = [key for key in recorded if _is_in(key.rpartition(".")[0], module)]
    other = [key for key in inside if key in here and here[key] != recorded[key]]
    absent = [key for key in inside if key not in here]
    told: list[str] = []
    if other:
        told.append(f"its weights are not those that were recorded: {_some(other)}")
    if absent:
        told.append(f"it has no {_some(absent)}")
    if inside and not told:
        told.append("its weights are those that were recorded")
    return told


def _options(then: Question, now: Question) -> list[str]:
    """How two attention problems of one layer differ, beside their numbers."""
    if then.sizes != now.sizes:
        return [f"recorded with {then.sizes}, now {now.sizes}"]
    told = [
        f"{what} {before:g} was recorded, now it is {after:g}"
        for what, before, after in (("scale", _scale(then), _scale(now)), ("softcap", _cap(then), _cap(now)))
        if not math.isclose(before, after, rel_tol=1e-6)
    ]
    allowed = [_allowed(question) for question in (then, now)]
    if not torch.equal(*allowed):
        pairs, of = int((allowed[0] != allowed[1]).sum()), allowed[0].numel()
        more = "more" if int(allowed[1].sum()) > int(allowed[0].sum()) else "fewer or others"
        told.append(f"{pairs} of {of} pairs have another mask than was recorded; {more} may attend now")
    for name in ("bias", "sink"):
        before, after = then.options.get(name), now.options.get(name)
        if (before is None) != (after is None):
            told.append(f"a {name} {'was recorded, now there is none' if after is None else 'was not recorded'}")
    return told


def _scale(question: Question) -> float:
    given = question.options.get("scale")
    return question.query.shape[-1] ** -0.5 if given is None else float(given)


def _cap(question: Question) -> float:
    return float(question.options.get("softcap") or math.inf)


def _allowed(question: Question) -> Tensor:
    """Which pairs may attend, mask and bias taken together: (batch, heads, q_len, kv_len)."""
    sizes, options = question.sizes, question.options
    shape = sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len
    mask: Any = options.get("mask")
    allowed = torch.ones(shape, dtype=torch.bool)
    if isinstance(mask, Mask):
        allowed = allowed & mask.dense(sizes.q_len, sizes.kv_len)
    bias = options.get("bias")
    return allowed if bias is None else allowed & (bias > torch.finfo(bias.dtype).min / 2)


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
