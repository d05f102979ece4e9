"""`regard.attention`: the one public function. It validates, asks the backends, and runs the one that said yes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Unpack, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from regard._errors import ArgumentError, UnsupportedError
from regard._front_door import Options, build_problem
from regard.backends import BACKENDS, Backend, Problem, Support
from regard.masks import Mask
from regard.positions import Position

_CPU_ORDER = ("native", "sdpa", "eager", "flex")
"""On CPU FlexAttention compiles for seconds and has no backward: it is never chosen, only named."""


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    backend: str = "auto",
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    backend: str = "auto",
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    backend: str = "auto",
    return_lse: bool,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]: ...


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    position: Position | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
    return_lse: bool = False,
    additive: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact scaled dot-product attention (guide 1.1; Vaswani et al. 2017). Every option is honoured or refused.

    `output = softmax(softcap(scale * Q K^T) + bias, where mask) V`

    Args:
        query: (batch, heads, q_len, head_dim); float16, bfloat16, float32 or float64.
        key: (batch, kv_heads, kv_len, head_dim); `kv_heads` = `heads` unless `enable_gqa`.
        value: (batch, kv_heads, kv_len, value_dim).
        mask: which pairs may attend: a `regard.masks` value, or a bool tensor (True = may attend) of shape
            (q_len, kv_len), or with size 1 where it is shared (batch or 1, heads or 1, q_len or 1, kv_len or 1).
        position: how distance changes scores or vectors: a `regard.positions` module.
        bias: float tensor added to the scores, broadcastable to (batch, heads, q_len, kv_len); cast to the
            dtype the scores are computed in. Gradient flows to it.
        scale: factor of the dot products; 1 / sqrt(head_dim) unless given. 0 and negative numbers are allowed.
        softcap: scores become `softcap * tanh(scores / softcap)`, before bias and mask.
        sink: (heads,), one logit for each head that takes part in the softmax and gives nothing.
        dropout_p: probability of dropping a weight; the kept ones are scaled by 1 / (1 - dropout_p).
        seed: of the dropout, 0 to 2**63 - 1; the same seed drops the same weights on every backend. Drawn from
            torch's default generator unless given.
        enable_gqa: several query heads share a key/value head (heads must be a multiple of kv_heads).
        backend: "auto" (the first that supports the problem), or a name, which never falls back.
        return_lse: also return the log of each row's normaliser, float32 (batch, heads, q_len), sink included;
            -inf where a row may attend to nothing.
        additive: a bias that holds only 0 and 1 is really to be added (it is refused otherwise: a mask?).

    Returns:
        (batch, heads, q_len, value_dim) in the dtype of the query (inside torch.autocast: in that of autocast),
        or that and the lse. A row that may attend to nothing is 0.

    Raises:
        ShapeError: sizes, dtypes or devices do not fit together.
        MaskError: the mask cannot mean what was asked.
        ArgumentError: a scalar option is out of range, or `backend` is no backend's name.
        UnsupportedError: the named backend refuses the problem; the message says why.
    """
    if has_torch_function((query, key, value)):  # observe() sees this call, and tensor subclasses take part
        return handle_torch_function(
            attention, (query, key, value), query, key, value, mask=mask, position=position, bias=bias, scale=scale,
            softcap=softcap, sink=sink, dropout_p=dropout_p, seed=seed, enable_gqa=enable_gqa, backend=backend,
            return_lse=return_lse, additive=additive,
        )  # fmt: skip
    options: Options = {
        "mask": mask,
        "position": position,
        "bias": bias,
        "scale": scale,
        "softcap": softcap,
        "sink": sink,
        "dropout_p": dropout_p,
        "seed": seed,
        "enable_gqa": enable_gqa,
        "additive": additive,
    }
    problem = build_problem(query, key, value, return_lse=return_lse, **options)
    chosen = _choose(problem, backend)
    with _without_autocast(problem.query):
        output, lse = chosen.run(problem)
    if not return_lse:
        return output
    if lse is None:
        raise AssertionError(f"backend {chosen.name} said yes to return_lse and gave none")
    return output, lse


def _without_autocast(query: Tensor) -> AbstractContextManager[object]:
    """The front door has cast what autocast asks to be cast; inside, each backend knows its own precision."""
    kind = query.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


@dataclass(frozen=True)
class Choice:
    """One backend's row in `regard.dispatch`."""

    backend: str
    status: Literal["chosen", "supported", "refused"]
    reason: str


@dataclass(frozen=True)
class Dispatch:
    """Which backend "auto" or a name would take, and what every other one says. Prints as a table."""

    choices: tuple[Choice, ...]

    @property
    def chosen(self) -> str | None:
        """The backend that would run, or None when the one that was named refuses."""
        return next((choice.backend for choice in self.choices if choice.status == "chosen"), None)

    def __str__(self) -> str:
        width = max(len(choice.backend) for choice in self.choices)
        return "\n".join(f"{c.backend:<{width}}  {c.status:<9}  {c.reason}" for c in self.choices)


def dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    backend: str = "auto",
    return_lse: bool = False,
    **options: Unpack[Options],
) -> Dispatch:
    """What every backend says to this problem: chosen, supported or refused, and why. Computes nothing.

    Takes what `regard.attention` takes and raises what its validation raises.
    """
    if options.get("seed") is None:
        options["seed"] = 0  # none is drawn: nothing is computed, and torch's generator stays where it is
    problem = build_problem(query, key, value, return_lse=return_lse, **options)
    _check_name(backend)
    answers = {candidate.name: candidate.support(problem) for candidate in _order(problem)}
    asked = answers if backend == "auto" else {backend: answers[backend]}
    chosen = next((name for name, answer in asked.items() if answer.ok), None)
    return Dispatch(
        tuple(Choice(name, _status(name, answer, chosen), answer.reason) for name, answer in answers.items())
    )


def _status(name: str, answer: Support, chosen: str | None) -> Literal["chosen", "supported", "refused"]:
    if name == chosen:
        return "chosen"
    return "supported" if answer.ok else "refused"


def _order(problem: Problem) -> tuple[Backend, ...]:
    if problem.query.device.type != "cpu":
        return BACKENDS
    return tuple(sorted(BACKENDS, key=lambda backend: _CPU_ORDER.index(backend.name)))


def _check_name(backend: str) -> None:
    names = ["auto", *(candidate.name for candidate in BACKENDS)]
    if backend not in names:
        raise ArgumentError(
            "backend",
            expected=f"one of {', '.join(names)}",
            got=repr(backend),
            do="regard.dispatch(...) says what each can do.",
        )


def _choose(problem: Problem, backend: str) -> Backend:
    _check_name(backend)
    reasons: dict[str, str] = {}
    for candidate in _order(problem):
        if backend in ("auto", candidate.name):
            answer = candidate.support(problem)
            if answer.ok:
                return candidate
            reasons[candidate.name] = answer.reason
    raise UnsupportedError(reasons)
