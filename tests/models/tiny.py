"""Randomly initialised models of a few thousand numbers, each a real Hugging Face folder with a real tokenizer.

Their attention means nothing, but it has the shape of the real thing: causal, grouped queries, a sliding
window, two directions, cross-attention.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from regard.xray.demo_text import DEMO_TEXT
from regard.xray.pretrained import quiet

VOCABULARY = 400
POSITIONS = 64
PAD, START, END = range(3)
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}

GENERAL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
ROTARY = GENERAL | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, **GENERAL))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**ROTARY))


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(sliding_window=4, **ROTARY))


def bert() -> PreTrainedModel:
    shape = {key: value for key, value in ROTARY.items() if key != "num_key_value_heads"}
    return BertForMaskedLM(BertConfig(**shape))


def t5() -> PreTrainedModel:
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(**shape, **GENERAL))


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "gpt2": (gpt2, "$A"),
    "llama": (llama, "<s> $A"),
    "mistral": (mistral, "<s> $A"),
    "bert": (bert, "<s> $A </s>"),
    "t5": (t5, "$A </s>"),
}


def build(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save the tiny model of that name, with its tokenizer, into `folder`; the same seed gives the same bytes."""
    make, template = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
    model.config.architectures = [type(model).__name__]
    with quiet(transformers):
        model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def tokenizer(template: str = "$A") -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the demonstration text; `template` says which special tokens it adds."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(DEMO_TEXT.splitlines(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", START), ("</s>", END)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
