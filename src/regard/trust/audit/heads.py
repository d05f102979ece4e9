"""Who reads from whom: which key/value head each query head reads, and whether samples of a batch meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.trust.audit.recover import Probe


@dataclass(frozen=True)
class HeadReading:
    """Which key/value heads each query head reads.

    keys, values: for each query head the key/value heads whose keys (values) reach its output; empty where no output
        tells (a query that sees one key has the weight 1 whatever the key is).
    """

    keys: tuple[tuple[int, ...], ...]
    values: tuple[tuple[int, ...], ...]

    @property
    def groups(self) -> tuple[int, ...] | None:
        """The key/value head of each query head, or None where one reads several, or keys of one and values of another.

        Keys that tell nothing are taken to stand with their values.
        """
        found: list[int] = []
        for keys, values in zip(self.keys, self.values, strict=True):
            if len(values) != 1 or (keys and keys != values):
                return None
            found.append(values[0])
        return tuple(found)

    def reads(self, groups: Sequence[int]) -> bool:
        """Whether each query head that tells anything reads the key/value head that `groups` gives it, and no other."""
        return all(
            told in ((), (kv_head,))
            for read in (self.keys, self.values)
            for told, kv_head in zip(read, groups, strict=True)
        )


def read_heads(probe: Probe) -> HeadReading:
    """Which heads are read, found by filling one key/value head at a time."""
    return HeadReading(keys=_readers(probe, _change_of_key(probe)), values=_readers(probe, _change_of_value(probe)))


def _readers(probe: Probe, reached: list[Tensor]) -> tuple[tuple[int, ...], ...]:
    """From (heads,) bools, one for each key/value head, to the key/value heads of each query head."""
    return tuple(
        tuple(kv_head for kv_head, heads in enumerate(reached) if bool(heads[head]))
        for head in range(probe.sizes.heads)
    )


def _change_of_value(probe: Probe) -> list[Tensor]:
    query, key = probe.zeros()
    silent = probe.output(query, key, probe.values())

    def reached(kv_head: int) -> Tensor:
        value = probe.values()
        value[:, kv_head] = 1.0
        return _differs(probe.output(query, key, value), silent)

    return [reached(kv_head) for kv_head in range(probe.sizes.kv_heads)]


def _change_of_key(probe: Probe) -> list[Tensor]:
    query, filled = probe.normal(draw=1)
    silent = torch.zeros_like(filled)
    value = _random_values(probe, draw=2)
    before = probe.output(query, silent, value)

    def reached(kv_head: int) -> Tensor:
        key = silent.clone()
        key[:, kv_head] = filled[:, kv_head]
        return _differs(probe.output(query, key, value), before)

    return [reached(kv_head) for kv_head in range(probe.sizes.kv_heads)]


def _differs(after: Tensor, before: Tensor) -> Tensor:
    """(heads,): whether any output of the head changed."""
    return _change(after, before).flatten(2).any(-1).any(0)


def neighbours_reached(probe: Probe) -> tuple[int, ...]:
    """The samples whose output changes when only the first one's tensors do: none, in any attention."""
    if probe.sizes.batch < 2:
        return ()
    query, key = probe.normal(draw=4)
    value = _random_values(probe, draw=5)
    before = probe.output(query, key, value)
    for tensor in (query, key, value):
        tensor[0] = tensor[0] * -1.5 + 0.25
    changed = _change(probe.output(query, key, value), before).flatten(1).any(-1)
    return tuple(sample for sample in range(1, probe.sizes.batch) if bool(changed[sample]))


def _random_values(probe: Probe, *, draw: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw)
    like = probe.values()
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _change(after: Tensor, before: Tensor) -> Tensor:
    """Where an output changed by more than rounding may change it."""
    known = after.isfinite() & before.isfinite()
    change = (after - before).abs().masked_fill(~known, 0.0)
    return change > 1e-4 * before.abs().masked_fill(~known, 0.0).clamp(min=1.0)
