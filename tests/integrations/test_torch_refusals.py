"""What torch's fused operator refuses, or reads beyond the end of, is refused while regard is active."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field

import regard
from regard.backends import _library
from regard.integrations import _torch_kernels
from tests.integrations.calls import BATCH, HEADS, WIDTH, Counted, sized

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))

fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
SPEAKER = "scaled_dot_product_attention_flash_attention: "


@pytest.fixture(params=["c", "python"])
def kernels_in(request, monkeypatch):
    """The kernels that stand in for torch's, in C where torch has the interface for it."""
    if request.param == "python":
        monkeypatch.setattr(_torch_kernels, "_registered_in_c", lambda: None)
    with regard.activate():
        yield request.param


@pytest.mark.parametrize("dropout_p", [-0.1, math.nan, 2.0])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_dropout_that_is_no_probability_is_torchs_own_error(dropout_p, gradient):
    inputs = [tensor.requires_grad_(gradient) for tensor in sized()()]
    with pytest.raises(RuntimeError) as own:
        F.scaled_dot_product_attention(*inputs, dropout_p=dropout_p)
    with regard.activate(), pytest.raises(own.type) as found:
        F.scaled_dot_product_attention(*inputs, dropout_p=dropout_p)
    assert str(own.value) in str(found.value)


@pytest.mark.parametrize("dropout_p", [0.5, -0.1, math.nan, 2.0])
@pytest.mark.usefixtures("kernels_in")
def test_the_fused_operator_takes_no_dropout(dropout_p):
    query, key, value = sized()()
    output, lse = fused(query, key, value)
    calls = Counted()
    with pytest.raises(RuntimeError, match=rf"{SPEAKER}Currently do not support dropout > 0.*got {dropout_p}"):
        fused(query, key, value, dropout_p)
    with pytest.raises(RuntimeError, match=rf"{SPEAKER}Currently do not support dropout > 0.*got {dropout_p}"):
        fused_backward(output, query, key, value, output, lse, dropout_p, False)
    assert (calls.forward, calls.backward) == (0, 0)


def zeros(*shape: int, **options) -> torch.Tensor:
    return torch.zeros(shape, **options)


QUERY, KEY = zeros(BATCH, HEADS, 5, WIDTH), zeros(BATCH, HEADS, 7, WIDTH)
REFUSED = {
    "three-dimensions": ((QUERY[0], KEY[0], KEY[0]), None, "4 dims"),
    "dimensions-that-differ": ((QUERY, KEY[0], KEY[0]), None, "4 dims"),
    "integers": ((QUERY.int(), KEY.int(), KEY.int()), None, "data type"),
    "dtypes-that-differ": ((QUERY, KEY.double(), KEY), None, "data type"),
    "longer-value": ((QUERY, KEY, zeros(BATCH, HEADS, 900, WIDTH)), None, "fit together"),
    "longer-key": ((QUERY, zeros(BATCH, HEADS, 900, WIDTH), KEY), None, "fit together"),
    "longer-key-and-mask": ((QUERY, zeros(BATCH, HEADS, 900, WIDTH), KEY), zeros(5, 900), "fit together"),
    "another-width": ((QUERY, KEY[..., :3], KEY), None, "fit together"),
    "another-batch": ((QUERY, KEY[:1], KEY[:1]), None, "fit together"),
    "heads-of-value": ((QUERY, KEY, KEY[:, :2]), None, "fit together"),
    "heads-that-do-not-divide": ((QUERY, KEY[:, :3], KEY[:, :3]), None, "fit together"),
    "no-key-heads": ((QUERY, KEY[:, :0], KEY[:, :0]), None, "fit together"),
    "mask-of-other-queries": ((QUERY, KEY, KEY), zeros(3, 7), "mask does not fit"),
    "mask-of-other-keys": ((QUERY, KEY, KEY), zeros(5, 6), "mask does not fit"),
    "mask-of-other-heads": ((QUERY, KEY, KEY), zeros(BATCH, 3, 5, 7), "mask does not fit"),
    "mask-of-other-samples": ((QUERY, KEY, KEY), zeros(3, HEADS, 5, 7), "mask does not fit"),
    "mask-of-five-dimensions": ((QUERY, KEY, KEY), zeros(1, 1, 1, 5, 7), "mask does not fit"),
    "bool-mask-of-other-keys": ((QUERY, KEY, KEY), zeros(5, 6, dtype=torch.bool), "mask does not fit"),
    "mask-of-integers": ((QUERY, KEY, KEY), zeros(5, 7, dtype=torch.int64), "same data type"),
    "wider-mask": ((QUERY, KEY, KEY), zeros(5, 7, dtype=torch.float64), "same data type"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("kernels_in")
def test_the_fused_operator_refuses_what_does_not_fit(name):
    tensors, mask, reason = REFUSED[name]
    calls = Counted()
    with pytest.raises(RuntimeError, match=f"{SPEAKER}.*{reason}.*expected .* got "):
        fused(*tensors, attn_mask=mask)
    assert calls.forward == 0


@pytest.mark.parametrize("name", REFUSED)
def test_its_backward_refuses_the_same(name, kernels_in):
    tensors, mask, reason = REFUSED[name]
    output, lse = torch.zeros_like(QUERY), zeros(BATCH, HEADS, 5)
    calls = Counted()
    with pytest.raises(RuntimeError, match=f"{SPEAKER}.*{reason}"):
        fused_backward(output, *tensors, output, lse, 0.0, False, attn_mask=mask)
    assert calls.backward == 0, kernels_in


@pytest.mark.parametrize(
    ("place", "given"),
    [(0, QUERY.double()), (0, QUERY[0]), (4, QUERY.double()), (5, zeros(BATCH, HEADS, 4)),
     (5, zeros(BATCH, HEADS, 5, dtype=torch.float64))],
)  # fmt: skip
@pytest.mark.usefixtures("kernels_in")
def test_backward_refuses_what_belongs_to_another_call(place, given):
    arguments = [QUERY, QUERY, KEY, KEY, QUERY, zeros(BATCH, HEADS, 5)]
    arguments[place] = given
    with pytest.raises(RuntimeError, match=f"{SPEAKER}.*does not belong to this call: expected .* got "):
        fused_backward(*arguments, 0.0, False)


@pytest.mark.parametrize("lengths", [(0, 7), (5, 0)])
@pytest.mark.usefixtures("kernels_in")
def test_empty_sequences_give_zeros(lengths):
    query, key, value = sized(*lengths)()
    output, lse = fused(query, key, value)
    assert torch.equal(output, torch.zeros_like(query))
    assert torch.equal(lse, torch.full(query.shape[:3], -math.inf))


@pytest.mark.usefixtures("kernels_in")
def test_no_width_gives_nothing():
    assert fused(QUERY[..., :0], KEY[..., :0], KEY[..., :0])[0].shape == (BATCH, HEADS, 5, 0)


@pytest.mark.usefixtures("kernels_in")
def test_gradients_pass_torchs_check():
    inputs = [torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    # Which also asks for the gradient of an output that nothing depends on.
    assert torch.autograd.gradcheck(lambda *given: F.scaled_dot_product_attention(*given, is_causal=True), inputs)
