"""The translator that comes with the package: trained by this recipe, kept in 8 bits, checked before it is used.

    python -m regard.recipes.translation.packaged RUN COMMIT    packs what `regard train translation` left in RUN

A matrix is kept as int8 with one scale for each row: row ~ scale * int8, scale = largest / 127 (as in Jacob et al.
2018, https://arxiv.org/abs/1712.05877, symmetric). Vectors stay float32. The vocabulary lies beside the weights, and
the manifest with sha256 of all says the configuration, the data with their licences, what the tests gave, and the
commit of the code that trained. `training.jsonl` is the log of the run.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard._errors import CheckpointError
from regard.recipes.trained import open_run
from regard.recipes.translation.model import TransformerTranslator
from regard.recipes.translation.recipe import Config, build
from regard.recipes.translation.translate import TrainedTranslator
from regard.recipes.translation.vocabulary import Vocabulary
from regard.training.checkpoint import Checkpoints, read_checkpoint
from regard.training.order import listed
from regard.training.state import load_weights

WEIGHTS = Path(__file__).parent / "weights"
MOST_BYTES = 16 * 2**20


def is_packaged() -> bool:
    """Whether a trained translator came with the package."""
    return WEIGHTS.is_dir()


def packaged_translator(folder: Path | None = None) -> TrainedTranslator:
    """The translator, ready to use; that of the package where no other folder is named.

    Raises:
        CheckpointError: it is absent, or a byte of it is not what was packed.
    """
    folder = folder or WEIGHTS
    if not folder.is_dir():
        raise CheckpointError(
            "no trained translator came with this copy of regard: regard train translation --download"
        )
    saved = read_checkpoint(folder)
    config = Config.model_validate(Config.completed(saved.facts["config"]))
    vocabulary = Vocabulary.from_json(bytes(listed(saved.tensors["vocabulary"]["json"])).decode())
    model = build(config, len(vocabulary))
    load_weights(model, unpacked(saved.tensors))
    if not isinstance(model, TransformerTranslator):
        raise CheckpointError(f"{str(folder)!r}: expected a transformer's weights, found a {config.model}'s.")
    return TrainedTranslator(model, vocabulary, aligning=int(saved.facts["aligning"]))


def pack(run: Path, into: Path, facts: Mapping[str, Any]) -> None:
    """Write the weights of a finished run, its vocabulary and what is to be known of it.

    Raises:
        CheckpointError: no usable run, or one too large for the package.
    """
    config, weights = open_run(run, Config, "translation")
    tensors = packed(weights)
    text = (run / "tokenizer.json").read_bytes()
    tensors["vocabulary"] = {"json": torch.tensor(list(text), dtype=torch.uint8)}
    size = sum(tensor.nbytes for each in tensors.values() for tensor in each.values())
    if size > MOST_BYTES:
        raise CheckpointError(f"{str(run)!r}: packed, {size} bytes; at most {MOST_BYTES} may come with the package.")
    with Checkpoints(into) as checkpoints:
        # of the layers, the last finds the source word of a Chinese word most often: see docs/results/translation.md
        whole = {"config": config.model_dump(mode="json"), "aligning": config.decoder_layers - 1, **facts}
        checkpoints.save(config.steps, tensors, whole, digest=config.digest())


def packed(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Matrices as "matrices" (int8) and "scales" (float32, one for each row), the rest as "vectors" (float32)."""
    files: dict[str, dict[str, Tensor]] = {"matrices": {}, "scales": {}, "vectors": {}}
    for name, weight in weights.items():
        values = weight.detach().to(torch.float32)
        if values.dim() != 2:
            files["vectors"][name] = values
            continue
        scale = (values.abs().amax(1) / 127.0).clamp(min=torch.finfo(torch.float32).tiny)
        files["matrices"][name] = (values / scale[:, None]).round().to(torch.int8)
        files["scales"][name] = scale
    return files


def unpacked(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights in float32."""
    matrices = {
        name: matrix.to(torch.float32) * files["scales"][name][:, None] for name, matrix in files["matrices"].items()
    }
    return {**files["vectors"], **matrices}


def _main(run: Path, commit: str) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    facts = {"scores": report["test"]["scores"], "corpus": report["test"]["corpus"]}
    pack(run, WEIGHTS, {**facts, "licences": LICENCES, "commit": commit})
    shutil.copyfile(run / "log.jsonl", WEIGHTS / "training.jsonl")
    (WEIGHTS / ".lock").unlink(missing_ok=True)  # nobody writes there again


LICENCES = {
    "libreoffice": "LibreOffice help, MPL-2.0",
    "wesnoth": "Battle for Wesnoth, GPL-2+",
    "hsk": "HSK sentences, CC-BY-SA-4.0",
    "bible": "Berean Standard Bible and Chinese Union Version, public domain",
    "homeassistant": "Home Assistant, Apache-2.0",
    "applications": "translations of Debian's programs, GPL and LGPL",
}

if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
