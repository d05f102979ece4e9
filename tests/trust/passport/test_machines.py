"""From one instruction set to another, in processes of their own, and through the models of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.backends import _library
from regard.trust.passport import record, replay
from tests.trust.passport.small import changed, decoder, ids

ROOT = Path(__file__).parents[3]


def available() -> tuple[str, ...]:
    return () if _library.why_absent() else _library.available_isas()


RECORD = """
from regard.trust.passport import record
from tests.trust.passport.small import decoder, ids
found = record(decoder(), ids(), sys.argv[1], backend="native").contents.made
print(json.dumps([found.isa, found.active]))
"""
REPLAY = """
from regard.trust.passport import replay
from tests.trust.passport.small import changed, decoder
path = sys.argv[1]
runs = [replay(path, decoder(), backend="native"), replay(path, backend="native"), replay(path, backend="sdpa"),
        replay(path, changed()[0], backend="native")]
print(json.dumps([[run.here.isa, run.passed, run.first_difference] for run in runs]))
"""


def under(isa: str, script: str, path: Path) -> Any:
    """What a process of its own prints, on this instruction set."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import json, sys\n{script}", str(path)],
        cwd=ROOT, env=os.environ | {"REGARD_ISA": isa}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(not {"avx512", "avx2"} <= set(available()), reason="this machine or build lacks AVX-512 or AVX2")
def test_what_avx512_made_passes_on_avx2(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert under("avx512", RECORD, path) == ["avx512", True]
    assert under("avx2", REPLAY, path) == [
        ["avx2", True, None], ["avx2", True, None], ["avx2", True, None], ["avx2", False, "blocks.1.narrow"]
    ]  # fmt: skip


@pytest.mark.skipif(not available(), reason="the native core is absent")
def test_what_native_made_passes_on_torchs_own(tmp_path: Path) -> None:
    made = record(decoder(), ids(), tmp_path / "a", backend="native").contents.made
    assert made.active
    model = decoder()
    for found in (replay(tmp_path / "a", model, backend="sdpa"), replay(tmp_path / "a", backend="sdpa")):
        assert found.passed, str(found)
        assert not found.here.active
    assert replay(tmp_path / "a", changed()[0], backend="sdpa").first_difference == "blocks.1.narrow"


def built(name: str, implementation: str) -> tuple[Any, dict[str, torch.Tensor]]:
    pytest.importorskip("transformers")
    from tests.observation.hf_models import build

    model, inputs = build(name, implementation)
    return model, {key: tensor for key, tensor in inputs.items() if "attention_mask" not in key}


def test_a_transformers_model_passes_by_each_implementation(tmp_path: Path) -> None:
    model, inputs = built("mistral", "sdpa")
    found = record(model, inputs, tmp_path / "a", budget="400 kB")
    assert found.contents.made.implementation == "sdpa"
    for backend in ("eager", "sdpa", "native"):
        again = replay(tmp_path / "a", model, backend=backend)
        assert again.passed, str(again)
        assert model.config._attn_implementation == "sdpa"
    assert replay(tmp_path / "a", model, dtype="bfloat16").passed
    model.config.sliding_window = 3
    again = replay(tmp_path / "a", model)
    assert again.first_difference == "model.layers.0.self_attn"
    assert "pairs have another mask than was recorded; fewer or others may attend now" in "\n".join(again.why)


def test_experts_sinks_and_softcaps_are_true_in_float64(tmp_path: Path) -> None:
    model, inputs = built("gpt-oss", "eager")
    record(model, inputs, tmp_path / "a", budget="300 kB", gradients=False)
    assert replay(tmp_path / "a", model).passed
    assert {row.state for row in replay(tmp_path / "a", backend="sdpa").rows} == {"refused"}
    model.model.layers[1].self_attn.sinks.data[0] += 0.01
    found = replay(tmp_path / "a", model)
    assert found.first_difference == "model.layers.1.self_attn.o_proj"
    model, inputs = built("gemma2", "eager")
    record(model, inputs, tmp_path / "b", budget="300 kB", gradients=False)
    model.model.layers[0].self_attn.attn_logit_softcapping = 3.0
    found = replay(tmp_path / "b", model)
    assert found.first_difference == "model.layers.0.self_attn"
    assert "softcap 2 was recorded, now it is 3" in "\n".join(found.why)
