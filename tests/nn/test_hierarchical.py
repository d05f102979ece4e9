"""Hierarchical attention beside a plain loop over documents, paragraphs and sentences."""

import itertools

import pytest
import torch

import regard
from regard.nn import HierarchicalAttention, Ragged
from regard.nn._ragged import Groups
from regard.positions import ALiBi, T5Bias

WIDTH = 6
FORMS = {
    "han": lambda: HierarchicalAttention(WIDTH),
    "han with gru": lambda: HierarchicalAttention(WIDTH, gru=True),
    "transformer": lambda: HierarchicalAttention(WIDTH, 2, form="transformer"),
    "transformer with positions": lambda: HierarchicalAttention(
        WIDTH, 2, form="transformer", positions=[ALiBi(2), T5Bias(2, max_distance=20), None]
    ),
}
EACH = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
UNEVEN = [[[3, 1], [4, 0, 2]], [[]], [[5]], [], [[0], [1, 2]]]
EVEN = [[[2, 2], [2, 2]], [[2, 2], [2, 2]]]


def seeded(make, dtype=torch.float64):
    torch.manual_seed(0)
    module = make().to(dtype).eval()
    with torch.no_grad():
        for pool in module.pools:
            pool.map.bias.normal_()
    return module


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def count(group):
    return group if isinstance(group, int) else sum(count(part) for part in group)


def joined(module, level, items):
    """One group, (items, width), to its vector and its weights; None where it is empty."""
    if not items:
        return None, []
    items = torch.stack(items)
    encoder = module.encoders[level]
    if module.form == "transformer":
        items = encoder.blocks(items[None])[0]
    elif encoder.gru is not None:
        items = encoder.gru(items[None])[0][0]
    pool = module.pools[level]
    weights = (torch.tanh(items @ pool.map.weight.T + pool.map.bias) @ pool.context).softmax(0)
    return weights @ items, list(weights)


def looped(module, x, structure, masks=(None, None, None)):
    """Documents (documents, width), and the weights of each level, end to end, by loops over everything."""
    tokens, kept = iter(x), [iter(mask.tolist()) if mask is not None else itertools.repeat(True) for mask in masks]
    weights = [[], [], []]

    def vector(group, level, alive):
        """Of a document (level 2), a paragraph (1) or a sentence (0)."""
        if level == 0:
            parts = [next(tokens) for _ in range(group)]
            flags = [next(kept[0]) and alive for _ in parts]
        else:
            flags, parts = [], []
            for part in group:
                flag = next(kept[level]) and alive
                parts.append(vector(part, level - 1, flag))
                flags.append(flag and parts[-1] is not None)
        found, shares = joined(module, level, [part for part, flag in zip(parts, flags, strict=True) if flag])
        shares = iter(shares)
        weights[level] += [next(shares) if flag else torch.zeros((), dtype=x.dtype) for flag in flags]
        return found

    documents = [vector(document, 2, True) for document in structure]
    nothing = x.new_zeros(WIDTH)
    made = [nothing if document is None else document for document in documents]
    return torch.stack(made), [torch.stack(each) for each in weights]


