"""Spatial attention equals timm's modules and the papers' formulas, gradients too (guide 2.2)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard import ArgumentError
from regard.nn import BAM, CBAM, HaloAttention, NonLocal, SpatialGate
from tests.nn.gates import close, drawn, image, same
from tests.nn.timm_layers import layer

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels"])

PAIRS = {
    "cbam": (lambda: CBAM(32), "cbam", lambda t: t.CbamModule(32)),
    "cbam 3": (
        lambda: CBAM(16, hidden=4, kernel_size=3, bias=True),
        "cbam",
        lambda t: t.CbamModule(16, rd_channels=4, spatial_kernel_size=3, mlp_bias=True),
    ),
    "cbam light": (lambda: CBAM(32, light=True), "cbam", lambda t: t.LightCbamModule(32)),
    "spatial": (lambda: SpatialGate(8), "cbam", lambda t: t.SpatialAttn()),
    "spatial light": (lambda: SpatialGate(8, light=True), "cbam", lambda t: t.LightSpatialAttn()),
    "non-local": (lambda: NonLocal(16, hidden=8), "non_local_attn", lambda t: t.NonLocalAttn(16)),
    "non-local unscaled": (
        lambda: NonLocal(16, hidden=4, scale=1.0),
        "non_local_attn",
        lambda t: t.NonLocalAttn(16, use_scale=False, rd_channels=4),
    ),
}


@LAYOUTS
@pytest.mark.parametrize(("ours", "room", "theirs"), PAIRS.values(), ids=PAIRS)
def test_equals_timm(ours, room, theirs, layout):
    made = ours()
    same(made, theirs(layer(room)), image(3, made.channels, 9, 6).to(memory_format=layout))


HALO = {
    "as it comes": ({}, {}),
    "small": ({"num_heads": 2, "block_size": 4, "halo_size": 1}, {}),
    "no halo": ({"num_heads": 2, "block_size": 8, "halo_size": 0}, {}),
    "narrow keys": ({"num_heads": 4, "block_size": 2, "halo_size": 3, "key_dim": 3}, {"dim_head": 3}),
    "bias": ({"num_heads": 2, "block_size": 4, "halo_size": 2, "bias": True}, {"qkv_bias": True}),
    "scaled": ({"num_heads": 2, "block_size": 4, "halo_size": 2, "scale_position": True}, {"scale_pos_embed": True}),
}


@pytest.mark.parametrize(("ours", "theirs"), HALO.values(), ids=HALO)
def test_halo_equals_timm(ours, theirs):
    same_options = {name: value for name, value in ours.items() if name in {"num_heads", "block_size", "halo_size"}}
    made = layer("halo_attn").HaloAttn(16, **same_options, **theirs)
    same(HaloAttention(16, **ours), made, image(2, 16, 16, 8))


def halo_by_hand(module, x):
    """The paper's equation, one query at a time."""
    batch, channels, height, width = x.shape
    heads, block, halo, window = module.num_heads, module.block_size, module.halo_size, module.window
    q = nn.functional.conv2d(x, module.q.weight, module.q.bias).view(batch, heads, -1, height, width)
    kv = nn.functional.conv2d(x, module.kv.weight, module.kv.bias).view(batch, heads, -1, height, width)
    k, v = kv[:, :, : module.key_dim], kv[:, :, module.key_dim :]
    out = torch.zeros_like(v)
    for row in range(height):
        for column in range(width):
            top, left = row // block * block - halo, column // block * block - halo
            query, scores, values = q[:, :, :, row, column], [], []
            for i in range(top, top + window):
                for j in range(left, left + window):
                    inside = 0 <= i < height and 0 <= j < width
                    if not inside and module.border == "masked":
                        continue
                    key = k[:, :, :, i, j] if inside else torch.zeros_like(query)
                    values.append(v[:, :, :, i, j] if inside else torch.zeros_like(v[:, :, :, 0, 0]))
                    place = module.pos_embed.height_rel[i - top - row % block + window - 1]
                    place = place + module.pos_embed.width_rel[j - left - column % block + window - 1]
                    scores.append((query * (key * module.key_dim**-0.5 + place)).sum(-1))
            weights = torch.stack(scores).softmax(0)
            out[:, :, :, row, column] = (weights[..., None] * torch.stack(values)).sum(0)
    return out.reshape(batch, channels, height, width)


@pytest.mark.parametrize("border", ["zeros", "masked"])
@pytest.mark.parametrize("size", [(5, 7), (1, 2), (6, 3)], ids=str)
def test_halo_is_the_papers_for_any_size(border, size):
    module = drawn(HaloAttention(4, 2, block_size=3, halo_size=1, border=border, bias=True)).double()
    x = image(1, 4, *size, dtype=torch.float64)
    close("output", module(x), halo_by_hand(module, x), 1e-12)


def test_a_masked_border_has_no_influence_and_a_zero_border_has():
    x = image(1, 4, 6, 6)
    zeros, masked = (HaloAttention(4, 2, block_size=3, halo_size=2, border=kind) for kind in ("zeros", "masked"))
    masked.load_state_dict(drawn(zeros).state_dict())
    ones = nn.Parameter(torch.ones_like(masked.kv.weight))
    masked.kv.weight = zeros.kv.weight = ones
    flat = torch.ones_like(x)  # every value is the same: an average of them is it again, unless zeros are among them
    assert torch.allclose(masked.eval()(flat), torch.full_like(x, 4.0), rtol=1e-5)
    assert (zeros.eval()(flat) < 3.9).any()
    assert masked(x).isfinite().all()


