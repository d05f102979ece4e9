"""F71, F72, F79 for passports: what was cut, turned over, forged, or is of another version is refused, and is named."""

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

from regard._errors import ArgumentError, CheckpointError
from regard.trust.passport import record, replay, show
from tests.trust.passport.small import decoder, ids

FILES = ["tensors.safetensors", "manifest.json"]


@pytest.fixture
def passport(recorded: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(recorded, tmp_path / "passport"))


def refused(passport: Path) -> str:
    """What is said of it, by both who read."""
    with pytest.raises(CheckpointError) as caught:
        show(passport)
    with pytest.raises(CheckpointError) as again:
        replay(passport)
    assert str(caught.value) == str(again.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_F71_a_file_that_was_cut(passport: Path, name: str) -> None:
    path = passport / name
    whole = path.read_bytes()
    for point in [len(whole) * part // 16 for part in range(16)] + [len(whole) - 1]:
        path.write_bytes(whole[:point])
        told = refused(passport)
        assert f"{name}': corrupt: expected " in told
        if name == "tensors.safetensors":
            assert told.endswith(f"expected {len(whole)} bytes, found {point} bytes.")
    path.unlink()
    assert refused(passport).endswith(
        f"expected {len(whole)} bytes, found no such file."
        if name == "tensors.safetensors"
        else "found no manifest.json in it. Give the folder that `regard passport record` wrote."
    )


@pytest.mark.parametrize("name", FILES)
def test_F72_a_bit_that_turned_over(passport: Path, name: str) -> None:
    path = passport / name
    whole = path.read_bytes()
    for place in [*range(64), *range(64, len(whole), len(whole) // 40)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        told = refused(passport)
        assert f"{name}': corrupt: expected " in told
        assert name == "manifest.json" or "expected sha256 " in told


def forge(passport: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again, as somebody would who means harm."""
    path = passport / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest)
    head = json.dumps(manifest, indent=1).removesuffix("\n}").encode()
    path.write_bytes(head + b',\n "sha256": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode())


def item(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["items"][0]


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (lambda m: m.update(version=2), "expected version 1, found 2."),
    "a version that is true": (lambda m: m.update(version=True), "expected version 1, found True."),
    "another format": (lambda m: m.update(format="regard checkpoint"), "format 'regard passport', found 'regard ch"),
    "a key that is not known": (lambda m: m.update(run="x"), "expected it: no key 'run', found 'x'."),
    "a key within": (lambda m: item(m).update(run=1), "expected it.items[0]: no key 'run', found 1."),
    "a key that is absent": (lambda m: m.pop("calls"), "expected it: a key 'calls', found none."),
    "a key within that is absent": (lambda m: m["made"].pop("isa"), "expected it.made: a key 'isa', found none."),
    "text for a number": (lambda m: item(m).update(every="1"), "expected it.items[0].every: int, found '1'."),
    "true for a number": (lambda m: m["made"].update(seed=True), "expected it.made.seed: int, found True."),
    "a kind of no kind": (
        lambda m: item(m).update(kind="code"),
        "items[0].kind: one of layer, output, input, parameter, found 'code'.",
    ),
    "text for a list": (lambda m: m.update(items="all"), "expected it.items: list, found 'all'."),
    "a list for all": (lambda m: m.update(made=[]), "expected it.made: dict, found []."),
    "no file": (lambda m: m["files"].clear(), "expected one file 'tensors', found none."),
    "a file above": (
        lambda m: m["files"].update({"../../secret": m["files"]["tensors"]}),
        "corrupt: expected one file 'tensors', found 'tensors', '../../secret'.",
    ),
    "a tensor that is none": (lambda m: item(m).update(truth="x"), "expected a tensor 'x' of torch.float64 with 224 "),
    "a tensor that is another": (
        lambda m: item(m).update(truth=item(m)["made"]),
        "numbers for 'embedding', found torch.float32 with 224.",
    ),
    "another shape": (lambda m: item(m).update(shape=[3]), "of torch.float64 with 3 numbers for 'embedding', found "),
    "a shape below zero": (lambda m: item(m).update(shape=[-3, -4]), "expected sizes of 'embedding', found [-3, -4]"),
    "every none": (lambda m: item(m).update(every=0), "expected sizes of 'embedding', found [2, 7, 16], every 0."),
    "a call of no tensor": (lambda m: m["calls"][0].update(key="y"), "a tensor 'y' for the call 'blocks.0.attention'"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_F79_a_forged_manifest(passport: Path, name: str) -> None:
    change, message = FORGERIES[name]
    forge(passport, change)
    assert message in refused(passport)


READ_LATER: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a mask of no kind": (
        lambda m: m["calls"][0]["options"]["mask"].update(kind="exec"),
        "the attention call 'blocks.0.attention' is not readable (a name of regard.masks, found 'exec').",
    ),
    "an option of no kind": (
        lambda m: m["calls"][0]["options"].update(softcup=3),
        "the attention call 'blocks.0.attention' is not readable (no option is called 'softcup').",
    ),
    "a truth of no name": (
        lambda m: m["calls"][0]["truth"].update(beauty=m["calls"][0]["truth"]["output"]),
        "is not readable ('beauty' of (",
    ),
    "a truth of other sizes": (
        lambda m: m["calls"][0]["truth"].update(output=item(m)["truth"]),
        "is not readable ('output' of (",
    ),
    "a mask that takes no such argument": (
        lambda m: m["calls"][0]["options"]["mask"].update(arguments={"path": "x"}),
        "the attention call 'blocks.0.attention' is not readable (",
    ),
    "a bias that is no tensor": (
        lambda m: m["calls"][0]["options"].update(bias="x"),
        "the attention call 'blocks.0.attention' is not readable ('x').",
    ),
    "a class of this room": (
        lambda m: m["calls"][0]["options"].update(position={"kind": "Position", "options": {}, "tables": {}}),
        "the attention call 'blocks.0.attention' is not readable (",
    ),
}


@pytest.mark.parametrize("name", READ_LATER)
def test_F79_a_call_that_means_nothing(passport: Path, name: str) -> None:
    change, message = READ_LATER[name]
    forge(passport, change)
    show(passport)
    with pytest.raises(CheckpointError) as caught:
        replay(passport)
    assert message in str(caught.value)


@pytest.mark.parametrize("entry", [{"run": "x"}, {"tensor": "x"}, {"plain": [1]}, {}, 3])
def test_F79_inputs_that_mean_nothing(passport: Path, entry: object) -> None:
    forge(passport, lambda manifest: manifest["inputs"]["named"].update(ids=entry))
    with pytest.raises(CheckpointError, match=r"the inputs are not readable \("):
        replay(passport, decoder())


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_F79_pickles_are_never_opened(passport: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(passport.parent)
    bomb = pickle.dumps(Bomb())
    (passport / "tensors.pt").write_bytes(bomb)
    assert "tensors.pt': corrupt: expected no such file, found " in refused(passport)
    (passport / "tensors.pt").unlink()
    (passport / "tensors.safetensors").write_bytes(bomb)
    forge(passport, lambda m: m["files"]["tensors"].update(bytes=len(bomb), sha256=hashlib.sha256(bomb).hexdigest()))
    assert "corrupt: expected sound tensors, found " in refused(passport)
    assert not (passport.parent / "exploded").exists()


def test_what_is_no_passport(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for path, what in ((tmp_path / "none", "no such folder"), (file, "a file"), (tmp_path, "no manifest.json in it")):
        assert f"'{path}': expected a passport, found {what}. Give the folder that" in refused(path)


def test_links_are_not_followed(passport: Path) -> None:
    (passport.parent / "link").symlink_to(passport)
    assert "corrupt: expected a folder, found a symbolic link." in refused(passport.parent / "link")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*arguments: object, **options: object) -> object:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(CheckpointError, match=r"the passport is not written to '.*a': No space left on device"):
            record(decoder(), ids(), tmp_path / "a", layers=["norm"], gradients=False)
    assert not list(tmp_path.iterdir())
    record(decoder(), ids(), tmp_path / "a", layers=["norm"], gradients=False)
    with pytest.raises(ArgumentError, match="path: expected a folder that does not exist yet"):
        record(decoder(), ids(), tmp_path / "a")
