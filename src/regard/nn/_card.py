"""What a mechanism says of itself: where it comes from, what it computes, what it costs, what it may be used for.

`docs/mechanisms.md` is written from these cards, and the tests hold each mechanism to its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Card:
    """The card of one mechanism.

    Attributes:
        guide: section of the guide, such as "3.1"; "" for what the guide does not name.
        source: authors, year and title of the paper, or what else defines it.
        equation: what is computed, in one line of plain text.
        time: cost in time; n is the length, d the width, other letters are explained in `equation`.
        memory: cost in memory beyond input and output, forward and backward, in the same letters.
        causal: may it be used where a token must not see later ones? Tested: no gradient of an output reaches a later
            input. None for what has no order of tokens, such as an image gate.
        padding: does it take a mask of padded tokens, so that they have no influence? None where there are no tokens.
        exact: does it compute softmax attention (or its own formula) exactly, or does it approximate it?
        note: what a user has to know before taking it, in one sentence; "" for nothing.
    """

    guide: str
    source: str
    equation: str
    time: str
    memory: str
    causal: bool | None
    padding: bool | None
    exact: bool = True
    note: str = ""
