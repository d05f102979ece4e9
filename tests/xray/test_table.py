"""The table in the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from regard.xray.table import print_table
from tests.xray.payloads import make_payload


def printed(payload: dict[str, Any], **how: Any) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    print_table(payload, console, **how)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_groups_like_layers() -> None:
    payload = make_payload(["a", "b"], layers=4)
    payload["layers"][2]["mask"] = {"found": "causal", "declared": "causal, window 4", "padding": "attended"}
    text = printed(payload)
    assert re.search(
        r"^0-1, 3 +self +2 +32 +2×2 +bidirectional +honoured +sdpa +sdpa 0\.50 +1\.50 +1\.50", text, re.MULTILINE
    )
    assert re.search(r"^2 +self .* causal \(declared: causal, +attended", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100
    assert "! It looks ahead." in text


def test_the_table_tells_stacks_apart_and_unequal_sizes() -> None:
    payload = make_payload(["a", "b"], layers=3)
    payload["layers"][1] |= {"stack": "decoder", "kind": "cross", "kv_len": 9, "kv_heads": 1, "value_dim": 64}
    payload["layers"][2] |= {"costs": [], "max_logit": {"mean": None, "max": None, "per_head": []}}
    text = printed(payload)
    assert re.search(r"decoder cross +2/1 +32/64 +2×9 .* sdpa +sdpa 0\.50", text)
    assert re.search(r"encoder self +2 +32 .* sdpa +sdpa 0\.50 +1\.50 +1\.50", text)


def test_the_table_in_chinese_and_without_warnings() -> None:
    payload = make_payload(["a"])
    assert "! 它看到了后面。" in printed(payload, language="zh")
    assert "No warnings." in printed({**payload, "warnings": []})


def test_the_table_obeys_no_text() -> None:
    payload = make_payload(["a"])
    payload["model"]["name"] = "[red]x[/red] [/] \x1b[31m\ud800"
    payload["warnings"][0]["message"] = "[link=file:///]m[/link]\x9b"
    text = printed(payload)
    assert "[red]x[/red] [/] ␛[31m\ufffd" in text
    assert "[link=file:///]m[/link]\ufffd" in text
    assert "\x1b" not in text
