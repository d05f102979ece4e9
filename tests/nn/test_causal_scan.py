"""The causal scan: equal to the sum written out, whatever the chunks, and nothing of it comes from the future."""

from __future__ import annotations

import pytest
import torch
from torch import library as operator_library

from regard.nn._causal_scan import causal_scan, empty_sums

FEATURES, WIDTH, VALUE = 12, 6, 5


def drawn(length, *, log, projection, dtype=torch.float64):
    query, key = (torch.rand(2, 3, length, WIDTH, dtype=dtype) for _ in range(2))
    value = torch.randn(2, 3, length, VALUE, dtype=dtype)
    options = {}
    if log:
        options["log_weight"] = 2 * torch.randn(2, 3, length, dtype=dtype)
    if projection:
        options["projection"] = torch.randn(FEATURES, WIDTH, dtype=dtype)
        options["opposites"] = projection == "opposites"
    return [query, key, value], options


def written_out(query, key, value, log_weight=None, projection=None, opposites=False):
    """The quadratic formula of the module's docstring."""
    if opposites:
        projection = torch.cat([projection, -projection])
    if projection is not None:
        query, key = (query @ projection.T).exp(), (key @ projection.T).exp()
    weights = query @ key.mT
    if log_weight is not None:
        weights = weights * log_weight.exp().unsqueeze(-2)
    weights = weights.tril()
    return weights @ value / weights.sum(-1, keepdim=True)


KINDS = pytest.mark.parametrize(
    ("log", "projection"),
    [(False, ""), (True, ""), (True, "directions"), (True, "opposites")],
    ids=["features", "weighted", "projected", "opposites"],
)


@KINDS
@pytest.mark.parametrize("chunk", [1, 4, 37, 128])
def test_is_the_sum_written_out_and_so_are_its_gradients(log, projection, chunk):
    tensors, options = drawn(37, log=log, projection=projection)
    learned = [tensor.requires_grad_() for tensor in (*tensors, *list(options.values())[:log])]
    found, _ = causal_scan(*tensors, **options, chunk=chunk)
    expected = written_out(*tensors, **options)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * direction).sum(), learned),
        torch.autograd.grad((expected * direction).sum(), learned),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@KINDS
def test_piece_by_piece_is_the_whole_and_so_are_its_gradients(log, projection):
    tensors, options = drawn(23, log=log, projection=projection)
    for tensor in tensors:
        tensor.requires_grad_()
    expected = written_out(*tensors, **options)
    before, pieces = None, []
    for place in (slice(0, 9), slice(9, 10), slice(10, 23)):
        cut = {name: each[:, :, place] if name == "log_weight" else each for name, each in options.items()}
        piece, before = causal_scan(*(tensor[:, :, place] for tensor in tensors), **cut, before=before, chunk=4)
        pieces.append(piece)
    found = torch.cat(pieces, 2)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    mine = torch.autograd.grad((found * direction).sum(), tensors)
    theirs = torch.autograd.grad((expected * direction).sum(), tensors)
    torch.testing.assert_close(mine, theirs)


def test_the_sums_have_gradients_of_their_own():
    tensors, options = drawn(7, log=True, projection="")
    for tensor in (*tensors, options["log_weight"]):
        tensor.requires_grad_()

    def sums(query, key, value, log_weight):
        _, (values, keys, scale) = causal_scan(query, key, value, log_weight=log_weight, chunk=3)
        return values * scale.exp()[..., None, None], keys * scale.exp()[..., None]

    weighted = tensors[1] * options["log_weight"].exp().unsqueeze(-1)
    expected = (weighted.mT @ tensors[2], weighted.sum(2))
    found = sums(*tensors, options["log_weight"])
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(found, expected, strict=True):
        direction, learned = torch.randn_like(mine), [tensors[1], options["log_weight"]]
        # The scale is a unit, not a result: what is divided by it is multiplied by it again, and it has no gradient.
        of_mine = torch.autograd.grad((mine * direction).sum(), learned, retain_graph=True)
        of_theirs = torch.autograd.grad((theirs * direction).sum(), learned, retain_graph=True)
        torch.testing.assert_close(of_mine, of_theirs)


