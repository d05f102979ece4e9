"""Between `MultiHeadAttention` and torch.nn.MultiheadAttention, in both directions.

The two name their weights alike, so a state_dict is the same but for two things. torch keeps one `in_proj_weight` when
query, key and value have one width and three weights when not; whichever comes is turned into what the module has. And
torch can learn one more key and value for every text (`add_bias_kv`: bias_k, bias_v) or add one of zeros
(`add_zero_attn`); regard has `sink` for that, which is not the same, and so these are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from regard.nn.multihead import MultiHeadAttention

_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def options_of(module: nn.MultiheadAttention) -> dict[str, Any]:
    """The keywords of `MultiHeadAttention` that make what torch's module is. Raises UnsupportedError."""
    _refuse(
        "nn.MultiheadAttention",
        {
            "bias_k and bias_v (add_bias_kv)": module.bias_k is not None or module.bias_v is not None,
            "add_zero_attn": module.add_zero_attn,
        },
        "a key that belongs to no token",
    )
    weight = module.out_proj.weight
    made: Any = module  # torch leaves these without types
    return {
        "embed_dim": made.embed_dim,
        "num_heads": made.num_heads,
        "kdim": made.kdim,
        "vdim": made.vdim,
        "bias": made.in_proj_bias is not None,
        "dropout_p": made.dropout,
        "device": weight.device,
        "dtype": weight.dtype,
    }


def required_of_torch(module: MultiHeadAttention) -> None:
    """UnsupportedError when torch's module has no such option."""
    plain = 1.0 / math.sqrt(module.head_dim)
    _refuse(
        "MultiHeadAttention",
        {
            "kv_heads": module.kv_heads != module.num_heads,
            "head_dim": module.head_dim * module.num_heads != module.embed_dim,
            "value_dim": module.value_dim != module.head_dim,
            "causal": module.causal,
            "position": module.position is not None,
            "softcap": module.softcap is not None,
            "sink": module.sink is not None,
            "qk_norm": not isinstance(module.query_norm, nn.Identity),
            "gate": module.gate_proj is not None,
            "scale": not math.isclose(module.scale, plain),
        },
        "torch.nn.MultiheadAttention has no such option of its constructor",
    )


def as_torch(module: MultiHeadAttention, *, batch_first: bool) -> nn.MultiheadAttention:
    """torch's module with copies of the weights."""
    weight = module.out_proj.weight
    made = nn.MultiheadAttention(
        module.embed_dim,
        module.num_heads,
        dropout=module.dropout_p,
        bias=module.in_proj_bias is not None,
        kdim=module.kdim,
        vdim=module.vdim,
        batch_first=batch_first,
        device=weight.device,
        dtype=weight.dtype,
    )
    made.load_state_dict(module.state_dict())
    return made.train(module.training)


def load_all(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load weights of torch's module, all of them; the module may have more, which stay as they begin.

    Raises:
        ArgumentError: there is no place for some of them.
    """
    left_over = cast("list[str]", cast("Any", module.load_state_dict(state, strict=False)).unexpected_keys)
    if left_over:
        raise ArgumentError(
            "options",
            expected="those that torch's module does not have",
            got=f"some that leave no place for its {', '.join(left_over)}",
            do="Leave out bias, kdim, vdim and the like: they are taken from torch's module.",
        )


def state_for(module: MultiHeadAttention, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Before a state_dict is loaded: its projections become one weight or three, as the module has them."""
    _refuse(
        "the state_dict",
        {name: prefix + name in state for name in ("bias_k", "bias_v")},
        "a key that belongs to no token",
    )
    fused, apart = prefix + "in_proj_weight", [prefix + name for name in _APART]
    found = [state[name] for name in apart if name in state]
    if module.in_proj_weight is not None and len(found) == 3 and len({weight.shape[-1] for weight in found}) == 1:
        state[fused] = torch.cat([state.pop(name) for name in apart])
    elif module.in_proj_weight is None and fused in state:
        together: Tensor = state.pop(fused)
        widths = [
            weight.shape[0]
            for weight in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            if weight is not None
        ]
        state.update(zip(apart, torch.split_with_sizes(together, widths), strict=True))


def _refuse(owner: str, found: dict[str, bool], why: str) -> None:
    reasons = {f"{owner} with {name}": why for name, there in found.items() if there}
    if reasons:
        raise UnsupportedError(reasons, do="Take a module without it; its state_dict holds the other weights.")
