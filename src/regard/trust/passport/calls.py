"""Attention calls of a passport: from what `regard.observe` saw to a question that fits, and how it is written.

Heads with other keys, samples, and queries do not know of each other, so a call that is too large for the budget is
made smaller by leaving some of them out: what is left is a whole attention problem, with its own answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from regard import reference
from regard.masks import Dense, Mask
from regard.observation.call import AttentionCall
from regard.trust.passport.runs import signs
from regard.trust.passport.written import (
    Keep,
    NotWritableError,
    read_mask,
    read_position,
    unspread,
    writable,
    write_mask,
    write_position,
)
from regard.trust.question import OPTIONS, Question

FEWEST_ROWS = 16
"""A call of which not so many queries fit is left out."""


@dataclass(frozen=True, eq=False)
class Asked:
    """An attention call as a question, with what the model got as the answer where that can be seen.

    kept: what of the call is left, in words; "" where it is all of it.
    """

    question: Question
    output: Tensor | None
    kept: str = ""


def as_question(call: AttentionCall) -> Asked:
    """The whole call; on the CPU, apart from the model's memory."""
    options: dict[str, Any] = {name: given for name, given in call.options.items() if given is not None}
    options.pop("dropout_p", None)
    options.pop("seed", None)
    options.pop("additive", None)
    if isinstance(options.get("mask"), Tensor):
        options["mask"] = Dense(options["mask"])
    if call.key.shape[1] != call.query.shape[1]:
        options["enable_gqa"] = True
    moved = {name: unspread(_own(given)) if isinstance(given, Tensor) else given for name, given in options.items()}
    output = None if call.output is None or call.dropout_p > 0.0 else _own(call.output)
    return Asked(Question(_own(call.query), _own(call.key), _own(call.value), moved), output)


def fitted(asked: Asked, room: int) -> Asked | None:
    """As much of a call as `room` bytes hold: fewer samples, then heads, then queries; None where none fit."""
    question = asked.question
    if cost(question) <= room:
        return asked
    sizes, fixed = question.sizes, question.options.get("position") is not None
    samples = _most(sizes.batch, lambda count: cost(_part(question, samples=count)), room)
    heads = sizes.kv_heads
    if samples == 1 and not fixed:
        heads = _most(heads, lambda count: cost(_part(question, samples=1, kv_heads=count)), room)
    rows = torch.arange(sizes.q_len)
    if samples == 1 and heads == 1 and not fixed:
        one = _part(question, samples=1, kv_heads=1)
        count = _most(sizes.q_len, lambda count: cost(_with_rows(one, rows[:count])), room)
        rows = torch.linspace(0, sizes.q_len - 1, max(count, 1)).round().long()
    chosen = _part(question, samples=samples, kv_heads=heads)
    chosen = chosen if rows.numel() == sizes.q_len else _with_rows(chosen, rows)
    if cost(chosen) > room or rows.numel() < min(FEWEST_ROWS, sizes.q_len):
        return None
    group = sizes.heads // sizes.kv_heads
    output = None if asked.output is None else asked.output[:samples, : heads * group, rows]
    return Asked(chosen, output, _kept(question, chosen))


def cost(question: Question) -> int:
    """Bytes of a call in a passport: the problem, the float64 answer and gradients, and what the recorder made."""
    learns = leaves_of(question)
    output = question.query.shape[:3].numel() * question.value.shape[3]
    numbers = sum(tensor.numel() for tensor in learns) + output
    size = question.query.element_size()
    mask = question.options.get("mask")
    pairs = _pairs(mask.tensor) if isinstance(mask, Dense) else 0
    others = sum(_stored(question.options.get(name)) for name in ("bias",) if name not in _learning(question))
    return numbers * (2 * size + 8) + pairs // 8 + others


class Answer(NamedTuple):
    """An output, and the gradients by name of the sum of its elements with their signs."""

    output: Tensor
    gradients: dict[str, Tensor]


def truth_of(question: Question) -> Answer:
    """By the reference, in float64."""
    exact = learning(question, torch.float64)
    return answered(exact, reference.attention(exact.query, exact.key, exact.value, **exact.options).output)


def learning(question: Question, dtype: torch.dtype | None = None) -> Question:
    """A copy in a dtype whose tensors learn, but for a bias that stands for a mask."""
    copied = question.copied(dtype, gradient=True)
    bias = copied.options.get("bias")
    if bias is not None and "bias" not in _learning(question):
        bias.requires_grad_(requires_grad=False)
    return copied


def answered(question: Question, output: Tensor) -> Answer:
    """The output of a question with the gradients of its leaves."""
    return Answer(output.detach(), gradients_of(output, question.leaves()))


