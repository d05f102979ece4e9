"""What looks like a leak and is none, what cannot be asked, and leaks that are easily overlooked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import regard
from regard._errors import ArgumentError
from regard.backends import _library
from regard.cli.audit_model import names_model
from regard.trust.model_leaks import audit_model

IDS = torch.randint(3, 20, (2, 12), generator=torch.Generator().manual_seed(1))


class OfTokens(nn.Module):
    """One number for each token, on its own, or with a bit of all others."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors, self.share = nn.Embedding(20, 1), share

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        numbers = self.vectors(input_ids)[..., 0]
        return numbers + self.share * numbers.mean(1, keepdim=True)


class Noisy(OfTokens):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return functional.dropout(super().forward(input_ids), 0.5, training=True)


class WithoutGradients(OfTokens):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled():
            raise AssertionError
        return super().forward(input_ids)


class BoolMask(OfTokens):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        numbers = super().forward(input_ids)
        return numbers.masked_fill(~attention_mask, 0.0)


def audited(model: nn.Module, inputs: dict[str, Tensor] | None = None, **options: Any) -> Any:
    return audit_model(model, inputs or {"input_ids": IDS}, activated=[False], **options)


def test_one_number_for_each_token_is_judged_by_token() -> None:
    assert audited(OfTokens(), causal=True).codes == ()
    found = audited(OfTokens(0.5), causal=True)
    assert set(found.codes) == {"future_reaches_past", "padding_reaches_tokens"}


def test_random_numbers_are_no_leak() -> None:
    assert audited(Noisy(), causal=True).codes == ()


def test_a_model_that_refuses_gradients_is_judged_by_changes() -> None:
    assert "future_reaches_past" in audited(WithoutGradients(0.5), causal=True).codes


def test_a_mask_is_given_in_its_own_dtype() -> None:
    found = audited(BoolMask(), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS).bool()})
    assert found.codes == ()
    assert [check.state for check in found.checks if check.code == "padding_reaches_tokens"] == ["holds", "holds"]


def test_what_is_not_asked_is_listed_with_what_would_ask_it() -> None:
    def untested(found: Any) -> dict[str, str]:
        return {check.code: check.told for check in found.checks if check.state == "not tested"}

    class WithoutMask(OfTokens):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(input_ids)

    nothing_said = untested(audited(WithoutMask(0.5)))
    assert nothing_said == {
        "future_reaches_past": "nothing says that they must not, so it is taken for an encoder; causal=True says it",
        "padding_reaches_tokens": "it takes no mask of padding that is known",
    }
    assert "later tokens reach earlier ones? not tested: nothing says" in str(audited(WithoutMask(0.5)))
    assert untested(audited(OfTokens(), causal=False)) == untested(audited(OfTokens(), kind="encoder")) == {}
    alone = audited(WithoutMask(), {"input_ids": IDS[:1]})
    assert untested(alone)["batch_mixed"] == "there is one sample: it takes two or more"
    assert not alone.passed


def test_one_sample_has_no_padding_to_tell_of() -> None:
    found = audited(OfTokens(0.5), {"input_ids": IDS[:1]})
    told = {check.told for check in found.checks if check.code == "padding_reaches_tokens"}
    assert told == {"the first sample stays whole: it takes two or more"}


class Vectors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(1, keepdim=True)


def test_what_cannot_be_asked_is_said() -> None:
    vectors = torch.randn(2, 12, 8)
    with pytest.raises(
        ArgumentError, match=r"inputs: .* one sequence of vectors .* got vectors in each of x, y\. Bind"
    ):
        audited(Vectors(), {"x": vectors, "y": vectors}, causal=True)
    with pytest.raises(
        ArgumentError, match=r"inputs: expected token ids .* got float tensors of other dimensions alone"
    ):
        audited(Vectors(), {"x": torch.randn(2, 12)}, kind="decoder")
    with pytest.raises(ArgumentError, match=r"kind: expected one of encoder, decoder, .* got 'Decoder'"):
        audited(OfTokens(), kind="Decoder")
    same = {"input_ids": IDS, "decoder_input_ids": IDS.clone()}
    with pytest.raises(ArgumentError, match="got the same in input_ids and decoder_input_ids"):
        audited(OfTokens(), same)
    with pytest.raises(ArgumentError, match=r"inputs: expected a mapping of arguments by name, got Tensor"):
        audit_model(OfTokens(), IDS)
    with pytest.raises(ArgumentError, match=r"inputs: expected token ids .* got temperature"):
        audit_model(OfTokens(), {"temperature": torch.tensor(0.5)})
    with pytest.raises(ArgumentError, match=r"length: expected 2 tokens or more, got -1"):
        audit_model(OfTokens(), length=-1)


