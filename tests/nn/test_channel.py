"""Channel attention equals the guide's code, timm's modules and the papers' formulas, gradients too (guide 2.2)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regard import ArgumentError, ShapeError
from regard.nn import (
    ChannelGate,
    CoordinateAttention,
    EffectiveSqueezeExcitation,
    EfficientChannel,
    GatherExcite,
    GlobalContext,
    SelectiveKernel,
    SqueezeExcitation,
)
from regard.nn._gating import mean, mean_and_max
from tests.nn.cases import CASES
from tests.nn.gates import close, drawn, image, same
from tests.nn.timm_layers import layer

ROOMS = {"tests.nn.cases_channel", "tests.nn.cases_spatial"}
IMAGE_CASES = [case for case in CASES.values() if case.make.__module__ in ROOMS]
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels"])


class GuideSEBlock(nn.Module):
    """The class of the guide, section 2.2, as it stands there."""

    def __init__(self, channel, reduction=16):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction),
            nn.ReLU(),
            nn.Linear(channel // reduction, channel),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.fc(x.mean(dim=[2, 3]))
        return x * y.view(b, c, 1, 1)


def from_guide(theirs):
    state = theirs.state_dict()
    return {
        "fc1.weight": state["fc.0.weight"][:, :, None, None],
        "fc1.bias": state["fc.0.bias"],
        "fc2.weight": state["fc.2.weight"][:, :, None, None],
        "fc2.bias": state["fc.2.bias"],
    }


@LAYOUTS
@pytest.mark.parametrize("reduction", [4, 16])
def test_squeeze_excitation_is_the_guides(reduction, layout):
    theirs, ours = drawn(GuideSEBlock(32, reduction)), SqueezeExcitation(32, reduction=reduction)
    ours.load_state_dict(from_guide(theirs))
    first, second = (image(3, 32, 5, 7).to(memory_format=layout).requires_grad_() for _ in range(2))
    found, expected = ours(first), theirs(second)
    gradient = image(3, 32, 5, 7, seed=2)
    found.backward(gradient)
    expected.backward(gradient)
    close("output", found, expected)
    close("input", first.grad, second.grad)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        close("weight", mine.grad.flatten(), its.grad.flatten())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_f57_fewer_channels_than_reduction_still_looks_at_the_image():
    few, other = image(1, 8, 4, 4), image(1, 8, 4, 4, seed=9)
    theirs = drawn(GuideSEBlock(8))
    assert torch.equal((theirs(few) / few)[..., 0, 0], (theirs(other) / other)[..., 0, 0])  # the guide's: one constant
    ours = drawn(SqueezeExcitation(8))
    nn.init.constant_(ours.fc1.bias, 5.0)  # the one unit is on
    assert ours.fc1.out_channels == 1
    assert not torch.allclose((ours(few) / few)[..., 0, 0], (ours(other) / other)[..., 0, 0], rtol=1e-3)


@pytest.mark.parametrize("shape", [(8, 4, 4), (1, 8, 2, 4, 4), (1, 9, 4, 4), (8,)])
def test_f58_what_is_no_image_of_these_channels_is_refused(shape):
    with pytest.raises(ShapeError, match=r"image: expected \(batch, channels 8, height, width\), got \("):
        SqueezeExcitation(8)(image(*shape))


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ShapeError, match="image: expected at least one pixel, got"):
        ChannelGate(8)(image(1, 8, 0, 4))
    with pytest.raises(ShapeError, match=r"image dtype: expected float16.*got torch\.int64"):
        ChannelGate(8)(torch.ones(1, 8, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SqueezeExcitation(0), "channels: expected a whole number of at least 1, got 0"),
        (lambda: SqueezeExcitation(8, hidden=0), "hidden: expected a whole number of at least 1, got 0"),
        (lambda: SqueezeExcitation(8, gate="relu"), "gate: expected one of sigmoid, hard_sigmoid, got 'relu'"),
        (lambda: ChannelGate(8, activation="tanh"), "activation: expected one of relu, silu, gelu, hard_swish, got"),
        (lambda: EfficientChannel(8, kernel_size=4), "kernel_size: expected an odd number, got 4"),
        (lambda: GatherExcite(8, extent=3), "extent: expected 0 .* or a power of two from 2, got 3"),
        (lambda: GatherExcite(8, learned=True), "feature_size: expected .height, width., got None"),
        (lambda: GlobalContext(8, fusion="mul"), "fusion: expected add, scale or both, got 'mul'"),
        (lambda: SelectiveKernel(8, kernel_sizes=(3,)), "kernel_sizes: expected two or more sizes from 3, got"),
        (lambda: SelectiveKernel(9, split=True), "channels: expected a multiple of the 2 paths, got 9"),
        (lambda: SelectiveKernel(8, groups=3), "groups: expected a divisor of the 8 channels"),
        (lambda: EfficientChannel(2, kernel_size=7, circular=True), "kernel_size: expected at most 5, once around 2"),
    ],
)
def test_what_cannot_be_is_refused(make, told):
    with pytest.raises(ArgumentError, match=told):
        make()


def timm_pairs():
    """Name, ours, timm's room and class, and how it is made."""
    yield "se", lambda: SqueezeExcitation(32, hidden=8), "squeeze_excite", lambda t: t.SEModule(32)
    yield (
        "se hard",
        lambda: SqueezeExcitation(32, hidden=5, gate="hard_sigmoid", bias=False),
        "squeeze_excite",
        lambda t: t.SEModule(32, rd_channels=5, gate_layer="hard_sigmoid", bias=False),
    )
    yield "ese", lambda: EffectiveSqueezeExcitation(12), "squeeze_excite", lambda t: t.EffectiveSEModule(12)
    yield "eca", lambda: EfficientChannel(256), "eca", lambda t: t.EcaModule(256)
    yield "eca 5", lambda: EfficientChannel(12, kernel_size=5), "eca", lambda t: t.EcaModule(kernel_size=5)
    yield "ceca", lambda: EfficientChannel(256, circular=True), "eca", lambda t: t.CecaModule(256)
    yield "channel", lambda: ChannelGate(32), "cbam", lambda t: t.ChannelAttn(32)
    yield (
        "light",
        lambda: ChannelGate(32, light=True, bias=True),
        "cbam",
        lambda t: t.LightChannelAttn(32, mlp_bias=True),
    )
    yield "ge", lambda: GatherExcite(6, mlp=False), "gather_excite", lambda t: t.GatherExcite(6, use_mlp=False)
    yield (
        "ge 4",
        lambda: GatherExcite(6, extent=4, mlp=False),
        "gather_excite",
        lambda t: t.GatherExcite(6, extent=4, use_mlp=False),
    )
    yield (
        "gc add",
        lambda: GlobalContext(16),
        "global_context",
        lambda t: t.GlobalContext(16, fuse_add=True, fuse_scale=False),
    )
    yield "gc scale", lambda: GlobalContext(16, fusion="scale"), "global_context", lambda t: t.GlobalContext(16)
    yield (
        "gc both",
        lambda: GlobalContext(16, fusion="both", attend=False, hidden=3),
        "global_context",
        lambda t: t.GlobalContext(16, use_attn=False, fuse_add=True, rd_channels=3),
    )
    yield (
        "sk",
        lambda: SelectiveKernel(8, split=True, min_hidden=8),
        "selective_kernel",
        lambda t: t.SelectiveKernel(8),
    )
    yield (
        "sk full",
        lambda: SelectiveKernel(8, 12, kernel_sizes=(3, 5, 7), stride=2, groups=4, dilated=False, hidden=5),
        "selective_kernel",
        lambda t: t.SelectiveKernel(
            8, 12, kernel_size=[3, 5, 7], stride=2, groups=4, keep_3x3=False, split_input=False, rd_channels=5
        ),
    )
    yield "coordinate", lambda: CoordinateAttention(32), "coord_attn", lambda t: t.CoordAttn(32)