@KINDS
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_the_numbers_of_a_token_are_those_of_the_text_cut_off_behind_it(log, projection, chunk):
    """Bit for bit, even when what follows is huge: no maximum over the whole text, no sum that is taken back."""
    tensors, options = drawn(17, log=log, projection=projection, dtype=torch.float32)
    before, _ = causal_scan(*tensors, **options, chunk=chunk)
    for place in (0, 4, 10):
        later = slice(place + 1, None)
        changed = [tensor.clone() for tensor in tensors]
        changed[1][:, :, later] = 30 * torch.rand_like(changed[1][:, :, later])
        changed[2][:, :, later] *= 1e6
        weights = dict(options)
        if log:
            weights["log_weight"] = weights["log_weight"].clone()
            weights["log_weight"][:, :, later] += 500
        after, _ = causal_scan(*changed, **weights, chunk=chunk)
        assert torch.equal(after[:, :, : place + 1], before[:, :, : place + 1]), place


def test_large_log_weights_neither_overflow_nor_vanish():
    (query, key, value), options = drawn(9, log=True, projection="directions")
    for shift in (0.0, 3000.0, -3000.0):
        found, _ = causal_scan(
            query, key, value, projection=options["projection"], log_weight=options["log_weight"] + shift, chunk=4
        )
        torch.testing.assert_close(found, written_out(query, key, value, **options))


def test_what_has_no_weight_is_not_there():
    tensors, options = drawn(9, log=True, projection="directions")
    options["log_weight"][:, :, [0, 1, 5]] = -torch.inf
    real = [2, 3, 4, 6, 7, 8]
    found, _ = causal_scan(*tensors, **options, chunk=2)
    assert not found[:, :, :2].any()
    kept = written_out(
        *(t[:, :, real] for t in tensors),
        log_weight=options["log_weight"][:, :, real],
        projection=options["projection"],
    )
    torch.testing.assert_close(found[:, :, real], kept)
    learned = [tensor.requires_grad_() for tensor in (*tensors, options["log_weight"])]
    gradients = torch.autograd.grad(causal_scan(*tensors, **options, chunk=2)[0].square().sum(), learned)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[1][:, :, [0, 1, 5]].any()


def test_half_precision_is_summed_in_float32():
    (query, key, value), _ = drawn(400, log=False, projection="", dtype=torch.bfloat16)
    found, sums = causal_scan(query, key, value)
    assert found.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for tensor in sums)
    expected = written_out(query.double(), key.double(), value.double())
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)  # one rounding, that of the output


def test_a_scan_can_begin_with_nothing():
    tensors, _ = drawn(0, log=False, projection="")
    found, sums = causal_scan(*tensors)
    assert found.shape == (2, 3, 0, VALUE)
    assert all(
        torch.equal(mine, zero) for mine, zero in zip(sums, empty_sums(tensors[0], tensors[2], WIDTH), strict=True)
    )


def test_second_derivatives_are_refused_by_name():
    (query, key, value), _ = drawn(5, log=False, projection="")
    query.requires_grad_()
    (gradient,) = torch.autograd.grad(causal_scan(query, key, value)[0].square().sum(), query, create_graph=True)
    with pytest.raises(Exception, match="no second derivative"):
        gradient.sum().backward()


def test_opcheck():
    tensors, options = drawn(7, log=True, projection="directions")
    for tensor in tensors:
        tensor.requires_grad_()
    operator_library.opcheck(
        torch.ops.regard.causal_scan.default,
        (
            *tensors,
            options["log_weight"].requires_grad_(),
            options["projection"],
            *empty_sums(tensors[0], tensors[2], FEATURES),
            False,
            4,
        ),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def peak_of(length):
    """The largest number of elements alive in new tensors during forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, (tuple, list)) else (found,):
                if isinstance(tensor, torch.Tensor):
                    Watch.largest = max(Watch.largest, tensor.untyped_storage().nbytes())
            return found

    tensors = [torch.rand(1, 1, length, 4, requires_grad=True) for _ in range(3)]
    with Watch():
        causal_scan(*tensors, chunk=16)[0].sum().backward()
    return Watch.largest


def test_no_tensor_grows_with_the_square_of_the_length():
    assert peak_of(2048) <= 4 * peak_of(512) + 4096
