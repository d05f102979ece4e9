"""Beam search against exhaustive search on a tiny vocabulary; with a cache and without; greedy; early stop; masks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import regard
from regard.masks import Padding
from regard.nn import Transformer, TransformerEncoder, beam_search
from regard.positions import RoPE, T5Bias
from tests.nn.cases import told

BEGIN, END, VOCABULARY, MOST = 0, 1, 4, 4
SOURCE = torch.tensor([[2, 3, 1, 4, 2], [4, 4, 2, 0, 0], [3, 2, 0, 0, 0]])
REAL = [5, 3, 2]


def model(seed=7, **options):
    """Untrained, but with its context louder than usual: what it writes differs from source to source."""
    torch.manual_seed(seed)
    made = Transformer(5, VOCABULARY, 16, 2, encoder_layers=1, decoder_layers=2, tie=False, **options)
    with torch.no_grad():
        made.target_embedding.weight.mul_(2.0)
        for layer in made.decoder.layers:
            layer.around_context.norm.weight.mul_(2.0)
            layer.cross_attention.out_proj.weight.mul_(3.0)
    return made.eval()


@torch.no_grad()
def every_text(made, source, length_penalty):
    """All texts that end, or are as long as texts may be, with their scores, best first: by plain full passes."""
    found = []
    others = [token for token in range(VOCABULARY) if token != END]
    for length in range(1, MOST + 1):
        last = range(VOCABULARY) if length == MOST else [END]
        written = torch.tensor(list(itertools.product(*[others] * (length - 1), last)))
        target = torch.cat([torch.full((len(written), 1), BEGIN), written], 1)
        following = made(source.expand(len(written), -1), target[:, :-1]).double().log_softmax(-1)
        totals = following.gather(2, written[..., None]).sum((1, 2)) / length**length_penalty
        found += zip(totals.tolist(), written.tolist(), strict=True)
    return sorted(found, reverse=True)


def texts(found, sample):
    return [kept[:length].tolist() for kept, length in zip(found.tokens[sample], found.lengths[sample], strict=True)]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5, 2.0])
def test_with_enough_beams_it_is_exhaustive_search(length_penalty):
    made = model()
    enough = VOCABULARY * (VOCABULARY - 1) ** (MOST - 1)
    found = made.generate(
        SOURCE, begin=BEGIN, end=END, most_tokens=MOST, beams=enough, best=6, length_penalty=length_penalty,
        mask=Padding(REAL),
    )  # fmt: skip
    for sample, real in enumerate(REAL):
        expected = every_text(made, SOURCE[sample : sample + 1, :real], length_penalty)[:6]
        assert texts(found, sample) == [text for _, text in expected]
        torch.testing.assert_close(
            found.scores[sample].tolist(), [score for score, _ in expected], rtol=1e-4, atol=1e-4
        )


def test_scores_are_those_of_the_texts():
    made = model()
    found = made.generate(SOURCE, begin=BEGIN, end=END, most_tokens=MOST, beams=3, best=3, mask=Padding(REAL))
    for sample, real in enumerate(REAL):
        scores = {tuple(text): score for score, text in every_text(made, SOURCE[sample : sample + 1, :real], 1.0)}
        expected = [scores[tuple(text)] for text in texts(found, sample)]
        torch.testing.assert_close(found.scores[sample].tolist(), expected, rtol=1e-4, atol=1e-4)
        assert expected == sorted(expected, reverse=True)


@torch.no_grad()
def test_one_beam_is_greedy():
    made = model()
    found = made.generate(SOURCE, begin=BEGIN, end=END, most_tokens=9, mask=Padding(REAL))
    assert len({int(length) for length in found.lengths}) > 1  # texts of several lengths, or padding is not tested
    for sample, real in enumerate(REAL):
        text = [BEGIN]
        while len(text) <= 9 and text[-1] != END:
            logits = made(SOURCE[sample : sample + 1, :real], torch.tensor([text]))
            text.append(int(logits[0, -1].argmax()))
        assert texts(found, sample) == [text[1:]]
        assert (found.tokens[sample, 0, len(text) - 1 :] == END).all()


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"absolute": None, "position": lambda: T5Bias(2), "decoder_position": lambda: RoPE(8), "kv_heads": 1}],
    ids=["sinusoid", "relative"],
)
def test_with_a_cache_it_writes_the_same(options, beams):
    made = model(seed=8, **options)
    given = {"begin": BEGIN, "end": END, "most_tokens": 12, "beams": beams, "best": beams, "mask": Padding(REAL)}
    cached, again = made.generate(SOURCE, **given), made.generate(SOURCE, **given)
    uncached = made.generate(SOURCE, use_cache=False, **given)
    assert all(torch.equal(first, second) for first, second in zip(cached, again, strict=True))
    assert torch.equal(cached.tokens, uncached.tokens)
    assert torch.equal(cached.lengths, uncached.lengths)
    torch.testing.assert_close(cached.scores, uncached.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_sample_alone_is_the_sample_in_its_batch(beams):
    made = model()
    given = {"begin": BEGIN, "end": END, "most_tokens": 8, "beams": beams, "best": beams}
    real = torch.arange(5) < torch.tensor(REAL)[:, None]
    together = made.generate(SOURCE, mask=real, **given)
    for sample, length in enumerate(REAL):
        alone = made.generate(SOURCE[sample : sample + 1, :length], **given)
        assert texts(alone, 0) == texts(together, sample)
        torch.testing.assert_close(alone.scores[0], together.scores[sample], rtol=1e-4, atol=1e-4)


def test_dropout_is_off_and_then_as_before():
    made = model(dropout_p=0.5).train()
    made.encoder.eval()
    before = [module.training for module in made.modules()]
    given = {"begin": BEGIN, "end": END, "most_tokens": 6, "beams": 3}
    first, second = made.generate(SOURCE, **given), made.generate(SOURCE, **given)
    assert torch.equal(first.scores, second.scores)
    assert [module.training for module in made.modules()] == before
    assert not first.scores.requires_grad


def test_some_tokens_are_never_written():
    found = model().generate(SOURCE, begin=BEGIN, end=END, most_tokens=8, beams=3, best=3, never=[BEGIN, 3])
    written = {token for sample in range(3) for text in texts(found, sample) for token in text}
    assert written <= {END, 2}
    assert 2 in written


# ------------------------------------------------------------------------------------------------ beam_search


def chain(table):
    """A model whose next token depends on the last one: logits by a table (vocabulary, vocabulary) of chances."""
    logits = torch.tensor(table).log()
    return lambda texts: logits[texts[:, -1]]


# From 0 the likeliest step is to 2, after which everything is unlikely; the likeliest text goes by 3.
TRAP = [[0.0, 0.0, 0.6, 0.4], [0.25] * 4, [0.34, 0.33, 0.0, 0.33], [0.0, 1.0, 0.0, 0.0]]


def test_beams_avoid_the_trap_that_greedy_falls_into():
    begin = torch.zeros(1, 1, dtype=torch.int64)
    greedy = beam_search(chain(TRAP), begin, end=1, most_tokens=3, length_penalty=0.0)
    assert greedy.tokens[0, 0, :2].tolist() == [2, 0]
    found = beam_search(chain(TRAP), begin, end=1, most_tokens=3, beams=2, length_penalty=0.0)
    assert texts(found, 0) == [[3, 1]]
    assert math.isclose(float(found.scores), math.log(0.4), rel_tol=1e-6)


def test_length_penalty_prefers_what_it_says():
    """Ending at once has p = 0.4; going on once has 0.6 * 0.55 = 0.33, a better mean."""
    table = [[0.0, 0.4, 0.6], [0.3, 0.4, 0.3], [0.2, 0.55, 0.25]]
    begin = torch.zeros(1, 1, dtype=torch.int64)
    short = beam_search(chain(table), begin, end=1, most_tokens=5, beams=3, length_penalty=0.0)
    long = beam_search(chain(table), begin, end=1, most_tokens=5, beams=3, length_penalty=1.0)
    assert texts(short, 0) == [[1]]
    assert texts(long, 0) == [[2, 1]]
    assert math.isclose(float(long.scores), math.log(0.33) / 2, rel_tol=1e-6)


def counted(table):
    calls = []

    def step(texts):
        calls.append(texts.shape)
        return chain(table)(texts)

    return step, calls


def test_stops_when_nothing_can_be_better():
    certain = [[0.0, 0.98, 0.01, 0.01]] * 4
    step, calls = counted(certain)
    found = beam_search(step, torch.zeros(2, 1, dtype=torch.int64), end=1, most_tokens=50, beams=2, length_penalty=0.0)
    assert texts(found, 0) == texts(found, 1) == [[1]]
    assert len(calls) == 1
    step, calls = counted(certain)
    greedy = beam_search(step, torch.zeros(2, 1, dtype=torch.int64), end=1, most_tokens=50)
    assert len(calls) == 1
    assert greedy.tokens.shape == (2, 1, 1)


def test_does_not_stop_while_something_can_be_better():
    """With a reward for length a text of 20 tokens may win over one that ended long before."""
    table = [[0.0, 0.3, 0.7], [0.0, 0.3, 0.7], [0.0, 0.01, 0.99]]
    found = beam_search(
        chain(table), torch.zeros(1, 1, dtype=torch.int64), end=1, most_tokens=20, beams=2, length_penalty=1.0
    )
    assert texts(found, 0) == [[2] * 20]


@pytest.mark.parametrize(
    ("table", "length_penalty", "expected"),
    [
        # The mean falls behind at first, log(0.3) / 2 < log(0.6), and every certain token after that lifts it.
        ([[0.1, 0.6, 0.3], [0.0, 0.5, 0.5], [0.0, 0.01, 0.99]], 1.0, [2] * 20),
        # Long texts are punished, yet one token more still wins.
        ([[0.0, 0.2, 0.8], [0.0, 0.5, 0.5], [0.0, 0.95, 0.05]], -1.0, [2, 1]),
    ],
)
def test_knows_what_can_still_be_reached(table, length_penalty, expected):
    begin = torch.zeros(1, 1, dtype=torch.int64)
    found = beam_search(chain(table), begin, end=1, most_tokens=20, beams=2, length_penalty=length_penalty)
    assert texts(found, 0) == [expected]


def test_a_text_that_ends_takes_no_beam_from_those_that_run():
    """The first step's best two are the end and 2; what wins goes by the third, 3."""
    table = [[0.0, 0.5, 0.3, 0.2], [0.25] * 4, [0.3, 0.1, 0.3, 0.3], [0.0, 0.001, 0.0, 0.999]]
    found = beam_search(chain(table), torch.zeros(1, 1, dtype=torch.int64), end=1, most_tokens=10, beams=2)
    assert texts(found, 0) == [[3] * 10]


