"""What Transformer-XL's memory and that of nearest neighbours share: tokens are kept as they were, without gradient."""

import pytest
import torch

import regard
from regard.masks import Keys, Padding
from tests.nn.memories import MAKERS, WIDTH, assert_alike, drawn, read, seeded


@pytest.mark.parametrize("name", ["transformer_xl", "knn"])
def test_no_gradient_reaches_an_earlier_segment(name):
    module = seeded(MAKERS[name])
    first, second = drawn(1, 3, WIDTH).requires_grad_(), drawn(1, 3, WIDTH, seed=2).requires_grad_()
    _, state = module(first)
    assert not any(tensor.requires_grad for tensor in state.tensors.values())
    module(second, state=state)[0].sum().backward()
    assert first.grad is None
    assert second.grad.any()


@pytest.mark.parametrize("name", ["transformer_xl", "knn"])
def test_padding_on_the_right_is_not_remembered(name):
    module = seeded(MAKERS[name])
    x, y = drawn(3, 4, WIDTH), drawn(3, 3, WIDTH, seed=2)
    lengths = [4, 2, 0]
    found, state = read(module, [x, y], masks=[Padding(lengths), None])
    assert state.seen.tolist() == [7, 5, 3]
    for row, length in enumerate(lengths):
        alone, kept = read(module, [x[row : row + 1, :length], y[row : row + 1]])
        assert_alike(found[row : row + 1, 4:], alone[:, length:])
        for tensor in kept.tensors:
            assert_alike(state[tensor][row : row + 1], kept[tensor])


@pytest.mark.parametrize("name", ["transformer_xl", "knn"])
def test_padding_elsewhere_is_refused(name):
    module, x = MAKERS[name](), torch.randn(2, 3, WIDTH)
    for mask in (Padding([1, 3], side="left"), Keys(torch.tensor([[True, False, True]] * 2))):
        with pytest.raises(
            regard.UnsupportedError, match=r"padding would stand between .* Put the padding on the right"
        ):
            module(x, mask=mask)
