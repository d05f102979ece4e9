"""What is done to a pair before it is used, and what is thrown away, with the reason.

One way to write each quotation mark, dash and space, so that a model does not learn which program a sentence is from.
A pair goes when it cannot be a sentence and its translation: placeholders, mark-up, addresses, the wrong script,
lengths that do not fit, numbers that differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

from regard.recipes.translation.pairs import Language

MOST_SOURCE_TOKENS, MOST_TARGET_TOKENS, FEWEST_TOKENS, FEWEST_WORDS = 60, 100, 3, 2
LEAST_RATIO, MOST_RATIO, LEAST_HAN = 0.4, 3.0, 0.3

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_WIDE = _HAN + "\u3000-\u303f\uff00-\uffef“”‘’…—"
_TOKEN = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+|[^\w\s]|_")
_PLACEHOLDER = re.compile(
    r"(?<![\d\w])%(?:\d+\$)?[-+#0]*\d*(?:\.\d+)?(?:l|ll|z|h)?[sdifuxXcgeoprSn]\b|%\d|%\(|%%|[{}$\\|~<>^#=]|\[%|\[/|@\w+@|&\w+;|__|\*\*|'''"
)
_ADDRESS = re.compile(r"://|\bwww\.|\S@\S+\.\w|\.(?:com|org|net|html?|php)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['/][^\W\d_]+)*")
_LIST = re.compile(r"[^\W\d_],[^\W\d_]")
_NUMBER = re.compile(r"\d{2,}")
_LONG_DOTS = re.compile(r"[.．。·…⋯]{2,}|[…⋯]")
_ENGLISH_END = re.compile(r"[.!?]+[\"')\]]*\s+(?=[\"'(\[]?[A-ZÄÖÜ0-9])")
_CHINESE_END = re.compile(r"(?:[。！？]+|……)[”’）]*\s*(?=[^\s。！？”’）])")
_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "`": "'"})
_CHINESE_QUOTES = str.maketrans({"「": "“", "」": "”", "『": "‘", "』": "’", "﹁": "“", "﹂": "”"})
_FULL_WIDTH = {",": "，", ";": "；", ":": "：", "?": "？", "!": "！", ".": "。"}


def tokens(text: str) -> list[str]:
    """Words, single Han characters, single marks: what lengths are counted in."""
    return _TOKEN.findall(text)


def plain(text: str, language: Language | None = None) -> str:
    """The text in the one way of writing of its language; English where none is named."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(mark) in {"Zs", "Cc"} else mark for mark in text)
    text = "".join(mark for mark in text if unicodedata.category(mark) != "Cf")
    text = _plain_chinese(text) if language == "zh" else _plain_latin(text)
    return " ".join(text.split())


def _plain_latin(text: str) -> str:
    text = _LONG_DOTS.sub("...", text.strip().translate(_STRAIGHT))
    if text.count('"') % 2:  # a quotation that goes on before or after
        text = text[1:] if text.startswith('"') else text.removesuffix('"')
    text = re.sub(r"\s*—\s*| -- |(?<=\w)--(?=\w)", " - ", text)
    return re.sub(r"^[-•*·]\s+|\s+(?=[,;:!?](?:\s|$))|\s+(?=\.(?:\s|$))", "", text)


def _plain_chinese(text: str) -> str:
    text = text.strip().translate(_CHINESE_QUOTES)
    text = re.sub(r"[ａ-ｚＡ-Ｚ０-９]", lambda found: unicodedata.normalize("NFKC", found.group()), text)
    text = _LONG_DOTS.sub("……", text)
    text = re.sub(r'"([^"]*)"', r"“\1”", text)
    text = re.sub(rf"(?<=[{_HAN}”’）])\s*([,;:?!.])(?=\s|$|[{_WIDE}])", lambda mark: _FULL_WIDTH[mark.group(1)], text)
    text = re.sub(rf"\(([^()]*[{_HAN}][^()]*)\)", r"（\1）", text)
    text = re.sub(r"^[-•*·]\s*", "", text)
    for opening, closing in ("“”", "‘’"):
        text = _paired(text, opening, closing)
    return re.sub(rf"(?<=[{_WIDE}])\s+(?=[{_WIDE}])|\s+(?=[，。；：？！、）”])|(?<=[，。；：？！、（“])\s+", "", text)