def test_samples_end_by_themselves():
    """One sample ends at once, the other goes on: what the first found stays as it is."""
    table = [[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.1, 0.9]]
    found = beam_search(chain(table), torch.tensor([[0], [2]]), end=1, most_tokens=4, pad=9)
    assert found.tokens[:, 0].tolist() == [[1, 9, 9, 9], [2, 2, 2, 2]]
    assert found.lengths[:, 0].tolist() == [1, 4]


def test_fewer_texts_than_asked_for_are_said_to_be_missing():
    table = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    found = beam_search(
        chain(table), torch.zeros(1, 1, dtype=torch.int64), end=1, most_tokens=4, beams=3, best=3, pad=7
    )
    assert found.lengths.tolist() == [[1, 0, 0]]
    assert found.scores.tolist() == [[0.0, -math.inf, -math.inf]]
    assert found.tokens.tolist() == [[[1], [7], [7]]]


def test_no_samples_at_all():
    found = model().generate(SOURCE[:0], begin=BEGIN, end=END, most_tokens=3)
    assert found.tokens.shape[:2] == (0, 1)


@torch.no_grad()
def test_a_prompt_of_a_language_model_is_gone_on_from():
    torch.manual_seed(0)
    encoder = TransformerEncoder(16, 2, 2, causal=True, position=RoPE(8))
    vectors, head = torch.randn(6, 16), torch.randn(16, 6)
    prompt = torch.tensor([[2, 3, 4], [5, 2, 2]])
    cache = encoder.make_cache(6, 12)

    def cached(texts):
        return encoder(vectors[texts[:, cache.length :]], cache=cache)[:, -1] @ head

    def whole(texts):
        return encoder(vectors[texts])[:, -1] @ head

    options = {"end": 1, "most_tokens": 8, "beams": 3, "best": 2}
    found = beam_search(cached, prompt, reorder=cache.reorder, **options)
    expected = beam_search(whole, prompt, **options)
    assert torch.equal(found.tokens, expected.tokens)
    without_reordering = encoder.make_cache(6, 12)
    cache = without_reordering
    assert not torch.equal(beam_search(cached, prompt, **options).scores, expected.scores)  # so the order counts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beams": 2, "best": 3}, "best: expected at most beams 2, got 3"),
        ({"beams": 0}, "beams: expected a whole number of at least 1"),
        ({"most_tokens": 0}, "most_tokens: expected a whole number of at least 1"),
        ({"length_penalty": math.nan}, "length_penalty: expected a finite number, got nan"),
        ({"end": 4}, r"logits of a step: expected .* end token 4 in the vocabulary, got \(1, 4\)"),
        ({"begin": torch.zeros(1, 0, dtype=torch.int64)}, r"begin: expected int64 \(batch, length >= 1\)"),
        ({"begin": torch.zeros(1, 1)}, r"begin: .* got torch.float32"),
        ({"step": lambda _texts: torch.zeros(2, 4)}, r"logits of a step: expected \(batch \* beams 1, vocabulary\)"),
    ],
    ids=told,
)
def test_refusals(given, message):
    usual = {"step": chain(TRAP), "begin": torch.zeros(1, 1, dtype=torch.int64), "end": 1, "most_tokens": 3}
    with pytest.raises((regard.ArgumentError, regard.ShapeError), match=message):
        beam_search(**{**usual, **given})