PAIRS = list(timm_pairs())


@LAYOUTS
@pytest.mark.parametrize(("ours", "room", "theirs"), [pair[1:] for pair in PAIRS], ids=[pair[0] for pair in PAIRS])
def test_equals_timm(ours, room, theirs, layout):
    made = ours()
    channels = made.channels
    same(made, theirs(layer(room)), image(3, channels, 9, 6).to(memory_format=layout))


@pytest.mark.parametrize(("channels", "width"), [(1, 3), (8, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)])
def test_the_width_of_eca_is_the_papers(channels, width):
    assert EfficientChannel(channels).conv.kernel_size == (width,)


def test_gather_excite_with_all_its_weights_is_the_papers():
    """timm's has them too, but cannot be made (1.0.31): the formula, one step at a time, in float64."""
    module = drawn(GatherExcite(4, extent=4, learned=True, hidden=3)).double()
    x = image(2, 4, 10, 7, dtype=torch.float64)
    y = x
    for conv, norm in ((module.gather.conv1, module.gather.norm1), (module.gather.conv2, module.gather.norm2)):
        y = y if conv is module.gather.conv1 else y.relu()
        y = nn.functional.conv2d(y, conv.weight, stride=2, padding=1, groups=4)
        shift = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        y = shift * norm.weight[:, None, None] + norm.bias[:, None, None]
    first, second = module.mlp["fc1"], module.mlp["fc2"]
    y = torch.einsum("bchw,oc->bohw", y, first.weight[..., 0, 0]) + first.bias[:, None, None]
    y = torch.einsum("bchw,oc->bohw", y.relu(), second.weight[..., 0, 0]) + second.bias[:, None, None]
    rows = torch.arange(10) * y.shape[2] // 10  # the nearest above
    columns = torch.arange(7) * y.shape[3] // 7
    close("output", module(x), x * y[:, :, rows][..., columns].sigmoid(), 1e-12)


