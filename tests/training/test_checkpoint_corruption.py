"""Rows F71, F72 and F79 of the fault table: what was cut, turned over or forged is never loaded, and is named.

A reader goes back to the checkpoint before, and says which file was not what it had to be.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regard._errors import CheckpointError
from regard.training.checkpoint import Checkpoints, read_checkpoint
from tests.training.checkpoint_cases import assert_is, filled, forge, forge_file, names, newest, save

FILES = ["model.safetensors", "optimizer.safetensors", "manifest.json"]
NEW = "ckpt-000002"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints."""
    return filled(tmp_path / "checkpoints", 1, 2)


def stepped_back(folder: Path) -> str:
    """The line that is said of the newest, when the one before was taken; both readers agree."""
    saved = newest(folder)
    assert_is(saved, 1)
    with Checkpoints(folder) as checkpoints:
        again = checkpoints.newest()
    assert_is(again, 1)
    assert again is not None
    assert again.skipped == saved.skipped
    assert len(saved.skipped) == 1
    assert "\n" not in saved.skipped[0]
    return saved.skipped[0]


@pytest.mark.parametrize("name", FILES)
def test_F71_a_file_cut_at_each_of_64_points(folder: Path, name: str) -> None:
    path = folder / NEW / name
    whole = path.read_bytes()
    points = sorted({len(whole) * point // 64 for point in range(64)})
    assert len(points) == 64
    for point in points:
        path.write_bytes(whole[:point])
        line = stepped_back(folder)
        if name == "manifest.json":
            assert line.startswith(f"{NEW}/{name}: expected ")
        else:
            assert line == f"{NEW}/{name}: expected {len(whole)} bytes, found {point} bytes"
    path.write_bytes(whole)
    assert_is(newest(folder), 2)


@pytest.mark.parametrize("name", FILES)
def test_F71_a_file_that_is_longer_or_absent(folder: Path, name: str) -> None:
    path = folder / NEW / name
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    assert f"{NEW}/{name}: expected " in stepped_back(folder)
    path.unlink()
    expected = "a manifest, found only model" if name == "manifest.json" else f"{len(whole)} bytes, found no such file"
    assert stepped_back(folder).startswith(f"{NEW}/{name}: expected {expected}")


@pytest.mark.parametrize("name", FILES)
def test_F72_a_bit_turned_over_in_any_byte(folder: Path, name: str) -> None:
    path = folder / NEW / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        saved = newest(folder)
        assert saved.step == 1, place
        assert len(saved.skipped) == 1
        assert saved.skipped[0].startswith(f"{NEW}/{name}: expected ")
    if name != "manifest.json":
        assert "expected sha256 " in saved.skipped[0]
        assert ", found sha256 " in saved.skipped[0]


def test_F72_a_bit_of_the_manifest_that_leaves_it_json_is_told_by_its_sum(folder: Path) -> None:
    path = folder / NEW / "manifest.json"
    text = path.read_bytes()
    assert b'"best": 0.30000000000000004' in text
    path.write_bytes(text.replace(b'"best": 0.3', b'"best": 0.2'))
    assert json.loads(path.read_text())["facts"]["state"]["best"] == 0.20000000000000004
    line = stepped_back(folder)
    assert line.startswith(f'{NEW}/manifest.json: expected as its last entry "sha256": "')
    assert ', found "sha256": "' in line


def test_F72_files_that_changed_places_are_seen(folder: Path) -> None:
    for name in ("model.safetensors", "manifest.json"):
        other = filled(folder.parent / name, 1, 3)
        shutil.copy(other / "ckpt-000003" / name, folder / NEW / name)
        assert stepped_back(folder).startswith(f"{NEW}/{name}: expected ")
        shutil.rmtree(folder / NEW)
        shutil.rmtree(folder)
        filled(folder, 1, 2)


def test_F72_a_checkpoint_under_the_name_of_another_step(folder: Path) -> None:
    shutil.copytree(folder / "ckpt-000001", folder / "ckpt-000009")
    saved = newest(folder)
    assert_is(saved, 2)
    assert saved.skipped == ["ckpt-000009/manifest.json: expected step 9, found step 1"]


def test_F71_when_none_is_good_all_are_named(folder: Path) -> None:
    for step in (1, 2):
        (folder / f"ckpt-{step:06d}" / "model.safetensors").write_bytes(b"")
    message = (
        r"checkpoints': no checkpoint is good: ckpt-000002/model.safetensors: expected \d+ bytes, found 0 bytes; "
        r"ckpt-000001/model.safetensors: expected \d+ bytes, found 0 bytes\. Take another folder, or remove these to "
        r"begin anew\."
    )
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match=message):
        checkpoints.newest()
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder.parent)


