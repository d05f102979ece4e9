"""From torch.nn.TransformerEncoderLayer and TransformerDecoderLayer: what they were made with, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import functional

from regard._errors import UnsupportedError
from regard.nn._torch_multihead import load_all, options_of

if TYPE_CHECKING:
    from regard.nn.transformer import DecoderBlock, EncoderBlock


def options_of_block(layer: Any) -> dict[str, Any]:
    """The keywords of the block that make what torch's layer is, embed_dim and num_heads too."""
    attention = options_of(layer.self_attn)
    return {
        "embed_dim": attention["embed_dim"],
        "num_heads": attention["num_heads"],
        "dim_feedforward": layer.linear1.out_features,
        "activation": _activation(layer.activation),
        "norm_first": layer.norm_first,
        "layer_norm_eps": layer.norm1.eps,
        "dropout_p": layer.dropout1.p,
        "bias": attention["bias"],
        "device": attention["device"],
        "dtype": attention["dtype"],
    }


def _activation(function: object) -> str:
    if function is functional.relu or isinstance(function, nn.ReLU):
        return "relu"
    if function is functional.gelu or (isinstance(function, nn.GELU) and function.approximate == "none"):
        return "gelu"
    name = getattr(function, "__name__", type(function).__name__)
    raise UnsupportedError(
        {f"activation {name}": "blocks have relu, gelu, squared_relu or swiglu"},
        do="Build the block and load the weights by hand.",
    )


def copy_encoder_block(layer: Any, block: EncoderBlock) -> EncoderBlock:
    """Copies of the weights of a TransformerEncoderLayer."""
    _copy(
        (layer.self_attn, block.self_attention),
        (layer.linear1, block.feed_forward.inner),
        (layer.linear2, block.feed_forward.outer),
        (layer.norm1, block.around_attention.norm),
        (layer.norm2, block.around_feed_forward.norm),
    )
    return block.train(layer.training)


def copy_decoder_block(layer: Any, block: DecoderBlock) -> DecoderBlock:
    """Copies of the weights of a TransformerDecoderLayer."""
    _copy(
        (layer.self_attn, block.self_attention),
        (layer.multihead_attn, block.cross_attention),
        (layer.linear1, block.feed_forward.inner),
        (layer.linear2, block.feed_forward.outer),
        (layer.norm1, block.around_attention.norm),
        (layer.norm2, block.around_context.norm),
        (layer.norm3, block.around_feed_forward.norm),
    )
    return block.train(layer.training)


def copy_stack(stack: Any, made: Any, copy_block: Callable[[Any, Any], object]) -> None:
    """Copies of the weights of every layer, and of the norm at the end, which torch has when it was asked for."""
    for layer, block in zip(stack.layers, made.layers, strict=True):
        copy_block(layer, block)
    made.norm = nn.Identity()
    if stack.norm is not None:
        weight = stack.norm.weight
        made.norm = nn.LayerNorm(
            weight.shape, eps=stack.norm.eps, bias=stack.norm.bias is not None, device=weight.device, dtype=weight.dtype
        )
        made.norm.load_state_dict(stack.norm.state_dict())
    made.train(stack.training)


def _copy(*pairs: tuple[nn.Module, nn.Module]) -> None:
    for theirs, ours in pairs:
        load_all(ours, theirs.state_dict())