def test_gather_excite_of_a_whole_image_that_learns_is_of_one_size():
    module = GatherExcite(4, learned=True, feature_size=(5, 6))
    assert module(image(2, 4, 5, 6)).shape == (2, 4, 5, 6)
    with pytest.raises(ShapeError, match=r"image: expected height and width \(5, 6\)"):
        module(image(2, 4, 6, 6))


def test_global_context_that_adds_starts_as_the_identity():
    x = image(2, 8, 5, 5)
    assert torch.equal(GlobalContext(8)(x), x)
    assert not torch.equal(GlobalContext(8, fusion="both")(x), x)


@pytest.mark.parametrize("dims", [(2, 3), (1,)], ids=str)
def test_equal_maxima_share_the_gradient(dims):
    x = torch.zeros(2, 3, 4, 5)
    x[0, 1, 2, 3] = x[0, 1, 0, 0] = x[0, 0, 0, 0] = 2.0
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = mean_and_max(first, dims)
    expected = second.mean(dims, keepdim=True), second.amax(dims, keepdim=True)
    gradients = [image(*each.shape) for each in found]
    torch.autograd.backward(found, gradients)
    torch.autograd.backward(expected, gradients)
    close("gradient", first.grad, second.grad)


def test_pooling_differentiates_twice_and_in_batches():
    x = image(2, 3, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: mean_and_max(given, (2, 3)), (x,))
    assert torch.autograd.gradgradcheck(lambda given: mean_and_max(given.exp(), (2, 3)), (x,))
    gradient = torch.func.vmap(torch.func.grad(lambda given: mean_and_max(given, (1,))[1].sum()))(x.detach()[:, None])
    assert gradient.sum() == 2 * 2 * 3


@pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
def test_a_batch_of_no_images_gives_no_images(case):
    module = case.module()
    (given,) = case.inputs(0, 7)
    found = module(given.requires_grad_())
    found.sum().backward()
    assert found.shape[0] == 0
    assert given.grad.shape == given.shape


def test_a_mean_of_many_large_halves_does_not_overflow():
    x = torch.full((1, 1, 64, 64), 100.0, dtype=torch.float16)
    assert mean(x, (2, 3)).item() == pytest.approx(100.0)
    assert math.isinf(x.sum((2, 3)).item())


@pytest.mark.parametrize("make", [SqueezeExcitation, EfficientChannel, ChannelGate, CoordinateAttention, GlobalContext])
def test_goes_through_pickle_and_deep_copy(make, tmp_path):
    import copy

    module, x = drawn(make(8)), image(1, 8, 3, 3)
    torch.save(module, tmp_path / "module.pt")
    again = torch.load(tmp_path / "module.pt", weights_only=False)
    assert torch.equal(again(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_gradients_of_a_batch_of_one_under_autocast():
    module, x = SqueezeExcitation(8), image(1, 8, 3, 3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        module(x).sum().backward()
    assert x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()
