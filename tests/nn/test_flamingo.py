"""Flamingo's gated block beside Idefics' on the same weights; which image a token sees, and the mask that says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regard
from regard.masks import Dense, Keys, Padding
from regard.masks._lowering import lower
from regard.nn import GatedCrossAttention, preceding_image
from regard.nn.flamingo import TokensOfImage
from tests.nn.cross_modal_layers import HEADS, IMAGE, TEXT, draw, idefics_config, near, with_random_biases


def open_gates(**options):
    """Flamingo's block as after some training."""
    made = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE, **options)
    with torch.no_grad():
        for gate in (made.attention_gate, made.feedforward_gate):
            gate.copy_(draw(*gate.shape))
    return made


def test_gated_block_begins_as_the_identity():
    module = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE)
    x = draw(2, 7, TEXT)
    found = module(x, draw(2, 5, IMAGE))
    assert torch.equal(found, x)
    found.sum().backward()
    moved = {name for name, weight in module.named_parameters() if weight.grad.any()}
    assert moved == {"attention_gate", "feedforward_gate"}


@pytest.mark.parametrize("kind", ["float", "vector"])
def test_gated_block_is_idefics(kind):
    """Idefics norms by root mean square and has gated feed-forward layers: both are put in place of ours."""
    module = pytest.importorskip("transformers.models.idefics.modeling_idefics")
    config = idefics_config(IMAGE)
    config.alpha_type = kind
    torch.manual_seed(0)
    theirs = module.IdeficsGatedCrossAttentionLayer(config, layer_idx=0)
    ours = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE, gate_per_channel=kind == "vector")
    ours.attention_norm, ours.feedforward_norm = (nn.RMSNorm(TEXT, eps=config.rms_norm_eps) for _ in range(2))
    ours.feedforward = theirs.mlp
    with torch.no_grad():
        theirs.alpha_cross_attn.copy_(draw(*theirs.alpha_cross_attn.shape))
        theirs.alpha_dense.copy_(draw(*theirs.alpha_dense.shape, seed=2))
        ours.attention_gate.copy_(theirs.alpha_cross_attn.flatten())
        ours.feedforward_gate.copy_(theirs.alpha_dense.flatten())
        ours.attention.query.weight.copy_(theirs.cross_attn.q_proj.weight)
        ours.attention.key_value.weight.copy_(
            torch.cat([theirs.cross_attn.k_proj.weight, theirs.cross_attn.v_proj.weight])
        )
        ours.attention.output.weight.copy_(theirs.cross_attn.o_proj.weight)

    x, images = draw(2, 7, TEXT).requires_grad_(), draw(2, 3, 5, IMAGE).requires_grad_()
    of_token = torch.tensor([[-1, 0, 0, 1, 1, 2, 2], [-1, -1, -1, 0, 0, 0, 0]])
    kept = torch.arange(15) // 5 == of_token[..., None]
    additive = torch.zeros(2, 1, 7, 15).masked_fill(~kept[:, None], torch.finfo(torch.float32).min)
    found = ours(x, images, image_of_token=of_token)
    expected = theirs(
        x,
        image_hidden_states=images.flatten(1, 2),
        image_attention_mask=additive,
        cross_attention_gate=(of_token >= 0).float(),
    )
    expected = expected[0] if isinstance(expected, tuple) else expected
    near(found, expected)
    slope = draw(2, 7, TEXT, seed=3)
    gradients = [torch.autograd.grad(output, (x, images), slope) for output in (found, expected)]
    for gradient, other in zip(*gradients, strict=True):
        near(gradient, other)


# ------------------------------------------------------------------------------------------- which image a token sees


@pytest.mark.parametrize("bias", [False, True])
def test_a_token_sees_its_image_and_no_other(bias):
    torch.manual_seed(0)
    module = with_random_biases(open_gates(bias=bias))
    x, images = draw(2, 6, TEXT).requires_grad_(), draw(2, 3, 5, IMAGE).requires_grad_()
    of_token = torch.tensor([[-1, 0, 0, 2, 2, 2], [1, 1, -1, -1, 0, 0]])
    found = module(x, images, image_of_token=of_token)
    for sample in range(2):
        for token in range(6):
            image = int(of_token[sample, token])
            alone = images[sample : sample + 1, image] if image >= 0 else images[:1, 0, :0]
            near(found[sample, token], module(x[sample : sample + 1, token : token + 1], alone)[0, 0])
            (gradient,) = torch.autograd.grad(found[sample, token].square().sum(), images, retain_graph=True)
            assert gradient.isfinite().all()
            reached = {int(place) for place in gradient[sample].any(-1).any(-1).nonzero()}
            assert reached == ({image} if image >= 0 else set())
            assert not gradient[1 - sample].any()


