"""Random numbers that belong to an example."""

import torch

from regard.recipes.draws import integers, uniform


def test_a_number_is_the_same_in_any_company():
    numbers = torch.arange(1000)
    together = uniform(numbers, seed=3, stream=1)
    apart = torch.cat([uniform(part, seed=3, stream=1) for part in (numbers[:7], numbers[7:])])
    assert torch.equal(together, apart)
    assert torch.equal(together.flip(0), uniform(numbers.flip(0), seed=3, stream=1))


def test_numbers_are_spread_evenly_and_streams_are_apart():
    numbers = torch.arange(100_000)
    one, other = uniform(numbers, seed=1, stream=1), uniform(numbers, seed=1, stream=2)
    counts = torch.histc(one, bins=20, min=0.0, max=1.0)
    assert float(one.min()) >= 0.0
    assert float(one.max()) < 1.0
    assert float((counts - 5000).abs().max()) < 5 * 5000**0.5
    for pair in ((one, other), (one[1:], one[:-1]), (one, uniform(numbers, seed=2, stream=1))):
        assert abs(float(torch.corrcoef(torch.stack(pair))[0, 1])) < 0.02


def test_splitmix_of_the_paper():
    """The first outputs of SplitMix64 seeded with 1234567, as in its public test vector."""
    from regard.recipes.draws import _mixed

    step = -7046029254386353131
    state, found = torch.tensor(1234567), []
    for _ in range(3):
        found.append(int(_mixed(state * 0 + _undone(int(state), step))) % 2**64)
        state += step
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def _undone(state: int, step: int) -> int:
    """What `_mixed` must be given, so that (number + 1) * step is state + step."""
    inverse = pow(step % 2**64, -1, 2**64)
    number = ((state + step) * inverse - 1) % 2**64
    return number - 2**64 if number >= 2**63 else number


def test_integers_reach_both_ends():
    drawn = integers(torch.arange(1000), 5, seed=1, stream=1)
    assert drawn.unique().tolist() == [0, 1, 2, 3, 4]
