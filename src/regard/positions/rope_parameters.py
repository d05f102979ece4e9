"""Reading a transformers configuration: `config.rope_parameters` or the older `rope_scaling`.

Every key is honoured or refused. A rope type or a key unknown here may change the angles, so it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regard._errors import ArgumentError
from regard.positions._arguments import check_count, check_number
from regard.positions.rope_scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    RoPEScaling,
    YaRNScaling,
)


@dataclass(frozen=True)
class RoPEDescription:
    """What a configuration says about its RoPE."""

    base: float
    partial_rotary_factor: float
    scaling: RoPEScaling | None


@dataclass(frozen=True)
class _Source:
    """The keys that are given (not None), and the configuration's own length."""

    given: Mapping[str, Any]
    max_position_embeddings: int | None

    def need(self, key: str) -> Any:
        if key in self.given:
            return self.given[key]
        raise ArgumentError(
            "rope_parameters",
            expected=f"the key {key!r}",
            got=f"the keys {sorted(self.given)}",
            do=f"Add {key!r}, as the model's config.json has it.",
        )

    def some(self, *keys: str) -> dict[str, Any]:
        return {key: self.given[key] for key in keys if key in self.given}

    def length(self) -> int:
        """max_position_embeddings, where the rope type cannot do without."""
        if self.max_position_embeddings is not None:
            return check_count("rope_parameters", "max_position_embeddings", self.max_position_embeddings)
        raise ArgumentError(
            "rope_parameters",
            expected="max_position_embeddings",
            got="None",
            do="Pass max_position_embeddings=config.max_position_embeddings.",
        )

    def original_length(self) -> int:
        key = "original_max_position_embeddings"
        return self.given[key] if key in self.given else self.length()

    def factor(self) -> float:
        """`factor`, or else how much longer than the original length the model's is."""
        return self.given["factor"] if "factor" in self.given else self.length() / self.original_length()


def _linear(source: _Source) -> RoPEScaling:
    return LinearScaling(source.need("factor"))


def _dynamic(source: _Source) -> RoPEScaling:
    return DynamicNTKScaling(source.need("factor"), source.length())


def _yarn(source: _Source) -> RoPEScaling:
    options = source.some("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
    return YaRNScaling(source.factor(), source.original_length(), **options)


def _llama3(source: _Source) -> RoPEScaling:
    low, high = source.need("low_freq_factor"), source.need("high_freq_factor")
    return Llama3Scaling(source.need("factor"), low, high, source.original_length())


def _longrope(source: _Source) -> RoPEScaling:
    short, long = source.need("short_factor"), source.need("long_factor")
    amplitude = source.some("attention_factor") or {"factor": source.factor()}
    return LongRoPEScaling(short, long, source.original_length(), **amplitude)


def _unscaled(_: _Source) -> None:
    return None


_LENGTH = "original_max_position_embeddings"
_READERS: dict[str, tuple[Callable[[_Source], RoPEScaling | None], frozenset[str]]] = {
    "default": (_unscaled, frozenset()),
    "linear": (_linear, frozenset({"factor"})),
    "dynamic": (_dynamic, frozenset({"factor"})),
    "yarn": (
        _yarn,
        frozenset(
            {"factor", _LENGTH, "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}
        ),
    ),
    "llama3": (_llama3, frozenset({"factor", _LENGTH, "low_freq_factor", "high_freq_factor"})),
    "longrope": (_longrope, frozenset({"factor", _LENGTH, "short_factor", "long_factor", "attention_factor"})),
}
_ALWAYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def read_rope_parameters(parameters: Mapping[str, Any], max_position_embeddings: int | None) -> RoPEDescription:
    """What `parameters` says. Keys that are None count as absent; without `rope_theta` the base is 10000."""
    given = {key: value for key, value in parameters.items() if value is not None}
    _refuse_nested(given)
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type not in _READERS:
        raise ArgumentError(
            "rope_parameters rope_type",
            expected=f"one of {', '.join(_READERS)}",
            got=repr(rope_type),
            do="This kind of RoPE is not here; rotate the states yourself and pass no position.",
        )
    read, own = _READERS[rope_type]
    _refuse_unknown(given, _ALWAYS | own, rope_type)
    return RoPEDescription(
        base=check_number("rope_parameters", "rope_theta", given.get("rope_theta", 10000.0), minimum=1, above=True),
        partial_rotary_factor=_partial(given.get("partial_rotary_factor", 1.0)),
        scaling=read(_Source(given, max_position_embeddings)),
    )


def _partial(value: object) -> float:
    share = check_number("rope_parameters", "partial_rotary_factor", value, minimum=0, above=True)
    if share <= 1:
        return share
    raise ArgumentError(
        "rope_parameters partial_rotary_factor",
        expected="a share of head_dim, at most 1",
        got=repr(value),
        do="Divide the number of rotated channels by head_dim.",
    )


def _refuse_nested(given: Mapping[str, Any]) -> None:
    nested = [key for key, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise ArgumentError(
            "rope_parameters",
            expected="the parameters of one kind of layer",
            got=f"one mapping for each of {nested}",
            do=f"Build one RoPE for each, from rope_parameters[{nested[0]!r}] and so on.",
        )


def _refuse_unknown(given: Mapping[str, Any], known: frozenset[str], rope_type: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ArgumentError(
            f"rope_parameters of type {rope_type!r}",
            expected=f"only the keys {sorted(known)}",
            got=f"also {unknown}",
            do="What they mean is not known here, so the angles might be wrong; drop them if they change nothing.",
        )
