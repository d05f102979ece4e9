"""What a target makes of a question, what plain torch makes of it, and the truth: output, lse and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from regard import reference
from regard._errors import UnsupportedError
from regard.trust.plain import plain_attention
from regard.trust.question import Question
from regard.trust.target import Target

Incoming = Literal["random", "ones", "heads last"]
"""The gradient that comes in: numbers in memory of their own, one number for all (stride 0), or a transposed view."""
Returned = Tensor | tuple[Tensor, Tensor]


class DetachedError(UnsupportedError):
    """The output was asked for a gradient and has none."""


@dataclass(frozen=True, eq=False)
class Answer:
    """An output (batch, heads, q_len, value_dim), its lse if asked for, and gradients by name where any flow."""

    output: Tensor
    lse: Tensor | None
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Expected:
    """What plain torch makes of a question in its own dtype, and the truth; zeros where no gradient flows."""

    plain: Answer
    truth: Answer


def answer(target: Target, question: Question, *, lse: bool = False, gradient: Incoming | None = "random") -> Answer:
    """What the target makes of fresh copies of the question's tensors.

    Raises:
        DetachedError: a gradient was asked for, and the output does not depend on what goes in.
        UnsupportedError: the lse was asked for and is not offered; and whatever the target raises.
    """
    if lse and target.call_with_lse is None:
        raise UnsupportedError({target.name: "it gives no lse"})
    call = target.call_with_lse if lse and target.call_with_lse is not None else target.call
    return _answer(call, question.copied(gradient=gradient is not None), gradient)


def expected(question: Question, *, lse: bool = False, gradient: Incoming | None = "random") -> Expected:
    """The two answers that a target is judged by."""

    def plain(asked: Question) -> Returned:
        return plain_attention(asked.query, asked.key, asked.value, return_lse=lse, **asked.options)

    def exact(asked: Question) -> Returned:
        result = reference.attention(asked.query, asked.key, asked.value, **asked.options)
        return (result.output, result.lse) if lse else result.output

    own = question.copied(gradient=gradient is not None)
    wide = question.copied(torch.float64, gradient=gradient is not None)
    return Expected(_filled(_answer(plain, own, gradient), own), _filled(_answer(exact, wide, gradient), wide))


def _filled(given: Answer, question: Question) -> Answer:
    if not given.gradients:
        return given
    zeros = {name: torch.zeros_like(leaf) for name, leaf in question.leaves().items()}
    return replace(given, gradients=zeros | dict(given.gradients))


def _answer(call: Callable[[Question], Returned], question: Question, gradient: Incoming | None) -> Answer:
    returned = call(question)
    output, lse = returned if isinstance(returned, tuple) else (returned, None)
    if gradient is None:
        return Answer(output.detach(), None if lse is None else lse.detach(), {})
    if not output.requires_grad:
        raise DetachedError({"backward": "its output is detached from what goes in"}, do="Ask for no gradient.")
    leaves = question.leaves()
    mixture = _mixture(output, lse, gradient)
    found = cast("tuple[Tensor | None, ...]", torch.autograd.grad(mixture, [*leaves.values()], allow_unused=True))
    named = {name: each for name, each in zip(leaves, found, strict=True) if each is not None}
    return Answer(output.detach(), None if lse is None else lse.detach(), named)


def _mixture(output: Tensor, lse: Tensor | None, gradient: Incoming) -> Tensor:
    """One number, whose derivative by the output is the gradient that comes in."""
    if gradient == "ones":
        mixture = output.sum()
    elif gradient == "heads last":
        turned = output.transpose(1, 2)
        mixture = (turned * _weights_like(turned, 1)).sum()
    else:
        mixture = (output * _weights_like(output, 1)).sum()
    if lse is None or not lse.requires_grad:
        return mixture
    finite = lse.masked_fill(lse.isinf(), 0.0)
    return mixture + (finite * _weights_like(lse, 2)).sum()


def _weights_like(tensor: Tensor, seed: int) -> Tensor:
    numbers = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(torch.bfloat16).to(tensor.dtype)  # the same numbers in every dtype