def non_local_by_hand(module, x):
    """Wang et al. 2018, equations 1, 4 (with the scale), 5 and 6, with the whole n x n table."""
    theta, phi, g = (nn.functional.conv2d(x, each.weight, each.bias) for each in (module.t, module.p, module.g))
    if module.subsample > 1:
        phi, g = (nn.functional.max_pool2d(each, module.subsample, ceil_mode=True) for each in (phi, g))
    theta, phi, g = theta.flatten(2), phi.flatten(2), g.flatten(2)
    table = torch.einsum("bdi,bdj->bij", theta, phi)
    table = (table * module.scale).softmax(2) if module.form == "embedded_gaussian" else table / phi.shape[2]
    y = torch.einsum("bij,bdj->bdi", table, g).unflatten(2, x.shape[2:])
    return x + module.norm(nn.functional.conv2d(y, module.z.weight, module.z.bias))


@pytest.mark.parametrize("form", ["embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("subsample", [1, 2])
def test_non_local_is_the_papers(form, subsample):
    module = drawn(NonLocal(6, form=form, subsample=subsample)).double()
    first, second = (image(2, 6, 5, 7, dtype=torch.float64).requires_grad_() for _ in range(2))
    found, expected = module(first), non_local_by_hand(module, second)
    found.square().sum().backward()
    expected.square().sum().backward()
    close("output", found, expected, 1e-11)
    close("gradient", first.grad, second.grad, 1e-11)


def test_non_local_starts_as_the_identity_unless_asked():
    x = image(2, 6, 5, 5)
    assert torch.equal(NonLocal(6)(x), x)
    assert not torch.equal(NonLocal(6, zero_init=False)(x), x)


def bam_by_hand(module, x):
    """Park et al. 2018, equations 1 to 5."""

    def norm(y, by):
        return (
            by.weight[:, None, None]
            * (y - by.running_mean[:, None, None])
            / (by.running_var[:, None, None] + by.eps).sqrt()
            + by.bias[:, None, None]
        )

    pooled = x.mean((2, 3))
    hidden = (pooled @ module.fc1.weight[..., 0, 0].T + module.fc1.bias).relu()
    of_channel = norm(
        (hidden @ module.fc2.weight[..., 0, 0].T + module.fc2.bias)[:, :, None, None], module.channel_norm
    )
    y = x
    convolutions = [each for each in module.spatial if isinstance(each, nn.Conv2d)]
    norms = [each for each in module.spatial if isinstance(each, nn.BatchNorm2d)]
    for number, (conv, by) in enumerate(zip(convolutions, norms, strict=True)):
        dilation = 1 if conv.kernel_size == (1, 1) else 4
        padding = 0 if conv.kernel_size == (1, 1) else 4
        y = norm(nn.functional.conv2d(y, conv.weight, conv.bias, padding=padding, dilation=dilation), by)
        y = y if number == len(norms) - 1 else y.relu()
    return x + x * (of_channel + y).sigmoid()


def test_bam_is_the_papers():
    module = drawn(BAM(8, reduction=4)).double()
    x = image(2, 8, 6, 9, dtype=torch.float64)
    close("output", module(x), bam_by_hand(module, x), 1e-12)
    assert [each.dilation for each in module.spatial if isinstance(each, nn.Conv2d)] == [(1, 1), (4, 4), (4, 4), (1, 1)]


def test_cbam_leaves_the_image_it_was_given_alone():
    module, x = drawn(CBAM(8)), image(2, 8, 5, 5)
    kept = x.clone()
    with torch.no_grad():
        found = module(x)
    assert torch.equal(x, kept)
    close("without a graph", found, module(x).detach(), 1e-6)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SpatialGate(8, kernel_size=4), "kernel_size: expected an odd number, got 4"),
        (lambda: NonLocal(8, form="gaussian"), "form: expected embedded_gaussian or dot_product, got 'gaussian'"),
        (lambda: HaloAttention(8, 3), "num_heads: expected a divisor of embed_dim 8, got 3"),
        (lambda: HaloAttention(8, 2, border="reflect"), "border: expected zeros or masked, got 'reflect'"),
        (lambda: HaloAttention(8, 2, halo_size=-1), "halo_size: expected a whole number of at least 1, got -1"),
        (lambda: BAM(8, depth=0), "depth: expected a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(make, told):
    with pytest.raises(ArgumentError, match=told):
        make()


@pytest.mark.parametrize("make", [lambda: CBAM(8), lambda: HaloAttention(8, 2, block_size=2, halo_size=1)])
def test_a_map_over_samples_is_the_batch(make):
    torch.manual_seed(0)
    module, image = make().eval(), torch.randn(3, 8, 5, 6)
    found = torch.vmap(lambda one: module(one[None])[0])(image)
    torch.testing.assert_close(found, module(image), rtol=1e-5, atol=1e-5)
