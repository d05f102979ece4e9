"""Every fault F01-F56 has a test that is named after it, or a reason here why attention has none."""

from __future__ import annotations

import re
from pathlib import Path

ABSENT = {
    "f12": "embed_dim and its division into heads belong to the modules with weights",
    "f14": "windows and dilations are checked by the masks themselves, in tests/masks",
    "f17": "offsets of packed texts are checked by Documents.from_offsets, in tests/masks",
    "f23": "what True means in a padding mask is the business of Padding, in tests/masks",
    "f40": "a function has no train and eval: dropout_p is 0 unless given; modules that have both are elsewhere",
    "f48": "65,537 tokens with a mask need a GPU and minutes",
}
"""Faults that this surface cannot have, and where they belong. A row goes when its test arrives."""


def faults_with_tests() -> set[str]:
    here = Path(__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in here.glob("test_faults_*.py")]
    names = re.findall(r"^def (test_\w+)\(", "\n".join(sources), re.MULTILINE)
    return {fault for name in names for fault in re.findall(r"_(f\d\d)(?=_|$)", name)}


def test_every_fault_has_a_test_or_a_reason():
    wanted = {f"f{number:02}" for number in range(1, 57)}
    assert wanted - faults_with_tests() - set(ABSENT) == set()


def test_no_reason_is_left_for_a_fault_that_is_tested():
    assert faults_with_tests() & set(ABSENT) == set()
    assert all(len(reason) > 20 for reason in ABSENT.values())
