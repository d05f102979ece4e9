"""Gates and grids beside the layers of timm and axial-attention, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.module_pairs import Line, Pair, Work, bars
from benchmarks.module_peers import package, timm_layer
from benchmarks.problems import Direction
from benchmarks.sides import Side, Sizes, normal
from regard import nn as mechanisms


def lines() -> list[Line]:
    """Every line of images."""
    found = [
        _gate("SE", mechanisms.SqueezeExcitation, "squeeze_excite.SEModule", hidden=lambda c: max(8, c // 16)),
        _gate("CBAM", mechanisms.CBAM, "cbam.CbamModule"),
        _gate("ECA", mechanisms.EfficientChannel, "eca.EcaModule"),
        _gate("effective SE", mechanisms.EffectiveSqueezeExcitation, "squeeze_excite.EffectiveSEModule", bar=None),
        _gate("coordinate", mechanisms.CoordinateAttention, "coord_attn.CoordAttn", bar=None),
        Line("global context", "GlobalContext", "timm", _global_context),
        Line("selective kernel", "SelectiveKernel", "timm", _selective_kernel),
        Line("non-local", "NonLocal", "timm", _non_local),
        Line("halo", "HaloAttention", "timm", _halo),
    ]
    return [*found, Line("axial", "AxialAttention", "axial-attention", _axial, bars(3, 3), work=_of_lines)]


def _images(sizes: Sizes, count: int = 1) -> tuple[Tensor]:
    return (normal(count, sizes.channels, sizes.side, sizes.side),)


def _gate(
    name: str,
    ours: Callable[..., nn.Module],
    theirs: str,
    *,
    bar: float | None = 1.0,
    hidden: Callable[[int], int] | None = None,
) -> Line:
    room, kind = theirs.split(".")

    def pair(sizes: Sizes, _direction: Direction) -> Pair:
        options = {} if hidden is None else {"hidden": hidden(sizes.channels)}
        made = ours(sizes.channels, **options)
        return _alike(made, getattr(timm_layer(room), kind)(sizes.channels), _images(sizes, sizes.images))

    return Line(name, getattr(ours, "__name__", name), "timm", pair, bars(bar, bar))


def _alike(ours: nn.Module, theirs: nn.Module, inputs: tuple[Tensor, ...]) -> Pair:
    """Their weights have the same names."""
    ours.load_state_dict(theirs.state_dict())
    return Pair(Side(ours, inputs), Side(theirs, inputs))


def _global_context(sizes: Sizes, _direction: Direction) -> Pair:
    theirs = timm_layer("global_context").GlobalContext(sizes.channels)
    return _alike(mechanisms.GlobalContext(sizes.channels, fusion="scale"), theirs, _images(sizes, sizes.images))


def _selective_kernel(sizes: Sizes, _direction: Direction) -> Pair:
    theirs = timm_layer("selective_kernel").SelectiveKernel(sizes.channels)
    return _alike(mechanisms.SelectiveKernel(sizes.channels, split=True, min_hidden=8), theirs, _images(sizes, 2))


def _non_local(sizes: Sizes, _direction: Direction) -> Pair:
    """Both begin as the identity; the scale of the last norm is set to 1, so that something is computed."""
    theirs = timm_layer("non_local_attn").NonLocalAttn(sizes.channels)
    nn.init.ones_(theirs.norm.weight)
    return _alike(mechanisms.NonLocal(sizes.channels, hidden=max(8, sizes.channels // 8)), theirs, _images(sizes))


def _halo(sizes: Sizes, _direction: Direction) -> Pair:
    theirs = timm_layer("halo_attn").HaloAttn(sizes.channels, block_size=8, num_heads=sizes.heads)
    return _alike(mechanisms.HaloAttention(sizes.channels, sizes.heads, block_size=8), theirs, _images(sizes))


def _of_lines(sizes: Sizes) -> Work:
    n, channels = sizes.grid**2, sizes.channels
    return Work(maps=2 * 8 * n * channels**2, attention=2 * 4 * n * sizes.grid * channels)


def _axial(sizes: Sizes, _direction: Direction) -> Pair:
    """Theirs has no bias of query, key and value; ours is zero."""
    theirs: Any = package("axial_attention").AxialAttention(
        dim=sizes.channels, num_dimensions=2, heads=sizes.heads, dim_index=1
    )
    ours: Any = mechanisms.AxialAttention(sizes.channels, sizes.heads)
    with torch.no_grad():
        for mine, its in zip(ours.lines, theirs.axial_attentions, strict=True):
            mine.in_proj_weight.copy_(torch.cat([its.fn.to_q.weight, its.fn.to_kv.weight]))
            mine.out_proj.load_state_dict(its.fn.to_out.state_dict())
    inputs = (normal(1, sizes.channels, sizes.grid, sizes.grid),)
    return Pair(Side(ours, inputs), Side(theirs, inputs))
