"""`regard.dispatch`: what each backend says, in the order in which "auto" asks them."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.backends import _library
from regard.positions import ALiBi
from tests.wording import assert_known

NATIVE = pytest.mark.skipif(_library.why_absent() is not None, reason="there is no native core")


def query(**options):
    """Unit-normal numbers, (1, 2, 5, 8)."""
    return torch.randn(1, 2, 5, 8, **options)


def asked(tensor, **options):
    """The names in the order of the rows, and the status of each."""
    return {row.backend: row.status for row in regard.dispatch(tensor, tensor, tensor, **options).choices}


@NATIVE
def test_it_prints_a_table():
    table = regard.dispatch(query(), query(), query(), softcap=2.0)
    assert table.chosen == "native"
    assert str(table).splitlines() == [
        "native  chosen     fused kernel that skips masked blocks; memory grows with length",
        "sdpa    refused    it has no softcap",
        "eager   supported  plain torch operations; memory grows with q_len x kv_len",
        "flex    supported  unfused below 4 M scores, where compiling would cost more than it saves",
    ]


@NATIVE
def test_a_backend_that_is_named_is_chosen_or_none_is():
    assert asked(query(), backend="eager") == {
        "native": "supported",
        "sdpa": "supported",
        "eager": "chosen",
        "flex": "supported",
    }
    named = regard.dispatch(query(), query(), query(), softcap=2.0, backend="sdpa")
    assert named.chosen is None
    assert [row.status for row in named.choices] == ["supported", "refused", "supported", "supported"]


def test_elsewhere_the_order_is_another():
    assert list(asked(query(device="meta"))) == ["native", "sdpa", "flex", "eager"]
    assert regard.dispatch(*[query(device="meta")] * 3).chosen == "sdpa"


def test_asking_for_the_lse_is_part_of_the_question():
    assert asked(query(device="meta"))["sdpa"] == "chosen"
    assert asked(query(device="meta"), return_lse=True)["sdpa"] == "refused"  # only its CPU kernel gives it


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    tensor = torch.ones(1, 2, 5, 8)
    for seed in (None, 7):
        assert asked(tensor, dropout_p=0.5, seed=seed)["sdpa"] == "refused"
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_wrong_is_wrong_here_too():
    with pytest.raises(regard.ArgumentError) as caught:
        asked(query(), backend="AUTO")
    assert_known(str(caught.value))
    with pytest.raises(regard.ArgumentError, match=r"seed: expected an integer"):
        asked(query(), seed=-1)


def test_without_dropout_attention_draws_no_random_number():
    tensor = query()
    before = torch.get_rng_state()
    regard.attention(tensor, tensor, tensor)
    assert torch.equal(before, torch.get_rng_state())
    regard.attention(tensor, tensor, tensor, dropout_p=0.5)
    assert not torch.equal(before, torch.get_rng_state())


def test_a_bias_of_zeros_and_ones_is_added_when_that_is_said():
    tensor, bias = query(), (torch.rand(5, 5) < 0.5).float()
    found = regard.attention(tensor, tensor, tensor, bias=bias, additive=True)
    shifted = regard.attention(tensor, tensor, tensor, bias=bias + 0.5)  # the same for a whole row
    torch.testing.assert_close(found, shifted)
    assert not torch.allclose(found, regard.attention(tensor, tensor, tensor))


def test_a_square_mask_for_one_sample_has_one_meaning():
    one = torch.ones(1, 1, dtype=torch.bool)
    tensor = torch.randn(1, 2, 1, 8)
    assert torch.equal(regard.attention(tensor, tensor, tensor, mask=one), tensor)


def test_a_mask_is_spread_over_the_queries_and_the_keys():
    tensor = query()
    for sizes in ((1, 1, 1, 5), (1, 1, 5, 1), (1, 2, 1, 1)):
        mask = torch.rand(sizes) < 0.5
        whole = mask.expand(1, 2, 5, 5).clone()
        assert torch.equal(*(regard.attention(tensor, tensor, tensor, mask=each) for each in (mask, whole))), sizes


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_tensor_that_overrides_functions_is_handed_everything(which):
    asked = []

    class Told(torch.Tensor):
        """A tensor that is asked before `regard.attention` computes, as torch's own functions ask."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is regard.attention:
                asked.append((types, args, kwargs))
                return "taken over"
            return super().__torch_function__(func, types, args, kwargs or {})

    tensors = [query(), query(), query()]
    tensors[which] = tensors[which].as_subclass(Told)
    options = {
        "mask": torch.ones(5, 5, dtype=torch.bool),
        "position": ALiBi(2),
        "bias": query(),
        "scale": 0.5,
        "softcap": 2.0,
        "sink": torch.ones(2),
        "dropout_p": 0.25,
        "seed": 3,
        "enable_gqa": True,
        "backend": "eager",
        "return_lse": True,
        "additive": True,
    }
    assert regard.attention(*tensors, **options) == "taken over"
    [(types, args, kwargs)] = asked
    assert Told in types
    assert all(found is given for found, given in zip(args, tensors, strict=True))
    assert kwargs.keys() == options.keys()
    assert all(kwargs[name] is given for name, given in options.items())
