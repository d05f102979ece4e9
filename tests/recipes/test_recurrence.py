"""Recurrent units with torch's parameters against torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.recipes.translation.baselines import GruTranslator
from regard.recipes.translation.model import sentences_of
from regard.recipes.translation.recurrence import next_state, read_both_ways
from regard.recipes.translation.repeated_matmul import RepeatedMatmul

LENGTHS = torch.tensor([5, 1, 3])


def gradients(of: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    weights = torch.randn(of.shape, dtype=of.dtype, generator=torch.Generator().manual_seed(7))
    return torch.autograd.grad((of * weights).sum(), tensors)


def agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_matrix_used_many_times_has_the_gradient_of_all_its_uses() -> None:
    torch.manual_seed(0)
    for batch in ((), (2,)):
        matrix = torch.randn(*batch, 4, 6, dtype=torch.float64, requires_grad=True)
        x = torch.randn(3, *batch, 5, 4, dtype=torch.float64, requires_grad=True)
        product = RepeatedMatmul(matrix)
        agree(gradients(torch.stack([product(each) for each in x]), matrix, x), gradients(x @ matrix, matrix, x))


def test_a_product_that_nothing_depends_on_gives_no_gradient() -> None:
    matrix = torch.ones(2, 2, requires_grad=True)
    product = RepeatedMatmul(matrix)
    x = torch.ones(1, 2, requires_grad=True)
    product(x)
    (2 * product(x)).sum().backward()
    assert torch.equal(matrix.grad, torch.full((2, 2), 2.0))


def test_a_text_is_read_both_ways_as_torch_reads_it() -> None:
    torch.manual_seed(0)
    gru = nn.GRU(4, 3, batch_first=True, bidirectional=True, dtype=torch.float64)
    texts = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    packed = nn.utils.rnn.pack_padded_sequence(texts, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(gru(packed)[0], batch_first=True)
    real = (torch.arange(5) < LENGTHS[:, None])[..., None]
    found = read_both_ways(gru, texts, LENGTHS) * real
    of = (texts, *gru.parameters())
    agree((found, *gradients(found, *of)), (expected, *gradients(expected, *of)))


def test_a_step_is_that_of_the_cell() -> None:
    torch.manual_seed(0)
    cell = nn.GRUCell(4, 3, dtype=torch.float64)
    word, state = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    entering = nn.functional.linear(word, cell.weight_ih, cell.bias_ih)
    remembered = nn.functional.linear(state, cell.weight_hh, cell.bias_hh)
    agree((next_state(entering, remembered, state),), (cell(word, state),))


def test_the_decoder_is_the_one_of_the_paper_step_by_step() -> None:
    """Against the sums as they are written, with torch's GRU and GRUCell."""
    torch.manual_seed(0)
    model = GruTranslator(20, 4, 3, 0.0).double()
    sentences = sentences_of([[5, 6, 7], [8]], [[9, 10], [11, 12]])
    words = model.embedding(sentences.source) * 2.0
    packed = nn.utils.rnn.pack_padded_sequence(words, sentences.lengths, batch_first=True, enforce_sorted=False)
    states, _ = nn.utils.rnn.pad_packed_sequence(model.encoder(packed)[0], batch_first=True)
    real = torch.arange(states.shape[1]) < sentences.lengths[:, None]
    state = torch.tanh(model.begin(states.sum(1) / sentences.lengths[:, None]))
    found = []
    for word in (model.embedding(sentences.entering) * 2.0).unbind(1):
        scores = model.score(torch.tanh(model.of_source(states) + model.of_state(state)[:, None]))[..., 0]
        weights = scores.masked_fill(~real, -torch.inf).softmax(-1)
        context = (weights[..., None] * states).sum(1)
        state = model.cell(torch.cat([word, context], -1), state)
        found.append(torch.tanh(model.last(torch.cat([state, context, word], -1))))
    expected = torch.stack(found, 1)
    of = tuple(model.parameters())
    agree((model.states(sentences), *gradients(model.states(sentences), *of)), (expected, *gradients(expected, *of)))