class Encoder(nn.TransformerEncoder):
    """torch's own encoder, told to look back alone, or to look `ahead`."""

    def __init__(self, ahead: int | None = None, *, deaf: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
        self.ahead, self.deaf = ahead, deaf
        for parameter in self.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        mask = None
        if self.ahead is not None:
            mask = torch.ones(src.shape[1], src.shape[1], dtype=torch.bool).triu(1 + self.ahead)
        return super().forward(src, mask, None if self.deaf else src_key_padding_mask)


def test_vectors_are_judged_by_token() -> None:
    vectors = {"src": torch.randn(2, 12, 8)}
    held = audited(Encoder(0), vectors, causal=True)
    assert held.codes == (), held
    asked = [check.name for check in held.checks if check.state == "holds"]
    assert "tokens from 6 on reach those before" in asked
    assert {"padding on the right reaches tokens", "padding on the left reaches tokens"} <= set(asked)
    for looks, code in ((Encoder(1), "future_reaches_past"), (Encoder(0, deaf=True), "padding_reaches_tokens")):
        # What is causal cannot be reached by padding on the right.
        found = audited(looks, vectors, causal=True)
        assert set(found.codes) == {code}, found
    assert audited(Encoder(), vectors, kind="encoder").codes == ()
    assert audited(Encoder(deaf=True), vectors, kind="encoder").codes == ("padding_reaches_tokens",)


@pytest.mark.skipif(_library.why_absent() is not None, reason="it is never active")
def test_without_regard_is_without() -> None:
    with regard.activate():
        with pytest.raises(ArgumentError, match=r"activated: expected \(True,\) while regard is active"):
            audited(OfTokens())
        assert audit_model(OfTokens(), {"input_ids": IDS}).ways == ("as it is, regard active",)


def test_attention_is_no_model(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class My(nn.Module):\n    def forward(self, query, key, value): ...\n"
        "my = My()\n"
        "def attend(*args, **named): ...\n"
        "def make(): ...\n"
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    assert not names_model("torch")
    assert [names_model(f"mine:{name}") for name in ("my", "attend", "make")] == [False, False, True]
    assert not names_model("broken:attend")
    assert not names_model("a" * 300)


# ------------------------------------------------------------------------------------- of transformers


def llama(forgets: bool = False, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")

    class Forgetful(transformers.LlamaForCausalLM):
        def forward(
            self, input_ids: Any = None, past_key_values: Any = None, use_cache: Any = None, **more: Any
        ) -> Any:
            return super().forward(input_ids=input_ids, use_cache=True, **more)

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=16, **options)
    model = (Forgetful if forgets else transformers.LlamaForCausalLM)(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forgotten_cache_is_seen_in_every_dtype(dtype: torch.dtype) -> None:
    assert "chunks_differ" in audited(llama(forgets=True).to(dtype)).codes
    assert audited(llama().to(dtype)).codes == ()


class Widened(nn.Module):
    """Logits of a model in half precision, as float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        found = self.model(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
        found.logits = found.logits.float()
        return found


def test_half_precision_that_is_widened_has_the_limit_of_half_precision() -> None:
    ids = torch.randint(3, 20, (2, 40), generator=torch.Generator().manual_seed(1))
    found = audited(Widened(llama().bfloat16()), {"input_ids": ids}, kind="decoder", gradients=False)
    assert "chunks_differ" not in found.codes, str(found)


def test_vectors_in_the_place_of_ids_are_read_in_chunks_too() -> None:
    vectors = {"inputs_embeds": torch.randn(2, 12, 16)}
    found = audited(llama(), vectors)
    assert found.codes == ()
    assert "the border of a chunk is seen" in [check.name for check in found.checks if check.state == "holds"]


def test_positions_that_are_given_are_cut_with_the_chunk() -> None:
    given = {"input_ids": IDS, "position_ids": torch.arange(12).expand(2, -1), "attention_mask": torch.ones_like(IDS)}
    found = audited(llama(), given)
    assert found.codes == ()
    assert {check.state for check in found.checks if check.code == "chunks_differ"} == {"holds"}


def test_implementations_within_a_model_are_put_back() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {"text_config": {"vocab_size": 100, **sizes}, "vision_config": {"image_size": 16, "patch_size": 8, **sizes}}
    model = transformers.CLIPModel(transformers.CLIPConfig(**parts, projection_dim=8)).eval()
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    audit_model(model, activated=[False], gradients=False)
    config = model.config
    found = [part._attn_implementation for part in (config, config.text_config, config.vision_config)]
    assert found == ["sdpa", "eager", "sdpa"]
