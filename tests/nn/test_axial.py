"""The grid family: each mechanism against its rule about coordinates, by its mask and by its fast path."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from regard import ArgumentError, MaskError, ShapeError, UnsupportedError
from regard.nn import (
    AxialAttention,
    CrissCrossAttention,
    MaxViTBlockAttention,
    MaxViTGridAttention,
    NeighborhoodAttention,
)
from tests.nn.plain_heads import drawn, plain, same

SHAPES = [(7,), (1,), (5, 8), (9, 3), (1, 4), (17, 10), (2, 3, 5), (4, 1, 6)]


def places(shape):
    return list(itertools.product(*map(range, shape)))


def rule_table(shape, rule):
    """Bool (tokens, tokens) from a rule about the coordinates of a query and a key."""
    return torch.tensor([[rule(query, key) for key in places(shape)] for query in places(shape)])


def apart(query, key):
    return [there - here for here, there in zip(query, key, strict=True)]


def in_one_block(shape, window):
    return lambda query, key: all(a // window == b // window for a, b in zip(query, key, strict=True))


def in_one_grid(shape, count):
    """As far apart as a grid of `count` has it on each axis of the shape, made larger until the count divides it."""
    steps = [math.ceil(size / count) for size in shape]
    return lambda query, key: all(way % step == 0 for way, step in zip(apart(query, key), steps, strict=True))


KINDS = {
    "axial along the last": (
        lambda axes, **more: AxialAttention(6, 2, axes=axes, along=-1, **more),
        lambda _shape: lambda query, key: query[:-1] == key[:-1],
    ),
    "criss-cross": (
        lambda axes, **more: CrissCrossAttention(6, 2, axes=axes, **more),
        lambda _shape: lambda query, key: sum(way != 0 for way in apart(query, key)) <= 1,
    ),
    "block": (
        lambda axes, **more: MaxViTBlockAttention(6, 2, axes=axes, window=3, **more),
        lambda shape: in_one_block(shape, 3),
    ),
    "grid": (
        lambda axes, **more: MaxViTGridAttention(6, 2, axes=axes, grid=3, **more),
        lambda shape: in_one_grid(shape, 3),
    ),
    "neighborhood": (
        lambda axes, **more: NeighborhoodAttention(6, 2, axes=axes, radius=2, **more),
        lambda _shape: lambda query, key: all(abs(way) <= 2 for way in apart(query, key)),
    ),
}


def flat(x):
    """(batch, channels, *grid) as (batch, tokens, channels)."""
    return x.flatten(2).transpose(1, 2)


def holes(shape):
    """Bool (2, *shape): which tokens are real; in the second sample none of the first row is."""
    real = torch.rand(2, *shape, generator=torch.Generator().manual_seed(6)) < 0.7
    real[1, 0] = False
    return real


@pytest.mark.parametrize("masked", [False, True], ids=["all real", "with holes"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", ["reshaped", "mask"])
@pytest.mark.parametrize("name", KINDS)
def test_is_attention_with_its_rule(name, path, shape, masked):
    make, rule_of = KINDS[name]
    module, x = drawn(make(len(shape), path=path), (2, 6, *shape))
    keep = rule_table(shape, rule_of(shape))[None, None]
    real = holes(shape) if masked else None
    if real is not None:
        keep = keep & real.flatten(1)[:, None, None]
    x.requires_grad_()
    inner = module.lines[0] if isinstance(module, AxialAttention) else module
    expected = plain(inner, flat(x), keep).transpose(1, 2).reshape(x.shape)
    # The lines of a criss-cross are joined by an lse of float32.
    tolerance = 1e-6 if name == "criss-cross" and path == "reshaped" else 1e-11
    same(module(x, mask=real), expected, [x], [*module.parameters()], tolerance=tolerance)


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_both_paths_are_one_in_float32(name, shape):
    make, _ = KINDS[name]
    module, x = drawn(make(len(shape)), (2, 6, *shape), dtype=torch.float32)
    other = make(len(shape), path="mask")
    other.load_state_dict(module.state_dict())
    x.requires_grad_()
    found, expected = module(x), other(x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(each, x, direction) for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------- axial


def test_axial_adds_its_axes():
    module, x = drawn(AxialAttention(6, 2, axes=3), (2, 6, 3, 4, 5))
    shape = (3, 4, 5)
    expected = torch.zeros_like(x)
    for axis, line in enumerate(module.lines):
        keep = rule_table(
            shape, lambda a, b, axis=axis: all(way == 0 for at, way in enumerate(apart(a, b)) if at != axis)
        )
        expected = expected + plain(line, flat(x), keep).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), expected)


def test_axial_in_turn_reaches_every_token():
    x = torch.randn(1, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    for combine, reached in (("sum", 4 + 5 - 1), ("in_turn", 4 * 5)):
        module = AxialAttention(6, 2, combine=combine).double()
        (gradient,) = torch.autograd.grad(module(x)[0, :, 2, 3].sum(), x)
        assert int((gradient.abs().sum(1) > 0).sum()) == reached


def test_axial_in_turn_is_one_axis_after_the_other():
    module, x = drawn(AxialAttention(6, 2, combine="in_turn"), (2, 6, 4, 5))
    down, across = module.lines
    torch.testing.assert_close(module(x), across(down(x)))
    backwards = AxialAttention(6, 2, combine="in_turn", along=(1, 0)).double()
    assert [line.axis for line in backwards.lines] == [1, 0]


class PlainLines(torch.nn.Module):
    """What the package axial-attention computes along one axis, as an einsum over whole lines."""

    def __init__(self, line):
        super().__init__()
        self.line = line

    def forward(self, x, axis):
        lines = x.movedim(1, -1).movedim(axis + 1, -2)
        width, heads = self.line.embed_dim, self.line.num_heads
        query, key, value = (lines @ part.T for part in self.line.in_proj_weight.split(width))
        query, key, value = (part.unflatten(-1, (heads, -1)).movedim(-2, 1) for part in (query, key, value))
        weights = torch.einsum("...ie,...je->...ij", query, key).mul((width // heads) ** -0.5).softmax(-1)
        joined = (weights @ value).movedim(1, -2).flatten(-2)
        return self.line.out_proj(joined).movedim(-2, axis + 1).movedim(-1, 1)


def test_axial_along_each_axis_of_a_video_without_a_bias_of_its_projections():
    module, x = drawn(AxialAttention(6, 2, axes=3, bias=False), (2, 6, 3, 4, 5))
    expected = sum(PlainLines(line)(x, axis) for axis, line in enumerate(module.lines))
    torch.testing.assert_close(module(x), expected)


# ------------------------------------------------------------------------------------------------- MaxViT


@pytest.mark.parametrize("shape", [(6, 9), (5, 7)], ids=str)
@pytest.mark.parametrize("kind", ["block", "grid"])
def test_relative_bias_is_of_the_difference_within_a_part(kind, shape):
    if kind == "block":
        module = MaxViTBlockAttention(6, 2, window=3, relative_bias=True)
        rule, unit = in_one_block(shape, 3), [1, 1]
    else:
        module = MaxViTGridAttention(6, 2, grid=3, relative_bias=True)
        rule, unit = in_one_grid(shape, 3), [math.ceil(size / 3) for size in shape]
    module, x = drawn(module, (2, 6, *shape))
    keep = rule_table(shape, rule)
    entry = torch.tensor(
        [
            [
                sum(
                    (way // step + 2) * (5 if axis == 0 else 1)
                    for axis, (way, step) in enumerate(zip(apart(a, b), unit, strict=True))
                )
                for b in places(shape)
            ]
            for a in places(shape)
        ]
    )
    x.requires_grad_()
    expected = _with_bias(module, flat(x), keep, module.relative_bias[:, entry.clamp(0, 24)])
    same(module(x), expected.transpose(1, 2).reshape(x.shape), [x], [*module.parameters()], tolerance=1e-11)


def _with_bias(module, tokens, keep, bias):
    from tests.nn.plain_heads import projected

    query, key, value = projected(module, tokens, 0, 3)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
    weights = scores.masked_fill(~keep, float("-inf")).softmax(-1)
    return module.out_proj((weights @ value).transpose(1, 2).flatten(2))


def test_a_window_for_each_axis():
    module, x = drawn(MaxViTBlockAttention(6, 2, window=(2, 4)), (2, 6, 5, 8))
    keep = rule_table((5, 8), lambda a, b: a[0] // 2 == b[0] // 2 and a[1] // 4 == b[1] // 4)
    torch.testing.assert_close(module(x), plain(module, flat(x), keep).transpose(1, 2).reshape(x.shape))


# ------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("name", KINDS)
def test_any_memory_format(name):
    module, x = drawn(KINDS[name][0](2), (2, 6, 5, 8))
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), module(x))
    assert module(x).stride(1) == 1


@pytest.mark.parametrize("held", [1e3, torch.nan, torch.inf], ids=str)
def test_what_is_not_real_has_no_influence(held):
    for make, _ in KINDS.values():
        module, x = drawn(make(2), (2, 6, 5, 8))
        real = holes((5, 8))
        changed = torch.where(real[:, None], x, held * torch.randn_like(x))
        before, after = (module(image, mask=real).masked_fill(~real[:, None], 0.0) for image in (x, changed))
        torch.testing.assert_close(after, before)


def test_masks_are_made_where_the_tokens_are():
    """On a device without numbers, which a mask on the CPU does not fit."""
    module = NeighborhoodAttention(6, 2, radius=1).to("meta")
    image = torch.empty(2, 6, 5, 8, device="meta")
    assert module(image).shape == image.shape
    real = torch.ones(2, 5, 8, dtype=torch.bool, device="meta")
    assert module(image, mask=real).shape == image.shape


@pytest.mark.parametrize("kind", [MaxViTBlockAttention, MaxViTGridAttention])
def test_a_compiled_module_takes_another_size(kind):
    """The second one is where torch.compile begins to hold sizes open, and a part's size must not be."""
    torch._dynamo.reset()
    module, small, large = drawn(kind(6, 2, relative_bias=True, **{_part(kind): 3}), (2, 6, 5, 6), (2, 6, 8, 7))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for x in (small, large):
        torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("kind", [AxialAttention, CrissCrossAttention])
