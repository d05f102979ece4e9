"""Longformer against the definition in float64, and against transformers' layer on the same weights."""

from __future__ import annotations

import pytest
import torch

from regard import ArgumentError, MaskError, ShapeError, UnsupportedError
from regard.masks import Keys, Padding, SlidingWindow
from regard.nn import LongformerAttention
from tests.nn.plain_heads import drawn, projected, same, weighted, written_out

N = 21
NOWHERE = torch.zeros(2, N, dtype=torch.bool)


def flags(*places):
    """Bool (2, N): global tokens of two samples."""
    found = NOWHERE.clone()
    for sample, chosen in enumerate(places):
        found[sample, list(chosen)] = True
    return found


def defined(module, x, is_global, real, *, window, causal):
    """The paper's equations over all pairs."""
    order = written_out(N, lambda i, j: j <= i or not causal)
    local = written_out(N, lambda i, j: abs(i - j) <= window) | is_global[:, None, None, :]
    keys = real[:, None, None, :] & order
    rows = weighted(*projected(module, x, 0, 3), local & keys)
    if module.global_proj_weight is None:
        heads = projected(module, x, 0, 3)
    else:
        asked = _Stacked(module)
        heads = projected(asked, x, 0, 3)
    found = torch.where(is_global[..., None], weighted(*heads, keys.expand(2, 1, N, N)), rows)
    return module.out_proj(found)


class _Stacked:
    """The global maps under the names of the local ones."""

    def __init__(self, module):
        self.embed_dim, self.num_heads = module.embed_dim, module.num_heads
        self.in_proj_weight, self.in_proj_bias = module.global_proj_weight, module.global_proj_bias


GLOBAL = {
    "none": (None, NOWHERE),
    "no token": ([], NOWHERE),
    "none at all": (NOWHERE, NOWHERE),
    "the first": (1, flags([0], [0])),
    "the first three": (3, flags([0, 1, 2], [0, 1, 2])),
    "indices": ([9, 2, 9], flags([2, 9], [2, 9])),
    "a tensor of indices": (torch.tensor([4, 20]), flags([4, 20], [4, 20])),
    "of each sample": (flags([0, 5, 9, 13], [3]), flags([0, 5, 9, 13], [3])),
    "of one sample": (flags([], [0, 7]), flags([], [0, 7])),
    "all": (N, ~NOWHERE),
}
REAL = torch.arange(N) < torch.tensor([N, 8])[:, None]
NOBODY = torch.arange(N) < torch.tensor([N, 0])[:, None]
# Wide enough that x itself serves as key and value of a few global rows; narrow enough that it never does.
WIDTHS = {"wide": (36, 3), "narrow": (4, 2)}


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("real", [None, REAL, NOBODY], ids=["all real", "padding", "a sample of padding"])
@pytest.mark.parametrize("chosen", GLOBAL)
@pytest.mark.parametrize("width", WIDTHS)
def test_is_the_papers_definition(width, chosen, real, causal):
    module, x = drawn(LongformerAttention(*WIDTHS[width], window=3, causal=causal), (2, N, WIDTHS[width][0]))
    given, is_global = GLOBAL[chosen]
    x.requires_grad_()
    expected = defined(module, x, is_global, ~NOWHERE if real is None else real, window=3, causal=causal)
    same(module(x, global_tokens=given, mask=real), expected, [x], [*module.parameters()], tolerance=1e-6)


@pytest.mark.parametrize("chosen", ["none", "indices", "of each sample"])
def test_with_one_set_of_projections(chosen):
    module, x = drawn(LongformerAttention(12, 3, window=3, global_projections=False), (2, N, 12))
    given, is_global = GLOBAL[chosen]
    x.requires_grad_()
    expected = defined(module, x, is_global, REAL, window=3, causal=False)
    same(module(x, global_tokens=given, mask=REAL), expected, [x], [*module.parameters()], tolerance=1e-11)


def test_both_ways_to_the_global_rows_are_one(monkeypatch):
    module, x = drawn(LongformerAttention(36, 3, window=3), (2, N, 36))
    few = module(x, global_tokens=flags([0, 4], [3]), mask=Padding([N, 8]))
    monkeypatch.setattr(LongformerAttention, "_absorbed", None)  # it would be called
    with pytest.raises(TypeError, match="NoneType"):
        module(x, global_tokens=1)
    module.dropout_p = 1e-15  # with dropout the maps are not moved; nothing is dropped all the same
    module.train()
    torch.testing.assert_close(module(x, global_tokens=flags([0, 4], [3]), mask=Padding([N, 8])), few)


@pytest.mark.parametrize("mask", [Padding([N, 8]), Keys(REAL), Padding([N, N]) & Keys(REAL)])
def test_padding_in_any_form(mask):
    module, x = drawn(LongformerAttention(36, 3, window=3), (2, N, 36))
    torch.testing.assert_close(module(x, global_tokens=2, mask=mask), module(x, global_tokens=2, mask=REAL))


def test_a_window_without_limits_and_all_global_are_full_attention():
    module, x = drawn(LongformerAttention(12, 3, window=N, global_projections=False), (2, N, 12))
    torch.testing.assert_close(module(x), module(x, global_tokens=N))


def test_dropout_of_global_rows_is_for_training_only():
    module, x = drawn(LongformerAttention(36, 3, window=3, dropout_p=0.5), (2, N, 36))
    once, again = module(x, global_tokens=[5]), module(x, global_tokens=[5])
    assert not torch.equal(once[:, 5], again[:, 5])
    module.eval()
    assert torch.equal(module(x, global_tokens=[5]), module(x, global_tokens=[5]))


# ------------------------------------------------------------------------------------ transformers' layer


