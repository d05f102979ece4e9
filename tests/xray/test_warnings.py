"""Warnings in plain words, in two languages, about the layers they concern."""

from __future__ import annotations

import re
import string

import pytest

from regard.xray.warnings import _TEXTS, as_size, warning

FACTS = {"window": 4, "declared": "causal", "found": "bidirectional", "length": 8192, "size": "3.0 GiB",
         "backend": "eager", "reason": "the weights are strange"}  # fmt: skip


@pytest.mark.parametrize("code", _TEXTS)
def test_every_warning_says_the_same_in_both_languages(code: str) -> None:
    english, chinese = _TEXTS[code]
    fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
    assert fields[0] == fields[1]
    found = warning(code, [2], **{name: FACTS[name] for name in fields[0] - {"layers"}})
    assert "{" not in found["message"] + found["message_zh"]
    assert re.search("[\u4e00-\u9fff]", found["message_zh"])
    assert not re.search("[\u4e00-\u9fff]", found["message"])


@pytest.mark.parametrize(
    ("layers", "english", "chinese"),
    [
        ([3], "layer 3:", "第 3 层："),
        ([0, 1, 2], "layers 0-2:", "第 0-2 层："),
        ([0, 1, 4, 6, 7], "layers 0-1, 4, 6-7:", "第 0-1、4、6-7 层："),
    ],
)
def test_layers_are_named_by_spans(layers: list[int], english: str, chinese: str) -> None:
    found = warning("padding_attended", layers)
    assert found["message"].startswith(english)
    assert found["message_zh"].startswith(chinese)
    assert found["layers"] == layers
    assert found["layer"] == layers[0]


def test_a_warning_about_the_model_names_no_layer() -> None:
    found = warning("no_attention")
    assert (found["layer"], found["layers"]) == (None, [])


def test_an_unknown_warning_or_a_missing_fact_is_a_mistake_in_the_program() -> None:
    with pytest.raises(KeyError):
        warning("no_such_warning")
    with pytest.raises(KeyError):
        warning("window_ignored", [0])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**41, "2.0 TiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert as_size(count) == text
