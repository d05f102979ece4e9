"""One attention call as it was seen: what went in, what came out, and how to run it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regard._errors import RegardError
from regard._front_door import Options
from regard.masks import Causal, Dense, Mask

Replay = Callable[[Tensor, Tensor, Tensor], Tensor]
Through = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionCall:
    """What an attention function was given, in regard's own terms.

    Attributes:
        query: (batch, heads, q_len, head_dim), with rotations already applied by the model.
        key: (batch, kv_heads, kv_len, head_dim).
        value: (batch, kv_heads, kv_len, value_dim).
        options: mask, bias, scale, softcap, sink as `regard.attention` takes them.
        output: (batch, heads, q_len, value_dim) that the model got, or None when it never leaves a fused layer.
        implementation: who computed it: "sdpa", "eager", "nn.MultiheadAttention", ...
        replay: the same function with the same options on another query, key and value of the same shapes,
            giving (batch, heads, q_len, value_dim); None where it cannot be called apart from its layer.
        through: the same on zero queries and zero keys, for any value: what comes out shows which pairs the
            function lets through, whatever its arguments say; None where that cannot be arranged.
        dropout_p: dropout that was applied (the weights shown are those before dropout).
        declared_window: the sliding window that the layer's own settings name, if any.
        declared: builds the mask that the model asked its mask function for; None when it did not ask, or when
            it cannot be told for which of several.
        versions: torch's write counter of each tensor at the time of the call.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    options: Options
    implementation: str
    output: Tensor | None = None
    replay: Replay | None = None
    through: Through | None = None
    dropout_p: float = 0.0
    declared_window: int | None = None
    declared: Callable[[], Tensor | None] | None = None
    versions: dict[str, int] = field(default_factory=dict[str, int])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor kept by reference."""
        mask = self.options.get("mask")
        found = {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "bias": self.options.get("bias"),
            "sink": self.options.get("sink"),
            "mask": mask.tensor if isinstance(mask, Dense) else mask,
            "output": self.output,
        }
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

    def changed(self) -> list[str]:
        """The tensors that were written to after the call."""
        tensors = self.tensors()
        return [name for name, version in self.versions.items() if tensors[name]._version != version]  # noqa: SLF001 - torch's counter

    def unchanged(self) -> None:
        """Raise RegardError when a tensor that the weights are found from was written to after the call."""
        for name in self.changed():
            if name != "output":
                message = (
                    f"{name} was changed in place after the layer ran, so its weights can no longer be found. "
                    "Ask for them inside the `with` block, before the next forward pass."
                )
                raise RegardError(message)


def remember(call: AttentionCall) -> AttentionCall:
    """The call apart from autograd, in the dtype it ran in, with the version of every tensor.

    An inference tensor has no version counter, so that a later write to it could not be seen: it is copied.
    """
    options: Options = {**call.options}
    for name in ("bias", "sink", "mask"):
        given = options.get(name)
        if isinstance(given, Tensor):
            options[name] = _own(given)
    query, key, value = (_as_autocast(_own(tensor)) for tensor in (call.query, call.key, call.value))
    output = None if call.output is None else _own(call.output)
    kept = replace(call, query=query, key=key, value=value, options=options, output=output)
    tensors = kept.tensors().items()
    return replace(kept, versions={name: tensor._version for name, tensor in tensors if not tensor.is_inference()})  # noqa: SLF001


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def _as_autocast(tensor: Tensor) -> Tensor:
    """As torch's attention casts what it is given inside torch.autocast."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensor
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(kind))


def see_through(replay: Replay, query: Tensor, key: Tensor) -> Through:
    """`AttentionCall.through` from its replay."""
    shapes, device = (query.shape, key.shape), query.device

    def through(value: Tensor) -> Tensor:
        query, key = (torch.zeros(shape, dtype=value.dtype, device=device) for shape in shapes)
        return replay(query, key, value)

    return through


def apart(given: object) -> object:
    """A tensor detached, so that whoever keeps it does not keep the graph that made it; anything else as it is."""
    return given.detach() if isinstance(given, Tensor) else given


def sdpa_options(
    attn_mask: Tensor | None, *, is_causal: bool, scale: float | None, softcap: float | None = None
) -> Options:
    """The arguments of scaled_dot_product_attention in regard's terms; query must be 4-D by now."""
    options: Options = {"scale": scale, "softcap": softcap}
    mask: Mask | None = Causal(align="top_left") if is_causal else None
    if attn_mask is not None:
        shaped = attn_mask.reshape((1,) * (4 - attn_mask.dim()) + tuple(attn_mask.shape))
        if attn_mask.dtype == torch.bool:
            mask = Dense(shaped) if mask is None else mask & Dense(shaped)
        else:
            options["bias"] = shaped
    if mask is not None:
        options["mask"] = mask
    return options


def expand_keys(allowed: Tensor, q_len: int, kv_len: int) -> Tensor:
    """A mask tensor with its last two sizes written out, as Dense wants them."""
    return allowed.expand(*allowed.shape[:-2], q_len, kv_len)