@pytest.fixture
def theirs():
    pytest.importorskip("transformers")
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=48, num_attention_heads=4, attention_window=[8], attention_probs_dropout_prob=0.0
    )
    torch.manual_seed(0)
    layer = LongformerSelfAttention(config, 0)
    for each in layer.children():
        torch.nn.init.normal_(each.bias)
    return layer


def hugging_face(layer, x, is_global, real):
    """Their output. They take lengths that are multiples of the window and masks of -10000, 0 and 10000."""
    mask = torch.where(real, torch.where(is_global, 10000.0, 0.0), -10000.0)
    return layer(x, mask, mask < 0, mask > 0, bool((mask > 0).any()))[0]


@pytest.mark.parametrize("real_tokens", [(32, 32), (32, 19)], ids=["all real", "padding"])
@pytest.mark.parametrize("chosen", [([], []), ([0], [0]), ([0, 9, 31], [4]), (range(20), range(3))])
def test_is_transformers_longformer(theirs, chosen, real_tokens):
    real = torch.arange(32) < torch.tensor(real_tokens)[:, None]
    is_global = torch.zeros(2, 32, dtype=torch.bool)
    for sample, places in enumerate(chosen):
        is_global[sample, list(places)] = True
    is_global &= real
    ours = LongformerAttention.from_transformers(theirs)
    assert ours.window == 4
    x = torch.randn(2, 32, 48, requires_grad=True)
    # They give 0 for a padded query; nobody reads it.
    found = ours(x, global_tokens=is_global, mask=real) * real[..., None]
    expected = hugging_face(theirs, x, is_global, real) * real[..., None]
    same(found, expected, [x], [], tolerance=1e-5)
    (ours(x, global_tokens=is_global, mask=real) * real[..., None]).square().sum().backward()
    (hugging_face(theirs, x, is_global, real) * real[..., None]).square().sum().backward()
    maps = [theirs.query, theirs.key, theirs.value, theirs.query_global, theirs.key_global, theirs.value_global]
    local = torch.cat([each.weight.grad for each in maps[:3]])
    torch.testing.assert_close(ours.in_proj_weight.grad, local, rtol=1e-5, atol=1e-4)
    if is_global.any():
        beyond = torch.cat([each.weight.grad for each in maps[3:]])
        torch.testing.assert_close(ours.global_proj_weight.grad, beyond, rtol=1e-5, atol=1e-4)
        biases = torch.cat([each.bias.grad for each in maps[3:]])
        torch.testing.assert_close(ours.global_proj_bias.grad, biases, rtol=1e-5, atol=1e-4)


def test_converts_the_map_behind_it_too(theirs):
    output = torch.nn.Linear(48, 48)
    x = torch.randn(1, 16, 48)
    real, is_global = torch.ones(1, 16, dtype=torch.bool), torch.zeros(1, 16, dtype=torch.bool)
    ours = LongformerAttention.from_transformers(theirs.double().eval(), output.double())
    assert not ours.training
    expected = output(hugging_face(theirs, x.double(), is_global, real))
    # Their softmax is in float32, whatever the weights are.
    torch.testing.assert_close(ours(x.double()), expected, rtol=1e-5, atol=1e-5)


def test_converts_only_what_it_knows():
    with pytest.raises(ArgumentError, match=r"layer: expected a transformers LongformerSelfAttention, got Linear"):
        LongformerAttention.from_transformers(torch.nn.Linear(2, 2))


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "kind", "wording"),
    [
        ([0, 8], ArgumentError, r"global_tokens: expected indices from 0 to 7, .* got \[0, 8\]. Name tokens of this"),
        ([-1], ArgumentError, r"global_tokens: expected indices from 0 to 7"),
        (9, ArgumentError, r"global_tokens: expected .* got 9"),
        (True, ArgumentError, r"global_tokens: expected .* got True"),
        (torch.ones(2, 7, dtype=torch.bool), ShapeError, r"global_tokens: expected bool \(batch, length\) = \(2, 8\)"),
        (torch.ones(2, 2).long(), ShapeError, r"global_tokens: expected bool .* got torch.int64 \(2, 2\)"),
        (torch.ones(2), ShapeError, r"global_tokens: expected bool .* got torch.float32 \(2,\)"),
    ],
)
def test_refuses_global_tokens_that_are_not_there(given, kind, wording):
    with pytest.raises(kind, match=wording):
        LongformerAttention(12, 3)(torch.zeros(2, 8, 12), global_tokens=given)


def test_refuses_masks_of_pairs_and_contexts():
    module, x = LongformerAttention(12, 3), torch.zeros(2, 8, 12)
    with pytest.raises(
        UnsupportedError, match=r"LongformerAttention: it honours padding, and no other mask; got Sliding"
    ):
        module(x, mask=SlidingWindow(2))
    with pytest.raises(UnsupportedError, match=r"it takes no context"):
        module(x, x)
    with pytest.raises(MaskError, match=r"mask: expected a bool tensor \(batch, length\) = \(2, 8\), .* got \(8, 8\)"):
        module(x, mask=torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(MaskError, match=r"mask batch: expected 2, got 3"):
        module(x, mask=Padding([1, 2, 3]))
    with pytest.raises(MaskError, match=r"mask: expected a regard.masks value or a bool tensor .* got torch.float32"):
        module(x, mask=torch.ones(2, 8))


@pytest.mark.parametrize(
    ("make", "wording"),
    [
        (lambda: LongformerAttention(12, 3, window=0), r"window: expected a whole number of at least 1, got 0"),
        (lambda: LongformerAttention(12, 5), r"num_heads: expected a divisor of embed_dim 12, got 5"),
    ],
)
def test_refuses_bad_options(make, wording):
    with pytest.raises(ArgumentError, match=wording):
        make()
