"""Which examples make which batch: pure functions of the seed and the epoch.

So a place in the data is two numbers, the epoch and how many of its batches are done, and a run that is resumed sees
the examples that it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


def shuffled_batches(count: int, batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Batches of `batch_size` of `count` examples in random order; what is left over at the end stays out."""
    if not count:
        return []
    places = listed(torch.randperm(count, generator=_generator(seed, epoch)))
    whole = max(count // batch_size, 1)
    return [places[first * batch_size : (first + 1) * batch_size] for first in range(whole)]


def length_batches(lengths: Sequence[int], most_tokens: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Batches of examples of like length, at most `most_tokens` with their padding, in random order.

    Examples of one length are in another order in each epoch, so that batches differ too. An example longer than
    most_tokens makes a batch of its own.
    """
    generator = _generator(seed, epoch)
    chance = torch.rand(len(lengths), generator=generator)
    order = listed(torch.argsort(torch.tensor(lengths, dtype=torch.float32) * (1.0 + 0.1 * chance)))
    batches: list[list[int]] = [[]]
    longest = 0
    for place in order:
        longest = max(longest, lengths[place])
        if batches[-1] and longest * (len(batches[-1]) + 1) > most_tokens:
            batches.append([])
            longest = lengths[place]
        batches[-1].append(place)
    return [batches[place] for place in listed(torch.randperm(len(batches), generator=generator)) if batches[place]]


def listed(numbers: Tensor) -> list[int]:
    """Of whole numbers (count,): torch's own `tolist` has no type."""
    return cast("Any", numbers).tolist()


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 20) + epoch)
