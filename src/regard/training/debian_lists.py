"""Debian's descriptions of its packages, in English and as its translators put them: lists that apt fetches.

Apt's own lists are left alone: it is told to keep these ones in the cache. They are those of the release that apt is
set up for and change a little with each of its updates, so they are not pinned: `source.json` beside them has their
sha256, which belongs to what a run reports.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regard._errors import DataError
from regard.training.clients import fresh_lists
from regard.training.sources import MANIFEST, cache_folder, fresh_folder, sha256_of

LANGUAGES = ("en", "de", "fr", "zh_CN")
_LIST = re.compile(
    r"_dists_[a-z]+_main_(binary-[a-z0-9]+_(?P<packages>Packages)|i18n_(?P<translation>Translation-\w+))"
)


@dataclass(frozen=True)
class DebianLists:
    """Files of stanzas, apart by empty lines.

    Attributes:
        packages: "Package: ...", "Source: ...", "Description-md5: ..." and more of every package.
        translations: by language, "Package: ...", "Description-md5: ...", "Description-xx: synopsis" and lines of text.
        sha256: by file name.
    """

    packages: Path
    translations: dict[str, Path]
    sha256: dict[str, str]


def debian_translations(languages: Sequence[str] = ("en",), *, download: bool, recipe: str) -> DebianLists:
    """The lists of the main section of the release, without updates and security.

    Args:
        languages: some of `LANGUAGES`.
        download: fetch all of them with `apt-get update` when they are not in the cache (18 MB).
        recipe: who asks, for the text of the error.

    Raises:
        DataError: absent and not to be downloaded, or this is no Debian with apt.
    """
    folder = cache_folder() / "debian" / "lists"
    if not _is_whole(folder):
        if not download:
            raise DataError(
                f"not in the cache {cache_folder()}: Debian's descriptions of packages (18 MB, each under the licence "
                f"of its package). To download them: regard train {recipe} --download"
            )
        _take(folder)
    sha256 = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    found = {language: folder / f"Translation-{language}" for language in languages}
    absent = [language for language, path in found.items() if not path.exists()]
    if absent:
        raise DataError(f"Debian's descriptions: expected languages of {', '.join(LANGUAGES)}, got {', '.join(absent)}")
    return DebianLists(folder / "Packages", found, sha256)


def stanzas(path: Path) -> Iterator[str]:
    """The stanzas of a list, each with its ends of lines but the last."""
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).rstrip("\n")
                lines = []
    if lines:
        yield "".join(lines).rstrip("\n")


def _take(folder: Path) -> None:
    with fresh_folder(folder) as part:
        if _is_whole(folder):
            return
        with tempfile.TemporaryDirectory(prefix="apt.", dir=part) as name:
            home = Path(name)
            fresh_lists(home, {"Acquire::Languages": ",".join(LANGUAGES), "Acquire::GzipIndexes": "false"})
            kept = _collect(home / "lists", part)
        manifest = {name: sha256_of(part / name) for name in sorted(kept)}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _collect(lists: Path, part: Path) -> list[str]:
    """Move what is wanted out of apt's folder, under short names."""
    kept: list[str] = []
    for path in sorted(lists.iterdir()):
        found = _LIST.search(path.name.replace("%5f", "_"))
        name = found and (found["packages"] or found["translation"])
        if name and name not in kept:
            path.rename(part / name)
            kept.append(name)
    if "Packages" not in kept or "Translation-en" not in kept:
        raise DataError(
            f"apt-get update brought no lists of Debian's main section, only {', '.join(kept) or 'none'}; "
            "this needs a Debian release, or an error-free set-up of apt"
        )
    return kept


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all((folder / name).stat().st_size > 0 for name in manifest)
    except (OSError, ValueError):
        return False
