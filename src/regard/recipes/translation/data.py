"""The corpus of the translation recipe: sources, cleaning, splits, cached as one file.

| domain | what | licence |
|---|---|---|
| libreoffice | help pages, paragraph by paragraph | MPL-2.0 |
| wesnoth | dialogue and descriptions of a game | GPL-2+ |
| hsk | graded sentences for learners (zh only) | CC-BY-SA-4.0 |
| bible | Berean Standard Bible, Chinese Union Version in simplified characters (zh only) | public domain |
| homeassistant | user interface of Home Assistant | Apache-2.0 |
| applications | user interfaces of twelve programs | GPL, LGPL |

Test and validation are sentences of the first three domains, whatever else one trains on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from regard._errors import ArgumentError, DataError
from regard.recipes.translation import bible, gettext_catalogs, json_texts, libreoffice, packages
from regard.recipes.translation.cleaning import fault, pieces, plain
from regard.recipes.translation.pairs import Corpus, Language, Pair
from regard.recipes.translation.splits import split
from regard.training.records import read_pairs
from regard.training.sources import Package, cache_folder, fetch_all, fresh_file

HELD_OUT: dict[Language, dict[str, int]] = {
    "zh": {"libreoffice": 450, "wesnoth": 350, "hsk": 200},
    "de": {"libreoffice": 550, "wesnoth": 450},
}
DOMAINS: dict[Language, tuple[str, ...]] = {
    "zh": ("libreoffice", "wesnoth", "hsk", "bible", "homeassistant", "applications"),
    "de": ("libreoffice", "wesnoth", "homeassistant", "applications"),
}
OWN = "own"
"""The domain of somebody's own pairs."""
_CATALOG = {"zh": "zh_CN", "de": "de"}
_COMPONENT = {"zh": "zh-Hans", "de": "de"}
_RULES = ("bible", "cleaning", "data", "gettext_catalogs", "json_texts", "libreoffice", "splits")


def load(language: Language = "zh", domains: Sequence[str] | None = None, *, download: bool = False) -> Corpus:
    """The corpus, from its cached file or, the first time, from the packages.

    Args:
        language: of the targets.
        domains: what to train on; all there are by default. Test and validation do not depend on it, but for their
            own domains: those must be among them.
        download: take absent packages from their registries.

    Raises:
        DataError: a package is absent; the text names the command that downloads it.
    """
    chosen = _chosen(language, domains)
    wanted = [package for domain in chosen for package in _packages(domain, language)]
    path = cache_folder() / "prepared" / f"translation-{language}-{_origin(language, chosen, wanted)[:16]}.jsonl"
    if not path.exists():
        fetch_all(wanted, download=download, recipe="translation")
        with fresh_file(path) as part:
            _write(part, build(language, chosen))
    return read(path)


