"""How a model trained with RoPE on short texts reads longer ones: the frequencies change.

    LinearScaling       every frequency / factor             Chen et al. 2023, https://arxiv.org/abs/2306.15595
    NTKScaling          a larger base: fast pairs hardly     bloc97 2023, in Peng et al. 2023, section 3.1
                        change, the slowest is / factor
    DynamicNTKScaling   NTK, by as much as the text needs    emozilla 2023, ibid. section 3.4
    YaRNScaling         by turns: fast pairs stay, slow      Peng et al. 2023, https://arxiv.org/abs/2309.00071
                        ones are / factor, a ramp between
    Llama3Scaling       the same idea, ramp over turns       Llama 3.1, https://arxiv.org/abs/2407.21783
    LongRoPEScaling     a searched divisor for each pair     Ding et al. 2024, https://arxiv.org/abs/2402.13753

Each is a value: it compares, hashes and prints as what it means. All numbers are float64.

Two depend on the length of the text at hand, that is, its last position + 1: DynamicNTKScaling and LongRoPEScaling.
All queries and keys of one call take the same frequencies, also those near the beginning. (transformers instead keeps,
in one model, the frequencies of the longest text seen, and in a KV cache the keys as they were once turned.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regard._errors import ArgumentError
from regard.positions._arguments import check_count, check_number


def plain_frequencies(dim: int, base: float | Tensor, device: torch.device) -> Tensor:
    """base^(-2c / dim) for each channel pair c: float64 (dim / 2,)."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
    return torch.pow(torch.as_tensor(base, dtype=torch.float64, device=device), -exponents)


class RoPEScaling(ABC):
    """A rule for the frequencies of a RoPE."""

    depends_on_length: ClassVar[bool] = False

    @abstractmethod
    def frequencies(self, dim: int, base: float, length: Tensor) -> Tensor:
        """The angle of each channel pair for one step, float64 (dim / 2,), in a text of `length` (int64, 0-d)."""

    def amplitude(self) -> float:
        """What cosine and sine are multiplied with. Scores grow with its square."""
        return 1.0

    def check_dim(self, dim: int) -> None:
        """Raise ArgumentError when the rule has no meaning for so many channels."""

    def _check_factor(self, factor: float) -> None:
        check_number(type(self).__name__, "factor", factor, minimum=1)

    def _check_original_length(self, length: int) -> None:
        check_count(type(self).__name__, "original_length", length)


def _check_ntk_dim(owner: str, dim: int) -> None:
    if dim < 4:
        raise ArgumentError(
            f"{owner} with RoPE dim",
            expected="at least 4, since the slowest of several pairs is scaled",
            got=str(dim),
            do="Take LinearScaling, which is the same for a single pair.",
        )


@dataclass(frozen=True)
class LinearScaling(RoPEScaling):
    """Positions squeezed by `factor` (>= 1)."""

    factor: float

    def __post_init__(self) -> None:
        self._check_factor(self.factor)

    def frequencies(self, dim: int, base: float, length: Tensor) -> Tensor:
        return plain_frequencies(dim, base, length.device) / self.factor


@dataclass(frozen=True)
class NTKScaling(RoPEScaling):
    """The base grows so that the slowest pair turns `factor` (>= 1) times more slowly, whatever the length."""

    factor: float

    def __post_init__(self) -> None:
        self._check_factor(self.factor)

    def check_dim(self, dim: int) -> None:
        _check_ntk_dim("NTKScaling", dim)

    def frequencies(self, dim: int, base: float, length: Tensor) -> Tensor:
        return plain_frequencies(dim, base * self.factor ** (dim / (dim - 2)), length.device)


@dataclass(frozen=True)
class DynamicNTKScaling(RoPEScaling):
    """NTK by factor * L / original_length - factor + 1 in a text of length L; up to `original_length` nothing changes.

    This is `rope_type="dynamic"` of transformers, whose original_length is `config.max_position_embeddings`.
    """

    factor: float
    original_length: int

    depends_on_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_factor(self.factor)
        self._check_original_length(self.original_length)

    def check_dim(self, dim: int) -> None:
        _check_ntk_dim("DynamicNTKScaling", dim)

    def frequencies(self, dim: int, base: float, length: Tensor) -> Tensor:
        stretch = length.clamp(min=self.original_length).to(torch.float64) / self.original_length
        growth = self.factor * stretch - (self.factor - 1)
        return plain_frequencies(dim, base * growth ** (dim / (dim - 2)), length.device)