def test_one_graph_serves_images_of_all_sizes(kind):
    """Lines lie beside the heads there, so that the number of heads is not the same in each image."""
    torch._dynamo.reset()
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    module = kind(6, 2).eval()
    compiled = torch.compile(module, fullgraph=True, backend=counted)
    for height, width in ((4, 5), (6, 7), (7, 9), (8, 11)):
        x = torch.randn(1, 6, height, width)
        torch.testing.assert_close(compiled(x), module(x))
    assert len(graphs) <= 2


def _part(kind):
    return "window" if kind is MaxViTBlockAttention else "grid"


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "wording"),
    [
        (lambda: AxialAttention(6, 2, axes=4), r"axes: expected 1, 2 or 3, got 4. 1 for sequences, 2 for images"),
        (
            lambda: AxialAttention(6, 2, along=2),
            r"along: expected axes from 0 to 1, got 2. For images 0 attends within",
        ),
        (lambda: AxialAttention(6, 2, along=()), r"along: expected axes from 0 to 1, got \(\)"),
        (lambda: AxialAttention(6, 2, combine="mean"), r"combine: expected 'sum' or 'in_turn', got 'mean'"),
        (lambda: CrissCrossAttention(6, 4), r"num_heads: expected a divisor of embed_dim 6, got 4"),
        (lambda: CrissCrossAttention(6, 2, path="fast"), r"path: expected 'reshaped' or 'mask', got 'fast'"),
        (lambda: MaxViTBlockAttention(6, 2, window=0), r"window: expected a whole number of at least 1"),
        (lambda: MaxViTGridAttention(6, 2, grid=(2, 2, 2)), r"grid: expected .* each of 2 axes, got \(2, 2, 2\)"),
        (lambda: NeighborhoodAttention(6, 2, radius=0), r"radius: expected a whole number of at least 1"),
    ],
)
def test_refuses_bad_options(make, wording):
    with pytest.raises(ArgumentError, match=wording):
        make()


def test_refuses_a_relative_bias_by_mask():
    with pytest.raises(UnsupportedError, match=r"no relative_bias. Take path='reshaped'"):
        MaxViTBlockAttention(6, 2, relative_bias=True, path="mask")


@pytest.mark.parametrize("name", KINDS)
def test_refuses_other_grids_and_masks(name):
    module = KINDS[name][0](2)
    for wrong in ((2, 5, 4, 4), (6, 4, 4), (2, 6, 4), (2, 6, 0, 4)):
        with pytest.raises(
            ShapeError, match=r"x: expected \(batch, channels 6, height, width\) with at least one token"
        ):
            module(torch.zeros(wrong))
    with pytest.raises(ShapeError, match=r"x: expected a floating-point tensor .* got torch.int64"):
        module(torch.zeros(2, 6, 4, 4).long())
    for mask in (torch.ones(2, 4, 5, dtype=torch.bool), torch.ones(2, 4, 4), "all"):
        with pytest.raises(MaskError, match=r"mask: expected a bool tensor \(batch, \*grid\) = \(2, "):
            module(torch.zeros(2, 6, 4, 4), mask=mask)
