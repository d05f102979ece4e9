"""ROUGE-1, ROUGE-2 and ROUGE-L, extracts, and what an extract can reach at most.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", https://aclanthology.org/W04-1013: the F score of
shared words, of shared pairs of neighbours, and of the longest common subsequence. Computed by the package rouge-score
with its stemmer. For English our words are that package's; it sees nothing else, so a Chinese summary would score 0
against itself: here each character of another script is a word.

The oracle chooses sentences greedily by ROUGE-1 + ROUGE-2 with the summary in hand (Nallapati et al. 2017,
"SummaRuNNer", https://arxiv.org/abs/1611.04230, section 3): the labels of the extractive models, and their bound.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

from nltk.stem.porter import PorterStemmer  # pyright: ignore[reportMissingTypeStubs]
from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingTypeStubs]

KINDS = ("rouge1", "rouge2", "rougeL")

_WORD = re.compile(r"[a-z0-9]+|[^\W_\u0000-\u024f]")


class Words:
    """The tokenizer that `rouge_score` is given; see the head of the file."""

    def tokenize(self, text: str) -> list[str]:
        """Stems of Latin words, and single characters of other scripts."""
        return [_stem(word) for word in _WORD.findall(text.lower())]


_WORDS = Words()
_SCORER: Any = RougeScorer(list(KINDS), tokenizer=cast("Any", _WORDS))


def rouge(summary: str, reference: str) -> dict[str, float]:
    """F scores in percent: "rouge1", "rouge2", "rougeL". Identical texts that have words score 100."""
    scores = _SCORER.score(reference, summary)
    found = {kind: 100.0 * float(scores[kind].fmeasure) for kind in KINDS}
    if len(_WORDS.tokenize(summary)) == len(_WORDS.tokenize(reference)) == 1:
        found["rouge2"] = found["rouge1"]  # one word has no neighbours, so that 100 could not be reached
    return found


def cut(sentences: Iterable[str], most_words: int) -> str:
    """The first so many words; a character of a script that is written without spaces is a word."""
    pieces = _PIECE.findall(" ".join(sentences))
    kept: list[str] = []
    for piece in pieces:
        if not piece.isspace() and most_words == 0:
            break
        most_words -= not piece.isspace()
        kept.append(piece)
    return "".join(kept).strip()


def lead(sentences: Sequence[str], most_words: int) -> str:
    """The baseline that is hard to beat: how the text begins."""
    return cut(sentences, most_words)


def extract(sentences: Sequence[str], scores: Sequence[float], most_words: int) -> str:
    """The sentences of the highest scores, as many as fill most_words, in the order of the text, cut there."""
    ranked = sorted(range(len(sentences)), key=lambda place: (-scores[place], place))
    chosen: list[int] = []
    room = most_words
    for place in ranked:
        if room <= 0:
            break
        chosen.append(place)
        room -= count_words(sentences[place])
    return cut([sentences[place] for place in sorted(chosen)], most_words)


def count_words(text: str) -> int:
    """How many words `cut` sees."""
    return sum(not piece.isspace() for piece in _PIECE.findall(text))


def oracle(sentences: Sequence[str], summary: str, most_words: int) -> list[int]:
    """The places of the sentences that a reader of the summary would extract, ascending.

    Sentence after sentence is taken that raises ROUGE-1 + ROUGE-2 of the cut extract most, the earlier of equals, as
    long as one does and there is room.
    """
    reference = _counts(_WORDS.tokenize(summary))
    pieces = [[_WORDS.tokenize(piece) for piece in _PIECE.findall(each) if not piece.isspace()] for each in sentences]
    able = [place for place, each in enumerate(pieces) if any(word in reference[0] for piece in each for word in piece)]
    chosen: list[int] = []
    best = 0.0
    while sum(len(pieces[place]) for place in chosen) < most_words:
        gains = [
            (_both(_cut_words(pieces, sorted((*chosen, place)), most_words), reference), -place)
            for place in able
            if place not in chosen
        ]
        value, place = max(gains, default=(0.0, 0))
        if value <= best:
            break
        best, chosen = value, [*chosen, -place]
    return sorted(chosen)


@functools.lru_cache(maxsize=1 << 18)
def _stem(word: str) -> str:
    """rouge-score leaves words of up to three letters as they are."""
    return cast("str", cast("Any", _STEMMER).stem(word)) if len(word) > 3 else word


_STEMMER = PorterStemmer()
_WITHOUT_SPACES = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_PIECE = re.compile(rf"\s+|[{_WITHOUT_SPACES}]|[^\s{_WITHOUT_SPACES}]+")

_Counts = tuple[Counter[Any], Counter[Any]]


def _counts(words: Sequence[str]) -> _Counts:
    return Counter(words), Counter(itertools.pairwise(words))


def _cut_words(pieces: Sequence[Sequence[list[str]]], places: Sequence[int], most_words: int) -> list[str]:
    """The words of these sentences, cut as `cut` cuts their text."""
    following = itertools.chain.from_iterable(pieces[place] for place in places)
    return list(itertools.chain.from_iterable(itertools.islice(following, most_words)))


def _both(words: Sequence[str], reference: _Counts) -> float:
    """ROUGE-1 + ROUGE-2, F scores, of words."""
    return sum(_f(mine, theirs) for mine, theirs in zip(_counts(words), reference, strict=True))


def _f(mine: Counter[Any], theirs: Counter[Any]) -> float:
    shared = sum(min(count, theirs[item]) for item, count in mine.items() if item in theirs)
    total = sum(mine.values()) + sum(theirs.values())
    return 2.0 * shared / total if total else 0.0
