"""The guided alignment loss, and the weights of one head under a fused kernel, with their gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regard import ArgumentError, RegardError, ShapeError, masks, positions
from regard.explain import WatchedHead, guided_alignment_loss, link_tensor, target_rows
from regard.nn import MultiHeadAttention, Transformer


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_weights(module, query, key, head, *, allowed=None):
    """softmax(Q_h K_h^T / sqrt(head_dim)) from the module's own parameters, in float64."""
    width, rows = module.head_dim, slice(head * module.head_dim, (head + 1) * module.head_dim)
    weight, bias = module.in_proj_weight.double(), module.in_proj_bias.double()
    queries = query.double() @ weight[rows].T + bias[rows]
    of_keys = slice(module.num_heads * width + rows.start, module.num_heads * width + rows.stop)
    keys = key.double() @ weight[of_keys].T + bias[of_keys]
    scores = queries @ keys.transpose(1, 2) / math.sqrt(width)
    return scores.masked_fill(~allowed, -math.inf).softmax(-1) if allowed is not None else scores.softmax(-1)


# --------------------------------------------------------------------------------------------------------- the loss


def test_loss_by_hand():
    weights = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]])
    links = link_tensor([{(0, 0), (1, 0), (2, 2)}], 3, 3)  # target 0 has two links, target 1 none
    expected = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25)) - math.log(0.6)
    assert guided_alignment_loss(weights, links).item() == pytest.approx(expected, rel=1e-6)


def test_loss_has_its_gradient_and_leaves_rows_without_links_alone():
    scores = draw(2, 4, 5).double().requires_grad_()
    links = link_tensor([{(0, 0), (1, 0), (2, 3)}, {(4, 1)}], 4, 5)
    guided_alignment_loss(scores.softmax(-1), links).backward()
    wanted = links.double() / links.double().sum(-1, keepdim=True).clamp(min=1)
    there = (links.sum(-1, keepdim=True) > 0).double()
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(-1) - wanted) * there)


def test_strengths_are_normalised():
    weights = torch.tensor([[0.5, 0.5, 0.0]])
    assert guided_alignment_loss(weights, torch.tensor([[3.0, 1.0, 0.0]])).item() == pytest.approx(math.log(2))


def test_no_links_no_loss():
    weights = torch.rand(2, 3, 4).softmax(-1).requires_grad_()
    loss = guided_alignment_loss(weights, torch.zeros(2, 3, 4))
    loss.backward()
    assert loss.item() == 0.0
    assert not weights.grad.any()


def test_a_weight_of_0_is_finite():
    weights = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = guided_alignment_loss(weights, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))
    assert bool(weights.grad.isfinite().all())


def test_half_precision_weights_are_added_in_float32():
    assert guided_alignment_loss(torch.full((1, 4), 0.25).bfloat16(), torch.ones(1, 4)).dtype == torch.float32


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="Rows are target words"):
        guided_alignment_loss(torch.rand(1, 3, 4), torch.rand(1, 4, 3))
    with pytest.raises(ArgumentError, match=r"alignments\[1\]"):
        link_tensor([{(0, 0)}, {(3, 0)}], 2, 3)


# --------------------------------------------------------------------------------------------------- the one head


def test_the_weights_are_those_of_the_softmax_with_their_gradient():
    torch.manual_seed(0)
    module = MultiHeadAttention(24, 3)
    query, context, slope = draw(2, 5, 24), draw(2, 7, 24, seed=2).requires_grad_(), draw(2, 5, 7, seed=3).double()
    for head in (0, 2):
        with WatchedHead(module, head) as watched:
            module(query, context)
            found = watched.weights()
        expected = plain_weights(module, query, context, head)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
        inputs = (context, module.in_proj_weight, module.in_proj_bias)
        for one, other in zip(
            torch.autograd.grad(found, inputs, slope.float(), retain_graph=True),
            torch.autograd.grad(expected, inputs, slope),
            strict=True,
        ):
            torch.testing.assert_close(one, other.to(one.dtype), atol=1e-5, rtol=1e-4)


def test_padding_is_not_attended_to():
    torch.manual_seed(0)
    module = MultiHeadAttention(8, 2)
    query, context, real = draw(2, 3, 8), draw(2, 4, 8, seed=2), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    with WatchedHead(module, -1) as watched:
        module(query, context, mask=masks.Keys(real))
        found = watched.weights()
    expected = plain_weights(module, query, context, 1, allowed=real[:, None])
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    assert not found[1, :, 2:].any()


