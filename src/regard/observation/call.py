"""One attention call as it was seen: what went in, what came out, and how to ask for its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard._errors import RegardError
from regard._front_door import Options
from regard.masks import Causal, Dense, Mask

Replay = Callable[[Tensor, Tensor, Tensor], Tensor]
Through = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
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
        declared: builds the mask that the model asked its mask function for, if it asked.
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
    declared: Callable[[], Tensor] | None = None
    versions: dict[str, int] = field(default_factory=dict[str, int])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor kept by reference."""
        found = {"query": self.query, "key": self.key, "value": self.value}
        for name in ("bias", "sink"):
            tensor = self.options.get(name)
            if isinstance(tensor, Tensor):
                found[name] = tensor
        return found

    def unchanged(self) -> None:
        """Raise RegardError when a tensor was written to after the call."""
        for name, tensor in self.tensors().items():
            if name in self.versions and tensor._version != self.versions[name]:  # noqa: SLF001 - torch's counter
                message = (
                    f"{name} was changed in place after the layer ran, so its weights can no longer be found. "
                    "Ask for them inside the `with` block, before the next forward pass."
                )
                raise RegardError(message)


def remember(call: AttentionCall) -> AttentionCall:
    """The call detached from autograd, with the version of every tensor; inference tensors are copied.

    An inference tensor has no version counter: a later write to it could not be seen.
    """
    options: Options = {**call.options}
    for name in ("bias", "sink"):
        tensor = options.get(name)
        if isinstance(tensor, Tensor):
            options[name] = _own(tensor)
    kept = AttentionCall(
        query=_own(call.query),
        key=_own(call.key),
        value=_own(call.value),
        options=options,
        implementation=call.implementation,
        output=None if call.output is None else call.output.detach(),
        replay=call.replay,
        through=call.through,
        dropout_p=call.dropout_p,
        declared_window=call.declared_window,
        declared=call.declared,
    )
    kept.versions.update(
        {name: tensor._version for name, tensor in kept.tensors().items() if not tensor.is_inference()}  # noqa: SLF001
    )
    return kept


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def see_through(replay: Replay, query: Tensor, key: Tensor) -> Through:
    """`AttentionCall.through` from its replay."""
    shapes, kind = (query.shape, key.shape), {"dtype": query.dtype, "device": query.device}
    return lambda value: replay(torch.zeros(shapes[0], **kind), torch.zeros(shapes[1], **kind), value)


def sdpa_options(
    attn_mask: Tensor | None, *, is_causal: bool, scale: float | None, softcap: float | None = None
) -> Options:
    """The arguments of scaled_dot_product_attention in regard's terms; query must be 4-D by now."""
    options: Options = {"scale": scale, "softcap": softcap}
    mask: Mask | None = Causal(align="top_left") if is_causal else None
    if attn_mask is not None:
        shaped = attn_mask.reshape((1,) * (4 - attn_mask.dim()) + tuple(attn_mask.shape))
        if attn_mask.dtype == torch.bool:
            mask = _with(mask, shaped)
        else:
            options["bias"] = shaped
    if mask is not None:
        options["mask"] = mask
    return options


def _with(mask: Mask | None, allowed: Tensor) -> Mask:
    return Dense(allowed) if mask is None else mask & Dense(allowed)


def expand_keys(allowed: Tensor, q_len: int, kv_len: int) -> Tensor:
    """A mask tensor with its last two sizes written out, as Dense wants them."""
    return allowed.expand(*allowed.shape[:-2], q_len, kv_len)