def gradients_of(output: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the sum of an output's elements with their signs; what it does not depend on has 0."""
    found = torch.autograd.grad(output, list(leaves.values()), signs(output), allow_unused=True)
    named = zip(leaves.items(), cast("tuple[Tensor | None, ...]", found), strict=True)
    return {name: torch.zeros_like(leaf) if gradient is None else gradient for (name, leaf), gradient in named}


# ------------------------------------------------------------------------------------------ as JSON


def write_options(question: Question, keep: Keep) -> dict[str, Any]:
    """The options as JSON; their tensors go to `keep`. Raises NotWritableError for what cannot be."""
    written: dict[str, Any] = {}
    for name, given in question.options.items():
        if isinstance(given, Mask):
            whole = given if writable(given) else Dense(given.dense(question.query.shape[2], question.key.shape[2]))
            written[name] = write_mask(whole, keep)
        elif name == "position":
            written[name] = write_position(given, keep)
        elif isinstance(given, Tensor):
            written[name] = keep(name, given)
        elif isinstance(given, (bool, int, float)):
            written[name] = given
        else:
            raise NotWritableError(f"{name}, which is {type(given).__name__}")
    return written


def read_options(written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options again. Raises ValueError, KeyError, TypeError or RuntimeError for what are none."""
    options: dict[str, Any] = dict(written)
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise ValueError(f"no option is called {unknown[0]!r}")
    if "mask" in options:
        options["mask"] = read_mask(options["mask"], tensors)
    if "position" in options:
        options["position"] = read_position(options["position"], tensors)
    for name in ("bias", "sink"):
        if name in options:
            options[name] = tensors[options[name]]
    return options


# -------------------------------------------------------------------------------------------- smaller


def _part(question: Question, *, samples: int, kv_heads: int | None = None) -> Question:
    """The first samples, and the first key heads with the query heads that read them."""
    sizes = question.sizes
    heads = sizes.heads if kv_heads is None else kv_heads * (sizes.heads // sizes.kv_heads)
    options = dict(question.options)
    for name in ("bias", "mask"):
        given = options.get(name)
        if isinstance(given, Mask) and (given.batch_size is not None or given.head_count is not None):
            given = given.dense(sizes.q_len, sizes.kv_len)
            options[name] = Dense(given[:samples, :heads])
        elif isinstance(given, Tensor):
            given = given.reshape((1,) * (4 - given.dim()) + tuple(given.shape))
            options[name] = given[:samples, :heads]
    if "sink" in options:
        options["sink"] = options["sink"][:heads]
    return Question(
        question.query[:samples, :heads],
        question.key[:samples, :kv_heads],
        question.value[:samples, :kv_heads],
        options,
    )


def _with_rows(question: Question, rows: Tensor) -> Question:
    """These queries only; the mask is written out for them."""
    options = dict(question.options)
    mask, bias = options.get("mask"), options.get("bias")
    if isinstance(mask, Mask):
        keys = torch.arange(question.key.shape[2])
        options["mask"] = Dense(mask.tile(rows, keys, question.query.shape[2], question.key.shape[2]))
    if isinstance(bias, Tensor) and bias.dim() >= 2 and bias.shape[-2] > 1:
        options["bias"] = bias[..., rows, :]
    return replace(question, query=question.query[:, :, rows], options=options)


def _most(whole: int, bytes_of: Callable[[int], int], room: int) -> int:
    """How many of `whole` fit, at least 1: the cost grows with the number."""
    low, high = 1, whole
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bytes_of(middle) <= room else (low, middle - 1)
    return low


def _kept(whole: Question, part: Question) -> str:
    def share(what: str, have: int, of: int) -> str:
        return "" if have == of else f"{have} of {of} {what}"

    told = (
        share("samples", part.query.shape[0], whole.query.shape[0]),
        share("heads", part.query.shape[1], whole.query.shape[1]),
        share("queries", part.query.shape[2], whole.query.shape[2]),
    )
    return ", ".join(entry for entry in told if entry)


def leaves_of(question: Question) -> list[Tensor]:
    """The tensors whose gradients a passport has."""
    position = question.options.get("position")
    tables = [] if position is None else list(position.parameters())
    return [question.query, question.key, question.value, *_learning(question).values(), *tables]


def _learning(question: Question) -> dict[str, Tensor]:
    """Bias and sink, but for a bias that forbids pairs by -inf or the lowest number there is."""
    found = {name: question.options[name] for name in ("bias", "sink") if question.options.get(name) is not None}
    if "bias" in found and bool((found["bias"] <= torch.finfo(found["bias"].dtype).min / 2).any()):
        del found["bias"]
    return found


def _stored(given: Any) -> int:
    return given.numel() * given.element_size() if isinstance(given, Tensor) else 0


def _pairs(tensor: Tensor) -> int:
    spread = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return math.prod(spread)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
