"""Summaries: flat, windowed and hierarchical encoders, which extract or write. The guide's 3.1 and 4.1.

regard train summarization --download                               descriptions, hierarchical, written
regard train summarization --set corpus=man_pages --set encoder=windowed --set style=extractive
regard run summarization FILE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from pydantic import Field
from torch import nn

from regard._errors import DataError
from regard._text import check_text, read_text
from regard.recipes.equal_budget import parameters_of
from regard.recipes.summarization.data import CORPORA, Corpus, CorpusName, load
from regard.recipes.summarization.documents import Example, Splits
from regard.recipes.summarization.encoders import LEVELS, EncoderName
from regard.recipes.summarization.model import Sizes, Style, Summarizer
from regard.recipes.summarization.rouge import KINDS, cut, lead, oracle, rouge
from regard.recipes.summarization.task import SummarizationTask, as_summarizer
from regard.recipes.summarization.text import paragraphs_of, without_addresses
from regard.recipes.summarization.vocabulary import VOCABULARY, Vocabulary, kept_vocabulary
from regard.recipes.trained import open_run
from regard.training.config import TrainingConfig
from regard.training.intervals import Interval, mean_interval
from regard.training.setup import seed_all
from regard.training.state import load_weights

NAME = "summarization"


class Config(TrainingConfig):
    """`TrainingConfig`, and for this recipe:

    Args:
        corpus: "descriptions" or "man_pages" of Debian, "peps", or "file" for documents of one's own.
        file: where the documents of "file" and "peps" are: JSONL, or a saved dataset.
        encoder: "flat" cuts a document short, "windowed" sees near tokens, "hierarchical" has sentences and paragraphs.
        style: "abstractive" writes a summary, "extractive" chooses sentences.
        pieces: size of the vocabulary.
        embed_dim, num_heads: width and heads of every block.
        encoder_layers, decoder_layers: blocks; of the encoder at least 5, so that the hierarchy has two over tokens.
        window: tokens seen on either side by the windowed encoder.
        dropout_p: of all blocks.
        flat_tokens: where the flat encoder cuts a document; the corpus's if 0.
        long_tokens: where the other encoders do; the corpus's if 0.
        words: of an extract and of the lead; the corpus's if 0.
        batch_tokens: most tokens of a batch, padding counted: the same for all variants.
        beams: of the written summaries of the test; 1 is greedy. Nothing is forbidden to be repeated.
    """

    corpus: CorpusName = "descriptions"
    file: str | None = None
    encoder: EncoderName = "hierarchical"
    style: Style = "abstractive"
    pieces: int = Field(8000, ge=300)
    embed_dim: int = Field(192, ge=8)
    num_heads: int = Field(6, ge=1)
    encoder_layers: int = Field(LEVELS + 2, ge=LEVELS + 2)
    decoder_layers: int = Field(2, ge=1)
    window: int = Field(64, ge=1)
    dropout_p: float = Field(0.1, ge=0, lt=1)
    flat_tokens: int = Field(0, ge=0)
    long_tokens: int = Field(0, ge=0)
    words: int = Field(0, ge=0)
    batch_tokens: int = Field(8192, ge=1)
    beams: int = Field(1, ge=1)

    steps: int = Field(1200, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    average_decay: float = Field(0.99, ge=0, lt=1)

    def most_tokens(self) -> int:
        """Where this variant cuts a document."""
        usual = CORPORA[self.corpus]
        if self.encoder == "flat":
            return self.flat_tokens or usual.flat_tokens
        return self.long_tokens or usual.long_tokens

    def extract_words(self) -> int:
        """Words of an extract."""
        return self.words or CORPORA[self.corpus].words


class Summary(TypedDict):
    """What `run` gives: the text, and where it came from."""

    summary: str
    corpus: str
    encoder: str
    style: str


def make_task(config: Config, *, download: bool) -> SummarizationTask:
    """Load the documents, learn the pieces, build the model.

    Raises:
        DataError: something is absent, and the text says how to get it.
    """
    file = None if config.file is None else Path(config.file)
    return task_of(config, load(config.corpus, file=file, download=download))


def task_of(config: Config, splits: Splits) -> SummarizationTask:
    """The task for documents that are there."""
    texts = [text for example in splits.training for text in (*example.sentences, example.summary)]
    return _task(config, splits, kept_vocabulary(texts, config.pieces))


def _task(config: Config, splits: Splits, vocabulary: Vocabulary) -> SummarizationTask:
    usual: Corpus = CORPORA[config.corpus]
    return SummarizationTask(
        build(config, len(vocabulary)),
        splits,
        vocabulary,
        most_tokens=config.most_tokens(),
        summary_tokens=usual.summary_tokens,
        words=config.extract_words(),
        batch_tokens=config.batch_tokens,
        beams=config.beams,
        seed=config.seed,
    )


def build(config: Config, pieces: int) -> Summarizer:
    """The model, its weights decided by the seed."""
    seed_all(config.seed, 0, 0)
    sizes = Sizes(
        pieces,
        config.embed_dim,
        config.num_heads,
        config.encoder_layers,
        config.decoder_layers,
        config.window,
        config.dropout_p,
    )
    return Summarizer(sizes, encoder=config.encoder, style=config.style, smoothing=config.label_smoothing)


def report(task: SummarizationTask, model: nn.Module, config: Config) -> dict[str, Any]:
    """ROUGE on the test side with 95 % intervals: of the model, of the lead and of the extractive oracle.

    "scores" are those of each document, in one order for every variant, for paired differences.
    """
    test, words = task.splits.test, config.extract_words()
    found = {"model": task.summaries(as_summarizer(model.eval()), test), **baselines(test, words)}
    scores = {name: _scores(texts, test) for name, texts in found.items()}
    return {
        "documents": {side: len(examples) for side, examples in zip(Splits._fields, task.splits, strict=True)},
        "examples_seen": _seen(task, config.steps),
        "parameters": parameters_of(model),
        "most_tokens": task.most_tokens,
        "rouge": {
            name: {kind: told(mean_interval(values)) for kind, values in of_kinds.items()}
            for name, of_kinds in scores.items()
        },
        "scores": scores,
        "repeated": _repeated(found["model"]),
    }


def baselines(examples: tuple[Example, ...], words: int) -> dict[str, list[str]]:
    """How the texts begin, and the best that sentences of theirs can say."""
    found: dict[str, list[str]] = {"lead": [], "oracle": []}
    for example in examples:
        sentences = example.sentences
        found["lead"].append(lead(sentences, words))
        chosen = oracle(sentences, example.summary, words)
        found["oracle"].append(cut([sentences[place] for place in chosen], words))
    return found


def run(text: str | Path, folder: Path, *, beams: int | None = None) -> Summary:
    """Summarize a text, or the text in a file, with the model that was trained in `folder`.

    Args:
        text: running text, its paragraphs apart by empty lines; or the path of such a file in UTF-8.
        folder: of a training run.
        beams: as in `Config`, and its own unless given.

    Raises:
        DataError: nothing to summarize, or a file that is no text.
        CheckpointError: no usable training run.
    """
    example = _read(text)
    config, weights = open_run(folder, Config, NAME)
    beside = folder / VOCABULARY
    kept = beside.is_file()
    vocabulary = Vocabulary.load(beside) if kept else make_task(config, download=False).vocabulary
    task = _task(config, Splits((), (), ()), vocabulary)
    load_weights(task.model, weights)
    (summary,) = task.summaries(as_summarizer(task.model.eval()), [example], beams=beams)
    return {"summary": summary, "corpus": config.corpus, "encoder": config.encoder, "style": config.style}


def _read(text: str | Path) -> Example:
    name = "text"
    if isinstance(text, Path):
        name, text = text.name, read_text(text)
    if text.strip():
        check_text(text)
    paragraphs = paragraphs_of(without_addresses(text))
    if not paragraphs:
        raise DataError(f"{name!r} has no words to summarize. Give a text of at least one sentence.")
    return Example(name, name, paragraphs, "")


def _scores(texts: list[str], examples: tuple[Example, ...]) -> dict[str, list[float]]:
    found = [rouge(text, example.summary) for text, example in zip(texts, examples, strict=True)]
    return {kind: [round(score[kind], 3) for score in found] for kind in KINDS}


def told(interval: Interval) -> dict[str, float]:
    """For JSON."""
    return {"value": round(interval.value, 2), "low": round(interval.low, 2), "high": round(interval.high, 2)}


def _seen(task: SummarizationTask, steps: int) -> int:
    """Documents that training read, in all its epochs."""
    count, epoch, left = 0, 0, steps
    while left > 0:
        batches = task.order(epoch)[:left]
        count, epoch, left = count + sum(map(len, batches)), epoch + 1, left - len(batches)
    return count


def _repeated(texts: list[str]) -> float:
    """The share of summaries in which some three words follow one another twice."""
    repeated = 0
    for text in texts:
        words = text.lower().split()
        triples = list(zip(words, words[1:], words[2:], strict=False))
        repeated += len(set(triples)) < len(triples)
    return repeated / max(len(texts), 1)
