"""Mechanisms: attention as modules with weights, one file for each paper or section of the guide.

Token mixers are made with `(embed_dim, num_heads, ...)` and called on (batch, length, embed_dim):
`module(x, context=None, *, mask=None)`, where `context` is what is attended to (x itself when left out) and `mask` is
a `regard.masks.Mask` or a bool tensor, True = may attend. What a mechanism cannot honour it refuses by name. Image
gates are made with `(channels, ...)` and called on (batch, channels, height, width). Each class has a `card` that says
where it comes from, what it costs, and whether it may be used causally and with padding; `docs/mechanisms.md` lists
them.
"""

from typing import TYPE_CHECKING

from regard._lazy import lazily

if TYPE_CHECKING:
    from regard.nn._cache import CacheStack as CacheStack
    from regard.nn._cache import KeyValueCache as KeyValueCache
    from regard.nn._card import Card as Card
    from regard.nn._ragged import Ragged as Ragged
    from regard.nn._scan_state import ScanState as ScanState
    from regard.nn.alignment_map import AlignmentMap as AlignmentMap
    from regard.nn.alignment_map import attention_map as attention_map
    from regard.nn.alignment_map import similarity_map as similarity_map
    from regard.nn.axial import AxialAttention as AxialAttention
    from regard.nn.axial import CrissCrossAttention as CrissCrossAttention
    from regard.nn.bigbird import BigBirdAttention as BigBirdAttention
    from regard.nn.channel import ChannelGate as ChannelGate
    from regard.nn.channel import EffectiveSqueezeExcitation as EffectiveSqueezeExcitation
    from regard.nn.channel import EfficientChannel as EfficientChannel
    from regard.nn.channel import SqueezeExcitation as SqueezeExcitation
    from regard.nn.config import AttentionConfig as AttentionConfig
    from regard.nn.contrastive import CLIPLoss as CLIPLoss
    from regard.nn.contrastive import SigLIPLoss as SigLIPLoss
    from regard.nn.contrastive import clip_loss as clip_loss
    from regard.nn.contrastive import siglip_loss as siglip_loss
    from regard.nn.coordinate import CoordinateAttention as CoordinateAttention
    from regard.nn.cross_modal import CoAttention as CoAttention
    from regard.nn.cross_modal import CrossModalAttention as CrossModalAttention
    from regard.nn.cross_modal import TextImage as TextImage
    from regard.nn.feed_forward import FeedForward as FeedForward
    from regard.nn.flamingo import GatedCrossAttention as GatedCrossAttention
    from regard.nn.flamingo import preceding_image as preceding_image
    from regard.nn.forgetting import ForgettingAttention as ForgettingAttention
    from regard.nn.gated import GatedAttention as GatedAttention
    from regard.nn.gated import OutputGatedAttention as OutputGatedAttention
    from regard.nn.gather_excite import GatherExcite as GatherExcite
    from regard.nn.global_context import GlobalContext as GlobalContext
    from regard.nn.halo import HaloAttention as HaloAttention
    from regard.nn.hierarchical import HierarchicalAttention as HierarchicalAttention
    from regard.nn.hierarchical import Hierarchy as Hierarchy
    from regard.nn.insert import insert_attention as insert_attention
    from regard.nn.insert import remove_attention as remove_attention
    from regard.nn.linear import EfficientAttention as EfficientAttention
    from regard.nn.linear import LinearAttention as LinearAttention
    from regard.nn.linformer import LinformerAttention as LinformerAttention
    from regard.nn.longformer import LongformerAttention as LongformerAttention
    from regard.nn.maxvit import MaxViTBlockAttention as MaxViTBlockAttention
    from regard.nn.maxvit import MaxViTGridAttention as MaxViTGridAttention
    from regard.nn.memory import MemoryAttention as MemoryAttention
    from regard.nn.memory_knn import KNNMemory as KNNMemory
    from regard.nn.memory_recurrent import RecurrentMemory as RecurrentMemory
    from regard.nn.memory_state import MemoryState as MemoryState
    from regard.nn.memory_transformer_xl import TransformerXLMemory as TransformerXLMemory
    from regard.nn.multihead import MultiHeadAttention as MultiHeadAttention
    from regard.nn.neighborhood import NeighborhoodAttention as NeighborhoodAttention
    from regard.nn.non_local import NonLocal as NonLocal
    from regard.nn.nystrom import NystromAttention as NystromAttention
    from regard.nn.perceiver import PerceiverResampler as PerceiverResampler
    from regard.nn.performer import PerformerAttention as PerformerAttention
    from regard.nn.schedule import DropoutSchedule as DropoutSchedule
    from regard.nn.selective import SelectiveStateSpace as SelectiveStateSpace
    from regard.nn.selective_kernel import SelectiveKernel as SelectiveKernel
    from regard.nn.sparse import BlockAttention as BlockAttention
    from regard.nn.sparse import DilatedAttention as DilatedAttention
    from regard.nn.sparse import StridedAttention as StridedAttention
    from regard.nn.spatial import BAM as BAM
    from regard.nn.spatial import CBAM as CBAM
    from regard.nn.spatial import SpatialGate as SpatialGate
    from regard.nn.state_space import S4D as S4D
    from regard.nn.tensor_cores import pad_to_multiple as pad_to_multiple
    from regard.nn.topk import TopKAttention as TopKAttention
    from regard.nn.transformer import DecoderBlock as DecoderBlock
    from regard.nn.transformer import EncoderBlock as EncoderBlock
    from regard.nn.transformer import TransformerDecoder as TransformerDecoder
    from regard.nn.transformer import TransformerEncoder as TransformerEncoder
    from regard.nn.transformer_generate import Generated as Generated
    from regard.nn.transformer_generate import beam_search as beam_search
    from regard.nn.transformer_model import TokenEmbedding as TokenEmbedding
    from regard.nn.transformer_model import Transformer as Transformer

