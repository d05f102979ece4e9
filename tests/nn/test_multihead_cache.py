"""The cache of MultiHeadAttention: step by step is the full pass (F56), and the protocol of states between calls."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

import regard
from regard.masks import Blocks, Dilated, GlobalTokens, Padding, PrefixLM, SlidingWindow
from regard.nn import LinearAttention, MemoryAttention, MultiHeadAttention
from regard.positions import ALiBi, DynamicNTKScaling, RoPE, Shaw, T5Bias, TransformerXL
from tests.nn.test_multihead import CLOSE, drawn, same_with_gradients

CACHED = {
    "plain": {},
    "grouped": {"kv_heads": 2, "sink": True, "qk_norm": "rms"},
    "rope": {"position": lambda: RoPE(6)},
    "rope that knows the end": {"position": lambda: RoPE(6, align="bottom_right")},
    "alibi": {"position": lambda: ALiBi(4)},
    "t5": {"position": lambda: T5Bias(4, bidirectional=False)},
    "shaw": {"position": lambda: Shaw(6, 3)},
    "transformer-xl": {"position": lambda: TransformerXL(4, 6)},
    "padded inside": {"pad_to": 16, "value_dim": 5},
}


def cached_module(name, **more):
    torch.manual_seed(0)
    options = {key: each() if key == "position" else each for key, each in CACHED[name].items()}
    return MultiHeadAttention(24, 4, causal=True, **options, **more)


def in_steps(module, x, cache, steps):
    outputs, begin = [], 0
    for step in steps:
        outputs.append(module(x[:, begin : begin + step], cache=cache))
        begin += step
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("name", CACHED)
def test_F56_step_by_step_is_the_full_pass(name, with_gradients):
    module, x = cached_module(name), drawn(2, 9, 24)
    expected = module(x)
    with torch.set_grad_enabled(with_gradients):
        for steps in ((1,) * 9, (4, 1, 3, 1), (9,)):
            cache = module.make_cache(2, 12)
            torch.testing.assert_close(in_steps(module, x, cache, steps), expected, **CLOSE)
            assert cache.length == 9


def test_F56_gradients_go_through_the_cache():
    module = cached_module("rope")
    same_with_gradients(
        module, module, lambda x: in_steps(module, x, module.make_cache(2, 9), (2, 1, 4, 2)), module, [drawn(2, 9, 24)]
    )


def test_rope_that_depends_on_the_length_turns_all_keys_anew():
    """With dynamic NTK scaling the frequencies of early keys change as the text grows: the last row says so."""
    torch.manual_seed(0)
    module = MultiHeadAttention(24, 4, causal=True, position=RoPE(6, scaling=DynamicNTKScaling(2.0, original_length=4)))
    x = drawn(2, 9, 24)
    with torch.no_grad():
        found = in_steps(module, x, module.make_cache(2, 9), (1,) * 9)
        for length in range(1, 10):
            torch.testing.assert_close(found[:, length - 1], module(x[:, :length])[:, -1], **CLOSE)


@torch.no_grad()
def test_nothing_is_made_anew_in_a_step():
    module, x = cached_module("rope"), drawn(2, 9, 24)
    cache = module.make_cache(2, 9)
    module(x[:, :1], cache=cache)
    places = cache.keys.data_ptr(), cache.values.data_ptr()
    in_steps(module, x[:, 1:], cache, (1,) * 8)
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == places
    assert cache.keys.shape == (2, 4, 9, 6)


@torch.no_grad()
def test_F56_a_cache_has_an_end():
    module, x = cached_module("plain"), drawn(2, 9, 24)
    cache = module.make_cache(2, 5)
    module(x[:, :5], cache=cache)
    with pytest.raises(regard.ArgumentError, match=r"at most 5 tokens, got 5 and 1 new ones\. Make it with a larger"):
        module(x[:, 5:6], cache=cache)
    assert cache.length == 5


@torch.no_grad()
def test_F56_a_cache_belongs_to_its_layer():
    module, x = cached_module("plain"), drawn(2, 9, 24)
    other = copy.deepcopy(module)
    with pytest.raises(regard.ArgumentError, match=r"one that this layer made, got the cache of another layer\. Call"):
        module(x, cache=other.make_cache(2, 9))
    lost = copy.deepcopy(module)
    cache = lost.make_cache(2, 5)
    del lost
    gc.collect()
    with pytest.raises(regard.ArgumentError, match="one whose layer is gone"):
        module(x, cache=cache)


@torch.no_grad()
def test_F56_a_cache_belongs_to_its_batch_and_dtype():
    module, x = cached_module("plain"), drawn(2, 9, 24)
    cache = module.make_cache(2, 9)
    with pytest.raises(regard.ShapeError, match="the batch 2 of the cache"):
        module(x[:1], cache=cache)
    module(x[:, :3], cache=cache)
    module.double()
    with pytest.raises(regard.ShapeError, match=r"heads of width 6 in torch\.float32 on cpu"):
        module(x[:, 3:4].double(), cache=cache)


@torch.no_grad()
def test_a_key_beside_a_cache_is_refused():
    module, x = cached_module("plain"), drawn(2, 3, 24)
    with pytest.raises(regard.ArgumentError, match="no key and no value beside a cache"):
        module(x, x, cache=module.make_cache(2, 9))


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "rope", "t5"])
def test_rows_are_reordered_for_beams(name):
    module, x = cached_module(name), drawn(3, 9, 24)
    for rows in ([2, 0, 0], torch.tensor([1, 1, 2, 0])):
        cache = module.make_cache(3, 9)
        in_steps(module, x, cache, (4, 2))
        cache.reorder(rows)
        new = drawn(len(rows), 3, 24, seed=9)
        expected = module(torch.cat([x[list(rows), :6], new], 1))[:, 6:]
        torch.testing.assert_close(in_steps(module, new, cache, (1, 2)), expected, **CLOSE)
    with pytest.raises(regard.ArgumentError, match="rows: expected whole numbers from 0 to 3, got"):
        cache.reorder([4])


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "rope", "alibi"])
def test_a_row_that_was_reset_begins_anew(name):
    module, x, new = cached_module(name), drawn(3, 6, 24), drawn(3, 3, 24, seed=9)
    cache = module.make_cache(3, 12)
    in_steps(module, x, cache, (4, 2))
    cache.reset([1])
    found = in_steps(module, new, cache, (1, 2))
    torch.testing.assert_close(found[1], module(new)[1], **CLOSE)
    whole = module(torch.cat([x, new], 1))[:, 6:]
    torch.testing.assert_close(found[::2], whole[::2], **CLOSE)
    cache.reorder([1, 1, 0])
    more = drawn(3, 1, 24, seed=11)
    torch.testing.assert_close(module(more, cache=cache)[0], module(torch.cat([new[1:2], more[:1]], 1))[0, 3:], **CLOSE)
    cache.reset()
    torch.testing.assert_close(in_steps(module, x, cache, (6,)), module(x), **CLOSE)
    cache.reset([2])
    cache.crop(4)
    torch.testing.assert_close(in_steps(module, new, cache, (3,))[2], module(new)[2], **CLOSE)


@torch.no_grad()
def test_a_cache_is_cropped_saved_and_restored():
    module, x = cached_module("rope"), drawn(2, 9, 24)
    cache = module.make_cache(2, 12)
    in_steps(module, x, cache, (6,))
    saved = cache.state_dict()
    in_steps(module, drawn(2, 3, 24, seed=9), cache, (3,))
    cache.crop(6)
    expected = module(x)[:, 6:]
    torch.testing.assert_close(in_steps(module, x[:, 6:], cache, (3,)), expected, **CLOSE)
    other = module.make_cache(2, 12)
    other.load_state_dict(saved)
    torch.testing.assert_close(in_steps(module, x[:, 6:], other, (1, 2)), expected, **CLOSE)
    with pytest.raises(regard.ArgumentError, match="expected batch 2 and at most 5 tokens, got batch 2 and 6 tokens"):
        module.make_cache(2, 5).load_state_dict(saved)
    with pytest.raises(regard.ArgumentError, match="length: expected 0 to 9"):
        cache.crop(10)
    empty = module.make_cache(2, 3)
    empty.load_state_dict(module.make_cache(2, 3).state_dict())
    with pytest.raises(regard.ArgumentError, match="a cache that has read none"):
        _ = empty.keys


@torch.no_grad()
@pytest.mark.parametrize(
    "mask",
    [
        SlidingWindow(2, 0),
        Dilated(2, 2, 0),
        Blocks(4),
        PrefixLM(2) & SlidingWindow(3),
        GlobalTokens(1) | SlidingWindow(2),
        ~SlidingWindow(1),
        SlidingWindow(2, 0, align="bottom_right"),
    ],
    ids=repr,
)
def test_a_mask_over_the_text_is_the_same_over_a_cache(mask):
    module, x = cached_module("rope"), drawn(2, 9, 24)
    cache, found = module.make_cache(2, 9), []
    for first, last in ((0, 4), (4, 5), (5, 8), (8, 9)):
        found.append(module(x[:, first:last], cache=cache, mask=mask))
    torch.testing.assert_close(torch.cat(found, 1), module(x, mask=mask), **CLOSE)


def test_training_goes_on_after_a_reset():
    """The graph of what was forgotten must be gone: its backward has run."""
    module, x = cached_module("plain"), drawn(2, 6, 24)
    for forget in (lambda cache: cache.reset(), lambda cache: cache.crop(0)):
        cache = module.make_cache(2, 6)
        for _ in range(2):
            module.zero_grad()
            in_steps(module, x, cache, (4, 2)).square().sum().backward()
            forget(cache)
        found = [weight.grad for weight in module.parameters()]
        module.zero_grad()
        module(x).square().sum().backward()
        for ours, expected in zip(found, module.parameters(), strict=True):
            torch.testing.assert_close(ours, expected.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "learned"),
    [
        ({"position": lambda: T5Bias(4, bidirectional=False)}, "position"),
        ({"sink": True}, "sink"),
        ({"qk_norm": "rms"}, "query_norm"),
    ],
)
def test_frozen_keys_are_not_overwritten_while_others_learn(options, learned):
    """The keys need no gradient, but the graph of an earlier step still reads them."""
    options = {name: each() if callable(each) else each for name, each in options.items()}
    module, x = MultiHeadAttention(24, 4, causal=True, **options), drawn(2, 6, 24)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name.startswith(learned))
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(module(x).square().sum(), trained)
    cache = module.make_cache(2, 8)
    begun = in_steps(module, x, cache, (2, 1))
    cache.reorder([1, 0])
    output = torch.cat([begun, in_steps(module, x.flip(0)[:, 3:], cache, (1, 2)).flip(0)], 1)
    for found, wanted in zip(torch.autograd.grad(output.square().sum(), trained), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


STATES = {
    "keys and values": lambda: MultiHeadAttention(8, 2, causal=True).make_cache(2, 4),
    "memory": lambda: MemoryAttention(8, 2).create_state(2),
    "sums": lambda: LinearAttention(8, 2, causal=True).make_state(2),
}


@pytest.mark.parametrize("rows", [torch.tensor([False, True]), [False, True], torch.tensor([0.0, 1.0])], ids=str)
@pytest.mark.parametrize("state", STATES)
def test_F60_flags_are_no_row_numbers(state, rows):
    """Read as numbers, [False, True] is rows 0 and 1: a dialogue would forget that nobody asked to."""
    state = STATES[state]()
    for change in (state.reset, state.reorder):
        with pytest.raises(regard.ArgumentError, match=r"rows: expected whole numbers from 0 to 1, got .*nonzero"):
            change(rows)


def test_detach_cuts_the_graph():
    module, x = cached_module("plain"), drawn(2, 6, 24).requires_grad_()
    cache = module.make_cache(2, 6)
    module(x[:, :4], cache=cache)
    cache.detach()
    module(x[:, 4:], cache=cache).sum().backward()
    assert not x.grad[:, :4].any()
    assert x.grad[:, 4:].any()


def test_a_cache_of_inference_mode_goes_on_outside_it():
    module, x = cached_module("plain"), drawn(2, 6, 24)
    cache = module.make_cache(2, 6)
    with torch.inference_mode():
        module(x[:, :4], cache=cache)
    with torch.no_grad():
        torch.testing.assert_close(module(x[:, 4:], cache=cache), module(x)[:, 4:], **CLOSE)


def test_a_position_at_the_beginning_has_no_cache():
    with pytest.raises(regard.ArgumentError, match=r"'bottom_right' or None for a cache, got 'top_left'"):
        MultiHeadAttention(24, 4, position=RoPE(6, align="top_left")).make_cache(2, 5)


@pytest.mark.parametrize("options", [{}, {"kdim": 12, "vdim": 12, "kv_heads": 2, "qk_norm": "rms"}])
def test_a_context_is_projected_once(options):
    module, x = MultiHeadAttention(24, 4, **options), drawn(2, 3, 24)
    y = drawn(2, 7, options.get("kdim", 24), seed=2)
    cache = module.cache_context(y)
    for _ in range(2):
        torch.testing.assert_close(module(x, cache=cache), module(x, y), **CLOSE)
    mask = Padding([7, 2])
    torch.testing.assert_close(module(x, cache=cache, mask=mask), module(x, y, mask=mask), **CLOSE)
    values = drawn(2, 7, options.get("vdim", 24), seed=6)
    torch.testing.assert_close(module(x, cache=module.cache_context(y, values)), module(x, y, values), **CLOSE)
    cache.reset([0])
    torch.testing.assert_close(module(x, cache=cache)[0], module.out_proj.bias.expand(3, 24), **CLOSE)
    torch.testing.assert_close(module(x, cache=cache)[1], module(x, y)[1], **CLOSE)
