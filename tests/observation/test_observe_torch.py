"""`regard.observe` on torch's own attention: the same bits with and without, and the right weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import regard
from tests.observation.modules import (
    EMBED,
    EXAMPLES,
    HEADS,
    LENGTH,
    PADDED,
    Encode,
    SelfAttention,
    build,
    future,
    padding,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning",
    "ignore:enable_nested_tensor is True, but self.use_nested_tensor is False:UserWarning",
)


def same(first: Tensor, second: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(), second.nan_to_num())


def run(model: nn.Module, states: Tensor) -> Tensor:
    torch.manual_seed(3)  # dropout
    return model(states)


@pytest.mark.parametrize("context", ["inference", "no_grad", "grad", "autocast"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_observing_changes_no_bit(name: str, context: str) -> None:
    model, states = build(name)
    contexts: dict[str, Any] = {
        "inference": torch.inference_mode(),
        "no_grad": torch.no_grad(),
        "grad": torch.enable_grad(),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
    }
    with contexts[context]:
        before = run(model, states)
        with regard.observe(model) as seen:
            during = run(model, states)
        after = run(model, states)
    assert same(during, before)
    assert same(after, before)
    assert len(seen.layers) == EXAMPLES[name].layers
    for layer in seen.layers:
        assert layer.weights().shape[1:] == (layer.heads, layer.q_len, layer.kv_len)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "sdpa, empty rows"])
def test_training_gets_the_same_gradients(name: str) -> None:
    def gradients(*, observed: bool) -> list[Tensor]:
        model, states = build(name)
        model.train()
        states.requires_grad_()
        if observed:
            with regard.observe(model) as seen:
                run(model, states).square().sum().backward()
            assert len(seen.layers) == EXAMPLES[name].layers
        else:
            run(model, states).square().sum().backward()
        leaves = [states, *model.parameters()]
        return [torch.zeros(()) if leaf.grad is None else leaf.grad for leaf in leaves]

    for found, want in zip(gradients(observed=True), gradients(observed=False), strict=True):
        assert same(found, want)


# ------------------------------------------------------------------------------ the right weights


def eager_weights(model: SelfAttention, states: Tensor, **options: Any) -> Tensor:
    """What nn.MultiheadAttention itself returns for each head."""
    with torch.enable_grad():  # away from the fast path
        return model.attention(states, states, states, need_weights=True, average_attn_weights=False, **options)[1]


MASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "bool mask": {"attn_mask": future()},
    "float mask": {"attn_mask": torch.linspace(-2, 2, LENGTH * LENGTH).view(LENGTH, LENGTH)},
    "mask of each head": {"attn_mask": future().expand(2 * HEADS, -1, -1).contiguous()},
    "padding": {"key_padding_mask": padding(6, 3)},
    "float padding": {"key_padding_mask": torch.zeros(2, LENGTH).masked_fill(padding(6, 3), -torch.inf)},
    "both": {"key_padding_mask": padding(6, 3), "attn_mask": future()},
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", MASKED)
def test_multihead_weights_are_its_own(name: str, *, fast: bool) -> None:
    torch.manual_seed(0)
    model, states = SelfAttention({"need_weights": False, **MASKED[name]}).eval(), torch.randn(2, LENGTH, EMBED)
    with torch.set_grad_enabled(not fast), regard.observe(model) as seen:
        model(states)
    layer = seen.layers[0]
    assert layer.name == "attention"
    assert ("fast path" in layer.call.implementation) == (fast and "float" not in name)
    want = eager_weights(model, states, **MASKED[name])
    torch.testing.assert_close(layer.weights(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "made", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True}]
)
def test_keys_that_the_module_adds_are_seen(made: dict[str, bool]) -> None:
    torch.manual_seed(0)
    options = {"attn_mask": future(), "key_padding_mask": padding(6, 3)}
    model, states = SelfAttention(options, **made).eval(), torch.randn(2, LENGTH, EMBED)
    with regard.observe(model) as seen:
        model(states)
    assert seen.layers[0].kv_len == LENGTH + len(made)
    want = eager_weights(model, states, **options)
    torch.testing.assert_close(seen.layers[0].weights(), want, rtol=0, atol=1e-5)


def test_a_causal_flag_that_torch_believes_is_believed() -> None:
    torch.manual_seed(0)
    nothing_forbidden = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    options = {"attn_mask": nothing_forbidden, "is_causal": True, "need_weights": False}
    model, states = SelfAttention(options).train(), torch.randn(2, LENGTH, EMBED)
    with regard.observe(model) as seen:
        model(states)
    assert seen.layers[0].weights().triu(1).eq(0).all()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("options", [{}, PADDED, {"mask": future()}], ids=["plain", "padding", "mask"])
def test_a_fused_encoder_shows_the_weights_of_the_unfused_one(options: dict[str, Any], *, norm_first: bool) -> None:
    torch.manual_seed(0)
    model, states = Encode(options, norm_first=norm_first).eval(), torch.randn(2, LENGTH, EMBED)
    with torch.no_grad(), regard.observe(model) as fused:
        model(states)
    with torch.enable_grad(), regard.observe(model) as unfused:
        model(states)
    assert all("fast path" in layer.call.implementation for layer in fused.layers)
    assert not any("fast path" in layer.call.implementation for layer in unfused.layers)
    real = ~padding(6, 3)[:, None, :, None] if options is PADDED else torch.ones(2, 1, LENGTH, 1, dtype=torch.bool)
    for index in range(2):
        found, want = fused.layers[index].weights(), unfused.layers[index].weights()
        torch.testing.assert_close(found * real, want * real, rtol=0, atol=1e-5)


def test_sdpa_weights_give_its_output() -> None:
    for name in EXAMPLES:
        if not name.startswith("sdpa") or "dropout" in name:
            continue
        model, states = build(name)
        with torch.no_grad(), regard.observe(model) as seen:
            output = model(states)
        layer = seen.layers[0]
        value = layer.call.value.repeat_interleave(layer.heads // layer.kv_heads, dim=1)
        torch.testing.assert_close((layer.weights() @ value).view(output.shape), output, rtol=1e-5, atol=1e-6, msg=name)


def test_weights_are_those_before_dropout() -> None:
    model, states = build("sdpa, dropout")
    with torch.no_grad(), regard.observe(model) as seen:
        model(states)
    assert seen.layers[0].call.dropout_p == 0.4
    assert (seen.layers[0].weights().sum(-1) - 1).abs().max() < 1e-6
    assert seen.layers[0].check() == 0.0


# --------------------------------------------------------------------------------- why `invisible`


class Watching(TorchFunctionMode):
    """A mode that does nothing; torch's modules leave their fast path when they see one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.upstream
