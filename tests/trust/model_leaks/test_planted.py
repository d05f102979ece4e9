"""Planted leaks: each is named, by how it shows, and by the piece of the model in which it is first seen."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, UnsupportedError
from regard.trust.model_leaks import Check, ModelAudit, audit_model
from tests.trust.passport.small import decoder


class Tokens(nn.Module):
    """Vectors, one layer that may mix tokens, logits."""

    def __init__(self, mixes: nn.Module, size: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors, self.mixes, self.head = nn.Embedding(20, size), mixes, nn.Linear(size, 20)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        states = self.vectors(input_ids)
        if attention_mask is not None:
            states = states * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(self.mixes(states)))


class Reversed(nn.Module):
    """A bit of the next token, with or without its gradient."""

    def __init__(self, share: float, *, detached: bool = False) -> None:
        super().__init__()
        self.share, self.detached = share, detached

    def forward(self, states: Tensor) -> Tensor:
        later = states.roll(-1, dims=1)
        return states + self.share * (later.detach() if self.detached else later)


class Along(nn.Module):
    """A layer over (batch, size, length)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor) -> Tensor:
        return self.layer(states.mT).mT


IDS = {"input_ids": torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(1))}


def audited(model: nn.Module, **options: Any) -> ModelAudit:
    return audit_model(model, IDS, activated=[False], **options)


def check_of(found: ModelAudit, code: str, *, state: str = "leaks") -> Check:
    return next(check for check in found.checks if (check.code, check.state) == (code, state))


def test_a_convolution_that_looks_ahead() -> None:
    model = Tokens(Along(nn.Conv1d(8, 8, 3, padding=1)))
    found = audited(model, kind="decoder")
    assert found.codes == ("future_reaches_past",)
    assert "first seen in mixes" in found.findings[0].sentence
    assert audited(model, kind="encoder").passed
    causal = Tokens(Along(nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(8, 8, 3))))
    assert audited(causal, kind="decoder").passed


def test_batch_norm_over_the_batch() -> None:
    found = audited(Tokens(Along(nn.BatchNorm1d(8, track_running_stats=False))))
    assert found.codes == ("batch_mixed",)
    assert "first seen in mixes.layer" in found.findings[0].sentence
    assert audited(Tokens(Along(nn.BatchNorm1d(8)))).passed
    assert audited(Tokens(nn.LayerNorm(8))).passed


def test_a_leak_that_only_the_gradient_shows() -> None:
    model = Tokens(Reversed(2e-5))
    found = audited(model, kind="decoder")
    assert found.codes == ("future_reaches_past",)
    assert audited(model, kind="decoder", gradients=False).passed
    assert audited(Tokens(Reversed(0.0)), kind="decoder").passed


def test_a_leak_that_only_a_change_shows() -> None:
    found = audited(Tokens(Reversed(0.1, detached=True)), kind="decoder")
    assert found.codes == ("future_reaches_past",)
    assert "gradient 0.0e+00 of the largest" in check_of(found, "future_reaches_past").told


class Mean(nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return states + states.mean(1, keepdim=True)


def test_padding_that_is_dropped_on_the_way() -> None:
    class Unmasked(Tokens):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
            return super().forward(input_ids)

    found = audited(Unmasked(Mean()))
    assert found.codes == ("padding_reaches_tokens",)
    assert found.findings[0].where == ("as it is",)
    assert audited(Tokens(Mean())).passed  # what is padded is 0 there


def test_a_model_whose_vectors_are_not_seen_gets_other_ids() -> None:
    class Hidden(nn.Module):
        """Looks up its vectors by a product, as no embedding does."""

        def __init__(self, mixes: nn.Module) -> None:
            super().__init__()
            self.mixes = mixes

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.mixes(torch.sin(input_ids[..., None] * torch.arange(1.0, 9.0)))

    assert audited(Hidden(Reversed(0.1)), kind="decoder").codes == ("future_reaches_past",)
    assert audited(Hidden(nn.Identity()), kind="decoder").passed


def test_nan_is_told_and_passes_nothing() -> None:
    class Broken(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return states * torch.nan

    found = audited(Tokens(Broken()))
    assert not found.passed
    assert {check.state for check in found.checks} == {"not tested"}
    asked = {check.told for check in found.checks if check.code == "batch_mixed"}
    assert asked == {"what the model gives there is NaN or Inf"}


def test_a_decoder_of_torch_alone_and_its_mask() -> None:
    model = decoder()
    inputs = {"ids": IDS["input_ids"] % 11}
    found = audit_model(model, inputs, kind="decoder")
    assert found.passed, str(found)
    assert found.ways[0] == "as it is"
    model.blocks[1].attention.causal = False
    found = audit_model(model, inputs, kind="decoder", activated=[False])
    assert found.codes == ("future_reaches_past",)
    assert "first seen in the attention of blocks.1.attention" in found.findings[0].sentence


def test_pictures_and_sounds_are_changed_by_sample() -> None:
    class Centred(nn.Module):
        def __init__(self, dims: tuple[int, ...]) -> None:
            super().__init__()
            self.line, self.dims = nn.Conv2d(3, 4, 3), dims

        def forward(self, pixels: Tensor) -> Tensor:
            found = self.line(pixels)
            return found - found.mean(self.dims, keepdim=True)

    pixels = {"pixels": torch.randn(3, 3, 8, 8)}
    assert audit_model(Centred((2, 3)), pixels).passed
    found = audit_model(Centred((0,)), pixels, activated=[False])
    assert found.codes == ("batch_mixed",)
    assert found.kind == "vision"


def test_a_model_is_left_as_it_was() -> None:
    model = Tokens(nn.Dropout(0.5)).train()
    model.head.eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert audited(model, kind="decoder").passed
    assert torch.equal(state, torch.get_rng_state())
    assert (model.training, model.mixes.training, model.head.training) == (True, True, False)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_reports() -> None:
    found = audited(Tokens(Reversed(0.1)), kind="decoder")
    told = json.loads(found.json())
    assert (told["passed"], told["kind"], told["ways"]) == (False, "decoder", ["as it is"])
    assert [entry["code"] for entry in told["findings"]] == ["future_reaches_past"]
    text = str(found)
    assert text.startswith("failed: Tokens (decoder), by as it is")
    assert "tokens from 1 on reach those before? YES: logits changes by " in text
    assert "samples of a batch reach each other? no" in text
    assert "the border of a chunk is seen? not tested: it takes no past_key_values" in text


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ArgumentError, match=r"model: expected a torch.nn.Module, got function"):
        audit_model(test_reports)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"inputs: expected what the model is called with, by name, got none"):
        audit_model(Tokens(nn.Identity()))
    with pytest.raises(ArgumentError, match=r"inputs: expected token ids \(batch, length\) or float tensors"):
        audit_model(Tokens(nn.Identity()), {"mask": torch.ones(2, 3).bool()})
    with pytest.raises(UnsupportedError, match=r"the model: it does not run on these inputs \(TypeError: "):
        audit_model(Tokens(nn.Identity()), {"ids": IDS["input_ids"]})
    with pytest.raises(ArgumentError, match=r"implementations: expected none, for a model that is not of transformers"):
        audited(Tokens(nn.Identity()), implementations=["sdpa"])
