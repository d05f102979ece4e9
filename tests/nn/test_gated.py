"""The three gates, each beside its definition; the guide's own code is the oracle of the first."""

import pytest
import torch
from torch import nn

import regard
from regard.masks import Causal, Documents, Keys, Padding, SlidingWindow
from regard.nn import ForgettingAttention, GatedAttention, OutputGatedAttention
from regard.nn._mask_rows import Rows
from regard.positions import RoPE

WIDTH = 12


def seeded(make, dtype=torch.float64):
    torch.manual_seed(0)
    return make().to(dtype).eval()


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(module, output, *inputs):
    weights = list(module.parameters())
    output.backward(drawn(*output.shape, seed=9, dtype=output.dtype))
    found = [tensor.grad.clone() for tensor in (*inputs, *weights)]
    for tensor in (*inputs, *weights):
        tensor.grad = None
    return found


def assert_alike(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


def apart(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def projected(module, x, context):
    """Query, key and value by the rows of the stacked weight, one after the other."""
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    sources = (x, context, context)
    return [apart(s @ w.T + b, module.num_heads) for s, w, b in zip(sources, weights, biases, strict=True)]


class TheGuides(nn.Module):
    """The guide's 4.2 as it stands there, with the softmax it means."""

    def __init__(self, dim):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim * 2, dim), nn.Sigmoid())

    def forward(self, x, context):
        attn_weights = torch.softmax(x @ context.transpose(-2, -1), dim=-1)
        context_output = attn_weights @ context
        gate_value = self.gate(torch.cat([x, context_output], dim=-1))
        return gate_value * x + (1 - gate_value) * context_output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_in_the_guide_is_the_code_of_the_guide(dtype):
    oracle, module = seeded(lambda: TheGuides(WIDTH), dtype), GatedAttention.as_in_the_guide(WIDTH).to(dtype)
    module.load_state_dict({name.replace("gate.0", "gate"): kept for name, kept in oracle.state_dict().items()})
    x, context = (drawn(2, n, WIDTH, seed=n, dtype=dtype).requires_grad_() for n in (5, 7))
    found, expected = module(x, context), oracle(x, context)
    assert_alike([found], [expected])
    assert_alike(gradients(module, found, x, context), gradients(oracle, expected, x, context))


def test_gated_attention_is_its_formula():
    module = seeded(lambda: GatedAttention(WIDTH, 3, scale=0.4, causal=True))
    x = drawn(2, 6, WIDTH).requires_grad_()
    query, key, value = projected(module.projections, x, x)
    scores = (0.4 * query @ key.mT).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    found = module.projections.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    gate = torch.sigmoid(module.gate(torch.cat([x, found], -1)))
    expected = gate * x + (1 - gate) * found
    output, told = module(x, return_gate=True)
    assert_alike([output, told], [expected, gate])
    assert_alike(gradients(module, module(x), x), gradients(module, expected, x))


def test_F59_F18_a_token_that_sees_nothing_keeps_its_own_part():
    module = seeded(lambda: GatedAttention.as_in_the_guide(WIDTH))
    x, context = drawn(2, 4, WIDTH).requires_grad_(), drawn(2, 3, WIDTH).requires_grad_()
    output, gate = module(x, context, mask=Padding([3, 0]), return_gate=True)
    assert torch.equal(output[1], gate[1] * x[1])
    output.sum().backward()
    assert x.grad.isfinite().all()
    assert not context.grad[1].any()


def test_gate_values_lie_between_0_and_1_and_the_output_between_its_two_parts():
    module = seeded(lambda: GatedAttention.as_in_the_guide(WIDTH))
    x = drawn(2, 5, WIDTH)
    output, gate = module(x, return_gate=True)
    assert ((gate > 0) & (gate < 1)).all()
    found = (output - gate * x) / (1 - gate)
    assert (output <= torch.maximum(x, found) + 1e-12).all()
    assert (output >= torch.minimum(x, found) - 1e-12).all()


# ------------------------------------------------------------------------------------------------ output gate


@pytest.mark.parametrize("gate", ["element", "head"])
def test_output_gate_is_its_formula(gate):
    module = seeded(lambda: OutputGatedAttention(WIDTH, 3, gate=gate))
    x, context = drawn(2, 6, WIDTH).requires_grad_(), drawn(2, 4, WIDTH, seed=2).requires_grad_()
    query, key, value = projected(module.projections, x, context)
    found = ((query @ key.mT / 2).softmax(-1) @ value).transpose(1, 2)  # (batch, length, heads, head_dim)
    factor = torch.sigmoid(x @ module.gate_proj.weight.T + module.gate_proj.bias)
    told = factor if gate == "element" else factor.repeat_interleave(4, dim=-1)
    expected = module.projections.out_proj(found.flatten(2) * told)
    output, shown = module(x, context, return_gate=True)
    assert_alike([output, shown], [expected, factor])
    assert_alike(gradients(module, module(x, context), x, context), gradients(module, expected, x, context))


