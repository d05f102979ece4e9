"""Tiny random models of every kind that transformers has: those of the observation tests, and more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from regard.xray.pretrained import quiet
from tests.observation import hf_models as others
from tests.observation.hf_models import GROUPED, SHAPE, TOKENS, TWO_STACKS, WINDOW


@dataclass(frozen=True)
class Family:
    """How to make one, how long its texts are, and what is warned of."""

    make: Callable[[], nn.Module]
    length: int = 12
    warns: tuple[str, ...] = ()


def made(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**settings))


def known(name: str) -> Callable[[], nn.Module]:
    return others.FAMILIES[name].make


SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}

DISTANCES = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}

FAMILIES: dict[str, Family] = {
    "bert": Family(known("bert")),
    "roberta": Family(made("RobertaModel", "RobertaConfig", **SHAPE, pad_token_id=1)),
    "distilbert": Family(known("distilbert")),
    "albert": Family(known("albert")),
    "electra": Family(made("ElectraModel", "ElectraConfig", **SHAPE, embedding_size=16)),
    "modernbert": Family(known("modernbert")),
    "longformer": Family(made("LongformerModel", "LongformerConfig", **SHAPE, attention_window=[4, 4])),
    "bigbird": Family(
        made("BigBirdModel", "BigBirdConfig", **SHAPE, attention_type="block_sparse", block_size=4,
             num_random_blocks=1),
        length=64,
    ),
    "deberta": Family(made("DebertaModel", "DebertaConfig", **SHAPE, **DISTANCES)),
    "deberta-v2": Family(made("DebertaV2Model", "DebertaV2Config", **SHAPE, **DISTANCES)),
    "xlnet": Family(
        made("XLNetModel", "XLNetConfig", vocab_size=50, d_model=32, n_layer=2, n_head=4, d_inner=40, attn_type="bi")
    ),
    "gpt2": Family(known("gpt2")),
    "gpt-neo": Family(
        made("GPTNeoForCausalLM", "GPTNeoConfig", vocab_size=50, hidden_size=32, num_layers=2, num_heads=4,
             attention_types=[[["global", "local"], 1]], window_size=WINDOW, max_position_embeddings=64, **TOKENS)
    ),
    "gpt-neox": Family(made("GPTNeoXForCausalLM", "GPTNeoXConfig", **SHAPE, **TOKENS)),
    "gptj": Family(
        made("GPTJForCausalLM", "GPTJConfig", vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4,
             rotary_dim=4, **TOKENS)
    ),
    "bloom": Family(
        made("BloomForCausalLM", "BloomConfig", vocab_size=50, hidden_size=32, n_layer=2, n_head=4, **TOKENS)
    ),
    "mpt": Family(
        made("MptForCausalLM", "MptConfig", vocab_size=50, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)
    ),
    "falcon": Family(
        made("FalconForCausalLM", "FalconConfig", vocab_size=50, hidden_size=32, num_hidden_layers=2,
             num_attention_heads=4, **TOKENS),
        warns=("documents_cross",),
    ),
    "opt": Family(
        made("OPTForCausalLM", "OPTConfig", vocab_size=50, hidden_size=32, ffn_dim=40, num_hidden_layers=2,
             num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32, **TOKENS),
        warns=("documents_cross",),
    ),
    "llama": Family(known("llama")),
    "mistral": Family(known("mistral")),
    "qwen2": Family(known("qwen2")),
    "gemma2": Family(known("gemma2")),
    "gemma3": Family(made("Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED, sliding_window=WINDOW)),
    "phi3": Family(made("Phi3ForCausalLM", "Phi3Config", **SHAPE, **TOKENS, num_key_value_heads=2)),
    "gpt-oss": Family(known("gpt-oss"), warns=("documents_cross",)),
    "t5": Family(known("t5")),
    "bart": Family(known("bart")),
    "marian": Family(
        made("MarianMTModel", "MarianConfig", **TWO_STACKS, max_position_embeddings=64, decoder_start_token_id=0,
             forced_eos_token_id=None)
    ),
    "led": Family(
        made("LEDForConditionalGeneration", "LEDConfig", **TWO_STACKS, attention_window=[4, 4],
             max_encoder_position_embeddings=64, max_decoder_position_embeddings=64, decoder_start_token_id=2)
    ),
    "whisper": Family(known("whisper")),
    "vit": Family(known("vit")),
    "swin": Family(made("SwinModel", "SwinConfig", **SWIN)),
    "clip": Family(known("clip")),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """In eval mode, with weights large enough for its attention to be uneven."""
    torch.manual_seed(11)
    with quiet(transformers):
        model = FAMILIES[name].make().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model
