"""One way of writing, and what is no sentence with its translation."""

from __future__ import annotations

import pytest

from regard.recipes.translation.cleaning import fault, pieces, plain, tokens


def test_tokens_are_words_han_characters_and_marks() -> None:
    assert tokens("Don't open 2 files.") == ["Don", "'", "t", "open", "2", "files", "."]
    assert tokens("打开Calc表。") == ["打", "开", "Calc", "表", "。"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("  two\u00a0 spaces\n", "two spaces"),
        ("It’s “quoted”…", 'It\'s "quoted"...'),
        ("a—b -- c", "a - b - c"),
        (" • Wesmere: here .", "Wesmere: here."),
        ('"It goes on', "It goes on"),
        ("soft\u00adhyphen and\u200bmore", "softhyphen andmore"),
        ("e\u0301", "é"),
    ],
)
def test_plain_english(written: str, expected: str) -> None:
    assert plain(written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("选择「打印」。", "选择“打印”。"),
        ('选择"打印"。', "选择“打印”。"),
        ("打开 文件 ，再 关闭 。", "打开文件，再关闭。"),
        ("打开 Calc 表", "打开 Calc 表"),
        ("你好,世界!", "你好，世界！"),
        ("关闭文件(全部)", "关闭文件（全部）"),
        ("按 ＣＴＲＬ 键１２", "按 CTRL 键12"),
        ("等等...", "等等……"),
        ("他说：“去吧", "他说：去吧"),
        ("去吧。”", "去吧。"),
        ("值为 3.5", "值为 3.5"),
    ],
)
def test_plain_chinese(written: str, expected: str) -> None:
    assert plain(written, "zh") == expected


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("Open the file now", "现在打开文件", None),
        ("The file has 20% of 100 pages", "文件占100页的20%", None),
        ("Open it", "打开", "too short"),
        ("America/Edmonton", "美洲/埃德蒙顿", "too short"),
        ("word " * 61, "词" * 61, "too long"),
        ("Open the file", "字" * 101, "too long"),
        ("Open the file", "打开这个文件然后再关闭它", "length ratio"),
        ("One two three four five six seven eight nine", "一二三", "length ratio"),
        ("Open the file %s now", "现在打开文件", "placeholder"),
        ("Open the file now", "现在打开{name}文件", "placeholder"),
        ("The value of $number is", "它的值是多少", "placeholder"),
        ("See <b>this</b> file", "请看这个文件", "placeholder"),
        ("Look at www.example.org for more", "更多内容请看网站", "address"),
        ("Write to a@b.org for more", "更多内容请写信", "address"),
        ("Anna,Berta,Clara,Dora", "安娜，贝塔，克拉，朵拉", "list of names"),
        ("Open the file", "Open the 文件", "script"),
        ("Откройте файл сейчас", "现在打开文件", "script"),
        ("12 + 13 a b", "十二加十三", "script"),
        ("There are 18 scenes here", "这里有21个场景", "numbers"),
        ("There are 18 scenes here", "这里有十八个场景", None),
    ],
)
def test_what_is_thrown_away_and_why(source: str, target: str, why: str | None) -> None:
    assert fault(source, target, "zh") == why


def test_german_is_told_from_english_by_being_another_text() -> None:
    assert fault("Open the file", "Die Datei öffnen", "de") is None
    assert fault("Open Office Writer", "open office writer", "de") == "not translated"
    assert fault("Open the file", "打开文件夹", "de") == "script"


def test_a_long_pair_is_cut_into_sentences_where_they_correspond() -> None:
    source = " ".join(f"This is the sentence with number {number} of a long text." for number in range(1, 9))
    target = "".join(f"这是长文章中编号为{number}的那个句子。" for number in range(1, 9))
    found = list(pieces(source, target, "zh"))
    assert len(found) == 8
    assert found[2] == ("This is the sentence with number 3 of a long text.", "这是长文章中编号为3的那个句子。")
    fewer = target.replace("。", "，", 1)
    assert list(pieces(source, fewer, "zh")) == [(source, fewer)]
    unlike = "这。" + target.split("。", 1)[1]
    assert list(pieces(source, unlike, "zh")) == [(source, unlike)]


def test_a_short_pair_stays_whole() -> None:
    assert list(pieces("One thing. Another.", "一件事。另一件。", "zh")) == [
        ("One thing. Another.", "一件事。另一件。")
    ]