def assert_alike(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_same_gradients(module, found, expected, x):
    wanted, grad = [x, *module.parameters()], drawn(*found.shape, seed=9)
    for one, other in zip(
        torch.autograd.grad(found, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        assert one.isfinite().all()
        assert_alike(one, other, 1e-9)


@EACH
@pytest.mark.parametrize("structure", [UNEVEN, EVEN], ids=["uneven", "even"])
def test_it_is_the_loop(make, structure):
    module, x = seeded(make), drawn(count(structure), WIDTH).requires_grad_()
    found, (expected, weights) = module(x, structure), looped(module, x, structure)
    assert_alike(found.documents, expected)
    for one, other in zip(found.weights, weights, strict=True):
        assert_alike(one, other)
    assert_same_gradients(module, found.documents, expected, x)


@EACH
def test_masks_at_each_level_are_those_of_the_loop(make):
    module, x = seeded(make), drawn(count(UNEVEN), WIDTH).requires_grad_()
    masks = [torch.ones(n, dtype=torch.bool) for n in (18, 9, 6)]
    masks[0][[0, 4, 5, 6, 7, 12]] = False
    masks[1][[4]] = False
    masks[2][[5]] = False
    for chosen in ([masks[0], None, None], [None, masks[1], None], [None, None, masks[2]], masks):
        found, (expected, weights) = module(x, UNEVEN, masks=chosen), looped(module, x, UNEVEN, chosen)
        assert_alike(found.documents, expected)
        for one, other in zip(found.weights, weights, strict=True):
            assert_alike(one, other)
        assert_same_gradients(module, found.documents, expected, x)


@EACH
def test_what_is_masked_has_no_influence(make):
    module, x = seeded(make), drawn(count(UNEVEN), WIDTH)
    masks = [torch.ones(18, dtype=torch.bool), torch.ones(9, dtype=torch.bool), None]
    masks[0][2], masks[1][2] = False, False
    changed = x.clone()
    changed[[2, 4, 5, 6, 7]] = torch.nan  # a token, and the tokens of the third sentence
    one, other = module(x, UNEVEN, masks=masks), module(changed, UNEVEN, masks=masks)
    for before, after in zip((*one.vectors, *one.weights), (*other.vectors, *other.weights), strict=True):
        assert torch.equal(before, after)


@EACH
def test_empty_groups_are_zero_vectors_without_weight(make):
    module, x = seeded(make), drawn(count(UNEVEN), WIDTH).requires_grad_()
    found = module(x, UNEVEN)
    sentences, paragraphs, documents = found.vectors
    assert not sentences[[3, 6]].any()
    assert not paragraphs[[2, 4]].any()
    assert not documents[[1, 3]].any()
    assert found.documents is documents
    assert not found.weights[1][[3, 6]].any()
    assert not found.weights[2][[2, 4]].any()
    documents.sum().backward()
    assert x.grad.isfinite().all()
    nothing = module(x[:0], [[], [[0]], [[]]])
    assert torch.equal(nothing.documents, torch.zeros(3, WIDTH, dtype=x.dtype))
    assert module(x[:0], []).documents.shape == (0, WIDTH)


@EACH
def test_the_order_of_the_documents_does_not_matter(make):
    module = seeded(make)
    x = drawn(5, 10, WIDTH)
    order = [3, 0, 4, 2, 1]
    found, turned = module(x, UNEVEN), module(x[order], [UNEVEN[place] for place in order])
    assert_alike(turned.documents, found.documents[order])
    assert_alike(turned.token_weights, found.token_weights[order])


@EACH
def test_a_batch_of_rows_is_the_same_as_documents_end_to_end(make):
    module, rows = seeded(make), drawn(5, 12, WIDTH)
    real = torch.arange(12) < torch.tensor([count(document) for document in UNEVEN])[:, None]
    batch, packed = module(rows, UNEVEN), module(rows[real], UNEVEN)
    assert_alike(batch.documents, packed.documents)
    assert_alike(batch.token_weights[real], packed.token_weights)
    assert not batch.token_weights[~real].any()


def test_token_weights_are_the_products_of_all_levels():
    module, x = seeded(FORMS["han"]), drawn(5, 10, WIDTH)
    found = module(x, UNEVEN)
    sums = found.token_weights.sum(1)
    assert_alike(sums, torch.tensor([1.0, 0, 1, 0, 1], dtype=torch.float64))
    of_tokens, of_sentences, of_paragraphs = found.weights
    assert_alike(found.token_weights[0, 3], of_tokens[3] * of_sentences[1] * of_paragraphs[0])
    assert_alike(found.documents, (found.token_weights.unsqueeze(1) @ x).squeeze(1))  # "han" encodes nothing


def test_weights_group_by_group():
    module = seeded(FORMS["transformer"])
    found = module(drawn(18, WIDTH), UNEVEN)
    structure, of_sentences = found.structure, found.weights[1]
    parts = structure.split(of_sentences, 1)
    assert [len(part) for part in parts] == [2, 3, 0, 1, 1, 2]
    padded = structure.pad(of_sentences, 1)
    assert padded.shape == (6, 3)
    for row, part in zip(padded, parts, strict=True):
        assert torch.equal(row[: len(part)], part)
        assert not row[len(part) :].any()
    assert_alike(padded.sum(1), torch.tensor([1.0, 1, 0, 1, 0, 1], dtype=torch.float64))


def test_ragged_from_lists_and_from_counts():
    ragged = Ragged.from_nested(UNEVEN, 3)
    assert ragged.counts == ((3, 1, 4, 0, 2, 5, 0, 1, 2), (2, 3, 0, 1, 1, 2), (2, 1, 1, 0, 2))
    assert Ragged.from_counts(*(torch.tensor(counts) for counts in ragged.counts)) == ragged
    assert ragged.of_documents() == [10, 0, 5, 0, 3]
    assert (ragged.levels, ragged.documents, ragged.items(0), ragged.items(2)) == (3, 5, 18, 6)
    assert Ragged.from_nested([4, 0], 1).counts == ((4, 0),)
    module, x = seeded(FORMS["han"]), drawn(18, WIDTH)
    assert torch.equal(module(x, ragged).documents, module(x, UNEVEN).documents)


def test_without_a_structure_each_row_is_one_sentence():
    module, x = seeded(FORMS["han"]), drawn(2, 4, WIDTH)
    assert torch.equal(module(x).documents, module(x, [[[4]], [[4]]]).documents)


@pytest.mark.parametrize("counts", [[], [0], [3], [2, 2], [3, 1, 0, 2]])
def test_groups_are_padded_and_packed_again(counts):
    groups, items = Groups(counts), drawn(sum(counts), 2)
    padded = groups.padded(items)
    assert padded.shape == (len(counts), max(counts, default=0), 2)
    assert torch.equal(groups.packed(padded), items)
    assert groups.real(items.device).sum(1).tolist() == counts


def test_huge_scores_stay_finite():
    module = seeded(FORMS["han"], torch.float32)
    with torch.no_grad():
        for pool in module.pools:
            pool.context.mul_(1e4)
    x = drawn(5, 10, WIDTH, dtype=torch.float32).requires_grad_()
    documents = module(x, UNEVEN).documents
    documents.sum().backward()
    assert documents.isfinite().all()
    assert x.grad.isfinite().all()


def test_what_is_refused():
    module, x = HierarchicalAttention(WIDTH), drawn(2, 4, WIDTH, dtype=torch.float32)
    for structure in ([[4], [4]], [[[[4]]], [[[4]]]], [[[-1]], [[4]]], [[[1.5]], [[4]]], [[[True]], [[4]]]):
        with pytest.raises(
            regard.ArgumentError, match=r"structure: expected whole numbers .* lists 3 deep, got .* Count"
        ):
            module(x, structure)
    with pytest.raises(
        regard.ShapeError, match=r"x: expected 2 documents of 5 tokens or more, .* got \(2, 4, 6\)\. Give"
    ):
        module(x, [[[5]], [[4]]])
    with pytest.raises(regard.ShapeError, match=r"x: expected 1 documents of 4 tokens or more"):
        module(x, [[[4]]])
    with pytest.raises(regard.ShapeError, match=r"x: expected 9 tokens, as the structure counts, got \(4, 6\)"):
        module(x[0], [[[5]], [[4]]])
    with pytest.raises(
        regard.ShapeError, match=r"structure: expected counts that sum to 2, .* got \[3\], which sum to 3"
    ):
        Ragged.from_counts([4, 1], [3], [1])
    with pytest.raises(regard.ArgumentError, match=r"structure: expected 3 levels, got 2\. Give counts for each"):
        module(x, Ragged.from_counts([4, 4], [1, 1]))
    with pytest.raises(regard.MaskError, match=r"masks: expected 3, one for each level, got 1\."):
        module(x, masks=[None])
    with pytest.raises(regard.MaskError, match=r"masks\[0\]: expected a bool tensor \(8,\), .* got torch.float32"):
        module(x, masks=[torch.ones(8), None, None])
    with pytest.raises(regard.ArgumentError, match=r"form: expected 'han' or 'transformer', got 'rnn'"):
        HierarchicalAttention(WIDTH, form="rnn")
    with pytest.raises(
        regard.ArgumentError, match=r"gru: expected form='han' and an even embed_dim, got .*transformer"
    ):
        HierarchicalAttention(WIDTH, form="transformer", gru=True)
    with pytest.raises(regard.ArgumentError, match=r"positions: expected form='transformer' and 3 of them, .* and 1\."):
        HierarchicalAttention(WIDTH, form="transformer", positions=[None])


@pytest.mark.parametrize("form", ["han", "transformer"])
def test_a_compiled_module_takes_another_length(form):
    """The second one is where torch.compile begins to hold lengths open."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = HierarchicalAttention(8, 2, form=form).eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for length in (7, 9):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x).documents, module(x).documents)