@dataclass(frozen=True)
class YaRNScaling(RoPEScaling):
    """Pairs that turn more than `beta_fast` times within `original_length` stay, less than `beta_slow` are / factor.

    Between them a ramp over the pair's index, whose ends are rounded outwards to whole pairs when `truncate`.

    Cosine and sine are multiplied with `attention_factor`, by default the paper's 0.1 ln(factor) + 1. With DeepSeek's
    `mscale` and `mscale_all_dim`, both given, it is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1).
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        self._check_factor(self.factor)
        self._check_original_length(self.original_length)
        check_number("YaRNScaling", "beta_slow", self.beta_slow, minimum=0, above=True)
        check_number("YaRNScaling", "beta_fast", self.beta_fast, minimum=self.beta_slow)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                check_number("YaRNScaling", name, getattr(self, name), minimum=0)

    def frequencies(self, dim: int, base: float, length: Tensor) -> Tensor:
        plain = plain_frequencies(dim, base, length.device)
        low, high = self._ramp(dim, base)
        pairs = torch.arange(dim // 2, dtype=torch.float64, device=length.device)
        slowed = ((pairs - low) / (high - low)).clamp(0, 1)
        return plain * (1 - slowed) + plain / self.factor * slowed

    def _ramp(self, dim: int, base: float) -> tuple[float, float]:
        """The pair where the ramp begins and the one where it ends."""

        def pair(turns: float) -> float:
            return dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        return low, high if high != low else high + 0.001

    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        growth = 0.1 * math.log(self.factor)
        if self.mscale and self.mscale_all_dim:
            return (growth * self.mscale + 1) / (growth * self.mscale_all_dim + 1)
        return growth + 1


@dataclass(frozen=True)
class Llama3Scaling(RoPEScaling):
    """Pairs with over `high_freq_factor` turns within `original_length` stay, under `low_freq_factor` are / factor.

    Between them a ramp over the number of turns. Llama 3.1 has 8, 1, 4 and 8192.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def __post_init__(self) -> None:
        self._check_factor(self.factor)
        self._check_original_length(self.original_length)
        check_number("Llama3Scaling", "low_freq_factor", self.low_freq_factor, minimum=0, above=True)
        check_number(
            "Llama3Scaling", "high_freq_factor", self.high_freq_factor, minimum=self.low_freq_factor, above=True
        )

    def frequencies(self, dim: int, base: float, length: Tensor) -> Tensor:
        plain = plain_frequencies(dim, base, length.device)
        turns = self.original_length * plain / (2 * math.pi)
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return plain * kept + plain / self.factor * (1 - kept)


@dataclass(frozen=True, repr=False)
class LongRoPEScaling(RoPEScaling):
    """A divisor for each channel pair: `short_factor` in a text up to `original_length`, beyond it `long_factor`.

    Cosine and sine are multiplied, in short and long texts alike, with `attention_factor`, or else with
    sqrt(1 + ln(factor) / ln(original_length)) where `factor` is the longest length / original_length.
    """

    short_factor: Sequence[float]
    long_factor: Sequence[float]
    original_length: int
    factor: float | None = None
    attention_factor: float | None = None

    depends_on_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("LongRoPEScaling", "original_length", self.original_length, minimum=2)
        for name in ("short_factor", "long_factor"):
            given = tuple(check_number("LongRoPEScaling", name, f, minimum=0, above=True) for f in getattr(self, name))
            # A list would make the value neither hashable nor constant.
            object.__setattr__(self, name, given)
        if self.factor is None and self.attention_factor is None:
            raise ArgumentError(
                "LongRoPEScaling",
                expected="factor or attention_factor, which say how large cosine and sine are",
                got="neither",
                do="Give factor=longest length / original_length.",
            )
        if self.factor is not None:
            self._check_factor(self.factor)
        if self.attention_factor is not None:
            check_number("LongRoPEScaling", "attention_factor", self.attention_factor, minimum=0)

    def check_dim(self, dim: int) -> None:
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if len(factors) != dim // 2:
                raise ArgumentError(
                    f"LongRoPEScaling {name}",
                    expected=f"{dim // 2} numbers, one for each channel pair of RoPE dim {dim}",
                    got=f"{len(factors)} numbers",
                    do="Take dim = 2 * the number of factors.",
                )

    def frequencies(self, dim: int, base: float, length: Tensor) -> Tensor:
        short = torch.tensor(self.short_factor, dtype=torch.float64, device=length.device)
        long = torch.tensor(self.long_factor, dtype=torch.float64, device=length.device)
        return plain_frequencies(dim, base, length.device) / torch.where(length > self.original_length, long, short)

    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor or 1.0) / math.log(self.original_length))

    def __repr__(self) -> str:
        factors = (self.short_factor, self.long_factor)
        short, long = (f"<{len(f)} from {min(f):g} to {max(f):g}>" if f else "()" for f in factors)
        return (
            f"LongRoPEScaling(short_factor={short}, long_factor={long}, original_length={self.original_length}, "
            f"factor={self.factor}, attention_factor={self.attention_factor})"
        )
