"""The Perceiver resampler beside Idefics' on the same weights; padding, frames of a video, refusals."""

from __future__ import annotations

import math

import pytest
import torch

import regard
from regard.masks import Causal, Keys, Padding
from regard.nn import PerceiverResampler
from tests.nn.cross_modal_layers import HEADS, TEXT, draw, idefics_config, near


def test_resampler_is_idefics():
    """On the same weights; Idefics took relu where Flamingo has its square."""
    module = pytest.importorskip("transformers.models.idefics.perceiver")
    torch.manual_seed(0)
    theirs = module.IdeficsPerceiverResampler(idefics_config(TEXT), TEXT, 2, HEADS, 8, 4)
    ours = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=2, head_dim=8, activation="relu")
    with torch.no_grad():
        ours.latents.copy_(theirs.latents)
        for layer, (attend, mlp) in zip(ours.layers, theirs.blocks, strict=True):
            layer.query.weight.copy_(attend.q_proj.weight)
            layer.key_value.weight.copy_(torch.cat([attend.k_proj.weight, attend.v_proj.weight]))
            layer.output.weight.copy_(attend.output_proj.weight)
            layer.feedforward.inner.weight.copy_(mlp.fc.weight)
            layer.feedforward.outer.weight.copy_(mlp.c_proj.weight)
    x = draw(2, 9, TEXT).requires_grad_()
    found, expected = ours(x), theirs(x)
    near(found, expected)
    slope = draw(*found.shape, seed=2)
    near(*(torch.autograd.grad(output, x, slope)[0] for output in (found, expected)))


@pytest.mark.parametrize(
    "mask",
    [
        Padding([3, 5], side="left"),
        Keys(torch.tensor([[False, False, True, True, True], [True] * 5])),
        torch.tensor([[False, False, True, True, True], [True] * 5]),
    ],
    ids=["left", "keys", "bool"],
)
def test_resampler_reads_real_tokens_alone(mask):
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=2)
    x = draw(2, 5, TEXT)
    found = module(x, mask=mask)
    near(found[:1], module(x[:1, 2:]))
    near(found[1:], module(x[1:]))
    x[0, :2] = math.nan
    assert torch.equal(module(x, mask=mask), found)


def test_resampler_without_an_image_gives_latents_that_see_one_another():
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=2)
    x = draw(2, 5, TEXT)
    none = module(x[:, :0])
    assert none.shape == (2, 4, TEXT)
    assert none.isfinite().all()
    near(module(x, mask=Padding([0, 5]))[:1], none[:1])
    assert module(x[:0]).shape == (0, 4, TEXT)


def test_resampler_of_a_video_adds_a_vector_for_each_frame():
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=1, max_frames=3)
    video = draw(2, 2, 5, TEXT)
    by_hand = torch.cat([video[:, 0] + module.frames[0], video[:, 1] + module.frames[1]], 1)
    near(module(video), module(by_hand))
    near(module(video, mask=Padding([5, 10])), module(by_hand, mask=Padding([5, 10])))
    with pytest.raises(regard.ShapeError, match="or with at most 3 frames before length, got"):
        module(draw(2, 4, 5, TEXT))
    with pytest.raises(regard.ShapeError, match="Make the module with max_frames for video"):
        PerceiverResampler(TEXT, HEADS, depth=1)(video)


def test_resampler_refuses_masks_of_pairs():
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=1)
    with pytest.raises(regard.UnsupportedError, match="PerceiverResampler: it honours padding, and no other mask"):
        module(draw(2, 5, TEXT), mask=Causal("bottom_right"))
    with pytest.raises(regard.MaskError, match="mask batch: expected 2, got 3"):
        module(draw(2, 5, TEXT), mask=Padding([5, 5, 5]))
    with pytest.raises(regard.ArgumentError, match="depth: expected a whole number of at least 1, got 0"):
        PerceiverResampler(TEXT, HEADS, depth=0)