def test_mask_of_images_joins_other_masks():
    module = open_gates()
    x, images = draw(2, 6, TEXT), draw(2, 3, 5, IMAGE)
    of_token = torch.tensor([[-1, 0, 0, 2, 2, 2], [1, 1, -1, -1, 0, 0]])
    of_image = torch.arange(15) // 5 == of_token[..., None]
    real = torch.rand(2, 15, generator=torch.Generator().manual_seed(0)) > 0.3
    expected = module(x, images, mask=Dense((of_image & real[:, None])[:, None]))
    for mask in (Keys(real), real, real[:, None, None]):
        near(module(x, images, image_of_token=of_token, mask=mask), expected)
    flat = module(x, images.flatten(1, 2), mask=Dense((of_image & real[:, None])[:, None]))
    assert torch.equal(flat, expected)


def test_mask_of_images_is_runs_of_keys_and_no_table():
    of_token = torch.tensor([[-1, 0, 0, 2, 2, 2], [1, 1, -1, -1, 0, 0]])
    mask = TokensOfImage(of_token, 5)
    lowered = lower(mask, 6, 15)
    assert lowered.tiles is None
    assert lowered.dense is None
    assert lowered.intervals.shape == (2, 1, 1, 2, 6)
    from_runs = torch.arange(15)[:, None]
    start, end = lowered.intervals[:, 0, 0, 0], lowered.intervals[:, 0, 0, 1]
    kept = (from_runs >= start[:, None]) & (from_runs < end[:, None])
    assert torch.equal(kept.transpose(1, 2)[:, None], mask.dense(6, 15))
    assert lower(mask & Padding([5, 15]), 6, 15).tiles is None
    assert mask.blocks(6, 15, 4).kinds.shape == (2, 1, 2, 4)
    assert repr(mask) == "TokensOfImage(int 2x6, 5 tokens an image)"
    assert TokensOfImage(of_token, 0).intervals(6, 0).eq(0).all()


def test_preceding_image_counts():
    starts = torch.tensor([[False, True, False, True, False], [True, False, False, False, True]])
    assert preceding_image(starts).tolist() == [[-1, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    with pytest.raises(regard.ShapeError, match=r"starts: expected bool \(batch, length\)"):
        preceding_image(starts.long())


def test_compiled_block_with_images():
    torch._dynamo.reset()
    module = open_gates()
    x, images = draw(2, 6, TEXT), draw(2, 3, 5, IMAGE)
    starts = torch.tensor([[False, True, False, True, False, False]]).expand(2, -1)

    def whole(x, images, starts):
        return module(x, images, image_of_token=preceding_image(starts))

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    near(compiled(x, images, starts), whole(x, images, starts))


def test_refusals_of_the_gated_block():
    module = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE)
    x, images = draw(2, 6, TEXT), draw(2, 3, 5, IMAGE)
    numbers = torch.zeros(2, 6, dtype=torch.long)
    with pytest.raises(
        regard.MaskError, match=r"image_of_token: expected numbers from -1 \(none\) to 2, .* got 0 to 3"
    ):
        module(x, images, image_of_token=numbers.index_fill(1, torch.tensor([2]), 3))
    with pytest.raises(regard.MaskError, match="got -2 to 0"):
        module(x, images, image_of_token=numbers.index_fill(1, torch.tensor([2]), -2))
    with pytest.raises(regard.ShapeError, match="since image_of_token is given, got"):
        module(x, images.flatten(1, 2), image_of_token=numbers)
    for wrong in (numbers[:, 1:], numbers.float(), numbers.bool()):
        with pytest.raises(regard.ShapeError, match=r"image_of_token: expected integers of shape"):
            module(x, images, image_of_token=wrong)
    with pytest.raises(regard.ShapeError, match="context batch: expected 2, as the other side has, got 1"):
        module(x, images[:1])
