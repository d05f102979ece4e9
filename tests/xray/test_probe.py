"""Probing: which pairs a function really lets through, and the name of the pattern. What it was told counts nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import regard
from regard.masks import BigBird, Causal, Mask, Padding, SlidingWindow
from regard.observation import ObservedLayer
from regard.xray import probe as probing
from regard.xray.probe import Pattern, describe, probe
from tests.observation.modules import EMBED, LENGTH, SelfAttention, build, future, padding

transformers = pytest.importorskip("transformers")

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from tests.observation import hf_models  # noqa: E402


def observed(model: nn.Module, *args: Any, **named: Any) -> list[ObservedLayer]:
    with torch.no_grad(), regard.observe(model) as seen:
        model(*args, **named)
    return seen.layers


def pattern(layer: ObservedLayer) -> Pattern:
    found = probe(layer.call)
    assert found is not None
    return describe(found.allowed, found.keys, layer.q_len, layer.kv_len)


def name_of(mask: Mask | Tensor, q_len: int, kv_len: int) -> str:
    allowed = mask if isinstance(mask, Tensor) else mask.dense(q_len, kv_len)
    return describe(allowed, torch.arange(kv_len), q_len, kv_len).name


# --------------------------------------------------------------------------------------- patterns

NAMES: list[tuple[Mask, int, int, str]] = [
    (Causal(), 7, 7, "causal"),
    (Causal("bottom_right"), 3, 7, "causal"),
    (Causal("top_left"), 3, 7, "causal, shifted by -4"),
    (Causal("bottom_right"), 1, 7, "bidirectional"),  # the last token sees every key there is
    (SlidingWindow(2, 0), 7, 7, "causal, window 3"),
    (SlidingWindow(2, 0, align="bottom_right"), 3, 7, "causal, window 3"),
    (SlidingWindow(0), 7, 7, "causal, window 1"),
    (SlidingWindow(1, 2), 7, 7, "window -1..+2"),
    (SlidingWindow(6, 2), 7, 7, "causal, shifted by +2"),
    (SlidingWindow(2, 6), 7, 7, "window -2..end"),
    (SlidingWindow(6), 7, 7, "bidirectional"),
    (SlidingWindow(50, 0), 7, 7, "causal"),
    (Padding([0]), 7, 7, "nothing"),
    (Padding([5, 7]), 7, 7, "differs by head or sample"),
    (Padding([5]), 7, 7, "other: 71 % of pairs"),
    (~Causal(), 7, 7, "window +1..end"),
    (Causal() & Padding([4]), 7, 7, "other: 45 % of pairs"),
]


@pytest.mark.parametrize(("mask", "q_len", "kv_len", "name"), NAMES, ids=repr)
def test_patterns_have_names(mask: Mask, q_len: int, kv_len: int, name: str) -> None:
    assert name_of(mask, q_len, kv_len) == name


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_no_pairs_are_nothing(shape: tuple[int, int]) -> None:
    assert name_of(torch.ones(shape, dtype=torch.bool), *shape) == "nothing"


lengths = st.integers(min_value=1, max_value=12)


@given(before=st.integers(0, 14), after=st.integers(0, 14), q_len=lengths, kv_len=lengths)
def test_every_window_is_found_as_what_it_lets_through(before: int, after: int, q_len: int, kv_len: int) -> None:
    mask = SlidingWindow(before, after, align="bottom_right")
    allowed = mask.dense(q_len, kv_len)
    found = describe(allowed, torch.arange(kv_len), q_len, kv_len)
    seen_ahead = bool((allowed & ~Causal("bottom_right").dense(q_len, kv_len)).any())
    if found.name not in ("nothing", "bidirectional"):
        assert found.causal == (not seen_ahead)
    if found.window is not None:
        again = SlidingWindow(
            found.window - 1, kv_len + q_len if found.after is None else found.after, align="bottom_right"
        )
        assert torch.equal(again.dense(q_len, kv_len), allowed)


@given(kept=st.lists(st.booleans(), min_size=2, max_size=10), causal=st.booleans(), data=st.data())
def test_a_pattern_that_is_no_band_is_not_called_one(kept: list[bool], causal: bool, data: st.DataObject) -> None:
    size = len(kept)
    allowed = torch.tensor(kept).expand(size, -1) & (
        ~future(size) if causal else torch.ones(size, size, dtype=torch.bool)
    )
    found = describe(allowed, torch.arange(size), size, size)
    is_band = found.name.startswith(("causal", "window", "bidirectional", "nothing"))
    assert is_band == _is_band(allowed)
    del data


def _is_band(allowed: Tensor) -> bool:
    """By definition: whether a pair may attend depends on its distance alone, and the distances have no gap."""
    size = allowed.shape[0]
    by_distance = [torch.diagonal(allowed, offset) for offset in range(1 - size, size)]
    if any(bool(line.any()) != bool(line.all()) for line in by_distance):
        return False
    used = [index for index, line in enumerate(by_distance) if bool(line.any())]
    return not used or used == list(range(used[0], used[-1] + 1))


# --------------------------------------------------------------------------------------- functions

TORCH = {
    "sdpa": "bidirectional",
    "sdpa, causal": "causal",
    "sdpa, bool mask": "causal",
    "sdpa, 3-D": "causal",
    "sdpa, 5-D causal": "causal",
    "sdpa, grouped": "causal",
    "sdpa, float mask": "bidirectional",
    "sdpa, empty rows": "nothing",
    "sdpa, more keys than queries": "causal, shifted by -2",  # torch's corner is the top left
    "sdpa, dropout": "bidirectional",
    "multihead": "bidirectional",
    "multihead, mask": "causal",
    "multihead, one text": "causal",
    "multihead, causal": "causal",
    "multihead, padding": "differs by head or sample",
    "multihead, cross": "bidirectional",
    "encoder": "bidirectional",
    "encoder, mask": "causal",
    "encoder, padding not nested": "differs by head or sample",
    "regard": "causal",
    "regard, Shaw": "bidirectional",
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_functions(name: str) -> None:
    model, states = build(name)
    for layer in observed(model, states):
        assert pattern(layer).name == TORCH[name]


def test_padding_of_the_fused_path_is_read_off_key_by_key() -> None:
    model = SelfAttention({"key_padding_mask": padding(6, 3), "need_weights": False}).eval()
    layer = observed(model, torch.randn(2, LENGTH, EMBED))[0]
    found = probe(layer.call)
    assert "fast path" in layer.call.implementation
    assert found is not None
    assert torch.equal(found.allowed[:, 0, 0], ~padding(6, 3))


@pytest.mark.parametrize("name", ["encoder, padding", "multihead, learned extra key"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_what_cannot_be_called_apart_from_its_layer_is_not_probed(name: str) -> None:
    model, states = build(name)
    assert probe(observed(model, states)[0].call) is None


def test_a_function_that_fails_when_called_again_is_not_probed() -> None:
    model, states = build("sdpa")
    layer = observed(model, states)[0]

    def fails(value: Tensor) -> Tensor:
        raise RuntimeError(value.shape)

    object.__setattr__(layer.call, "through", fails)
    assert probe(layer.call) is None


FAMILIES = {
    "bert": ["bidirectional"] * 2,
    "gpt2": ["causal"] * 2,
    "llama": ["causal"] * 2,
    "mistral": [f"causal, window {hf_models.WINDOW}"] * 2,
    "qwen2": ["causal", f"causal, window {hf_models.WINDOW}"],
    "modernbert": ["bidirectional", "window -2..+2"],
    "t5": ["bidirectional", "bidirectional", "causal", "bidirectional", "causal", "bidirectional"],
    "vit": ["bidirectional"] * 2,
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_hugging_face_models(name: str, implementation: str) -> None:
    model, inputs = hf_models.build(name, implementation)
    inputs.pop("attention_mask", None)
    assert [pattern(layer).name for layer in observed(model, **inputs)] == FAMILIES[name]


def test_a_window_longer_than_the_text_is_not_seen() -> None:
    model, inputs = hf_models.build("mistral")
    layer = observed(model, input_ids=inputs["input_ids"][:, : hf_models.WINDOW])[0]
    assert pattern(layer).name == "causal"


def without_mask(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    """Wrong: sees everything."""
    del mask
    return sdpa_attention_forward(module, query, key, value, None, **(named | {"is_causal": False}))


def causal_only(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    """Wrong: drops the window and the padding."""
    del mask
    return sdpa_attention_forward(module, query, key, value, None, **named)


def test_a_window_that_is_ignored_shows() -> None:
    with hf_models.registered("no_window", causal_only, sdpa_mask):
        model, inputs = hf_models.build("mistral", "no_window")
        layer = observed(model, input_ids=inputs["input_ids"])[0]
        assert layer.call.declared_window == hf_models.WINDOW
        assert pattern(layer) == Pattern("causal", causal=True, window=None, after=0)


def test_causality_that_is_ignored_shows() -> None:
    with hf_models.registered("no_mask", without_mask, sdpa_mask):
        model, inputs = hf_models.build("llama", "no_mask")
        assert pattern(observed(model, input_ids=inputs["input_ids"])[0]).name == "bidirectional"


def test_padding_that_is_attended_shows() -> None:
    """A function registered without its mask function gets no mask at all, and transformers says nothing."""
    with hf_models.registered("no_padding", sdpa_attention_forward):
        model, inputs = hf_models.build("bert", "no_padding")
        layer = observed(model, **inputs)[0]
        found = probe(layer.call)
    assert found is not None
    padded = inputs["attention_mask"] == 0
    assert bool(padded.any())
    assert found.allowed[:, 0, 0][padded].all()


def test_generation_with_a_cache_sees_every_key_before() -> None:
    model, inputs = hf_models.build("llama")
    ids = inputs["input_ids"]
    with torch.no_grad():
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
        with regard.observe(model) as seen:
            model(input_ids=ids[:, 5:8], past_key_values=cache, use_cache=True)
    assert (seen.layers[0].q_len, seen.layers[0].kv_len) == (3, 8)
    assert pattern(seen.layers[0]).name == "causal"


def test_of_long_texts_some_keys_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "KEYS_PROBED", 8)
    states = torch.randn(1, 1, 40, 4)
    for is_causal, name in ((True, "causal"), (False, "bidirectional")):

        class Model(nn.Module):
            def forward(self, states: Tensor) -> Tensor:
                return F.scaled_dot_product_attention(states, states, states, is_causal=is_causal)  # noqa: B023

        layer = observed(Model(), states)[0]
        found = probe(layer.call)
        assert found is not None
        assert found.keys.numel() == 8
        assert (int(found.keys[0]), int(found.keys[-1])) == (0, 39)
        assert pattern(layer).name == name


def test_chosen_keys_are_probed() -> None:
    model, states = build("sdpa, causal")
    layer = observed(model, states)[0]
    found = probe(layer.call, torch.tensor([4, 1]))
    assert found is not None
    assert torch.equal(found.allowed[0, 0], torch.arange(LENGTH)[:, None] >= torch.tensor([4, 1]))


def test_a_mask_that_is_no_band_is_described_by_its_share() -> None:
    assert name_of(BigBird(2, 1, 1, 1), 16, 16).startswith("other: ")
