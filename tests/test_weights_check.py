"""Every damage a header can show is refused, in one line, before the file is mapped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regard._errors import CheckpointError
from regard._weights_check import HEADER_LIMIT, TensorEntry, check_safetensors

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def write(path: Path, header: object, data: bytes = bytes(32)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_safetensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_sound_file_tells_its_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "w", {"__metadata__": {"format": "pt"}, "a": A, "b": B})
    assert check_safetensors(path) == {"a": TensorEntry("F32", (2, 3), 0, 24), "b": TensorEntry("BF16", (4,), 24, 32)}


def test_a_file_without_tensors_is_sound(tmp_path: Path) -> None:
    assert check_safetensors(write(tmp_path / "w", {}, b"")) == {}


DAMAGE: dict[str, tuple[object, bytes, str]] = {
    "gap": ({"a": A, "b": B | {"data_offsets": [25, 33]}}, bytes(33), "begin at byte 24"),
    "overlap": ({"a": A, "b": B | {"data_offsets": [20, 28]}}, bytes(28), "begin at byte 24"),
    "trailing bytes": ({"a": A, "b": B}, bytes(33), "expected 32 bytes of data, found 33"),
    "data cut": ({"a": A, "b": B}, bytes(31), "expected 32 bytes of data, found 31"),
    "shape against size": ({"a": A | {"shape": [2, 4]}, "b": B}, bytes(32), "expected 32 bytes for tensor 'a'"),
    "shape overflow": ({"a": A | {"shape": [2**62, 2**62]}, "b": B}, bytes(32), "for tensor 'a'"),
    "negative shape": ({"a": A | {"shape": [-2, -3]}}, bytes(24), "dtype, shape and data_offsets"),
    "true as a size": ({"a": A | {"shape": [True, 6]}}, bytes(24), "dtype, shape and data_offsets"),
    "reversed offsets": ({"a": A | {"data_offsets": [24, 0]}}, bytes(24), "dtype, shape and data_offsets"),
    "unknown dtype": ({"a": A | {"dtype": "F33"}}, bytes(24), "a known dtype"),
    "entry is no object": ({"a": [1, 2]}, bytes(24), "dtype, shape and data_offsets"),
    "header is a list": ([], b"", "a JSON object"),
    "not JSON": (b"{'a': 1}", b"", "a header in JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "a header in JSON"),
    "nested without end": (b"[" * 100_000, b"", "nesting without end"),
    "endless number": (b'{"a": ' + b"9" * 5000 + b"}", b"", "a header in JSON"),
    "name twice": (b'{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}', b"", "'a' twice"),
    "field twice": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "'dtype' twice"),
    "too many": ({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(50_001)}, b"", "50001"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    header, data, words = DAMAGE[name]
    assert words in refusal(write(tmp_path / "w", header, data))


@pytest.mark.parametrize("stated", [HEADER_LIMIT + 1, 2**62, 2**64 - 1])
def test_a_header_too_long_is_never_read(tmp_path: Path, stated: int) -> None:
    path = tmp_path / "w"
    path.write_bytes(stated.to_bytes(8, "little") + b"{}")
    assert f"a stated length of {stated}" in refusal(path)


def test_a_file_that_vanished(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none")


def test_truncation_anywhere_is_noticed(tmp_path: Path, tiny_llama: Path) -> None:
    whole = (tiny_llama / "model.safetensors").read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    cuts = {0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(whole) - 1}
    cuts |= {len(whole) * step // 64 for step in range(64)}
    for cut in sorted(cuts):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        refusal(path)


def test_a_flipped_header_bit_is_refused_or_changes_what_is_told(tmp_path: Path, tiny_llama: Path) -> None:
    whole = (tiny_llama / "model.safetensors").read_bytes()
    sound = check_safetensors(tiny_llama / "model.safetensors")
    header_end = 8 + int.from_bytes(whole[:8], "little")
    metadata_end = whole.index(b"}") + 1  # it stands first, and says nothing about a tensor
    unnoticed = []
    for bit in range(0, header_end * 8, 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path = tmp_path / "flipped"
        path.write_bytes(damaged)
        try:
            same = check_safetensors(path) == sound
        except CheckpointError:
            continue
        if same and not 8 <= bit // 8 < metadata_end:
            unnoticed.append(bit)
    assert unnoticed == []
