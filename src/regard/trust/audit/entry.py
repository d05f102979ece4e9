"""`regard.audit`: what a callable really attends to, beside what it is declared to.

Nothing it says of itself is taken for granted: every weight is read off its outputs (see `recover`), and the mask, the
scale, softcap, bias, sinks and grouping of heads are worked out from the weights alone.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard._shapes import Sizes
from regard.masks import Mask
from regard.masks._align import Align
from regard.positions import Position
from regard.trust.audit.conclusions import concluded
from regard.trust.audit.declared import Declared, lengths_of
from regard.trust.audit.examination import Examination
from regard.trust.audit.huggingface import PREFIX, huggingface_target
from regard.trust.audit.multihead import multihead_ways
from regard.trust.audit.result import Audit
from regard.trust.audit.ways import together
from regard.trust.calling import Layout
from regard.trust.question import OPTIONS
from regard.trust.target import Adapter, Target, as_target

if TYPE_CHECKING:
    from regard.trust.model_leaks import ModelAudit
    from regard.trust.model_leaks.subject import Kind

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS, BATCH, HEAD_DIM = 4, 2, 16


@overload
def audit(
    target: object,
    *,
    mask: Mask | Tensor | None = None,
    position: Position | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    enable_gqa: bool = False,
    asked: Collection[str] | None = None,
    adapter: Adapter | None = None,
    layout: Layout = "bhnd",
    corner: Align | None = None,
    batch: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int = HEAD_DIM,
    lengths: Sequence[tuple[int, int]] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: torch.device | str = "cpu",
    strict: bool = False,
    seed: int = 0,
) -> Audit: ...


@overload
def audit(
    target: nn.Module,
    *,
    inputs: Mapping[str, Any],
    kind: Kind | None = None,
    causal: bool | None = None,
    strict: bool = False,
    seed: int = 0,
) -> ModelAudit: ...


def audit(
    target: object,
    *,
    mask: Mask | Tensor | None = None,
    position: Position | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    enable_gqa: bool = False,
    asked: Collection[str] | None = None,
    adapter: Adapter | None = None,
    layout: Layout = "bhnd",
    corner: Align | None = None,
    batch: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int = HEAD_DIM,
    lengths: Sequence[tuple[int, int]] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: torch.device | str = "cpu",
    strict: bool = False,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
    causal: bool | None = None,
) -> Audit | ModelAudit:
    """Recover what attention really does, black box, and compare it with what is declared.

    Args:
        target: anything `as_target` takes: a callable f(query, key, value, ...), a backend's name, "torch" or
            "module:function"; "huggingface:NAME", an attention that is registered in transformers; a
            `torch.nn.MultiheadAttention`, whose ways to run are compared; or a mapping from names to any of these,
            which are audited one by one and compared. A whole model (one of transformers, or any module with `inputs`)
            is audited for leaks by `regard.trust.model_leaks.audit_model`, which has more to choose.
        mask, position, bias, scale, softcap, sink, enable_gqa: what attention should do, as in `regard.attention`.
            Nothing declared is plain softmax(query key^T / sqrt(head_dim)) value.
        asked: which of these the target is asked for in its call; the others it should do by itself. Left out: those
            that it has a parameter for.
        adapter, layout, corner: how the target is called; see `as_target`.
        batch, heads, kv_heads, head_dim: sizes to probe with; left out, those of what is declared, or 2, 4, 4 (2 with
            `enable_gqa`) and 16.
        lengths: (q_len, kv_len) pairs, the main one first. Left out: lengths at which the mask shows itself.
        dtypes: the first is examined in full, the others for their masks.
        device: of the tensors.
        strict: warnings fail the audit, too.
        seed: of the random scores.
        inputs: what a whole model is called with, by name.
        kind, causal: of a whole model: what it is, and whether its tokens may see those before them alone. Of one that
            is not of transformers this is not known otherwise, and whether the future reaches the past is not asked.

    Returns:
        Audit: `.passed`, `.findings`, `.mask`, `.scale`, `.softcap`, `.sinks`, `.groups`, and reports of it.

    Raises:
        ArgumentError: a target that cannot be called, lengths at which the declaration means nothing, or an output of
            another shape.
        UnsupportedError: the target refuses what it is asked for, or fails on the first probe.
    """
    from regard.trust.model_leaks import audit_model  # here, since findings are made with those of this room
    from regard.trust.model_leaks.subject import transformers_model

    if inputs is not None or transformers_model(target):
        return audit_model(cast("nn.Module", target), inputs, kind=kind, causal=causal, strict=strict, seed=seed)
    declared = Declared.of(
        mask, position=position, bias=bias, scale=scale, softcap=softcap, sink=sink, enable_gqa=enable_gqa
    )
    count = heads if heads is not None else declared.heads if declared.heads is not None else HEADS
    kv_count = kv_heads if kv_heads is not None else max(1, count // 2) if enable_gqa else count
    samples = batch if batch is not None else declared.batch if declared.batch is not None else BATCH
    places = tuple(lengths) if lengths is not None else lengths_of(declared)
    _check(declared, places, dtypes)
    sizes = Sizes(samples, count, kv_count, *places[0], head_dim, head_dim)

    def examined(one: object, named: str | None) -> Audit:
        called = _called(one, adapter, layout, corner)
        handed = _handed(called, asked)
        module = one if isinstance(one, nn.Module) else None
        examination = Examination(called, declared, handed, sizes, device, seed, module)
        with _own_random_numbers(seed):
            return concluded(examination, places, dtypes, name=named or called.name, strict=strict)

    ways = _ways(target, heads=count)
    if ways is None:
        return examined(target, None)
    return together(_name(target), {name: examined(way, name) for name, way in ways.items()})


@contextmanager
def _own_random_numbers(seed: int) -> Generator[None]:
    """A target that drops weights starts at the seed; the caller's random numbers go on as if nothing was drawn."""
    before = torch.random.get_rng_state()
    try:
        cast("Any", torch).manual_seed(seed)
        yield
    finally:
        torch.random.set_rng_state(before)


def _called(target: object, adapter: Adapter | None, layout: Layout, corner: Align | None) -> Target:
    if isinstance(target, str) and target.startswith(PREFIX):
        return huggingface_target(target.removeprefix(PREFIX))
    return as_target(target, adapter, layout=layout, corner=corner)


def _handed(target: Target, asked: Collection[str] | None) -> frozenset[str]:
    if asked is None:
        return target.offers
    unknown = sorted(set(asked) - set(OPTIONS))
    if unknown:
        raise ArgumentError(
            "asked", expected=f"options out of {', '.join(OPTIONS)}", got=", ".join(unknown), do="See regard.attention."
        )
    return frozenset(asked)


def _check(declared: Declared, places: Sequence[tuple[int, int]], dtypes: Sequence[torch.dtype]) -> None:
    if not places or not dtypes:
        raise ArgumentError("lengths and dtypes", expected="at least one of each", got="none", do="Leave them out.")
    if not declared.fits(*places[0]):
        raise ArgumentError(
            "lengths",
            expected="a first pair at which the declared mask, position and bias mean something",
            got=str(places[0]),
            do="Leave lengths out, or say align= in the mask where q_len != kv_len.",
        )


def _ways(target: object, *, heads: int) -> Mapping[str, object] | None:
    if isinstance(target, nn.MultiheadAttention):
        return multihead_ways(target, heads=heads)
    return cast("Mapping[str, object]", target) if isinstance(target, Mapping) else None


def _name(target: object) -> str:
    return type(target).__name__ if isinstance(target, nn.Module) else "several ways"
