"""Tiny random Hugging Face models of many families, and what to call them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from regard.xray.pretrained import quiet

VOCABULARY, LENGTH, BATCH, WINDOW = 50, 9, 2, 4

SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SHAPE | TOKENS | {"num_key_value_heads": 2, "head_dim": 8}
VISION = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 16, "patch_size": 8}  # fmt: skip


def ids(seed: int, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(seed))


def padded(*, on_left: bool) -> dict[str, Tensor]:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, slice(0, 3) if on_left else slice(LENGTH - 3, None)] = 0
    return {"input_ids": ids(1), "attention_mask": mask}


def pair() -> dict[str, Tensor]:
    return {**padded(on_left=False), "decoder_input_ids": ids(2, 5)}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(3))}


@dataclass(frozen=True)
class Family:
    """How to make the model, what to feed it, how many attention calls one pass makes, who can compute them."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    layers: int = 2
    implementations: tuple[str, ...] = ("sdpa", "eager")


def _made(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**settings))


def _left() -> dict[str, Tensor]:
    return padded(on_left=True)


def _right() -> dict[str, Tensor]:
    return padded(on_left=False)


def _whisper() -> dict[str, Tensor]:
    features = torch.randn(BATCH, 8, 20, generator=torch.Generator().manual_seed(4))
    return {"input_features": features, "decoder_input_ids": ids(2, 5)}


def _clip() -> dict[str, Tensor]:
    return {**_right(), **image()}


def _gemma2() -> nn.Module:
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GROUPED, sliding_window=WINDOW, attn_logit_softcapping=2.0)
    )


DISTILBERT = {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **TOKENS}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0, **TOKENS}  # fmt: skip
TWO_STACKS = {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
              "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
              **TOKENS}  # fmt: skip
BART = {**TWO_STACKS, "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None}
WHISPER = {**TWO_STACKS, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16,
           "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}  # fmt: skip
CLIP = {"text_config": {**SHAPE, **TOKENS, "projection_dim": 16}, "vision_config": VISION, "projection_dim": 16}
OSS = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": WINDOW}

FAMILIES: dict[str, Family] = {
    "bert": Family(_made("BertModel", "BertConfig", **SHAPE), _right),
    "distilbert": Family(_made("DistilBertModel", "DistilBertConfig", **DISTILBERT), _right),
    "albert": Family(_made("AlbertModel", "AlbertConfig", **SHAPE, embedding_size=16, num_hidden_groups=1), _right),
    "modernbert": Family(
        _made("ModernBertModel", "ModernBertConfig", **SHAPE, **TOKENS, local_attention=4, global_attn_every_n_layers=2,
              cls_token_id=1, sep_token_id=2),
        _right,
    ),
    "t5": Family(_made("T5ForConditionalGeneration", "T5Config", **T5), pair, layers=6),
    "bart": Family(_made("BartForConditionalGeneration", "BartConfig", **BART), pair, layers=6),
    "whisper": Family(_made("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER), _whisper, layers=6),
    "gpt2": Family(_made("GPT2LMHeadModel", "GPT2Config", **GPT2), _left),
    "llama": Family(_made("LlamaForCausalLM", "LlamaConfig", **GROUPED), _left),
    "mistral": Family(_made("MistralForCausalLM", "MistralConfig", **GROUPED, sliding_window=WINDOW), _left),
    "qwen2": Family(
        _made("Qwen2ForCausalLM", "Qwen2Config", **SHAPE, **TOKENS, num_key_value_heads=2, use_sliding_window=True,
              sliding_window=WINDOW, max_window_layers=1),
        _left,
    ),
    "gemma2": Family(_gemma2, _left, implementations=("eager", "flex_attention")),
    "gpt-oss": Family(_made("GptOssForCausalLM", "GptOssConfig", **GROUPED, **OSS), _left, implementations=("eager",)),
    "vit": Family(_made("ViTModel", "ViTConfig", **VISION), image),
    "clip": Family(_made("CLIPModel", "CLIPConfig", **CLIP), _clip, layers=4),
}  # fmt: skip

CASES = [(name, how) for name, family in FAMILIES.items() for how in family.implementations]


def build(name: str, implementation: str = "sdpa") -> tuple[nn.Module, dict[str, Tensor]]:
    """The model in eval mode with weights large enough for its attention to be uneven, and an input."""
    torch.manual_seed(11)
    family = FAMILIES[name]
    with quiet(transformers):
        model = family.make().eval()
        model.set_attn_implementation(implementation)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, family.inputs()


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Every tensor that the model gives."""
    found = model(**inputs)
    return [entry for entry in found.to_tuple() if isinstance(entry, Tensor)]


@contextmanager
def registered(name: str, function: Any, mask: Any = None) -> Iterator[str]:
    """An attention function under a name of its own, gone afterwards."""
    transformers.AttentionInterface.register(name, function)
    if mask is not None:
        transformers.AttentionMaskInterface.register(name, mask)
    try:
        yield name
    finally:
        transformers.AttentionInterface._global_mapping.pop(name, None)
        transformers.AttentionMaskInterface._global_mapping.pop(name, None)
