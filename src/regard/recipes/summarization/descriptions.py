"""Debian's descriptions of packages to documents: the synopsis is the summary.

In a description a line of a single dot stands for an empty one, and lines that begin with further space are set as
they are: lists, mostly. Packages of one source (-dev, -doc, -data ...) repeat one another: one of them speaks for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from regard.recipes.summarization.documents import Example
from regard.recipes.summarization.text import paragraphs_of, without_addresses
from regard.training.debian_lists import debian_translations, stanzas

LEAST_WORDS = 20
"""Shorter descriptions leave nothing to summarize."""


def descriptions(*, download: bool) -> Iterator[Example]:
    """All descriptions, from the lists of packages that apt fetches. Raises DataError where they are absent."""
    lists = debian_translations(("en",), download=download, recipe="summarization")
    yield from read_descriptions(stanzas(lists.translations["en"]), read_sources(stanzas(lists.packages)))


def read_descriptions(translations: Iterable[str], sources: Mapping[str, str]) -> Iterator[Example]:
    """One description of each source package: of the package that has its name, or else of the first.

    Args:
        translations: stanzas of apt's lists, "Package: ..., Description-en: synopsis, and lines of text".
        sources: the source package of a package, where it is not of the same name.
    """
    chosen: dict[str, Example] = {}
    for stanza in translations:
        example = _example(stanza, sources)
        if example is None or sum(len(sentence.split()) for sentence in example.sentences) < LEAST_WORDS:
            continue
        if example.name == example.group or example.group not in chosen:
            chosen[example.group] = example
    yield from chosen.values()


def _example(stanza: str, sources: Mapping[str, str]) -> Example | None:
    found = _STANZA.search(stanza)
    named = _PACKAGE.search(stanza)
    if found is None or named is None:
        return None
    lines = [line[1:] for line in found[2].split("\n")]
    text = "\n".join("" if line.strip() == "." else line for line in lines)
    summary = " ".join(without_addresses(found[1]).split())
    paragraphs = paragraphs_of(without_addresses(text))
    return Example(named[1], sources.get(named[1], named[1]), paragraphs, summary) if summary and paragraphs else None


def read_sources(packages: Iterable[str]) -> dict[str, str]:
    """The source package of each package whose name is another, from the stanzas of apt's lists of packages."""
    found: dict[str, str] = {}
    for stanza in packages:
        source = _SOURCE.search(stanza)
        named = _PACKAGE.search(stanza)
        if source is not None and named is not None:
            found[named[1]] = source[1]
    return found


_STANZA = re.compile(r"^Description-en: (.*)\n((?: .*(?:\n|$))+)", re.MULTILINE)
_PACKAGE = re.compile(r"^Package: (\S+)", re.MULTILINE)
_SOURCE = re.compile(r"^Source: (\S+)", re.MULTILINE)
