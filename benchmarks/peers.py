"""Who computes it: regard, and everything a user could take instead. A contestant that cannot says why."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import flex_attention as flex

import regard
from benchmarks import runtimes
from benchmarks.problems import DROPOUT, SEED, Inputs, Problem, allowed, mask_of

Forward = Callable[[], Tensor]
Results = tuple[Tensor, ...]


class Cannot(Exception):  # noqa: N818 - a contestant's answer, not a fault
    """This contestant cannot compute this problem; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A contestant: how it prepares a forward, the threads it computes with, and the environment it needs.

    `attends` is False of one that computes no attention, and whose answer is therefore not looked at.
    """

    prepare: Callable[[Problem, Inputs], Forward]
    pool: str = "torch"
    differentiates: bool = True
    compiles: bool = False
    attends: bool = True
    environment: tuple[tuple[str, str], ...] = ()
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


PAGES_KEPT = (
    (
        "GLIBC_TUNABLES",
        "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=268435456",
    ),
)
"""glibc told to give no freed page back: what plain peers lose otherwise is page faults, not arithmetic."""


def find_peer(name: str) -> Peer:
    """The contestant of this name. `regard-BACKEND` and `regard-BACKEND-ISA` name a backend and a level of it."""
    if name in PEERS:
        return PEERS[name]
    kind, _, rest = name.partition("-")
    if kind != "regard" or not rest:
        known = ", ".join((*PEERS, "regard-BACKEND"))
        raise ValueError(f"no contestant is called {name!r}; there are: {known}")
    backend, _, isa = rest.partition("-")
    environment = (("REGARD_ISA", isa),) if isa else ()
    return Peer(lambda problem, inputs: _regard(problem, inputs, backend), environment=environment)


def callable_of(name: str, problem: Problem, inputs: Inputs) -> Callable[[], Results]:
    """One whole run of a problem: the output, and the gradients where they are asked for."""
    peer = find_peer(name)
    if problem.backward and not peer.differentiates:
        raise Cannot("it computes no gradients")
    forward = peer.prepare(problem, inputs)
    if not problem.backward:
        return lambda: (forward(),)
    wanted, grad_output = inputs.wanted(), inputs.grad_output

    def both() -> Results:
        output = forward()
        return (output, *torch.autograd.grad(output, wanted, grad_output))

    return both


def _regard(problem: Problem, inputs: Inputs, backend: str) -> Forward:
    mask, drops = mask_of(problem), problem.extra == "dropout"
    return lambda: regard.attention(
        inputs.query,
        inputs.key,
        inputs.value,
        mask=mask,
        position=inputs.position,
        dropout_p=DROPOUT if drops else 0.0,
        seed=SEED if drops else None,
        enable_gqa=problem.heads != problem.kv_heads,
        backend=backend,
    )


def _sdpa(problem: Problem, inputs: Inputs) -> Forward:
    """A pattern that SDPA has no word for goes in as a bool tensor, made here and not timed."""
    blocked = problem.pattern.startswith("window")
    mask = allowed(problem, torch.arange(problem.q_len)) if blocked else None
    if problem.extra != "none" or problem.value_dim != problem.head_dim:
        check_room(problem, tensors=6 if problem.backward else 3)
    return lambda: functional.scaled_dot_product_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        attn_mask=mask if inputs.position is None else _bias(problem, inputs),
        dropout_p=DROPOUT if problem.extra == "dropout" else 0.0,
        is_causal=problem.pattern == "causal",
        enable_gqa=problem.heads != problem.kv_heads,
    )


def _bias(problem: Problem, inputs: Inputs) -> Tensor:
    """The position's table laid out over all pairs, (1, heads, q_len, kv_len), with its gradient."""
    if inputs.position is None:
        raise ValueError("no position")
    distances = torch.arange(-(problem.q_len - 1), problem.kv_len)
    over_distances = inputs.position.distance_bias(distances).to(inputs.query.dtype)
    return over_distances.unfold(1, problem.kv_len, 1).flip(1).unsqueeze(0)


@contextlib.contextmanager
def _activated() -> Generator[None]:
    regard.activate()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        regard.deactivate()  # pyright: ignore[reportAttributeAccessIssue]


def _activated_sdpa(problem: Problem, inputs: Inputs) -> Forward:
    if not hasattr(regard, "activate"):
        raise Cannot("this regard has no activate()")
    return _sdpa(problem, inputs)