def own(path: Path, language: Language = "zh") -> Corpus:
    """Pairs of somebody's own, from TSV or JSONL (`regard.training.records`); they count as prose.

    A twentieth is held out for the test, a twentieth for validation, by the same rules.

    Raises:
        DataError: a line that is no pair, by its number; or too few that are worth keeping.
    """
    counts: Counter[str] = Counter()
    pairs = list(_clean((Pair(*texts, OWN) for texts in read_pairs(path, ("en", language))), language, counts))
    part = min(1_000, len(pairs) // 20)
    if part < 1:
        raise DataError(
            f"{str(path)!r}: {len(pairs)} pairs are worth keeping ({dict(counts)}), at least 20 are needed. Give more."
        )
    train, validation, test, left_out = split(pairs, {OWN: part})
    counts.update(left_out)
    return Corpus(train, validation, test, dict(sorted(counts.items())))


def build(language: Language, domains: Sequence[str]) -> Corpus:
    """Read, clean and split; the packages are in the cache."""
    counts: Counter[str] = Counter()
    pairs = list(_clean(_raw(domains, language), language, counts))
    train, validation, test, left_out = split(pairs, HELD_OUT[language])
    counts.update(left_out)
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        counts.update(f"{pair.domain}/{name}" for pair in part)
    return Corpus(train, validation, test, dict(sorted(counts.items())))


def read(path: Path) -> Corpus:
    """A file that `load` wrote."""
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(next(file))
            for line in file:
                name, domain, source, target = json.loads(line)
                parts[name].append(Pair(source, target, domain))
        if sum(map(len, parts.values())) != head["pairs"]:
            raise DataError(f"{path}: cut short; remove it, and it is made again")
        return Corpus(parts["train"], parts["validation"], parts["test"], head["counts"])
    except (StopIteration, ValueError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: damaged ({error}); remove it, and it is made again") from error


def _write(path: Path, corpus: Corpus) -> None:
    parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    head = {"pairs": sum(map(len, parts.values())), "counts": corpus.counts}
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head, ensure_ascii=False) + "\n")
        for name, pairs in parts.items():
            for pair in pairs:
                file.write(json.dumps([name, pair.domain, pair.source, pair.target], ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _clean(raw: Iterable[Pair], language: Language, counts: Counter[str]) -> Iterator[Pair]:
    """Pairs worth keeping, each source once; `counts` says what became of the others."""
    seen: set[str] = set()
    for found in raw:
        counts[f"{found.domain}/raw"] += 1
        for source, target in pieces(plain(found.source), plain(found.target, language), language):
            why = fault(source, target, language) or ("source repeated" if source in seen else None)
            if why is not None:
                counts[f"{found.domain}/{why}"] += 1
                continue
            seen.add(source)
            yield Pair(source, target, found.domain)


def _raw(domains: Sequence[str], language: Language) -> Iterator[Pair]:
    for domain in domains:
        folders = fetch_all(_packages(domain, language), download=False, recipe="translation")
        for source, target in _texts(domain, folders, language):
            yield Pair(source, target, domain)


def _texts(domain: str, folders: Sequence[Path], language: Language) -> Iterator[tuple[str, str]]:
    match domain:
        case "libreoffice":
            return libreoffice.help_pairs(folders[0], folders[1])
        case "hsk":
            return json_texts.hsk_pairs(folders[0])
        case "bible":
            return bible.bible_pairs(folders[0], folders[1])
        case "homeassistant":
            return json_texts.home_assistant_pairs(folders[0], _COMPONENT[language])
        case _:
            return gettext_catalogs.catalog_pairs(folders, _CATALOG[language])


def _packages(domain: str, language: Language) -> tuple[Package, ...]:
    return {
        "libreoffice": (packages.HELP["en"], packages.HELP[language]),
        "wesnoth": packages.WESNOTH,
        "hsk": (packages.HSK,),
        "bible": (packages.BIBLE_ALIGNMENTS, packages.CHINESE_UNION_VERSION),
        "homeassistant": (packages.HOME_ASSISTANT,),
        "applications": packages.APPLICATIONS,
    }[domain]


def _chosen(language: Language, domains: Sequence[str] | None) -> tuple[str, ...]:
    known = DOMAINS[language]
    chosen = known if domains is None else tuple(name for name in known if name in domains)
    unknown = sorted(set(domains or ()) - set(known))
    lacking = [name for name in HELD_OUT[language] if name not in chosen]
    if unknown or lacking:
        raise ArgumentError(
            "domains",
            expected=f"some of {', '.join(known)}, with {', '.join(HELD_OUT[language])} among them",
            got=", ".join(domains or ()) or "none",
            do="Test sentences come from the latter.",
        )
    return chosen


def _origin(language: Language, domains: Sequence[str], wanted: Sequence[Package]) -> str:
    """Of all that decides the corpus: the archives and the text of the rules themselves."""
    here = Path(__file__).parent
    rules = [hashlib.sha256((here / f"{name}.py").read_bytes()).hexdigest() for name in _RULES]
    facts = [language, list(domains), [package.sha256 for package in wanted], rules]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