def test_F71_a_corrupt_checkpoint_that_is_asked_for_itself_is_an_error(folder: Path) -> None:
    path = folder / NEW / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    message = r"ckpt-000002/model.safetensors': corrupt: expected \d+ bytes, found \d+ bytes\.$"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder / NEW)


def test_F71_what_is_no_folder_or_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / NEW)
    (folder / NEW).write_bytes(b"")
    assert stepped_back(folder) == f"{NEW}/{NEW}: expected to be read, found Not a directory".replace(
        f"{NEW}/{NEW}", f"checkpoints/{NEW}"
    )
    (folder / NEW).unlink()
    filled(folder, 2)
    original = Path.open

    def with_bad_sector(path: Path, *arguments: Any, **options: Any) -> Any:
        if NEW in str(path) and path.name == "model.safetensors":
            raise OSError(5, "Input/output error", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", with_bad_sector)
    assert stepped_back(folder) == f"{NEW}/model.safetensors: expected to be read, found Input/output error"


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training would begin anew on top of it."""

    def listing(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", listing)
    with pytest.raises(CheckpointError, match=r"checkpoints' cannot be read: Permission denied\."):
        Checkpoints(folder, writer=False).newest()


def test_a_run_that_stepped_back_goes_on_over_the_corrupt_ones(folder: Path) -> None:
    filled(folder, 3)
    for step in (2, 3):
        (folder / f"ckpt-{step:06d}" / "model.safetensors").write_bytes(b"")
    with Checkpoints(folder, keep=2) as checkpoints:
        assert_is(checkpoints.newest(), 1)
        save(checkpoints, 2)
        assert names(folder) == ["LATEST", "ckpt-000001", "ckpt-000002"]
        assert_is(checkpoints.newest(), 2)


@pytest.mark.parametrize("step", [1, 2])
def test_a_good_checkpoint_of_the_same_or_a_later_step_is_not_replaced(folder: Path, step: int) -> None:
    message = (
        rf"ckpt-000002' is there already, a good checkpoint of step 2: step {step} would not be the newest\. "
        r"Resume from it, or take another folder\."
    )
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match=message):
        save(checkpoints, step)
    assert_is(newest(folder), 2)


def test_latest_is_not_believed(folder: Path) -> None:
    for content in (b"", b"ckpt-000001\n", b"../../etc/passwd", b"\xff"):
        (folder / "LATEST").write_bytes(content)
        assert_is(newest(folder), 2)
    (folder / "LATEST").unlink()
    assert_is(newest(folder), 2)


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_F79_pickles_are_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    bomb = pickle.dumps(Bomb())
    (folder / NEW / "model.pt").write_bytes(bomb)
    assert stepped_back(folder) == f"{NEW}/model.pt: expected no such file, found {len(bomb)} bytes"
    (folder / NEW / "model.pt").unlink()
    forge_file(folder / NEW, "model", bomb)
    assert stepped_back(folder).startswith(f"{NEW}/model.safetensors: expected sound tensors, found ")
    (folder / NEW / "manifest.json").write_bytes(bomb * 10)
    stepped_back(folder)
    lone = folder.parent / "lone"
    lone.mkdir()
    (lone / "pytorch_model.bin").write_bytes(bomb)
    for place in (lone, lone / "pytorch_model.bin"):
        with pytest.raises(
            CheckpointError, match=r"'pytorch_model.bin' may be a pickle, and opening one runs the code in"
        ):
            read_checkpoint(place)
    assert not (folder.parent / "exploded").exists()


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a file above the folder": (
        lambda manifest: manifest["files"].update({"../../secret": manifest["files"]["model"]}),
        r"files named by letters, digits, - and _, found '../../secret'",
    ),
    "a file that is not there": (
        lambda manifest: manifest["files"].update(extra=manifest["files"]["model"]),
        r"extra.safetensors': corrupt: expected \d+ bytes, found no such file",
    ),
    "a file that it does not know": (
        lambda manifest: manifest["files"].pop("optimizer"),
        r"optimizer.safetensors': corrupt: expected no such file, found \d+ bytes",
    ),
    "a key too many": (lambda manifest: manifest.update(run="x"), r"expected run: Extra inputs are not permitted"),
    "a key too few": (lambda manifest: manifest.pop("facts"), r"expected facts: Field required"),
    "a later version": (lambda manifest: manifest.update(version=2), r"expected version: Input should be 1, found 2"),
    "a step that is text": (lambda manifest: manifest.update(step="2"), r"expected step: Input should be a valid int"),
    "a step below 0": (lambda manifest: manifest.update(step=-1), r"expected step: Input should be greater than or eq"),
    "a sum that is none": (
        lambda manifest: manifest["files"]["model"].update(sha256=""),
        r"expected files.model.sha256: String should match pattern",
    ),
    "bytes of a dtype that is none": (
        lambda manifest: manifest["files"]["model"].update(carried={"bias": {"dtype": "load", "shape": [4]}}),
        r"expected sound tensors, found a dtype that is carried as bytes, found 'load'",
    ),
    "bytes of another size": (
        lambda manifest: manifest["files"]["model"].update(carried={"bias": {"dtype": "complex128", "shape": [10**9]}}),
        r"expected sound tensors, found 8 bytes, found complex128 \[1000000000\]",
    ),
    "bytes of a tensor that is none": (
        lambda manifest: manifest["files"]["model"].update(carried={"x": {"dtype": "complex128", "shape": []}}),
        r"expected sound tensors, found a tensor 'x', found none",
    ),
    "less than no elements": (
        lambda manifest: manifest["files"]["model"].update(carried={"bias": {"dtype": "bits8", "shape": [-2, -4]}}),
        r"expected sound tensors, found invalid shape dimension",
    ),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_F79_a_forged_manifest_is_refused(folder: Path, kind: str) -> None:
    change, message = FORGERIES[kind]
    forge(folder / NEW, change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder / NEW)
    stepped_back(folder)


def test_F79_a_manifest_that_never_ends_is_refused(folder: Path) -> None:
    path = folder / NEW / "manifest.json"
    with path.open("wb") as file:
        file.truncate(8 * 1024 * 1024 + 1)
    assert stepped_back(folder) == f"{NEW}/manifest.json: expected 82 to 8388608 bytes, found 8388609 bytes"


@pytest.mark.parametrize("inner", [b"[" * 100_000, b'"a": ' + b"9" * 5000, b"\xff"])
def test_F79_a_sealed_manifest_that_is_no_json_is_refused(folder: Path, inner: bytes) -> None:
    head = b'{\n "facts": ' + inner
    seal = b',\n "sha256": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode()
    (folder / NEW / "manifest.json").write_bytes(head + seal)
    assert stepped_back(folder).startswith(f"{NEW}/manifest.json: expected JSON, found ")


HEADERS: dict[str, tuple[object, bytes, str]] = {
    "a name that is a path": (
        {"../../a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}},
        b"\0",
        "names of tensors that are printable and no paths out of a folder, found '../../a'",
    ),
    "a name twice": (b'{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}', b"", "'a' twice"),
    "overlapping tensors": (
        {name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]} for name in "ab"},
        b"\0",
        "tensor 'b' to begin at byte 1",
    ),
    "a shape that is too large": (
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        bytes(4),
        "bytes for tensor 'a'",
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_F79_a_forged_header_is_refused(folder: Path, kind: str) -> None:
    header, data, message = HEADERS[kind]
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    forge_file(folder / NEW, "model", len(raw).to_bytes(8, "little") + raw + data)
    line = stepped_back(folder)
    assert line.startswith(f"{NEW}/model.safetensors: expected sound tensors, found ")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder / NEW)
    assert message in str(caught.value.__cause__)


def test_F79_a_header_of_more_than_8_megabytes_is_refused(folder: Path) -> None:
    forge_file(folder / NEW, "model", (2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder / NEW)
    assert "expected a header of at most 8388608 bytes" in str(caught.value.__cause__)


def test_F79_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    model = folder / NEW / "model.safetensors"
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    assert stepped_back(folder) == f"{NEW}/model.safetensors: expected a file, found a symbolic link"
    model.unlink()
    model.mkdir()
    assert stepped_back(folder) == f"{NEW}/model.safetensors: expected a file, found a folder"


def test_F79_a_pipe_is_not_opened(folder: Path) -> None:
    model = folder / NEW / "model.safetensors"
    model.unlink()
    os.mkfifo(model)
    assert stepped_back(folder) == f"{NEW}/model.safetensors: expected a file, found something else"


@pytest.mark.parametrize("name", ["ckpt-000009", "LATEST", "ckpt-000009.tmp-7"])
def test_F79_a_link_in_the_place_of_something_of_ours_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder / "ckpt-000001", tmp_path / "elsewhere")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    message = rf"{name}' is a symbolic link, and those are not followed\. Name the place itself, or remove it\."
    with pytest.raises(CheckpointError, match=message), Checkpoints(folder):
        pass
    saved = newest(folder)
    assert saved.step == 2
    found = ["checkpoints/ckpt-000009: expected a folder, found a symbolic link"]
    assert saved.skipped == (found if name == "ckpt-000009" else [])
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def test_F79_a_folder_that_is_a_link_is_refused_by_a_writer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(CheckpointError, match=r"link' is a symbolic link"), Checkpoints(tmp_path / "link"):
        pass
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"cannot be written: Too many levels"), Checkpoints(folder):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_nothing_to_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    message = r"no checkpoint in it\. Give the folder of a run of `regard train`\."
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(place)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"notes.txt': expected a folder, got a file\. Give the folder of a run"):
        read_checkpoint(tmp_path / "notes.txt")
