"""BLEU and chrF of translations, by domain and together, with bootstrap intervals; and paired differences.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's; Chinese is tokenized into characters (`zh`). An
interval holds the middle 95 % of the scores of 1,000 test sets drawn from the sentences with replacement (Koehn 2004,
"Statistical significance tests for machine translation evaluation"). Two systems are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from regard.recipes.translation.pairs import Language, Pair
from regard.training.intervals import corpus_interval, paired_difference
from regard.training.order import listed

DRAWS, SEED = 1_000, 12345
TOKENIZER = {"zh": "zh", "de": "13a"}
ORDER = 4


def sentence_counts(written: Sequence[str], expected: Sequence[str], language: Language) -> Tensor:
    """What BLEU is made of, int64 (sentences, 2 + 2 * ORDER): both lengths, n-grams that match, and all n-grams."""
    from sacrebleu.metrics.bleu import BLEU  # not needed to translate

    metric = BLEU(tokenize=TOKENIZER[language], effective_order=True)
    scores = [metric.sentence_score(mine, [theirs]) for mine, theirs in zip(written, expected, strict=True)]
    rows = [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), 2 + 2 * ORDER)


def bleu(counts: Tensor) -> float:
    """Of a test set, from the sums over its sentences."""
    from sacrebleu.metrics.bleu import BLEU

    compute: Any = cast("Any", BLEU).compute_bleu
    written, expected, *rest = listed(counts.sum(0))
    return float(compute(rest[:ORDER], rest[ORDER:], written, expected, smooth_method="exp").score)


def bleu_interval(counts: Tensor) -> dict[str, float]:
    """BLEU with the ends of its 95 % interval."""
    value = bleu(counts)
    if len(counts) < 2:  # one sentence says nothing of another
        return {"bleu": value, "low": value, "high": value}
    found = corpus_interval(lambda drawn: bleu(counts[drawn]), len(counts), resamples=DRAWS, seed=SEED)
    return {"bleu": found.value, "low": found.low, "high": found.high}


def bleu_difference(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """BLEU of the first less BLEU of the second, with the ends of its interval on the same draws."""
    if len(ours) < 2:
        difference = bleu(ours) - bleu(theirs)
        return {"difference": difference, "low": difference, "high": difference}
    found = paired_difference(
        lambda drawn: bleu(ours[drawn]), lambda drawn: bleu(theirs[drawn]), len(ours), resamples=DRAWS, seed=SEED
    ).difference
    return {"difference": found.value, "low": found.low, "high": found.high}


def score_by_domain(written: Sequence[str], pairs: Sequence[Pair], language: Language) -> dict[str, dict[str, float]]:
    """For each domain and for "all": BLEU, its interval, chrF, and how many sentences."""
    from sacrebleu.metrics.chrf import CHRF

    found: dict[str, dict[str, float]] = {}
    for domain in ("all", *sorted({pair.domain for pair in pairs})):
        places = [place for place, pair in enumerate(pairs) if domain in ("all", pair.domain)]
        mine, expected = [written[place] for place in places], [pairs[place].target for place in places]
        chrf = CHRF().corpus_score(mine, [expected]).score
        interval = bleu_interval(sentence_counts(mine, expected, language))
        found[domain] = {**interval, "chrf": float(chrf), "sentences": len(places)}
    return found