def test_output_gate_is_that_of_qwen3_next():
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

    heads, head_dim, length = 4, 8, 9
    width = heads * head_dim
    config = Qwen3NextConfig(
        hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads, head_dim=head_dim,
        attention_bias=False, attn_implementation="eager", num_hidden_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = Qwen3NextAttention(config, 0).eval()
    peer.q_norm = peer.k_norm = nn.Identity()  # its norm of queries and keys is no part of the gate
    module = OutputGatedAttention(width, heads, bias=False, causal=True, position=RoPE(head_dim))
    query, gate = peer.q_proj.weight.view(heads, 2, head_dim, width).unbind(1)
    with torch.no_grad():
        rows = (query.reshape(width, width), peer.k_proj.weight, peer.v_proj.weight)
        module.projections.in_proj_weight.copy_(torch.cat(rows))
        module.projections.out_proj.weight.copy_(peer.o_proj.weight)
        module.gate_proj.weight.copy_(gate.reshape(width, width))
    turns = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.cat([turns, turns], -1)[None]
    forbidden = torch.full((length, length), -torch.inf).triu(1)[None, None]
    x = drawn(2, length, width, dtype=torch.float32).requires_grad_()
    expected = peer(x, (angles.cos(), angles.sin()), forbidden)[0]
    found = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    (got,) = torch.autograd.grad(found.square().sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ forget gate


def forgetting_by_hand(module, x, allowed=None, real=None):
    """Every D_ij summed on its own, in float64."""
    heads, n = module.projections, x.shape[1]
    query, key, value = projected(heads, x, x)
    kept = torch.nn.functional.logsigmoid(module.forget(x)).transpose(1, 2)
    if real is not None:
        kept = kept * real[:, None]
    fading = [torch.stack([kept[:, :, j + 1 : i + 1].sum(-1) for j in range(n)], -1) for i in range(n)]
    scores = query @ key.mT * heads.head_dim**-0.5 + torch.stack(fading, 2)
    keep = torch.ones(n, n, dtype=torch.bool).tril()
    keep = keep if allowed is None else keep & allowed
    scores = scores.masked_fill(~keep, -torch.inf)
    weights = torch.where(keep.any(-1, keepdim=True), scores.softmax(-1), 0.0)
    return heads.from_heads(torch.where(keep, weights, 0.0) @ value)


@pytest.mark.parametrize("rows", [512, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forgetting_is_its_formula(rows, dtype):
    module = seeded(lambda: ForgettingAttention(WIDTH, 3, forget_bias=1.0))
    other = ForgettingAttention(WIDTH, 3).to(dtype)
    other.load_state_dict(module.state_dict())
    other.ROWS = rows
    x = drawn(2, 11, WIDTH).requires_grad_()
    same = x.detach().to(dtype).requires_grad_()
    expected, found = forgetting_by_hand(module, x), other(same)
    assert_alike([found], [expected])
    assert_alike(gradients(other, found, same), gradients(module, expected, x))


@pytest.mark.parametrize("rows", [512, 3])
@pytest.mark.parametrize(
    "mask", [Documents([4, 0, 7]), SlidingWindow(2), Padding([11, 6]), Padding([5, 0], side="left")], ids=repr
)
def test_forgetting_honours_masks_in_blocks_too(rows, mask):
    module = seeded(lambda: ForgettingAttention(WIDTH, 3))
    module.ROWS = rows
    x = drawn(2, 11, WIDTH)
    assert_alike([module(x, mask=mask)], [forgetting_by_hand(module, x, mask.dense(11, 11))])


def test_padding_between_tokens_forgets_nothing():
    module = seeded(lambda: ForgettingAttention(WIDTH, 3))
    x, real = drawn(2, 9, WIDTH), torch.tensor([[1, 1, 0, 0, 1, 1, 0, 1, 1]] * 2).bool()
    found = module(x, mask=real)
    assert_alike([found], [forgetting_by_hand(module, x, real[:, None, None], real)])
    assert_alike([found[:, real[0]]], [module(x[:, real[0]])])


@pytest.mark.parametrize("rows", [512, 3])
@pytest.mark.parametrize("held", [torch.nan, torch.inf, 1e30], ids=str)
def test_what_stands_in_the_padding_is_in_no_sum(rows, held):
    """Sums run over the text: what is padded on the left is before all of it, and in a block beside some of it."""
    module = seeded(lambda: ForgettingAttention(WIDTH, 3))
    module.ROWS = rows
    x = drawn(2, 11, WIDTH)
    for side, real in (("left", slice(5, None)), ("right", slice(6))):
        changed = torch.full_like(x, held)
        changed[:, real] = x[:, real]
        found = module(changed, mask=Padding([6, 6], side=side))[:, real]
        assert_alike([found], [module(x[:, real])])


def test_a_long_text_loses_no_digits():
    """c falls to about -4000 here, where neighbours in float32 are 0.0002 apart."""
    module = seeded(lambda: ForgettingAttention(4, 1, forget_bias=-0.5))
    x = drawn(1, 4096, 4)
    exact = module(x)
    single = ForgettingAttention(4, 1)
    single.load_state_dict(module.state_dict())

    def error():
        return (single(x.float()) - exact).abs().max()

    assert error() < 2e-5
    single.ROWS = 10**6
    assert error() > 2e-4


def test_wide_open_forgetting_is_plain_attention():
    module = seeded(lambda: ForgettingAttention(WIDTH, 3, forget_bias=60.0))
    query, key, value = projected(module.projections, *[drawn(2, 6, WIDTH)] * 2)
    plain = regard.attention(query, key, value, mask=Causal())
    assert_alike([module(drawn(2, 6, WIDTH))], [module.projections.from_heads(plain)])


@pytest.mark.parametrize(
    "mask", [Causal(), Causal() & Padding([9, 4]), Keys(torch.arange(18).view(2, 9) % 4 > 0)], ids=repr
)
def test_rows_of_a_mask(mask):
    part, whole = Rows(mask, 3, 9), mask.dense(9, 9)
    assert torch.equal(part.dense(4, 7), whole[..., 3:7, :7])
    expected = whole[..., 3:7, :7]
    for size in (2, 3):
        assert torch.equal(part.blocks(4, 7, size).kinds, regard.masks.Dense(expected).blocks(4, 7, size).kinds)
    states = drawn(2, 1, 9, 4)
    for backend in ("native", "eager"):
        found = regard.attention(states[:, :, 3:7], states[:, :, :7], states[:, :, :7], mask=part, backend=backend)
        known = regard.attention(states[:, :, 3:7], states[:, :, :7], states[:, :, :7], mask=expected)
        assert_alike([found], [known])


# -------------------------------------------------------------------------------------------------- refusals


def test_what_is_refused():
    with pytest.raises(regard.UnsupportedError, match=r"ForgettingAttention: what is forgotten .* Leave context out"):
        ForgettingAttention(WIDTH, 3)(drawn(1, 2, WIDTH).float(), drawn(1, 2, WIDTH).float())
    with pytest.raises(regard.ArgumentError, match=r"gate: expected 'element' or 'head', got 'channel'\. Say what"):
        OutputGatedAttention(WIDTH, 3, gate="channel")
    with pytest.raises(regard.ArgumentError, match=r"num_heads: expected a divisor of embed_dim 12, got 5\."):
        GatedAttention(WIDTH, 5)
    with pytest.raises(regard.ArgumentError, match=r"dropout_p: expected a number from 0 to 1, got 2\."):
        GatedAttention(WIDTH, dropout_p=2.0)
    with pytest.raises(regard.ShapeError, match=r"context: expected \(batch, length, embed_dim 12\), got \(1, 2, 11\)"):
        GatedAttention(WIDTH)(drawn(1, 2, WIDTH).float(), drawn(1, 2, 11).float())
    with pytest.raises(regard.MaskError, match=r"Causal with q_len != kv_len"):
        GatedAttention(WIDTH, causal=True)(drawn(1, 2, WIDTH).float(), drawn(1, 3, WIDTH).float())


def test_dropout_is_for_training_only():
    for module in (GatedAttention(WIDTH, 3, dropout_p=0.5), ForgettingAttention(WIDTH, 3, dropout_p=0.5)):
        x = drawn(2, 8, WIDTH, dtype=torch.float32)
        assert torch.equal(module.eval()(x), module(x))
        torch.manual_seed(3)
        trained = module.train()(x)
        assert not torch.equal(trained, module.eval()(x))