def _paired(text: str, opening: str, closing: str) -> str:
    """Without the quotation marks that have no partner, as in a quotation over several verses."""
    open_places: list[int] = []
    lonely: set[int] = set()
    for place, mark in enumerate(text):
        if mark == opening:
            open_places.append(place)
        elif mark == closing:
            if open_places:
                open_places.pop()
            else:
                lonely.add(place)
    lonely.update(open_places)
    return "".join(mark for place, mark in enumerate(text) if place not in lonely)


def pieces(source: str, target: str, language: Language) -> Iterator[tuple[str, str]]:
    """The pair itself, or, when it is too long, its sentences one by one.

    That both sides have as many sentences does not make them translations of one another: each must have about the
    length that the whole leads one to expect.
    """
    if len(tokens(source)) > MOST_SOURCE_TOKENS or len(tokens(target)) > MOST_TARGET_TOKENS:
        sources = _cut(source, _ENGLISH_END)
        targets = _cut(target, _CHINESE_END if language == "zh" else _ENGLISH_END)
        if len(sources) == len(targets) > 1 and _alike(sources, targets):
            yield from zip(sources, targets, strict=True)
            return
    yield source, target


def _alike(sources: list[str], targets: list[str]) -> bool:
    here, there = [len(tokens(text)) for text in sources], [len(tokens(text)) for text in targets]
    ratio = sum(there) / sum(here)
    return all(1 / 1.8 <= (other + 2) / (ratio * one + 2) <= 1.8 for one, other in zip(here, there, strict=True))


def _cut(text: str, end: re.Pattern[str]) -> list[str]:
    places = [0, *(found.end() for found in end.finditer(text)), len(text)]
    return [text[one:other].strip() for one, other in pairwise(places)]


def fault(source: str, target: str, language: Language) -> str | None:
    """Why a pair is not used, in one word or two; None when it is."""
    here, there = len(tokens(source)), len(tokens(target))
    checks = (
        ("too short", min(here, there) < FEWEST_TOKENS or len(_WORD.findall(source)) < FEWEST_WORDS),
        ("too long", here > MOST_SOURCE_TOKENS or there > MOST_TARGET_TOKENS),
        ("length ratio", not LEAST_RATIO <= there / max(here, 1) <= MOST_RATIO),
        ("list of names", len(_LIST.findall(source)) > 1),
        ("placeholder", bool(_PLACEHOLDER.search(source) or _PLACEHOLDER.search(target))),
        ("address", bool(_ADDRESS.search(source) or _ADDRESS.search(target))),
        ("not translated", source.casefold() == target.casefold()),
        ("script", not _is_latin(source) or not (_is_han(target) if language == "zh" else _is_latin(target))),
        ("numbers", _numbers_differ(source, target)),
    )
    return next((reason for reason, holds in checks if holds), None)


def _is_latin(text: str) -> bool:
    letters = sum(mark.isalpha() for mark in text)
    latin = sum(mark.isalpha() and ord(mark) < 0x250 for mark in text)
    return latin == letters and letters >= 0.6 * len(text.replace(" ", ""))


def _is_han(text: str) -> bool:
    return len(re.findall(f"[{_HAN}]", text)) >= LEAST_HAN * len(text.replace(" ", ""))


def _numbers_differ(source: str, target: str) -> bool:
    """Both have numbers of two and more digits, and not one is the same."""
    here, there = set(_NUMBER.findall(source)), set(_NUMBER.findall(target))
    return bool(here and there and not here & there)
