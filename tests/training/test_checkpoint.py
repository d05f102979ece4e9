"""What is saved comes back to the last bit; the newest are kept; things reach the disk in an order that can be cut."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regard import _tensor_file
from regard._errors import ArgumentError, CheckpointError
from regard._version import __version__
from regard._weights_check import check_safetensors
from regard.training.checkpoint import Checkpoints, read_checkpoint
from tests.training.checkpoint_cases import (
    DIGEST,
    all_bits,
    assert_is,
    bits,
    disk,
    filled,
    forge,
    forge_file,
    names,
    newest,
    save,
    tensors_of,
)

ALL = {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
DTYPES = sorted((dtype for dtype in ALL if not str(dtype).startswith(("torch.qint", "torch.quint"))), key=str)


def random_bytes(dtype: torch.dtype, count: int) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,)).bool()
    return torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8).view(dtype)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_tensors_of_every_dtype_come_back_bit_for_bit(tmp_path: Path) -> None:
    # Among random bits are NaNs with a payload, subnormals and -0.0.
    assert len(DTYPES) > 30
    tensors = {str(dtype): random_bytes(dtype, 40).reshape(5, 8) for dtype in DTYPES}
    tensors |= {f"{dtype} of 0 dimensions": random_bytes(dtype, 1).reshape(()) for dtype in DTYPES}
    tensors |= {f"{dtype} empty": random_bytes(dtype, 0).reshape(0, 3) for dtype in DTYPES}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": tensors}, {}, digest=DIGEST)
        saved = checkpoints.newest()
    assert saved is not None
    assert all_bits(saved.tensors) == all_bits({"model": tensors})


def test_views_and_marks_come_back_as_what_they_show(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    alone = torch.arange(7.0)[::7]
    number = torch.randn(5, dtype=torch.complex64)
    tensors = {
        "base": base,
        "transposed": base.T,
        "row": base[1],
        "column": base[:, 2],
        "every second": base.reshape(-1)[::2],
        "expanded": base[:1].expand(7, 6),
        "the same": base,
        "channels last": image,
        "one of every seven": alone,
        "conjugate": number.conj(),
        "conjugate of complex128": number.to(torch.complex128).conj(),
        "negative": number.conj().imag,
        "trained": torch.nn.Parameter(base[0]),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": tensors}, {}, digest=DIGEST)
        saved = checkpoints.newest()
    assert saved is not None
    assert all_bits(saved.tensors) == all_bits({"model": tensors})
    assert number.conj().is_conj()
    assert number.conj().imag.is_neg()
    for tensor in saved.tensors["model"].values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()  # memory of its own
        assert not tensor.requires_grad


def test_what_is_read_does_not_hang_on_the_file(tmp_path: Path) -> None:
    saved = newest(filled(tmp_path, 7))
    saved.tensors["model"]["weight"].add_(1)
    assert_is(newest(tmp_path), 7)
    for path in (tmp_path / "ckpt-000007").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(saved.tensors["model"]["weight"], tensors_of(7)["model"]["weight"] + 1)


def test_files_are_safetensors_as_others_read_and_write_them(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3), "b": torch.tensor([True]), "c": torch.randn(2, 2).bfloat16(), "d": torch.tensor(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": tensors}, {}, digest=DIGEST)
    path = tmp_path / "ckpt-000001" / "model.safetensors"
    assert all_bits({"": load_file(path)}) == all_bits({"": tensors})
    for key, entry in check_safetensors(path).items():  # readers that map a file want tensors at multiples
        assert entry.begin % tensors[key].element_size() == 0
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata={"format": "pt"})
    forge_file(tmp_path / "ckpt-000001", "model", path.read_bytes())
    assert all_bits(newest(tmp_path).tensors) == all_bits({"model": tensors})


def test_facts_come_back_as_json_gives_them(tmp_path: Path) -> None:
    facts = {"third": 1 / 3, "small": 5e-324, "minus": -0.0, "big": 2**70, "nothing": None, "text": "a\n银\u2028\ud800"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {}, facts, digest=DIGEST)
        saved = checkpoints.newest()
    assert saved is not None
    assert saved.facts == facts
    assert str(saved.facts["minus"]) == "-0.0"
    assert saved.tensors == {}


def test_nan_and_infinite_facts_come_back(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {}, {"loss": [float("nan"), float("-inf")]}, digest=DIGEST)
        saved = checkpoints.newest()
    assert saved is not None
    assert str(saved.facts["loss"]) == "[nan, -inf]"


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    folder = filled(tmp_path, 123) / "ckpt-000123"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 123
    assert manifest["version"] == 1
    assert (manifest["torch"], manifest["regard"], manifest["digest"]) == (torch.__version__, __version__, DIGEST)
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        name: (folder / f"{name}.safetensors").stat().st_size for name in ("model", "optimizer")
    }
    assert newest(tmp_path).torch == torch.__version__
    assert newest(tmp_path).folder == folder


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "a" / "b") as checkpoints:
        assert checkpoints.newest() is None
    assert Checkpoints(tmp_path / "nowhere", writer=False).newest() is None


def test_the_newest_is_that_of_the_highest_step_also_past_six_digits(tmp_path: Path) -> None:
    steps = (0, 5, 999_999, 1_000_000, 10_000_000)
    assert_is(newest(filled(tmp_path, *steps)), 10_000_000)
    assert names(tmp_path) == sorted(["LATEST", *(f"ckpt-{step:06d}" for step in steps)])


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_are_kept_and_latest_names_the_last(tmp_path: Path, keep: int) -> None:
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        for step in range(1, 6):
            save(checkpoints, step)
            there = [f"ckpt-{kept:06d}" for kept in range(max(1, step - keep + 1), step + 1)]
            assert names(tmp_path) == ["LATEST", *there]
            assert (tmp_path / "LATEST").read_text() == f"ckpt-{step:06d}\n"


@pytest.mark.parametrize("damaged", [20, 30])
def test_a_corrupt_checkpoint_does_not_count_among_the_kept(tmp_path: Path, damaged: int) -> None:
    filled(tmp_path, 10, 20, 30)
    (tmp_path / f"ckpt-{damaged:06d}" / "model.safetensors").write_bytes(b"")
    good = {10, 20, 30} - {damaged}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 40)
        assert f"ckpt-{max(good):06d}" in names(tmp_path)
        assert "ckpt-000010" not in names(tmp_path)
        assert_is(checkpoints.newest(), 40)


def test_two_good_ones_stay_though_a_newer_one_is_corrupt(tmp_path: Path) -> None:
    filled(tmp_path, 10, 20, 30)
    for step in (20, 30):
        (tmp_path / f"ckpt-{step:06d}" / "manifest.json").unlink()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 40)
    assert {"ckpt-000010", "ckpt-000040"} <= set(names(tmp_path))


def test_keeping_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"keep: expected 2 or more, got 1\. One checkpoint alone has nothing behind"
    ):
        Checkpoints(tmp_path, keep=1)


def test_who_is_no_writer_changes_nothing(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "x", writer=False) as checkpoints:
        save(checkpoints, 1)
        assert checkpoints.newest() is None
    assert not (tmp_path / "x").exists()


def test_saving_outside_of_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not open: save inside of `with Checkpoints\(...\)`"):
        save(Checkpoints(tmp_path), 1)


def test_what_cannot_be_held_is_refused_before_the_disk_is_touched(tmp_path: Path) -> None:
    some = torch.ones(1)
    names_refused = "tensors\\['model'\\]: expected names of tensors that are printable and no paths out of a folder"
    cases: list[tuple[dict[str, dict[str, torch.Tensor]], dict[str, object], str]] = [
        ({"../model": {"a": some}}, {}, "tensors: expected names of letters, digits, - and _, got '../model'"),
        ({"": {"a": some}}, {}, "expected names of letters"),
        ({"model": {"../a": some}}, {}, names_refused + ", got '../a'"),
        ({"model": {"a/../../b": some}}, {}, names_refused),
        ({"model": {"/a": some}}, {}, names_refused),
        ({"model": {"a\\b": some}}, {}, names_refused),
        ({"model": {"a\0b": some}}, {}, names_refused),
        ({"model": {"": some}}, {}, names_refused),
        ({"model": {"__metadata__": some}}, {}, names_refused),
        ({"model": {"a": torch.eye(2).to_sparse()}}, {}, "expected plain dense tensors, 'a' too, got torch.sparse_coo"),
        ({"model": {"a": torch.empty(2, device="meta")}}, {}, "expected plain dense tensors, 'a' too, got meta"),
        ({"model": dict.fromkeys(map(str, range(50_001)), some)}, {}, "expected at most 50000 tensors, got 50001"),
        ({"model": {"a" * 9_000_000: some}}, {}, "expected names that make a header of at most 8388608 bytes"),
        ({}, {"a": some}, "facts: expected what JSON can hold, got Object of type Tensor is not JSON serializable"),
        ({}, {"a": "b" * 9_000_000}, "facts: expected a manifest of at most 8388608 bytes"),
    ]
    with Checkpoints(tmp_path) as checkpoints, disk() as watched:
        for tensors, facts, message in cases:
            with pytest.raises(ArgumentError, match=message):
                checkpoints.save(1, tensors, facts, digest=DIGEST)
        assert watched.done == []
    assert names(tmp_path) == []


def test_names_of_real_parameters_are_fine(tmp_path: Path) -> None:
    keys = ["layers.0.attention.query.weight/exp_avg", "a..b", "名.weight", "with space", "..a/b..", "a-b_c:d"]
    tensors = {key: torch.ones(1) for key in keys}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": tensors}, {}, digest=DIGEST)
    assert set(newest(tmp_path).tensors["model"]) == set(keys)


def test_everything_reaches_the_disk_before_the_name_does(tmp_path: Path) -> None:
    """Files, the manifest after them, their folder; the name; the folder of the name; LATEST; only then old ones go."""
    said: list[str] = []
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            save(checkpoints, step)
        with pytest.MonkeyPatch.context() as patch:
            paths: dict[int, str] = {}

            def watch(name: str) -> None:
                original = getattr(os, name)

                def call(*arguments: Any, **options: Any) -> Any:
                    result = original(*arguments, **options)
                    first = arguments[0]
                    path = paths[first] if isinstance(first, int) else str(Path(first).relative_to(tmp_path))
                    if name == "open":
                        paths[result] = path
                    elif name != "write":
                        said.append(f"{name} {path.replace(str(os.getpid()), 'PID')}")
                    return result

                patch.setattr(os, name, call)

            for name in ("mkdir", "open", "write", "fsync", "rename", "replace"):
                watch(name)
            patch.setattr(
                shutil, "rmtree", lambda path, **_: said.append(f"rmtree {path.name.replace(str(os.getpid()), 'PID')}")
            )
            save(checkpoints, 3)
    assert said == [
        "mkdir ckpt-000003.tmp-PID",
        "fsync ckpt-000003.tmp-PID/model.safetensors",
        "fsync ckpt-000003.tmp-PID/optimizer.safetensors",
        "fsync ckpt-000003.tmp-PID/manifest.json",
        "fsync ckpt-000003.tmp-PID",
        "rename ckpt-000003.tmp-PID",
        "fsync .",
        "fsync LATEST.tmp-PID",
        "replace LATEST.tmp-PID",
        "fsync .",
        "rename ckpt-000001",
        "rmtree ckpt-000001.tmp-PID",
    ]


def test_a_new_folder_is_brought_to_the_disk_with_all_above_it(tmp_path: Path) -> None:
    with disk() as watched, Checkpoints(tmp_path / "a" / "b"):
        pass
    assert [name for name in watched.done if name in {"mkdir", "fsync"}] == ["mkdir", "fsync", "mkdir", "fsync"]


def test_large_tensors_are_written_in_pieces_that_the_system_may_cut(tmp_path: Path) -> None:
    tensor = torch.arange(100_000, dtype=torch.int16)
    original = os.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: original(descriptor, data[:777]))
        patch.setattr(_tensor_file, "_PIECE", 10_000)
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"model": {"a": tensor}}, {}, digest=DIGEST)
    assert bits(newest(tmp_path).tensors["model"]["a"]) == bits(tensor)


def test_any_folder_of_a_run_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "checkpoints", 1, 2)
    assert_is(read_checkpoint(tmp_path), 2)
    assert_is(read_checkpoint(tmp_path / "checkpoints"), 2)
    assert_is(read_checkpoint(tmp_path / "checkpoints" / "ckpt-000001"), 1)
    shutil.copytree(tmp_path / "checkpoints" / "ckpt-000001", tmp_path / "translator")
    assert_is(read_checkpoint(tmp_path / "translator"), 1)


def test_reading_goes_on_while_somebody_writes(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        assert_is(read_checkpoint(tmp_path), 1)
        assert_is(Checkpoints(tmp_path, writer=False).newest(), 1)


def test_a_checkpoint_that_goes_while_it_is_read_is_no_fault(tmp_path: Path) -> None:
    """The writer prunes: the reader looks again and finds the newer ones."""
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        with pytest.MonkeyPatch.context() as patch:
            original, later = os.scandir, iter([2, 3])

            def scandir(path: Path) -> object:
                patch.setattr(os, "scandir", original)
                for step in later:
                    save(checkpoints, step)
                return original(path)

            patch.setattr("regard._sealed_folder.os.scandir", scandir)
            saved = newest(tmp_path)
    assert_is(saved, 3)
    assert saved.skipped == []


def test_another_version_of_torch_is_told_and_read(tmp_path: Path) -> None:
    forge(filled(tmp_path, 1) / "ckpt-000001", lambda manifest: manifest.update(torch="1.0.0"))
    saved = newest(tmp_path)
    assert_is(saved, 1)
    assert saved.torch == "1.0.0"