def test_a_plain_mode_changes_what_the_encoder_computes() -> None:
    torch.manual_seed(0)
    model, states = Encode(PADDED).eval(), torch.randn(2, LENGTH, EMBED)
    with torch.no_grad():
        before = model(states)
        with Watching():
            watched = model(states)
        with regard.observe(model):
            observed = model(states)
    assert not torch.equal(watched, before)
    assert torch.equal(observed, before)


def test_other_modes_and_tensor_subclasses_are_still_found() -> None:
    class Sub(Tensor):
        pass

    model, _ = build("encoder")
    asked = torch.overrides.has_torch_function
    plain, special = torch.ones(2), torch.ones(2).as_subclass(Sub)
    with regard.observe(model):
        assert not torch.overrides.has_torch_function((plain,))
        assert torch.overrides.has_torch_function((plain, special))
        with Watching():
            assert torch.overrides.has_torch_function((plain,))
        assert not torch.overrides.has_torch_function((plain,))
    with Watching(), regard.observe(model):
        assert torch.overrides.has_torch_function((plain,))
    assert torch.overrides.has_torch_function is asked


def test_somebody_elses_patch_is_put_back() -> None:
    model, states = build("encoder")
    asked = torch.overrides.has_torch_function

    def patched(arguments: Any) -> bool:
        return asked(arguments)

    torch.overrides.has_torch_function = patched
    try:
        with regard.observe(model):
            model(states)
        assert torch.overrides.has_torch_function is patched
    finally:
        torch.overrides.has_torch_function = asked


def test_a_mode_of_the_user_sees_what_it_saw_before() -> None:
    model, states = build("sdpa")
    calls: list[Any] = []

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with Counting():
        model(states)
    alone, calls[:] = list(calls), []
    with regard.observe(model) as seen, Counting():
        model(states)
    assert calls == alone
    assert len(seen.layers) == 1


def test_attention_beside_the_model_is_not_recorded() -> None:
    model, states = build("sdpa")
    other, _ = build("sdpa, causal")
    query = torch.randn(1, 1, 3, 4)
    with regard.observe(model) as seen:
        F.scaled_dot_product_attention(query, query, query)
        other(states)
        assert seen.layers == []
        model(states)
    assert [layer.name for layer in seen.layers] == ["Sdpa"]


def test_modules_warn_as_they_did() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, states = build("multihead")
        with torch.no_grad(), regard.observe(model):
            model(states)
