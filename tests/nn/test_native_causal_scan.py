"""The causal scan on the native core: equal to the sum written out, for every layout, piece and number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import library as operator_library

from regard.backends import _library
from regard.nn import _causal_scan
from regard.nn._causal_scan import causal_scan

if _library.why_absent() is not None:
    pytest.skip(_library.why_absent(), allow_module_level=True)

WIDTH, DIRECTIONS, VALUE = 9, 11, 21
KINDS = pytest.mark.parametrize("kind", ["features", "weighted", "projected", "opposites"])


def drawn(kind, length, *, batch=2, heads=3, begun=False):
    """Query, key, value, the state before; and options."""
    query, key = (torch.rand(batch, heads, length, WIDTH) for _ in range(2))
    tensors = [query, key, torch.randn(batch, heads, length, VALUE)]
    options = {}
    if kind != "features":
        options["log_weight"] = 2 * torch.randn(batch, heads, length)
    if kind in ("projected", "opposites"):
        options["projection"] = torch.randn(DIRECTIONS, WIDTH)
        options["opposites"] = kind == "opposites"
    if begun:
        features = WIDTH if "projection" not in options else DIRECTIONS * (1 + options["opposites"])
        scale = torch.zeros(batch, heads) if kind == "features" else torch.randn(batch, heads)
        options["before"] = (
            torch.randn(batch, heads, features, VALUE), torch.rand(batch, heads, features) + 0.1, scale,
        )  # fmt: skip
    return tensors, options


def written_out(query, key, value, *, log_weight=None, projection=None, opposites=False, before=None):
    """The quadratic formula in float64, with what came before; and the sums after, over no scale."""
    query, key, value = query.double(), key.double(), value.double()
    if projection is not None:
        directions = torch.cat([projection, -projection]) if opposites else projection
        query, key = ((each @ directions.double().T).exp() for each in (query, key))
    if log_weight is not None:
        key = key * log_weight.double().exp().unsqueeze(-1)
    weights = (query @ key.mT).tril()
    found, total = weights @ value, weights.sum(-1, keepdim=True)
    values, keys = key.mT @ value, key.sum(2)
    if before is not None:
        unit = before[2].double().exp()[..., None, None]
        found, total = found + query @ (before[0] * unit), total + query @ (before[1].unsqueeze(-1) * unit)
        values, keys = values + before[0] * unit, keys + before[1] * unit.squeeze(-1)
    return found / total, values, keys


def unscaled(output, sums):
    """Of the scan: what `written_out` gives."""
    return output, sums[0] * sums[2].double().exp()[..., None, None], sums[1] * sums[2].double().exp()[..., None]


def leaves(tensors, options):
    """What has a gradient."""
    found = [*tensors, options.get("log_weight"), *options.get("before", ())[:2]]
    return [tensor.requires_grad_() for tensor in found if tensor is not None]


def assert_near(found, expected, length):
    """Sums of so many products have so many roundings, of the largest number; that of a gradient may cancel to 0."""
    assert found.shape == expected.shape
    allowed = 2.0**-24 * (length + 100) * max(1.0, expected.abs().max().item()) if expected.numel() else 0
    assert ((found.double() - expected).abs() <= allowed).all()


def compare(tensors, options):
    length, learned = tensors[0].shape[2], leaves(tensors, options)
    found, expected = unscaled(*causal_scan(*tensors, **options)), written_out(*tensors, **options)
    for mine, theirs in zip(found, expected, strict=True):
        assert_near(mine, theirs, length)
    # What the state is divided by has no gradient of its own, so the sums above get one that goes through none of it.
    directions = [torch.randn_like(each) for each in expected]
    mine = torch.autograd.grad(sum((a * b).sum() for a, b in zip(found, directions, strict=True)), learned)
    theirs = torch.autograd.grad(sum((a * b).sum() for a, b in zip(expected, directions, strict=True)), learned)
    for one, other in zip(mine, theirs, strict=True):
        assert_near(one, other.double(), length)


@pytest.fixture
def only_native(monkeypatch):
    """The definition in torch would be an error."""

    def refuse(*_):
        raise AssertionError("the core was not asked")

    monkeypatch.setattr(_causal_scan, "_scanned", refuse)
    monkeypatch.setattr(_causal_scan, "_scanned_back", refuse)


@KINDS
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 65, 150])
@pytest.mark.usefixtures("only_native")
def test_is_the_sum_written_out_and_so_are_its_gradients(kind, length, begun):
    torch.manual_seed(length)
    compare(*drawn(kind, length, begun=begun))


@KINDS
@pytest.mark.usefixtures("only_native")
def test_piece_by_piece_is_the_whole_and_so_are_its_gradients(kind):
    tensors, options = drawn(kind, 150)
    learned, before, pieces = leaves(tensors, options), None, []
    for place in (slice(0, 70), slice(70, 71), slice(71, 71), slice(71, 150)):
        cut = {name: each[:, :, place] if name == "log_weight" else each for name, each in options.items()}
        piece, before = causal_scan(*(tensor[:, :, place] for tensor in tensors), **cut, before=before)
        pieces.append(piece)
    found, expected = torch.cat(pieces, 2), written_out(*tensors, **options)[0]
    assert_near(found, expected, 150)
    direction = torch.randn_like(expected)
    mine = torch.autograd.grad((found * direction).sum(), learned)
    theirs = torch.autograd.grad((expected * direction).sum(), learned)
    for one, other in zip(mine, theirs, strict=True):
        assert_near(one, other.double(), 150)


@KINDS
@pytest.mark.usefixtures("only_native")
def test_the_number_of_threads_changes_no_bit(kind):
    tensors, options = drawn(kind, 800, batch=1, heads=1)
    learned, before = leaves(tensors, options), torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            output, sums = causal_scan(*tensors, **options)
            gradients = torch.autograd.grad(output.square().sum() + sums[0].sum() + sums[1].sum(), learned)
            answers.append((output, *sums, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(torch.equal(one, another) for one, another in zip(answers[0], other, strict=True))


@KINDS
@pytest.mark.usefixtures("only_native")
def test_nothing_comes_from_the_future(kind):
    tensors, options = drawn(kind, 100)
    learned = leaves(tensors, options)
    for place in (0, 15, 16, 63, 64, 80):
        gradients = torch.autograd.grad(causal_scan(*tensors, **options)[0][:, :, place].square().sum(), learned)
        assert all(not gradient[:, :, place + 1 :].any() for gradient in gradients)
        assert gradients[2][:, :, : place + 1].all()


@pytest.mark.parametrize("layout", ["heads inside", "of one projection", "columns", "shared", "every other", "negated"])
@pytest.mark.usefixtures("only_native")
def test_any_layout(layout):
    tensors, options = drawn("projected", 70)
    if layout == "heads inside":
        tensors = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]
    elif layout == "of one projection":
        together = torch.cat(tensors, -1)
        tensors = list(together.split([WIDTH, WIDTH, VALUE], -1))
    elif layout == "columns":
        tensors = [tensor.mT.contiguous().mT for tensor in tensors]
    elif layout == "shared":
        tensors = [tensor[:1, :1].expand(2, 3, -1, -1) for tensor in tensors]
        options["log_weight"] = options["log_weight"][:, :, :1].expand(-1, -1, 70)
    elif layout == "every other":
        tensors = [torch.stack([tensor, tensor], 3)[:, :, :, 1] for tensor in tensors]
        options["log_weight"] = torch.stack([options["log_weight"]] * 2, 3)[..., 0]
    else:
        tensors = [torch.complex(tensor, -tensor).conj().imag for tensor in tensors]
        assert tensors[0].is_neg()
    compare(tensors, options)


@KINDS
def test_nothing_to_read_leaves_the_state(kind):
    tensors, options = drawn(kind, 0, begun=True)
    output, sums = causal_scan(*tensors, **options)
    assert output.shape == (2, 3, 0, VALUE)
    assert all(torch.equal(one, other) for one, other in zip(sums, options["before"], strict=True))


@KINDS
def test_the_operators_keep_torchs_rules(kind):
    tensors, options = drawn(kind, 19, begun=True)
    leaves(tensors, options)
    operator_library.opcheck(
        torch.ops.regard.causal_scan.default,
        (*tensors, options.get("log_weight"), options.get("projection"), *options["before"],
         options.get("opposites", False), 64),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


@KINDS
def test_without_the_core_the_numbers_are_the_same(kind, monkeypatch):
    tensors, options = drawn(kind, 100)
    found = causal_scan(*tensors, **options)[0]
    monkeypatch.setattr(_library, "why_absent", lambda: "it is absent")
    expected = causal_scan(*tensors, **options)[0]
    assert not torch.equal(found, expected)  # other orders of the same sums
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("only_native")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_summed_in_torch(dtype):
    tensors, _ = drawn("features", 5)
    with pytest.raises(AssertionError, match="the core was not asked"):
        causal_scan(*(tensor.to(dtype) for tensor in tensors))
