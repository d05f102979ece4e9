"""`load`: good folders and factories load; everything wrong gives one line, and nothing of it runs or is written."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from regard._errors import CheckpointError, DataError, DependencyError, RegardError
from regard.xray.loading import LoadedModel, load

Damage = Callable[[Path], object]


def refusal(model: str | Path, error: type[RegardError]) -> str:
    with pytest.raises(RegardError) as caught:
        load(str(model))
    assert type(caught.value) is error, caught.value
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_config(**changes: object) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(state)
        save_file(state, path, metadata={"format": "pt"})

    return apply


def write(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


class Bomb:
    """Whoever unpickles this ends the test with an unmistakable error."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('the pickle ran')",)


def only_pickled(folder: Path) -> None:
    remove("model.safetensors")(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def own_code(folder: Path) -> None:
    edit_config(model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModel": "code.M"})(folder)
    write("code.py", "raise SystemExit('the folder ran')")(folder)


def sharded(*names: str) -> Damage:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "first.safetensors")
        index = {"weight_map": {f"weight{number}": name for number, name in enumerate(names)}}
        write("model.safetensors.index.json", json.dumps(index))(folder)

    return apply


def slow_tokenizer(folder: Path) -> None:
    remove("tokenizer.json")(folder)
    write("tokenizer_config.json", json.dumps({"tokenizer_class": "ByT5Tokenizer"}))(folder)
    write("vocab.txt", "")(folder)


EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"

FAULTS: dict[str, tuple[Damage, type[RegardError], str]] = {
    "no config": (remove("config.json"), DataError, "no config.json"),
    "broken config": (write("config.json", '{"a": '), DataError, "not valid JSON"),
    "config is a list": (write("config.json", "[]"), DataError, "expected a JSON object, got list"),
    "deep config": (write("config.json", "[" * 100_000), DataError, "nesting"),
    "config of a wrong type": (edit_config(hidden_size="many"), DataError, "config"),
    "unknown type": (edit_config(model_type="nothing"), DataError, "model_type 'nothing' is unknown"),
    "own code": (own_code, DataError, "never runs code from a model folder"),
    "kernel from elsewhere": (edit_config(attn_implementation="org/kernel"), DataError, "'org/kernel'"),
    "quantised": (edit_config(quantization_config={"quant_method": "awq"}), DataError, "quantised"),
    "takes pictures": (edit_config(model_type="vit", architectures=["ViTModel"]), DataError, "pixel_values, not text"),
    "too many layers": (edit_config(num_hidden_layers=10**12), CheckpointError, "asks for 1000000000000 layers"),
    "too large": (edit_config(vocab_size=10**10), CheckpointError, "expected shape [10000000000, 32]"),
    "other shapes": (edit_config(num_key_value_heads=4), CheckpointError, "expected shape [32, 32], found [16, 32]"),
    "no weights": (remove("model.safetensors"), CheckpointError, "no weights: expected model.safetensors"),
    "only pickled": (only_pickled, CheckpointError, "Convert them to safetensors"),
    "truncated": (cut, CheckpointError, "corrupt weights: expected"),
    "empty weights": (write("model.safetensors", ""), CheckpointError, "corrupt weights"),
    "missing tensor": (edit_weights(lambda state: state.pop(QUERY)), CheckpointError, QUERY),
    "renamed tensor": (edit_weights(lambda state: state.update(Q=state.pop(QUERY))), CheckpointError, "(Q)"),
    "shard missing": (sharded("first.safetensors", "second.safetensors"), CheckpointError, "'second.safetensors'"),
    "shard elsewhere": (sharded("../first.safetensors"), CheckpointError, "not a .safetensors file beside it"),
    "empty index": (sharded(), CheckpointError, "corrupt index"),
    "no tokenizer": (remove("tokenizer.json"), DataError, "no tokenizer: expected tokenizer.json"),
    "broken tokenizer": (write("tokenizer.json", "{}"), DataError, "tokenizer files cannot be used"),
    "slow tokenizer": (slow_tokenizer, DataError, "no fast backend"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_folder_gives_one_line(
    tmp_path: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    damage, error, words = FAULTS[name]
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    damage(folder)
    before = contents(tmp_path)
    assert words in refusal(folder, error)
    assert contents(tmp_path) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "model", ["", " ", "nowhere", "./a/b", "a/b/c", "~nobody/x", "a\0b", "x" * 5000, "a:b:c", "a.b"]
)
def test_a_name_that_names_nothing(model: str) -> None:
    assert "package.module:factory" in refusal(model, DataError)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "got a file" in refusal(tmp_path / "config.json", DataError)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert "no such folder here, and the hub gave no model" in refusal("org/name", DataError)


def test_a_hub_model_passes_the_same_checks(monkeypatch: pytest.MonkeyPatch, tiny_bert: Path) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _, **how: asked.update(how) or str(tiny_bert))
    assert load("org/name").name == "org/name"
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])


