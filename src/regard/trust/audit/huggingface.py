"""A registered attention of Hugging Face transformers as a target, masks made by transformers' own functions.

A name in `AttentionInterface` needs a second entry in `AttentionMaskInterface`. Without it transformers makes no mask
at all, and says nothing: padding is attended to, and windows are gone unless the function reads `sliding_window` itself
(transformers 5.23). So the mask is made here as a model makes it, and not handed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, DependencyError, UnsupportedError
from regard.masks import Causal, Documents, Keys, Mask, Padding, SlidingWindow
from regard.trust.question import Question
from regard.trust.target import Target

PREFIX = "huggingface:"
OFFERS = frozenset({"mask", "scale", "softcap", "sink", "enable_gqa"})


def huggingface_target(name: str) -> Target:
    """The attention that is registered as `name` ("sdpa", or one's own).

    Raises ArgumentError when nothing is registered under it, DependencyError without transformers.
    """
    function = _registered(name)

    def call(question: Question) -> Tensor:
        return _called(name, function, question)

    return Target(f"{PREFIX}{name}", OFFERS, call)


def _registered(name: str) -> Any:
    try:
        from transformers import AttentionInterface
    except ImportError as error:
        raise DependencyError("transformers", "transformers") from error
    known: Any = AttentionInterface()
    if name not in known:
        raise ArgumentError(
            "target",
            expected=f"an attention that is registered in transformers: {', '.join(sorted(known))}",
            got=repr(name),
            do='Import the module that registers it. "eager" is a function of each model: pass that function.',
        )
    return known[name]


class _Layer(nn.Module):
    """What attention functions read of the layer that calls them."""

    def __init__(self, question: Question, config: Any, *, is_causal: bool) -> None:
        super().__init__()
        sizes = question.sizes
        self.is_causal, self.layer_idx, self.config = is_causal, 0, config
        self.num_key_value_groups = sizes.heads // max(sizes.kv_heads, 1)
        self.head_dim = sizes.head_dim
        self.scaling = sizes.head_dim**-0.5


@dataclass(frozen=True)
class _Request:
    """What a model would say: causal or not, its window, which keys are real, where packed texts start."""

    is_causal: bool = False
    before: int | None = None
    after: int | None = None
    real: Tensor | None = None
    documents: tuple[int, ...] | None = None


def _requested(name: str, question: Question) -> _Request:
    sizes, mask = question.sizes, question.options.get("mask")
    said: dict[str, Any] = {}
    parts: tuple[Mask, ...] = () if mask is None else mask.conjuncts
    for part in parts:
        if isinstance(part, Causal) and sizes.q_len == sizes.kv_len:
            said["is_causal"] = True
        elif isinstance(part, SlidingWindow) and sizes.q_len == sizes.kv_len:
            said |= {"before": part.before, "after": part.after}
        elif isinstance(part, Padding | Keys):
            real = part.dense(sizes.q_len, sizes.kv_len)[:, 0, 0].expand(sizes.batch, -1)
            said["real"] = real & said.get("real", torch.ones_like(real))
        elif isinstance(part, Documents):
            said["documents"] = part.lengths
        else:
            raise UnsupportedError({name: f"transformers makes no mask for {part!r} at these lengths"})
    found = _Request(**said)
    is_causal = found.is_causal or found.after == 0
    if found.after is not None and not is_causal and found.after != found.before:
        raise UnsupportedError({name: "transformers has windows that are causal or reach both ways alike"})
    if found.documents is not None and (found.real is not None or not is_causal):
        raise UnsupportedError({name: "transformers packs causal texts without padding"})
    return _Request(is_causal, found.before, found.after, found.real, found.documents)


def _called(name: str, function: Any, question: Question) -> Tensor:
    from transformers import PreTrainedConfig

    request, sizes, options = _requested(name, question), question.sizes, question.options
    config: Any = PreTrainedConfig()
    config._attn_implementation = name  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - how models name it
    config.num_attention_heads, config.num_key_value_heads = sizes.heads, sizes.kv_heads
    config.head_dim, config.hidden_size = sizes.head_dim, sizes.heads * sizes.head_dim
    more: dict[str, Any] = {}
    if request.before is not None:
        # Causal windows count the token itself, windows both ways do not.
        more["sliding_window"] = config.sliding_window = request.before + (1 if request.is_causal else 0)
    if options.get("softcap") is not None:
        more["softcap"] = options["softcap"]
    if options.get("sink") is not None:
        more["s_aux"] = options["sink"]
    scale = options.get("scale")
    output = function(
        _Layer(question, config, is_causal=request.is_causal).eval(),
        question.query,
        question.key,
        question.value,
        _mask(config, request, question),
        dropout=0.0,
        scaling=sizes.head_dim**-0.5 if scale is None else scale,
        **more,
    )[0]
    return output.transpose(1, 2)


def _mask(config: Any, request: _Request, question: Question) -> Any:
    """The mask as transformers makes it for this implementation: a tensor, a BlockMask, or None."""
    from transformers import masking_utils

    sizes, device = question.sizes, question.query.device
    like = torch.zeros(sizes.batch, sizes.q_len, 1, dtype=question.dtype, device=device)
    keys = torch.zeros(sizes.batch, sizes.kv_len, 1, dtype=question.dtype, device=device)
    real = None if request.real is None else request.real.to(device=device, dtype=torch.int64)
    made: Any = masking_utils
    if not request.is_causal:
        if request.before is not None:
            return made.create_bidirectional_sliding_window_mask(config, like, real)
        return made.create_bidirectional_mask(config, like, real, encoder_hidden_states=keys)
    positions = None if request.documents is None else _positions(request.documents, sizes.batch, device)
    make = made.create_causal_mask if request.before is None else made.create_sliding_window_causal_mask
    return make(config, like, real, None, position_ids=positions)


def _positions(documents: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    """Counted anew from each text, which is how transformers knows that texts are packed."""
    counted = torch.cat([torch.arange(length, device=device) for length in documents])
    return counted[None].expand(batch, -1)
