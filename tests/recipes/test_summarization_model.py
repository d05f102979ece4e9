"""Three encoders, two losses, and what a batch must not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.nn import Ragged
from regard.recipes.equal_budget import parameters_of
from regard.recipes.summarization.encoders import EncoderName, cells_of, owners
from regard.recipes.summarization.model import Documents, Sizes, Style, Summarizer, sentences_of_documents
from regard.recipes.summarization.numbered import collated, numbered
from regard.recipes.summarization.vocabulary import BEGIN, DOCUMENT, END, PARAGRAPH, SENTENCE, train_vocabulary
from tests.recipes.summarization_cases import small_corpus

ENCODERS: tuple[EncoderName, ...] = ("flat", "windowed", "hierarchical")
SIZES = Sizes(400, 16, 2, 5, 1, 3, 0.0)
# Ragged on every level: a document of one token, one of one paragraph, one of three.
SHAPES = [[[1]], [[5, 2]], [[3, 4], [6], [2, 1, 7]]]


def ragged_batch(shapes: list[list[list[int]]], seed: int = 0) -> Documents:
    generator = torch.Generator().manual_seed(seed)
    structure = Ragged.from_nested(shapes, 3)
    lengths = structure.of_documents()
    tokens = torch.zeros(len(shapes), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(5, 400, (length,), generator=generator)
    sentences = sentences_of_documents(structure)
    labels = torch.cat([torch.nn.functional.one_hot(torch.tensor(count - 1), count) for count in sentences]).float()
    written = torch.randint(5, 400, (len(shapes), 4), generator=generator)
    written[:, 0] = BEGIN
    targets = torch.cat([written[:, 1:], torch.full((len(shapes), 1), END)], 1)
    return Documents(tokens, structure, labels, written, targets)


def alone(batch: Documents, shapes: list[list[list[int]]], row: int) -> Documents:
    structure = Ragged.from_nested([shapes[row]], 3)
    counts = sentences_of_documents(batch.structure)
    first = sum(counts[:row])
    length = structure.of_documents()[0]
    return Documents(
        batch.tokens[row : row + 1, :length],
        structure,
        batch.labels[first : first + counts[row]],
        batch.written[row : row + 1],
        batch.targets[row : row + 1],
    )


def made(encoder: EncoderName, style: Style, sizes: Sizes = SIZES) -> Summarizer:
    torch.manual_seed(1)
    return Summarizer(sizes, encoder=encoder, style=style, smoothing=0.1).eval()


@pytest.mark.parametrize("style", ["extractive", "abstractive"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_ragged_documents_are_the_same_alone(encoder: EncoderName, style: Style) -> None:
    model, batch = made(encoder, style), ragged_batch(SHAPES)
    together = model(batch)
    assert together.dtype == torch.float32
    apart = sum(model(alone(batch, SHAPES, row)) for row in range(len(SHAPES)))
    assert torch.allclose(together, torch.as_tensor(apart), rtol=1e-5)
    states = model.encode(batch)
    for row, length in enumerate(batch.structure.of_documents()):
        own = model.encode(alone(batch, SHAPES, row))
        assert torch.allclose(states[row, :length], own[0], atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_has_no_influence(encoder: EncoderName) -> None:
    model, batch = made(encoder, "extractive"), ragged_batch(SHAPES)
    other = batch.tokens.clone()
    for row, length in enumerate(batch.structure.of_documents()):
        other[row, length:] = 7
    assert torch.equal(model(batch), model(batch._replace(tokens=other)))


@pytest.mark.parametrize("style", ["extractive", "abstractive"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_gets_a_gradient(encoder: EncoderName, style: Style) -> None:
    model = made(encoder, style).train()
    model(ragged_batch(SHAPES)).backward()
    missing = [name for name, each in model.named_parameters() if each.grad is None]
    assert missing == []


@pytest.mark.parametrize("style", ["extractive", "abstractive"])
def test_encoders_have_equally_many_parameters(style: Style) -> None:
    sizes = Sizes(1000, 64, 4, 6, 2, 8, 0.1)
    counts = [parameters_of(made(encoder, style, sizes)) for encoder in ENCODERS]
    assert counts[0] == counts[1]
    assert abs(counts[2] - counts[0]) < 0.005 * counts[0]


def depends_on(model: Summarizer, shapes: list[list[list[int]]], place: int) -> Tensor:
    """Which tokens' states change with the token at `place`: bool (length,)."""
    batch = ragged_batch(shapes)
    other = batch.tokens.clone()
    other[0, place] = 399 if int(other[0, place]) != 399 else 398
    change = model.encode(batch) - model.encode(batch._replace(tokens=other))
    return change[0].abs().amax(1) > 1e-6


def test_what_each_encoder_sees() -> None:
    shapes = [[[4, 4], [4, 4], [24]]]
    # Five layers of a window of 3 reach 15; token 0 tells everyone, and sees everyone.
    assert bool(depends_on(made("flat", "extractive"), shapes, 39).all())
    one_layer = made("windowed", "extractive")
    one_layer.encoder.blocks.layers = one_layer.encoder.blocks.layers[:1]
    seen = depends_on(one_layer, shapes, 30).nonzero().flatten().tolist()
    assert seen == [0, *range(27, 34)]
    assert bool(depends_on(made("hierarchical", "extractive"), shapes, 39).all())


