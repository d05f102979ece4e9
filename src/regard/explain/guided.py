"""Teaching one attention head to align: the guided alignment loss.

Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models",
https://arxiv.org/abs/1909.02074, section 4.2. With the links of a target word as a distribution over the source,

    loss = - sum_t sum_s  G[t, s] log A[t, s],     G[t] = links of t / number of links of t

for the weights A of one head of one cross-attention; target words without a link are left out. The links come from
annotators or from another aligner, such as `IBM1` in both directions, symmetrised. The whole loss of training is that
of translation plus this one times a small factor (0.05 in the paper).

Fused kernels have no weights and give them no gradient. `WatchedHead` keeps what the one head was asked with while the
layer ran as it runs, and finds its weights again from that, differentiably: O(target x source) memory, one head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regard._attention import attention
from regard._errors import ArgumentError, RegardError, ShapeError
from regard._shapes import shape_of
from regard.explain.alignment import Link
from regard.masks import Mask
from regard.nn import MultiHeadAttention
from regard.observation import weights as weights_of
from regard.positions import Position


def guided_alignment_loss(weights: Tensor, links: Tensor) -> Tensor:
    """The sum of the cross entropies between links and weights, over target words that have a link.

    Args:
        weights: (..., target, source) of one head, rows as `target_rows` gives them, with their gradient.
        links: (..., target, source), 1 (or a strength above 0) at each link and 0 elsewhere, as `link_tensor` makes it.
            Rows of zeros are left out: words without a link, padding.

    Returns:
        A float32 (float64 for float64 weights) number; 0 when there is no link. A weight of exactly 0, such as that of
        a source word that a mask forbids, counts as the smallest normal number and gives no gradient.

    Raises:
        ShapeError: the two differ in shape.
    """
    if weights.shape != links.shape or weights.dim() < 2:
        raise ShapeError(
            "links",
            expected=f"the shape of weights, {shape_of(weights)}",
            got=shape_of(links),
            do="Rows are target words and columns source words; take target_rows of the weights.",
        )
    weights = weights if weights.dtype == torch.float64 else weights.to(torch.float32)
    strengths = links.to(weights.dtype)
    total = strengths.sum(-1, keepdim=True)
    wanted = strengths / torch.where(total > 0, total, 1.0)
    return -(wanted * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum()


def link_tensor(alignments: Sequence[Iterable[Link]], target_len: int, source_len: int) -> Tensor:
    """Links of a batch as numbers, float32 (batch, target_len, source_len), 1 at each link.

    Args:
        alignments: for each pair of sentences its links (source, target).
        target_len, source_len: of the longest, padding and special tokens included.

    Raises:
        ArgumentError: a link beyond these.
    """
    made = torch.zeros(len(alignments), target_len, source_len)
    places = [(sample, target, source) for sample, links in enumerate(alignments) for source, target in links]
    for sample, target, source in places:
        if not (0 <= source < source_len and 0 <= target < target_len):
            raise ArgumentError(
                f"alignments[{sample}]",
                expected=f"links (source, target) below ({source_len}, {target_len})",
                got=f"({source}, {target})",
                do="Give the longest lengths of the batch.",
            )
    samples, targets, sources = torch.tensor(places, dtype=torch.int64).reshape(-1, 3).unbind(1)
    made[samples, targets, sources] = 1.0
    return made


class WatchedHead:
    """The weights of one head of one attention layer, as it ran last, with their gradient.

        with WatchedHead(model.decoder.layers[2].cross_attention, head=0) as watched:
            logits = model(source, target)
            loss = ... + 0.05 * guided_alignment_loss(target_rows(watched.weights(), "consuming"), links)

    The layer computes what it always does, with its own kernel. What is kept is the query and the key with their graph,
    until the `with` ends. Works for any module below which `regard.attention` is called once in a forward pass, under
    autocast and data parallelism too; not inside `torch.compile`.

    Args:
        module: the layer.
        head: which of its query heads; negative numbers count from the end.

    Raises:
        ArgumentError: no such head.
    """

    def __init__(self, module: MultiHeadAttention, head: int = 0) -> None:
        if not -module.num_heads <= head < module.num_heads:
            raise ArgumentError(
                "head",
                expected=f"a number from {-module.num_heads} to {module.num_heads - 1}",
                got=str(head),
                do="Name one head of this layer.",
            )
        self._module, self._head = module, head
        self._seen: _Seen | None = None
        self._hooks, self._inside = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        """Begin to watch."""
        before = cast("Any", self._module).register_forward_pre_hook(self._enter_layer)
        after = cast("Any", self._module).register_forward_hook(self._leave_layer, always_call=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching, and let go of what was kept."""
        self._hooks.close()
        self._seen = None

    def weights(self) -> Tensor:
        """(batch, q_len, kv_len), float32 (float64 for a float64 model), before dropout.

        Raises:
            RegardError: the layer has not run inside the `with`.
        """
        if self._seen is None:
            message = "the layer has not run since watching began: ask inside the `with`, after the forward pass."
            raise RegardError(message)
        return weights_of(**self._seen, heads=[self._head])[:, 0]

    def _enter_layer(self, module: nn.Module, inputs: object) -> None:
        self._inside.enter_context(_Listening(self._keep))

    def _leave_layer(self, module: nn.Module, inputs: object, output: object) -> None:
        self._inside.close()

    def _keep(self, seen: _Seen) -> None:
        self._seen = seen


class _Seen(TypedDict):
    """What weights depend on, as `regard.weights` takes it."""

    query: Tensor
    key: Tensor
    mask: Mask | Tensor | None
    position: Position | None
    bias: Tensor | None
    scale: float | None
    softcap: float | None
    sink: Tensor | None


class _Listening(TorchFunctionMode):
    """Hands what `regard.attention` is called with to `keep`, and lets it run."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self._keep = keep

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; keep the arguments of attention."""
        named = kwargs or {}
        if func is attention:
            options: Any = {name: named.get(name) for name in ("mask", "position", "bias", "scale", "softcap", "sink")}
            self._keep({"query": args[0], "key": args[1], **options})
        return func(*args, **named)
