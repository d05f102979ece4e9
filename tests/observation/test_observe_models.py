"""`regard.observe` on Hugging Face models: the same bits, and the weights that eager would have given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard

transformers = pytest.importorskip("transformers")

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from regard.xray.pretrained import quiet  # noqa: E402
from tests.observation.hf_models import CASES, FAMILIES, WINDOW, build, ids, outputs, registered  # noqa: E402

FUSED = [(name, how) for name, how in CASES if how != "flex_attention"]  # that compiles for ten seconds
COMPILED = [("gemma2", "flex_attention")]  # grouped heads, a window and a softcap at once


@pytest.mark.parametrize(("name", "implementation"), [*FUSED, *COMPILED])
def test_observing_changes_no_bit_and_the_weights_explain_the_output(name: str, implementation: str) -> None:
    model, inputs = build(name, implementation)
    with warnings.catch_warnings(), torch.no_grad():
        if implementation == "flex_attention":  # torch's compiler and transformers' mask warn about each other
            warnings.simplefilter("ignore")
        before = outputs(model, inputs)
        with regard.observe(model) as seen:
            during = outputs(model, inputs)
    assert len(during) == len(before)
    assert all(torch.equal(found, want) for found, want in zip(during, before, strict=True))
    assert len(seen.layers) == FAMILIES[name].layers
    for layer in seen.layers:
        assert layer.call.implementation == implementation
        assert layer.check() <= 1e-5
        assert layer.call.replay is not None
        again = layer.call.replay(layer.call.query, layer.call.key, layer.call.value)
        assert layer.call.output is not None
        torch.testing.assert_close(again, layer.call.output, rtol=0, atol=1e-5)


def own_weights(found: Any) -> list[Tensor]:
    """What a model returns as `output_attentions`, in the order in which the layers run."""
    if "decoder_attentions" not in found:
        return list(found.attentions)
    decoder = zip(found.decoder_attentions, found.cross_attentions, strict=True)
    return [*found.encoder_attentions, *(weights for layer in decoder for weights in layer)]


def check_against_eager(model: nn.Module, inputs: dict[str, Tensor], *, drift: float = 1e-5) -> None:
    """Equal to 1e-5 in one pass under eager; and under SDPA, whose own rounding may add up over many layers."""
    with torch.no_grad(), quiet(transformers):
        with regard.observe(model) as fused:
            model(**inputs)
        model.set_attn_implementation("eager")
        with regard.observe(model) as eager:
            wanted = own_weights(model(**inputs, output_attentions=True))
    assert len(fused.layers) == len(eager.layers) == len(wanted)
    for one, other, want in zip(fused.layers, eager.layers, wanted, strict=True):
        torch.testing.assert_close(other.weights(), want, rtol=0, atol=1e-5)
        found = one.weights()
        # The row of a padded query is 0 under SDPA, and uniform in eager when no key is left to it: neither is read.
        torch.testing.assert_close(found, want * (found.sum(-1, keepdim=True) > 0), rtol=0, atol=drift)


@pytest.mark.parametrize("name", ["bert", "distilbert", "t5", "bart", "gpt2", "llama", "mistral", "qwen2", "vit"])
def test_weights_are_those_of_eager(name: str) -> None:
    check_against_eager(*build(name, "sdpa"))


@pytest.mark.weights
def test_weights_of_minilm_are_those_of_eager(minilm: Path) -> None:
    model, inputs = pretrained(minilm, transformers.AutoModel, ["The bank by the river.", "A bank"])
    check_against_eager(model, inputs)


@pytest.mark.weights
def test_weights_of_flan_t5_are_those_of_eager_in_all_three_kinds(flan_t5: Path) -> None:
    model, inputs = pretrained(
        flan_t5, transformers.AutoModelForSeq2SeqLM, ["translate to German: a house", "summarise"]
    )
    inputs |= {"decoder_input_ids": torch.tensor([[0, 5, 9], [0, 7, 3]])}
    check_against_eager(model, inputs, drift=1e-4)


def pretrained(folder: Path, kind: Any, texts: list[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    with quiet(transformers):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = kind.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return model, {name: batch[name] for name in ("input_ids", "attention_mask")}


# --------------------------------------------------------------------------------- generate, training


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "t5", "bart"])
def test_generate_with_a_cache_gives_the_same_tokens_and_shows_the_last_step(name: str) -> None:
    model, inputs = build(name)
    inputs.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1}
    with quiet(transformers), torch.no_grad():
        before = model.generate(**inputs, **settings)
        with regard.observe(model) as seen:
            during = model.generate(**inputs, **settings)
    assert torch.equal(during, before)
    assert len(seen.layers) == FAMILIES[name].layers
    for layer in seen.layers:
        in_encoder = "encoder" in layer.name.split(".")
        assert layer.q_len == (inputs["input_ids"].shape[1] if in_encoder else 1)
        assert (layer.weights().sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_training_gets_the_same_gradients(name: str) -> None:
    def gradients(*, observed: bool) -> list[Tensor]:
        model, inputs = build(name)
        model.train()
        torch.manual_seed(5)
        if observed:
            with regard.observe(model):
                outputs(model, inputs)[0].square().sum().backward()
        else:
            outputs(model, inputs)[0].square().sum().backward()
        return [leaf.grad for leaf in model.parameters() if leaf.grad is not None]

    assert all(map(torch.equal, gradients(observed=True), gradients(observed=False)))


def test_shared_layers_are_listed_once_for_each_time_they_run() -> None:
    model, inputs = build("albert")
    with torch.no_grad(), regard.observe(model) as seen:
        model(**inputs)
        model(**inputs)
    first, second = seen.layers
    assert second.name == f"{first.name} (call 2)"
    assert not torch.equal(first.weights(), second.weights())


def test_grouped_heads_are_seen_before_they_are_repeated() -> None:
    model, inputs = build("llama")
    with torch.no_grad(), regard.observe(model) as seen:
        model(**inputs)
    assert [(layer.heads, layer.kv_heads) for layer in seen.layers] == [(4, 2)] * 2
    assert seen.layers[0].weights(heads=[0, 3]).shape[1] == 2


@pytest.mark.parametrize("name", ["mistral", "bart", "t5", "modernbert", "bert"])
def test_the_mask_that_the_model_asked_for_is_known(name: str) -> None:
    model, inputs = build(name)
    if "decoder_input_ids" in inputs:  # equal lengths: which request was whose must not be mixed up
        inputs["decoder_input_ids"] = ids(2)
        inputs.pop("attention_mask")
    with torch.no_grad(), regard.observe(model) as seen:
        model(**inputs)
    told = 0
    for layer in seen.layers:
        asked = None if layer.call.declared is None else layer.call.declared()
        if asked is not None:
            told += 1
            real = layer.weights().gt(0)
            assert torch.equal(asked.expand_as(real) & real.any(-1, keepdim=True), real), layer.name
    assert told >= len(seen.layers) // 3


def test_what_a_layer_declares_as_its_window_is_kept() -> None:
    model, inputs = build("mistral")
    with torch.no_grad(), regard.observe(model) as seen:
        model(**inputs)
    assert [layer.call.declared_window for layer in seen.layers] == [WINDOW] * 2


# ------------------------------------------------------------------------- functions of one's own


def without_scale(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    """Wrong: drops the scale."""
    named["scaling"] = 1.0
    return sdpa_attention_forward(module, query, key, value, mask, **named)


def with_a_window_of_its_own(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any
) -> Any:
    """Wrong: sees two tokens, whatever the mask says."""
    length = query.shape[2]
    own = torch.ones(length, length, dtype=torch.bool).tril().triu(-1)
    return sdpa_attention_forward(module, query, key, value, own if mask is None else own & mask, **named)


@pytest.mark.parametrize("function", [without_scale, with_a_window_of_its_own])
def test_weights_that_do_not_explain_the_output_are_refused(function: Any) -> None:
    with registered("mine", function, sdpa_mask):
        model, inputs = build("llama", "mine")
        with torch.no_grad(), regard.observe(model) as seen:
            model(**inputs)
    layer = seen.layers[0]
    for ask in (layer.weights, layer.weights, layer.lse, layer.statistics, layer.check):  # and again: it stays refused
        with pytest.raises(regard.RegardError, match=r"do not give the layer's own output .*\(mine\) does something"):
            ask()


def test_a_function_registered_while_observing_is_seen_and_stays() -> None:
    model, inputs = build("llama")
    with registered("later", without_scale):  # so that the name is gone afterwards
        transformers.AttentionInterface._global_mapping.pop("later")
        with torch.no_grad(), regard.observe(model) as seen:
            transformers.AttentionInterface.register("later", sdpa_attention_forward)
            transformers.AttentionInterface.register("sdpa", without_scale)
            try:
                model.set_attn_implementation("later")
                model(**inputs)
            finally:
                replaced = transformers.AttentionInterface._global_mapping["sdpa"]
        assert transformers.AttentionInterface._global_mapping["sdpa"] is replaced is without_scale
        assert transformers.AttentionInterface._global_mapping["later"] is sdpa_attention_forward
        transformers.AttentionInterface.register("sdpa", sdpa_attention_forward)
    assert [layer.call.implementation for layer in seen.layers] == ["later"] * 2