def test_hierarchy_tells_of_other_sentences_by_their_vectors_alone() -> None:
    model = made("hierarchical", "extractive")
    model.encoder.told.weight.data.zero_()
    seen = depends_on(model, [[[4, 4], [4, 4]]], 5).nonzero().flatten().tolist()
    assert seen == [4, 5, 6, 7]


def test_listwise_loss_by_hand() -> None:
    model, batch = made("flat", "extractive"), ragged_batch(SHAPES)
    labels = torch.tensor([0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0])
    assert sentences_of_documents(batch.structure) == (1, 2, 6)
    scores = model.scores(batch).double()
    expected = -(scores[1:3].log_softmax(0)[1]) - 0.5 * (scores[3:].log_softmax(0)[[0, 3]]).sum()
    assert torch.allclose(model(batch._replace(labels=labels)).double(), expected, rtol=1e-5)


def test_written_loss_is_the_smoothed_cross_entropy() -> None:
    model, batch = made("hierarchical", "abstractive"), ragged_batch(SHAPES)
    targets = batch.targets.clone()
    targets[1, 2:] = -1
    batch = batch._replace(targets=targets)
    context = model.encode(batch)
    losses = []
    for row, length in enumerate(batch.structure.of_documents()):
        states = model.decoder(model.embedding(batch.written[row : row + 1]), context[row : row + 1, :length])
        logits = (states[0] @ model.embedding.weight.T)[targets[row] >= 0]
        losses.append(
            torch.nn.functional.cross_entropy(
                logits, targets[row][targets[row] >= 0], reduction="sum", label_smoothing=0.1
            )
        )
    assert torch.allclose(model(batch), torch.stack(losses).sum(), rtol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_writing_greedily_and_with_beams(encoder: EncoderName) -> None:
    model, batch = made(encoder, "abstractive"), ragged_batch(SHAPES)
    options = {"begin": BEGIN, "end": END, "most_tokens": 6}
    with torch.no_grad():
        greedy = model.write(batch, beams=1, **options)
        context = model.encode(batch)
        for row, length in enumerate(batch.structure.of_documents()):
            texts = torch.tensor([[BEGIN]])
            for _ in range(6):  # without a cache, one document at a time
                states = model.decoder(model.embedding(texts), context[row : row + 1, :length])
                likeliest = (states[:, -1] @ model.embedding.weight.T).argmax(1)
                texts = torch.cat([texts, likeliest[:, None]], 1)
                if int(likeliest) == END:
                    break
            size = int(greedy.lengths[row, 0])
            assert greedy.tokens[row, 0, :size].tolist() == texts[0, 1:].tolist()
        wide = model.write(batch, beams=3, **options)
    assert wide.tokens.shape[0] == len(SHAPES)


def test_a_style_has_no_other() -> None:
    with pytest.raises(TypeError, match="it has no scores"):
        made("flat", "abstractive").scores(ragged_batch(SHAPES))
    with pytest.raises(TypeError, match="it does not write"):
        made("flat", "extractive").write(ragged_batch(SHAPES), begin=BEGIN, end=END, most_tokens=2, beams=1)


def test_numbers_of_documents() -> None:
    examples = small_corpus(4)
    vocabulary = train_vocabulary([text for each in examples for text in each.sentences], 300)
    (whole,) = numbered(examples[:1], vocabulary, most_tokens=1000, most_summary=50, extract_words=8)
    assert sum(whole.sentences) == len(whole.tokens)
    assert sum(whole.paragraphs) == len(whole.sentences) == len(examples[0].sentences)
    assert int(whole.tokens[0]) == DOCUMENT
    assert int(whole.tokens[whole.sentences[0]]) in {SENTENCE, PARAGRAPH}
    assert whole.chosen == (0,)
    assert vocabulary.decode(whole.tokens.tolist()) == " ".join(examples[0].sentences)
    for most in range(1, len(whole.tokens) + 1):
        (cut,) = numbered(examples[:1], vocabulary, most_tokens=most, most_summary=3)
        assert len(cut.tokens) == sum(cut.sentences) <= most
        assert sum(cut.paragraphs) == len(cut.sentences)
        assert cut.tokens.tolist() == whole.tokens.tolist()[: len(cut.tokens)]
        assert len(cut.summary) == 3
    batch = collated([whole, cut])
    assert batch.labels.tolist()[: len(whole.sentences)] == [1.0, *[0.0] * (len(whole.sentences) - 1)]
    assert (batch.targets[0] == END).sum() == 1


def test_marks_in_a_text_are_text() -> None:
    vocabulary = train_vocabulary(["some words to learn from"], 300)
    (tokens,) = vocabulary.encode(["an <end> and a <document> 你好 \U0001f600"])
    assert min(tokens) > SENTENCE
    assert vocabulary.decode(tokens) == "an <end> and a <document> 你好 \U0001f600"
    assert vocabulary.decode([*tokens[:2], END, *tokens]) == vocabulary.decode(tokens[:2])


def test_places() -> None:
    assert owners((2, 0, 1), torch.device("cpu")).tolist() == [0, 0, 2]
    assert cells_of([1, 3], 3, torch.device("cpu")).tolist() == [0, 3, 4, 5]