def test_grouped_heads_turned_normed_and_with_a_sink():
    """Whatever the layer has, the head's weights times the values are what the layer's own kernel gives."""
    torch.manual_seed(0)
    module = MultiHeadAttention(32, 4, kv_heads=2, position=positions.RoPE(8), qk_norm="rms", sink=True, causal=True)
    with torch.no_grad():
        module.sink.copy_(draw(4))
    x = draw(2, 6, 32)
    with WatchedHead(module, 3) as watched:
        module(x)
        found = watched.weights()
    import regard

    with regard.observe(module) as seen:
        module(x)
    torch.testing.assert_close(found, seen.layers[0].weights(heads=[3])[:, 0], atol=1e-6, rtol=1e-5)


def test_the_layer_computes_what_it_always_does():
    torch.manual_seed(0)
    module = MultiHeadAttention(16, 2).eval()
    x = draw(2, 5, 16)
    before = module(x)
    with WatchedHead(module) as watched:
        assert torch.equal(module(x), before)
        watched.weights()
    assert torch.equal(module(x), before)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_weights_are_before_dropout():
    torch.manual_seed(0)
    module = MultiHeadAttention(16, 2, dropout_p=0.5).train()
    with WatchedHead(module) as watched:
        module(draw(2, 5, 16))
        torch.testing.assert_close(watched.weights().sum(-1), torch.ones(2, 5))


def test_autocast_gives_float32_weights_with_a_gradient():
    torch.manual_seed(0)
    module = MultiHeadAttention(16, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16), WatchedHead(module) as watched:
        module(draw(2, 5, 16))
        found = watched.weights()
        guided_alignment_loss(found, torch.eye(5).expand(2, 5, 5)).backward()
    assert found.dtype == torch.float32
    assert module.in_proj_weight.grad.abs().sum() > 0


def test_an_error_in_the_layer_leaves_nothing_behind():
    module = MultiHeadAttention(16, 2)
    with WatchedHead(module) as watched:
        with pytest.raises(ShapeError):
            module(draw(2, 5, 15))
        assert torch.overrides._get_current_function_mode_stack() == []
        with pytest.raises(RegardError, match="has not run since watching began"):
            watched.weights()


def test_nothing_is_kept_after_the_with():
    module = MultiHeadAttention(16, 2)
    with WatchedHead(module) as watched:
        module(draw(2, 5, 16))
    with pytest.raises(RegardError, match="inside the `with`"):
        watched.weights()


def test_a_head_that_there_is_not():
    with pytest.raises(ArgumentError, match="head: expected a number from -2 to 1, got 2"):
        WatchedHead(MultiHeadAttention(16, 2), 2)


def test_only_the_watched_layer_is_seen():
    torch.manual_seed(0)
    model = Transformer(9, 9, 16, 2, encoder_layers=1, decoder_layers=2, dropout_p=0.0)
    source, target = torch.randint(9, (2, 4)), torch.randint(9, (2, 6))
    with WatchedHead(model.decoder.layers[1].cross_attention) as watched:
        model(source, target)
        found = watched.weights()
    assert found.shape == (2, 6, 4)


def test_guidance_moves_the_head_and_nothing_after_it():
    torch.manual_seed(0)
    model = Transformer(9, 9, 16, 2, encoder_layers=1, decoder_layers=2, dropout_p=0.0)
    source, target = torch.randint(9, (2, 4)), torch.randint(9, (2, 5))
    with WatchedHead(model.decoder.layers[0].cross_attention, 1) as watched:
        model(source, target)
        links = link_tensor([{(0, 0), (1, 2)}, {(3, 1)}], 4, 4)
        guided_alignment_loss(target_rows(watched.weights(), "consuming"), links).backward()
    moved = {name for name, parameter in named(model) if parameter.grad is not None and parameter.grad.any()}
    assert "decoder.layers.0.cross_attention.in_proj_weight" in moved
    assert "encoder.layers.0.self_attention.in_proj_weight" in moved
    assert not any(name.startswith("decoder.layers.1") for name in moved)
    gradient = model.decoder.layers[0].cross_attention.in_proj_weight.grad
    assert not gradient[:8].any()  # queries of head 0
    assert gradient[8:16].any()
    assert not gradient[32:].any()  # values


def named(model: nn.Module):
    return model.named_parameters()
