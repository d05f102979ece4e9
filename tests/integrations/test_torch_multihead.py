"""The inference fast path of torch's own modules while regard is active: it stays on, on the native core."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regard
from regard.backends import _library
from tests.integrations.calls import Counted

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))
WIDTH, HEADS = 16, 4


@pytest.fixture(autouse=True)
def without_gradients_and_off_afterwards():
    with torch.no_grad():
        yield
    regard.deactivate()


def padding(*lengths, longest=7):
    return torch.arange(longest) >= torch.tensor(lengths)[:, None]


LATER = torch.ones(7, 7, dtype=torch.bool).triu(1)
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": padding(7, 4)},
    "pairs": {"attn_mask": LATER},
    "pairs of each head": {"attn_mask": LATER.expand(2 * HEADS, 7, 7) & (torch.arange(8) % 3 > 0)[:, None, None]},
    "both": {"attn_mask": LATER, "key_padding_mask": padding(7, 4)},
}


def near(found, expected, dtype=torch.float32):
    close = {"rtol": 0, "atol": 2e-2 if dtype == torch.bfloat16 else 1e-6}
    torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weights", [None, "of each head", "average"])
@pytest.mark.parametrize("masks", MASKS)
def test_multihead_attention(masks, weights, dtype):
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=dtype).eval()
    states = torch.randn(2, 7, WIDTH, dtype=dtype)
    asked = MASKS[masks] | {"need_weights": weights is not None, "average_attn_weights": weights == "average"}
    expected = module(states, states, states, **asked)
    calls = Counted()
    with regard.activate():
        assert torch.backends.mha.get_fastpath_enabled()
        found = module(states, states, states, **asked)
    near(found, expected, dtype)
    assert calls.forward == (weights is None)
    again = module(states, states, states, **asked)
    assert all(have is want is None or torch.equal(have, want) for have, want in zip(again, expected, strict=True))


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_text_of_nothing_but_padding_gets_the_projection_of_nothing(need_weights):
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    module.out_proj.bias.fill_(0.5)
    states = torch.randn(2, 7, WIDTH)
    asked = {"key_padding_mask": padding(7, 0), "need_weights": need_weights}
    assert module(states, states, states, **asked)[0][1].isnan().all()  # torch's own
    with regard.activate():
        found, weights = module(states, states, states, **asked)
    assert torch.equal(found[1], torch.full_like(found[1], 0.5))
    assert weights is None or weights[1].eq(0).all()


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_nothing_gives_nothing(sizes):
    module, states = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), torch.randn(*sizes, WIDTH)
    expected, _ = module(states, states, states, need_weights=False)
    with regard.activate():
        found, _ = module(states, states, states, need_weights=False)
    assert found.shape == expected.shape == states.shape


def ragged(*lengths, dtype=torch.float32):
    return torch.nested.nested_tensor([torch.randn(length, WIDTH, dtype=dtype) for length in lengths])


@pytest.mark.parametrize("weights", [None, "of each head", "average"])
@pytest.mark.parametrize("lengths", [(3, 5), (5,), (0, 4), (0, 0)], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors(lengths, weights):
    module, states = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), ragged(*lengths)
    asked = {"need_weights": weights is not None, "average_attn_weights": weights == "average"}
    if any(lengths):
        expected, theirs = module(states, states, states, **asked)
    calls = Counted()
    with regard.activate():
        found, ours = module(states, states, states, **asked)
    assert found.is_nested
    assert [part.shape[0] for part in found.unbind()] == list(lengths)
    if any(lengths):
        for have, want in zip(found.unbind(), expected.unbind(), strict=True):
            near(have, want)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            near(ours, theirs)
        assert calls.forward == (weights is None)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("lengths", [(7, 7), (7, 4), (3, 1)], ids=str)
def test_encoder_with_padding(lengths, norm_first):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=norm_first, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    states, masked = torch.randn(2, 7, WIDTH), padding(*lengths)
    expected = encoder(states, src_key_padding_mask=masked)
    calls = Counted()
    with regard.activate():
        found = encoder(states, src_key_padding_mask=masked)
    assert calls.forward == 2
    near(found, expected)
    assert found.shape == expected.shape  # torch cuts what is padding in every text


def test_a_switched_off_fast_path_is_none():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module, states = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), torch.randn(2, 7, WIDTH)
        with regard.activate():
            calls = Counted()
            module(states, states, states, need_weights=False)
            assert calls.forward == 1
            assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled(backend):
    module, states = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), torch.randn(2, 7, WIDTH)
    asked = {"key_padding_mask": padding(7, 4), "need_weights": False}
    expected, _ = module(states, states, states, **asked)
    torch._dynamo.reset()
    with regard.activate():
        compiled = torch.compile(module, backend=backend)
        calls = Counted()
        found, _ = compiled(states, states, states, **asked)
        assert calls.forward >= 1
    near(found, expected)
    torch._dynamo.reset()
