"""Links without attention: IBM model 1 in both directions, joined. The baseline, and a teacher that needs no people."""

from __future__ import annotations

from collections.abc import Sequence

from regard.explain import IBM1, reversed_links, symmetrised
from regard.explain.alignment import Links
from regard.recipes.translation.verses import Verse

ITERATIONS = 10
JOINED = "grow-diag-final-and"


def ibm1_links(text: Sequence[Verse], verses: Sequence[Verse]) -> dict[str, list[Links]]:
    """Links of `verses` by models of the words of `text`, without case; their gold links are not looked at.

    Returns:
        By name: "source-target" links each target word, "target-source" each source word, and both joined.
    """
    sources, targets = zip(*((_plain(verse.source_tokens), _plain(verse.target_tokens)) for verse in text), strict=True)
    there = IBM1.fit(sources, targets, iterations=ITERATIONS)
    back = IBM1.fit(targets, sources, iterations=ITERATIONS)
    pairs = [(_plain(verse.source_tokens), _plain(verse.target_tokens)) for verse in verses]
    forward = [there.links(source, target) for source, target in pairs]
    backward = [reversed_links(back.links(target, source)) for source, target in pairs]
    both = list(zip(forward, backward, strict=True))
    return {
        "source-target": forward,
        "target-source": backward,
        "intersection": [symmetrised(one, other, "intersection") for one, other in both],
        JOINED: [symmetrised(one, other, JOINED) for one, other in both],
    }


def _plain(words: Sequence[str]) -> list[str]:
    return [word.lower() for word in words]
