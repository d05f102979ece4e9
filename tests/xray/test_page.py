from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from regard._errors import ArgumentError, DataError
from regard.xray.cells import encode_map
from regard.xray.page import BUDGET, SCRIPTS, render, write_report
from tests.xray.payloads import HOSTILE, make_cells, make_payload


class Page(HTMLParser):
    """What a browser would find: tags, their attributes, and the text of some."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag in self.inside:
            self.inside[tag].append("")
        is_piece = "piece" in (attributes.get("class") or "").split()
        self._open.append("piece" if is_piece else tag)
        if is_piece:
            self.pieces.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        opened = self._open[-1] if self._open else ""
        if opened in self.inside:
            self.inside[opened][-1] += data
        elif opened == "piece":
            self.pieces[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.inside["script"][0])


def source(name: str) -> str:
    return (files("regard.xray") / "page" / name).read_text(encoding="utf-8")


def scripts() -> str:
    return "\n".join(source(name) for name in SCRIPTS)


@pytest.fixture
def hostile() -> dict[str, Any]:
    payload = make_payload(HOSTILE)
    payload["model"]["name"] = "</title><script>alert(1)</script>\ud800"
    payload["layers"][0]["name"] = payload["layers"][0]["backend"]["why"] = "<b onclick=alert(1)>"
    payload["warnings"][0]["message"] = "</script><script>alert(2)</script>"
    return payload


def test_hostile_text_opens_no_tag(hostile: dict[str, Any]) -> None:
    page = Page(render(hostile))
    calm = Page(render(make_payload(["a"])))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in calm.tags]
    kinds = [attributes for tag, attributes in page.tags if tag == "script"]
    assert kinds == [{"type": "application/json", "id": "report"}, {}]


def test_hostile_text_comes_back_unchanged(hostile: dict[str, Any]) -> None:
    data = Page(render(hostile)).data
    assert data["streams"]["encoder"]["cells"] == HOSTILE
    assert data["model"]["name"] == hostile["model"]["name"]
    assert data["warnings"] == hostile["warnings"]


def test_the_data_block_holds_nothing_that_could_end_it(hostile: dict[str, Any]) -> None:
    page = render(hostile)
    page.encode()  # no lone surrogate is left
    assert not re.search("[<>&\x00-\x1f\x7f-\x9f\u2028\u2029]", Page(page).inside["script"][0])


def test_text_between_and_after_the_cells_is_kept() -> None:
    payload = make_payload(["a", "b"])
    payload["streams"]["encoder"]["text"] += " end"
    stream = Page(render(payload)).data["streams"]["encoder"]
    assert (stream["gaps"], stream["tail"], stream["special"]) == (["", " "], " end", [0])
    payload["streams"]["encoder"]["truncated"] = True
    assert Page(render(payload)).data["streams"]["encoder"]["tail"] == ""


def test_the_policy_allows_this_script_and_this_style_only() -> None:
    page = Page(render(make_payload(["a"])))
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for rule, content in (("script-src", page.inside["script"][1]), ("style-src", page.inside["style"][0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_nothing_in_the_page_needs_what_the_policy_forbids() -> None:
    for _, attributes in Page(render(make_payload(["a"]))).tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|\"style\"|\bfetch\(|XMLHttp"
    assert not re.search(forbidden, scripts())
    assert "</script" not in scripts().lower()
    assert "<!--" not in scripts()


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render(make_payload(["https://example.org"]))
    own = page.replace(Page(page).inside["script"][0], "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bimport\b", own)
    links = [attributes.get("href") or attributes.get("src") for _, attributes in Page(page).tags]
    assert [link for link in links if link] == ["data:,"]


def test_both_languages_have_every_word() -> None:
    strings = source("strings.js")
    english, chinese = strings.split("  zh: {")[0], strings.split("  zh: {")[1].split("\n};")[0]
    words = [dict(re.findall(r"^    (\w+): \"(.*)\",$", part, re.MULTILINE)) for part in (english, chinese)]
    assert words[0].keys() == words[1].keys()
    for key, text in words[0].items():
        assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", words[1][key])), key
    used = set(re.findall(r"say\(\"(\w+)\"", scripts())) | set(
        re.findall(r"data-text=\"(\w+)\"", source("report.html"))
    )
    assert used <= words[0].keys()


def test_the_page_opens_in_the_language_asked_for() -> None:
    page = Page(render(make_payload(["a"]), language="zh"))
    assert page.tags[0] == ("html", {"lang": "zh-CN"})
    assert page.data["language"] == "zh"
    with pytest.raises(ArgumentError, match="'en' or 'zh', got 'fr'"):
        render(make_payload(["a"]), language="fr")  # pyright: ignore[reportArgumentType]


def test_values_that_json_has_not_are_null() -> None:
    payload = make_payload(["a"])
    payload["layers"][0]["entropy"] = {"mean": float("nan"), "per_head": (float("inf"), 1.0)}
    assert Page(render(payload)).data["layers"][0]["entropy"] == {"mean": None, "per_head": [None, 1.0]}


@pytest.fixture(scope="module")
def long_payload() -> dict[str, Any]:
    return make_payload([f"word{index}" for index in range(4096)], layers=12, heads=12)


def test_a_long_text_stays_in_the_budget(long_payload: dict[str, Any]) -> None:
    page = render(long_payload)
    assert len(page.encode()) <= BUDGET
    assert '"left_out":null' in page


@pytest.mark.parametrize(("layers", "left_out"), [(16, "exact weights"), (24, "maps")])
def test_too_many_maps_are_left_out_and_that_is_said(long_payload: dict[str, Any], layers: int, left_out: str) -> None:
    maps = [{**long_payload["maps"][0], "layer": index} for index in range(layers)]
    page = render({**long_payload, "maps": maps})
    assert len(page.encode()) <= BUDGET
    assert f'"left_out":"{left_out}"' in page


def test_a_text_that_cannot_fit_is_refused() -> None:
    payload = make_payload(["<" * 2_100_000])
    with pytest.raises(DataError, match="Give a shorter text"):
        render(payload)


def test_the_report_is_written_as_strict_json_and_a_page(tmp_path: Path, hostile: dict[str, Any]) -> None:
    hostile["layers"][0]["scale"] = float("nan")
    json_path, html_path = write_report(hostile, tmp_path / "new" / "folder", language="zh")
    facts = json.loads(json_path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert html_path.read_text(encoding="utf-8") == render(hostile, language="zh")
    assert "maps" not in facts
    assert facts["streams"] == {"encoder": {"text": " ".join(HOSTILE), "truncated": False}}
    assert facts["layers"][0]["scale"] is None
    assert facts["warnings"] == hostile["warnings"]
    assert sorted(path.name for path in json_path.parent.iterdir()) == ["report.html", "report.json"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match="got the file"):
        write_report(make_payload(["a"]), tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_payload_that_fails_leaves_the_old_report(tmp_path: Path) -> None:
    write_report(make_payload(["old"]), tmp_path)
    before = contents(tmp_path)
    broken = make_payload(["new"])
    del broken["streams"]["encoder"]["cells"][0]["special"]
    with pytest.raises(KeyError):
        write_report(broken, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int) -> None:
    write_report(make_payload(["old"]), tmp_path)
    before = contents(tmp_path)
    calls = 0
    sync = os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(make_payload(["new"]), tmp_path)
    assert contents(tmp_path) == before


SHOWN = {
    "line\u2028separator\u2029": "line⟨U+2028⟩separator⟨U+2029⟩",
    "nul\0bell\a": "nul␀bell␇",
    "lone\ud800surrogate": "lone\ufffdsurrogate",
    "\u202eright to left": "⟨U+202E⟩right to left",
    " ": "␣",
    "": "(no text)",
}


def dump(path: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on PATH: the page is not opened in a browser here")
    quiet = ["disable-background-networking", "disable-component-update", "disable-sync", "no-first-run"]
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "enable-logging=stderr", *quiet]
    command = [browser, *(f"--{flag}" for flag in flags), f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def cross_payload() -> dict[str, Any]:
    """A decoder that looks at a longer encoder text, with heads that share keys, and a pooled self layer."""
    payload = make_payload(HOSTILE, layers=2, heads=4)
    text, made = make_cells(["<s>", "银", "bank"])
    payload["streams"]["decoder"] = {"text": text, "truncated": True, "cells": made}
    payload["layers"][0] |= {"kind": "cross", "stack": "decoder", "query_stream": "decoder", "kv_heads": 2, "q_len": 3}
    payload["layers"][0]["at_length"] = {
        "length": 8192,
        "backends": [
            {"backend": "sdpa", "milliseconds": 12.0, "peak_bytes": None, "measured_to": 1024, "extrapolated": True,
             "growth": 2.0},
        ],
    }  # fmt: skip
    weights = torch.rand(4, 3, len(HOSTILE)).softmax(-1)
    weights[0, 0, 0] = float("nan")
    payload["maps"] = [encode_map(weights, layer=0)]
    return payload


@pytest.mark.parametrize("kind", ["self", "cross", "empty"])
def test_a_browser_shows_hostile_text_as_text(tmp_path: Path, hostile: dict[str, Any], kind: str) -> None:
    payload = {"self": hostile, "cross": cross_payload(), "empty": make_payload([])}[kind]
    expected = {
        "self": [SHOWN.get(text, text) for text in HOSTILE],
        "cross": ["<s>", "银", "bank", *(SHOWN.get(text, text) for text in HOSTILE)],
        "empty": [],
    }[kind]
    _, html_path = write_report(copy.deepcopy(payload), tmp_path / "out")
    result = dump(html_path, tmp_path / "profile")
    page = Page(result.stdout)
    assert page.tags[0][1].get("data-ready") == "true", result.stderr[-2000:]
    assert page.pieces == expected
    assert page.inside["title"][0] == "regard xray: " + payload["model"]["name"].replace("\ud800", "\ufffd")
    assert len(page.inside["script"]) == 2
    assert "CONSOLE" not in result.stderr
