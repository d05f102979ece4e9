"""Every fault of attention and its modules, F01-F62 and F68, has a test that is named after it, or a reason here.

F63-F67 and F69-F80 are of pages, files and training; tests there name them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

WANTED = {f"f{number:02}" for number in [*range(1, 63), 68]}
ABSENT = {"f48": "65,537 tokens with a mask written out need a GPU and minutes"}
"""Faults that nothing here can have. A row goes when its test arrives."""


def faults_with_tests() -> dict[str, set[str]]:
    """The files in which a fault has a test."""
    here = Path(__file__).parent
    found: dict[str, set[str]] = defaultdict(set)
    for path in here.rglob("test_*.py"):
        for name in re.findall(r"^ *def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            for fault in re.findall(r"_(f\d\d)(?=_|$)", name.lower()):
                found[fault].add(path.relative_to(here).as_posix())
    return found


def test_every_fault_has_a_test_or_a_reason():
    assert WANTED - faults_with_tests().keys() - ABSENT.keys() == set()


def test_no_reason_is_left_for_a_fault_that_is_tested():
    assert faults_with_tests().keys() & ABSENT.keys() == set()
    assert all(len(reason) > 20 for reason in ABSENT.values())


def faults_asked_of_backends() -> set[str]:
    """Those with a test for every backend, and not only for a module, or for one way in."""
    found = faults_with_tests().items()
    return {fault for fault, files in found if any(file.startswith("test_faults_") for file in files)}


def test_faults_of_attention_itself_are_asked_of_every_backend():
    elsewhere = {"f12", "f14", "f17", "f23", "f40", *(f"f{number}" for number in range(57, 63)), "f68"}
    assert WANTED - ABSENT.keys() - elsewhere - faults_asked_of_backends() == set()
