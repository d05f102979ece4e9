"""What a callable accepts, read from its signature: which parameter serves which option.

Libraries name the same thing differently. The table below holds the names that are in use; what a name means where
libraries disagree (the corner of `causal`, the reach of `window`) is told in `docs/trust.md`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from regard._attention import attention
from regard.trust.question import OPTIONS

NAMES: Mapping[str, tuple[str, ...]] = {
    "mask": ("mask", "attn_mask", "attention_mask"),
    "is_causal": ("is_causal",),
    "causal": ("causal",),
    "window": ("window_size", "window"),
    "sliding_window": ("sliding_window",),
    "position": ("position",),
    "bias": ("bias", "attn_bias", "attention_bias"),
    "scale": ("scale", "softmax_scale", "sm_scale", "scaling"),
    "softcap": ("softcap", "logits_soft_cap", "logits_softcap", "logit_softcap", "soft_cap"),
    "sink": ("sink", "sinks", "s_aux", "learnable_sink"),
    "dropout_p": ("dropout_p", "dropout"),
    "seed": ("seed", "dropout_seed"),
    "enable_gqa": ("enable_gqa",),
    "return_lse": ("return_lse",),
}
"""For each thing that can be asked, the parameters that are known to mean it; the first that is found is taken."""

FORMS = {"is_causal": "mask", "causal": "mask", "window": "mask", "sliding_window": "mask"}
"""Things that serve an option in some of its forms only, and which option."""

_OF_TORCH = {"mask": "attn_mask", "bias": "attn_mask"} | {
    name: name for name in ("is_causal", "scale", "dropout_p", "enable_gqa")
}


@dataclass(frozen=True)
class Signature:
    """Which parameter serves what can be asked.

    parameters: from a key of `NAMES` to the name of the parameter; None where it is served and needs no parameter.
    takes_masks: masks are handed over as the values they are, not as bool tensors.
    """

    parameters: Mapping[str, str | None]
    takes_masks: bool = False

    @property
    def offers(self) -> frozenset[str]:
        """The options of a question that are served, in whatever form."""
        return frozenset(FORMS.get(what, what) for what in self.parameters)


def signature_of(function: Callable[..., Any]) -> Signature:
    """What `function` accepts. One that takes `**options` is taken at its word: all of ours, under our names."""
    inner = _inner(function)
    if inner is scaled_dot_product_attention:  # written in C, it has no signature
        return Signature(_OF_TORCH)
    try:
        found = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):
        return Signature({})
    serving = {what: next((name for name in names if name in found), None) for what, names in NAMES.items()}
    named: dict[str, str | None] = {what: name for what, name in serving.items() if name is not None}
    if named.get("mask") == "attn_mask" and "bias" not in named:
        named["bias"] = "attn_mask"  # as torch has it: bool says which pairs, float is added
    everything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values())
    if everything:
        named |= {option: option for option in (*OPTIONS, "return_lse") if option not in named}
    return Signature(named, takes_masks=inner is attention or (everything and "mask" not in found))


def _inner(function: Callable[..., Any]) -> object:
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    return function