def _eager(problem: Problem, inputs: Inputs) -> Forward:
    """softmax(Q K^T) V in the dtype of the inputs, with as few passes as plain torch needs."""
    check_room(problem, tensors=6 if problem.backward else 3)
    if problem.heads != problem.kv_heads and problem.q_len != 1:
        raise Cannot("grouped heads are written for one query only")
    dense = problem.pattern == "dense"
    blocked = None if dense else ~allowed(problem, torch.arange(problem.q_len))
    scale = 1 / math.sqrt(problem.head_dim)

    def forward() -> Tensor:
        query = inputs.query.reshape(1, problem.kv_heads, -1, problem.head_dim)
        scores = (query * scale) @ inputs.key.mT
        if inputs.position is not None:
            scores = scores + _bias(problem, inputs)
        if blocked is not None:
            scores = scores.masked_fill_(blocked, -torch.inf)
        weights = torch.softmax(scores, -1)
        if problem.extra == "dropout":
            weights = torch.dropout(weights, DROPOUT, train=True)
        return (weights @ inputs.value).reshape(1, problem.heads, problem.q_len, problem.value_dim)

    return forward


def _flex(problem: Problem, inputs: Inputs) -> Forward:
    """Compiled, with a block mask of its own making, which a dense problem needs too to be fast."""
    if problem.extra != "none":
        raise Cannot(f"no rule for {problem.extra} is written for it")
    torch.compiler.reset()
    radius, tokens, pattern = problem.radius, problem.global_tokens, problem.pattern

    def keep(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if pattern == "dense":
            return key >= 0
        if pattern == "causal":
            return key <= query
        near = (key - query).abs() <= radius
        return near if pattern == "window" else near | (key < tokens) | (query < tokens)

    blocks = flex.create_block_mask(keep, None, None, problem.q_len, problem.kv_len, device="cpu")
    compiled: Any = torch.compile(flex.flex_attention, dynamic=False)  # pyright: ignore[reportUnknownMemberType]
    grouped = problem.heads != problem.kv_heads

    return lambda: compiled(inputs.query, inputs.key, inputs.value, block_mask=blocks, enable_gqa=grouped)


def _runtime(module: str, prepare: Callable[[Problem, Inputs], Forward]) -> Callable[[Problem, Inputs], Forward]:
    def prepared(problem: Problem, inputs: Inputs) -> Forward:
        if importlib.util.find_spec(module) is None:
            raise Cannot(f"{module} is not installed; pip install 'regard[bench]'")
        if problem.heads != problem.kv_heads or problem.extra != "none":
            raise Cannot("only equal heads and no extras are written for it")
        return prepare(problem, inputs)

    return prepared


def check_room(problem: Problem, *, tensors: int) -> None:
    """Refuse what would lay out more score tensors than the free memory holds."""
    needed = tensors * problem.score_bytes
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.8 * free:
        raise Cannot(f"it would lay out {needed / 2**30:.1f} GiB of scores and {free / 2**30:.1f} GiB are free")


def _reading(way: Callable[[Tensor], Tensor]) -> Peer:
    """Whoever only reads the keys and values, with all threads: as fast as this machine's memory is meanwhile."""

    def prepare(_problem: Problem, inputs: Inputs) -> Forward:
        both = [tensor.detach().view(-1).view(torch.float32) for tensor in (inputs.key, inputs.value)]
        return lambda: way(both[0]) + way(both[1])

    return Peer(prepare, differentiates=False, attends=False)


READINGS = {
    "reading-sum": _reading(torch.sum),
    "reading-largest": _reading(torch.amax),
    "reading-dot": _reading(lambda numbers: torch.dot(*numbers.view(2, -1))),
}
"""Three ways of reading; none is the fastest everywhere."""

PEERS = {
    "sdpa": Peer(_sdpa),
    "flex": Peer(_flex, compiles=True),
    "eager": Peer(_eager),
    "eager-pages-kept": Peer(_eager, pool="worker", environment=PAGES_KEPT),
    "openvino": Peer(_runtime("openvino", runtimes.openvino), pool="openvino", differentiates=False),
    "onnxruntime": Peer(_runtime("onnxruntime", runtimes.onnxruntime), pool="onnxruntime", differentiates=False),
    "activated": Peer(_activated_sdpa, around=_activated),
    **READINGS,
}
