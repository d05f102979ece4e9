"""The two experiments on whole models: padding, and the future that reaches the past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regard.xray.encode import Encoded, encode
from regard.xray.leaks import PADS, TOKENS, future_reaches_past, padding_found
from regard.xray.loading import LoadedModel, load

transformers = pytest.importorskip("transformers")

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from tests.observation.hf_models import registered  # noqa: E402
from tests.xray.test_probe import without_mask  # noqa: E402

TEXT = "The bank by the river was closed, so she sat down on the grassy bank and counted."


def prepared(folder: Path, implementation: str = "sdpa") -> tuple[LoadedModel, Encoded]:
    loaded = load(str(folder))
    loaded.model.set_attn_implementation(implementation)  # type: ignore[operator]
    return loaded, encode(loaded, TEXT, "河水山中行" if loaded.kind == "encoder_decoder" else None)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mistral", "tiny_t5"])
def test_sound_models_honour_padding_and_hide_the_future(
    name: str, implementation: str, request: pytest.FixtureRequest
) -> None:
    loaded, encoded = prepared(request.getfixturevalue(name), implementation)
    found = padding_found(loaded, encoded).layers
    assert set(found.values()) == {"honoured"}
    assert len(found) == (6 if name == "tiny_t5" else 2)
    assert future_reaches_past(loaded, encoded) is (None if name == "tiny_bert" else False)


def test_a_function_without_its_mask_function_attends_to_padding(tiny_bert: Path, tiny_llama: Path) -> None:
    with registered("unmasked", sdpa_attention_forward):
        for folder in (tiny_bert, tiny_llama):
            assert set(padding_found(*prepared(folder, "unmasked")).layers.values()) == {"attended"}


def test_of_an_encoder_decoder_each_layer_is_judged_for_its_own_keys(tiny_t5: Path) -> None:
    def cross_unmasked(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
        crossing = query.shape[2] != key.shape[2]
        return sdpa_attention_forward(module, query, key, value, None if crossing else mask, **named)

    with registered("cross_unmasked", cross_unmasked, sdpa_mask):
        found = padding_found(*prepared(tiny_t5, "cross_unmasked")).layers
    assert {name: "EncDec" in name for name in found} == {name: state == "attended" for name, state in found.items()}


def test_a_decoder_without_causality_lets_the_future_reach_the_past(tiny_llama: Path, tiny_t5: Path) -> None:
    with registered("leaky", without_mask, sdpa_mask):
        for folder in (tiny_llama, tiny_t5):
            assert future_reaches_past(*prepared(folder, "leaky")) is True


def test_a_leak_that_no_attention_layer_shows_is_found() -> None:
    class Peeking(nn.Module):
        """Mixes the next token in, without any attention."""

        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            states = torch.sin(input_ids.float())[..., None]
            return SimpleNamespace(logits=states + 0.01 * states.roll(-1, dims=1))

    class Honest(Peeking):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.sin(input_ids.float())[..., None])

    class Diverging(Peeking):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.full((*input_ids.shape, 1), torch.nan))

    encoded = Encoded({"input_ids": torch.arange(1, 9)[None]}, {})
    for model, leaks in ((Peeking(), True), (Honest(), False), (Diverging(), None)):
        assert future_reaches_past(LoadedModel("m", model, None, "decoder"), encoded) is leaks
        assert future_reaches_past(LoadedModel("m", model, None, "encoder"), encoded) is None


def test_only_as_much_of_the_text_is_run_as_the_experiments_need(tiny_gpt2: Path) -> None:
    loaded = load(str(tiny_gpt2))
    encoded = encode(loaded, TEXT + TEXT)
    lengths: list[int] = []

    def counts(_: nn.Module, __: Any, named: dict[str, Tensor]) -> None:
        lengths.append(named["input_ids"].shape[1])

    loaded.model.register_forward_pre_hook(counts, with_kwargs=True)
    padding_found(loaded, encoded)
    future_reaches_past(loaded, encoded)
    assert lengths == [TOKENS + PADS, TOKENS, TOKENS]


def test_models_that_cannot_be_run_padded_are_not_judged(tiny_bert: Path) -> None:
    loaded, encoded = prepared(tiny_bert)
    twice = replace(encoded, inputs={name: given.repeat(2, 1) for name, given in encoded.inputs.items()})
    assert padding_found(loaded, twice).layers == {}
    assert padding_found(replace(loaded, kind="custom"), encoded).layers == {}

    class Picky(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            raise RuntimeError(attention_mask.shape)

    assert padding_found(replace(loaded, model=Picky()), encoded).layers == {}

    class Unmasked(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    assert padding_found(replace(loaded, model=Unmasked()), encoded).layers == {}
