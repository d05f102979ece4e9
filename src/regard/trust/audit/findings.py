"""What an audit can find, in words: one code for each way in which attention is something else than declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

CODES: Mapping[str, str] = {
    # which pairs
    "causal_missing": "every later key is attended to",
    "future_attended": "some later keys are attended to",
    "causal_imposed": "later keys are not attended to, though nothing forbids them",
    "causal_corner": "the causal mask stands in the other corner",
    "window_left_ignored": "the window has no bound before the query",
    "window_right_ignored": "the window has no bound after the query",
    "window_left_differs": "the window reaches further back, or less far, than declared",
    "window_right_differs": "the window reaches further ahead, or less far, than declared",
    "window_imposed": "there is a window that was not declared",
    "padding_attended": "padded keys are attended to",
    "keys_hidden": "some real keys are attended to by nobody",
    "documents_cross": "one packed document reaches another",
    "mask_ignored": "every pair attends, whatever the mask says",
    "mask_inverted": "exactly the forbidden pairs attend",
    "mask_transposed": "the mask is laid over keys and queries exchanged",
    "mask_added": "the mask is added to the scores as a number, and forbids nothing",
    "mask_after_softmax": "forbidden keys take part in the sum of the softmax",
    "mask_differs": "another mask than declared",
    "mask_by_content": "which pairs attend depends on what is in the vectors",
    "nothing_attended": "queries that may attend to keys attend to none",
    "empty_row_attends": "a query that may attend to nothing attends all the same",
    "empty_row_nan": "a query that may attend to nothing returns NaN",
    "row_nan": "a query that may attend to keys returns NaN",
    "finite_mask": "forbidden pairs are held back by a number that scores can reach",
    "nan_leaks": "a NaN in a key or value that may not be attended to reaches outputs",
    # how scores become weights
    "scale_missing": "the scores are not scaled",
    "scale_twice": "the scores are scaled twice",
    "scale_differs": "another scale than declared",
    "scores_ignore_query": "the weights do not depend on query and key",
    "scores_normalised": "queries or keys are divided by their own length",
    "softcap_missing": "the scores are not capped",
    "softcap_imposed": "the scores are capped, though no softcap is declared",
    "softcap_differs": "another softcap than declared",
    "scores_bent": "large scores are bent in a way that no softcap explains",
    "bias_missing": "the declared bias is not added",
    "bias_imposed": "something is added to the scores that was not declared",
    "bias_differs": "something else is added to the scores than declared",
    "position_missing": "the declared position does not turn query and key",
    "position_imposed": "scores depend on positions, though no position is declared",
    "sink_missing": "rows sum to one, though a sink is declared",
    "sink_imposed": "rows sum to less than one, as with a sink that was not declared",
    "sink_differs": "another sink than declared",
    "rows_do_not_sum_to_one": "the weights of a row have another sum than softmax gives them",
    "weights_differ": "the weights are others than declared, for no reason that was recognised",
    "not_weights_times_value": "the output is not the weights times the values",
    # whole models
    "future_reaches_past": "later tokens reach what a model gives for earlier ones",
    "padding_reaches_tokens": "padding reaches what a model gives for real tokens",
    "chunks_differ": "a text that is read in chunks with a cache is read otherwise than in one pass",
    # who reads whom, and when
    "kv_heads_interleaved": "query heads take turns at the key/value heads instead of standing in groups",
    "kv_heads_differ": "query heads read other key/value heads than declared",
    "batch_mixed": "samples of a batch reach each other",
    "dropout_active": "weights are dropped though no dropout is asked for",
    "setting_remembered": "the mask of an earlier call is used again",
    "answer_changes": "the same call has another answer after other calls",
    "ways_differ": "ways to run the same module answer differently",
}
"""Stable names: a code is never given another meaning. What is after the colon is what a page of findings says."""


@dataclass(frozen=True)
class Finding:
    """One difference between what was found and what was declared.

    code: a key of `CODES`.
    sentence: what was found here, with its numbers.
    evidence: the numbers, for machines.
    where: the settings in which it was seen ("12 x 12, float32" ...).
    """

    code: str
    sentence: str
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(self.code)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "code": self.code,
            "sentence": self.sentence,
            "where": list(self.where),
            "evidence": dict(self.evidence),
        }

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


def merged(found: Iterable[Finding], compared: Iterable[str]) -> tuple[Finding, ...]:
    """One finding for each code, the first that was seen, and where; those not seen everywhere say so.

    compared: the settings in which masks were compared.
    """
    by_code: dict[str, list[Finding]] = {}
    for finding in found:
        by_code.setdefault(finding.code, []).append(finding)
    everywhere = set(compared)
    told: list[Finding] = []
    for same in by_code.values():
        where = tuple(dict.fromkeys(place for finding in same for place in finding.where))
        first = same[0]
        if where and set(where) < everywhere:
            shown = ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
            first = replace(first, sentence=f"{first.sentence} (seen: {shown})")
        told.append(replace(first, where=where))
    return tuple(told)
