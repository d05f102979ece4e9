"""Positions: how distance changes scores or vectors."""

from regard.positions._base import Position as Position
from regard.positions.alibi import ALiBi as ALiBi
from regard.positions.continuous import ContinuousBias as ContinuousBias
from regard.positions.rope import RoPE as RoPE
from regard.positions.rope_layout import half_to_interleaved as half_to_interleaved
from regard.positions.rope_layout import interleaved_to_half as interleaved_to_half
from regard.positions.rope_scaling import DynamicNTKScaling as DynamicNTKScaling
from regard.positions.rope_scaling import LinearScaling as LinearScaling
from regard.positions.rope_scaling import Llama3Scaling as Llama3Scaling
from regard.positions.rope_scaling import LongRoPEScaling as LongRoPEScaling
from regard.positions.rope_scaling import NTKScaling as NTKScaling
from regard.positions.rope_scaling import RoPEScaling as RoPEScaling
from regard.positions.rope_scaling import YaRNScaling as YaRNScaling
from regard.positions.shaw import Shaw as Shaw
from regard.positions.t5 import T5Bias as T5Bias
from regard.positions.transformer_xl import TransformerXL as TransformerXL

__all__ = [
    "ALiBi",
    "ContinuousBias",
    "DynamicNTKScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "NTKScaling",
    "Position",
    "RoPE",
    "RoPEScaling",
    "Shaw",
    "T5Bias",
    "TransformerXL",
    "YaRNScaling",
    "half_to_interleaved",
    "interleaved_to_half",
]