def test_transformers_absent(monkeypatch: pytest.MonkeyPatch, tiny_bert: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "regard[transformers]" in refusal(tiny_bert, DependencyError)


@pytest.mark.parametrize(
    ("fixture", "kind"),
    [
        ("tiny_gpt2", "decoder"),
        ("tiny_llama", "decoder"),
        ("tiny_mistral", "decoder"),
        ("tiny_bert", "encoder"),
        ("tiny_t5", "encoder_decoder"),
    ],
)
def test_good_folders(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str], fixture: str, kind: str
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    before = contents(folder)
    loaded = load(str(folder))
    assert (loaded.kind, loaded.notes, loaded.model.training) == (kind, (), False)
    assert type(loaded.model).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]
    assert contents(folder) == before
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_log_settings_of_transformers(tiny_bert: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        for switch, bars in ((logging.disable_progress_bar, False), (logging.enable_progress_bar, True)):
            switch()
            logging.set_verbosity_info()
            load(str(tiny_bert))
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(before)


LOAD_ALONE = """
import sys
from regard.xray.loading import load
assert "transformers" not in sys.modules
assert load(sys.argv[1]).notes
"""


def test_nothing_is_printed_though_transformers_would_warn(tmp_path: Path, tiny_llama: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    edit_weights(lambda state: state.pop("lm_head.weight"))(folder)
    command = [sys.executable, "-c", LOAD_ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def damaged(source: Path, folder: Path, damage: Damage) -> LoadedModel:
    copy = shutil.copytree(source, folder)
    damage(copy)
    return load(str(copy))


def test_what_is_odd_but_harmless_becomes_a_note(tmp_path: Path, tiny_llama: Path, tiny_bert: Path) -> None:
    extra = damaged(tiny_llama, tmp_path / "extra", edit_weights(lambda state: state.update(more=torch.ones(2))))
    assert "not used by LlamaForCausalLM: more" in extra.notes[0]
    headless = damaged(tiny_llama, tmp_path / "headless", edit_weights(lambda state: state.pop("lm_head.weight")))
    assert "random, for the file lacks them: lm_head.weight" in headless.notes[0]
    other = damaged(tiny_bert, tmp_path / "other", edit_config(architectures=["Nonesuch"]))
    assert "names the class Nonesuch" in other.notes[0]

    def halve(folder: Path) -> None:
        edit_config(dtype="bfloat16")(folder)
        edit_weights(lambda state: state.update({name: tensor.bfloat16() for name, tensor in state.items()}))(folder)

    half = damaged(tiny_llama, tmp_path / "half", halve)
    assert "BF16" in half.notes[0]
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}


def test_the_folders_code_is_not_run_for_a_known_type(tmp_path: Path, tiny_bert: Path) -> None:
    def add_code(folder: Path) -> None:
        edit_config(auto_map={"AutoModel": "code.M"})(folder)
        write("code.py", "raise SystemExit('the folder ran')")(folder)

    assert "auto_map" in damaged(tiny_bert, tmp_path / "m", add_code).notes[0]


def test_an_encoder_decoder_needs_its_head(tmp_path: Path, tiny_t5: Path) -> None:
    folder = shutil.copytree(tiny_t5, tmp_path / "m")
    edit_weights(lambda state: state.pop("shared.weight"))(folder)
    assert "would be random" in refusal(folder, CheckpointError)
