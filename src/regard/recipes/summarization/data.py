"""What can be summarized here: three corpora, and files of one's own.

    descriptions   Debian's package descriptions -> the one-line synopsis that their maintainers gave them
    man_pages      manual pages -> what stands behind the dash of their NAME line
    peps           Python's enhancement proposals -> their Abstract, from a file that `build_peps` writes
    file           one's own: JSON lines with "document" and "summary"

Texts of packages keep the licences of their packages (see `packages`; each description has that of its package);
proposals are in the public domain. Addresses are replaced. Splits are those of `documents.split`: groups are
source packages (descriptions), documents elsewhere; no summary and no sentence is on two sides.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regard._errors import DataError
from regard.recipes.summarization.descriptions import descriptions
from regard.recipes.summarization.documents import Example, Splits, split
from regard.recipes.summarization.manual_pages import manual_pages
from regard.recipes.summarization.packages import PAGES
from regard.recipes.summarization.text import paragraphs_of, without_addresses
from regard.training.records import read_documents
from regard.training.sources import cache_folder, fetch_all

CorpusName = Literal["descriptions", "man_pages", "peps", "file"]


@dataclass(frozen=True)
class Corpus:
    """What is usual for a corpus.

    Attributes:
        validation, test: how many documents, at least.
        words: of an extract and of the lead, about as many as a summary has.
        summary_tokens: most tokens of a summary that is written.
        flat_tokens: where the flat model cuts a document, and `long_tokens` where the others do.
    """

    validation: int
    test: int
    words: int
    summary_tokens: int
    flat_tokens: int
    long_tokens: int


CORPORA: dict[CorpusName, Corpus] = {
    "descriptions": Corpus(500, 2000, words=8, summary_tokens=32, flat_tokens=128, long_tokens=512),
    "man_pages": Corpus(150, 300, words=6, summary_tokens=24, flat_tokens=512, long_tokens=2048),
    "peps": Corpus(60, 120, words=80, summary_tokens=192, flat_tokens=512, long_tokens=4096),
    "file": Corpus(100, 200, words=60, summary_tokens=128, flat_tokens=512, long_tokens=4096),
}


def load(name: CorpusName, *, file: Path | None, download: bool) -> Splits:
    """A corpus in its three sides.

    Args:
        name: of the corpus.
        file: the documents of "file"; of "peps" the file that `build_peps` wrote, unless it is in the cache as
            peps/peps_abstracts.jsonl.gz.
        download: take what is not in the cache from Debian.

    Raises:
        DataError: something is absent, and what to do; or a file whose lines are not documents.
    """
    usual = CORPORA[name]
    examples = list(_examples(name, file, download=download))
    return split(examples, validation=usual.validation, test=usual.test, salt=name)


def _examples(name: CorpusName, file: Path | None, *, download: bool) -> Iterator[Example]:
    if name == "descriptions":
        yield from descriptions(download=download)
    elif name == "man_pages":
        for folder in fetch_all(PAGES, download=download, recipe="summarization"):
            yield from manual_pages(folder)
    elif name == "peps":
        yield from read_file(_proposals(file))
    elif file is None:
        raise DataError("corpus=file needs the path of a file: --set file=documents.jsonl")
    else:
        yield from read_file(file)


def read_file(path: Path) -> Iterator[Example]:
    """Documents of a file of JSON lines, see `regard.training.records.read_documents`; it may be packed by gzip.

    Raises:
        DataError: with the number of the first line that is no document with a summary.
    """
    if path.suffix != ".gz" or path.is_dir():
        yield from _documents(path)
        return
    with tempfile.TemporaryDirectory() as beside:
        plain = Path(beside) / path.stem
        try:
            plain.write_bytes(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, zlib.error) as problem:
            raise DataError(f"{str(path)!r} cannot be unpacked: {problem}.") from problem
        yield from _documents(plain)


def _documents(path: Path) -> Iterator[Example]:
    for number, found in enumerate(read_documents(path), 1):
        name = f"{path.name}, document {number}"
        paragraphs = paragraphs_of(without_addresses(found.document))
        summary = " ".join(without_addresses(found.summary or "").split())
        if not summary or not paragraphs:
            raise DataError(f"{name}: expected words in 'document' and in 'summary', got none in one of them.")
        yield Example(name, summary, paragraphs, summary)


def _proposals(file: Path | None) -> Path:
    path = file or cache_folder() / "peps" / "peps_abstracts.jsonl.gz"
    if not path.exists():
        raise DataError(
            f"the proposals are not at {str(path)!r}. Make the file from a checkout of the PEPs with "
            "regard.recipes.summarization.peps.build_peps(checkout, file), and name it: --set file=FILE"
        )
    return path