_HOMES: dict[str, tuple[str, ...]] = {
    "regard.nn._cache": ("CacheStack", "KeyValueCache"),
    "regard.nn._card": ("Card",),
    "regard.nn._ragged": ("Ragged",),
    "regard.nn._scan_state": ("ScanState",),
    "regard.nn.alignment_map": ("AlignmentMap", "attention_map", "similarity_map"),
    "regard.nn.axial": ("AxialAttention", "CrissCrossAttention"),
    "regard.nn.bigbird": ("BigBirdAttention",),
    "regard.nn.channel": ("ChannelGate", "EffectiveSqueezeExcitation", "EfficientChannel", "SqueezeExcitation"),
    "regard.nn.config": ("AttentionConfig",),
    "regard.nn.contrastive": ("CLIPLoss", "SigLIPLoss", "clip_loss", "siglip_loss"),
    "regard.nn.coordinate": ("CoordinateAttention",),
    "regard.nn.cross_modal": ("CoAttention", "CrossModalAttention", "TextImage"),
    "regard.nn.feed_forward": ("FeedForward",),
    "regard.nn.flamingo": ("GatedCrossAttention", "preceding_image"),
    "regard.nn.forgetting": ("ForgettingAttention",),
    "regard.nn.gated": ("GatedAttention", "OutputGatedAttention"),
    "regard.nn.gather_excite": ("GatherExcite",),
    "regard.nn.global_context": ("GlobalContext",),
    "regard.nn.halo": ("HaloAttention",),
    "regard.nn.hierarchical": ("HierarchicalAttention", "Hierarchy"),
    "regard.nn.insert": ("insert_attention", "remove_attention"),
    "regard.nn.linear": ("EfficientAttention", "LinearAttention"),
    "regard.nn.linformer": ("LinformerAttention",),
    "regard.nn.longformer": ("LongformerAttention",),
    "regard.nn.maxvit": ("MaxViTBlockAttention", "MaxViTGridAttention"),
    "regard.nn.memory": ("MemoryAttention",),
    "regard.nn.memory_knn": ("KNNMemory",),
    "regard.nn.memory_recurrent": ("RecurrentMemory",),
    "regard.nn.memory_state": ("MemoryState",),
    "regard.nn.memory_transformer_xl": ("TransformerXLMemory",),
    "regard.nn.multihead": ("MultiHeadAttention",),
    "regard.nn.neighborhood": ("NeighborhoodAttention",),
    "regard.nn.non_local": ("NonLocal",),
    "regard.nn.nystrom": ("NystromAttention",),
    "regard.nn.perceiver": ("PerceiverResampler",),
    "regard.nn.performer": ("PerformerAttention",),
    "regard.nn.schedule": ("DropoutSchedule",),
    "regard.nn.selective": ("SelectiveStateSpace",),
    "regard.nn.selective_kernel": ("SelectiveKernel",),
    "regard.nn.sparse": ("BlockAttention", "DilatedAttention", "StridedAttention"),
    "regard.nn.spatial": ("BAM", "CBAM", "SpatialGate"),
    "regard.nn.state_space": ("S4D",),
    "regard.nn.tensor_cores": ("pad_to_multiple",),
    "regard.nn.topk": ("TopKAttention",),
    "regard.nn.transformer": ("DecoderBlock", "EncoderBlock", "TransformerDecoder", "TransformerEncoder"),
    "regard.nn.transformer_generate": ("Generated", "beam_search"),
    "regard.nn.transformer_model": ("TokenEmbedding", "Transformer"),
}

__getattr__ = lazily(__name__, _HOMES)

__all__ = [
    "BAM",
    "CBAM",
    "S4D",
    "AlignmentMap",
    "AttentionConfig",
    "AxialAttention",
    "BigBirdAttention",
    "BlockAttention",
    "CLIPLoss",
    "CacheStack",
    "Card",
    "ChannelGate",
    "CoAttention",
    "CoordinateAttention",
    "CrissCrossAttention",
    "CrossModalAttention",
    "DecoderBlock",
    "DilatedAttention",
    "DropoutSchedule",
    "EffectiveSqueezeExcitation",
    "EfficientAttention",
    "EfficientChannel",
    "EncoderBlock",
    "FeedForward",
    "ForgettingAttention",
    "GatedAttention",
    "GatedCrossAttention",
    "GatherExcite",
    "Generated",
    "GlobalContext",
    "HaloAttention",
    "HierarchicalAttention",
    "Hierarchy",
    "KNNMemory",
    "KeyValueCache",
    "LinearAttention",
    "LinformerAttention",
    "LongformerAttention",
    "MaxViTBlockAttention",
    "MaxViTGridAttention",
    "MemoryAttention",
    "MemoryState",
    "MultiHeadAttention",
    "NeighborhoodAttention",
    "NonLocal",
    "NystromAttention",
    "OutputGatedAttention",
    "PerceiverResampler",
    "PerformerAttention",
    "Ragged",
    "RecurrentMemory",
    "ScanState",
    "SelectiveKernel",
    "SelectiveStateSpace",
    "SigLIPLoss",
    "SpatialGate",
    "SqueezeExcitation",
    "StridedAttention",
    "TextImage",
    "TokenEmbedding",
    "TopKAttention",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerXLMemory",
    "attention_map",
    "beam_search",
    "clip_loss",
    "insert_attention",
    "pad_to_multiple",
    "preceding_image",
    "remove_attention",
    "siglip_loss",
    "similarity_map",
]


def __dir__() -> list[str]:
    return __all__
