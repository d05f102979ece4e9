"""Every mechanism that has a card, alone: its error against its exact definition, and its time."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems import SEED, Direction
from benchmarks.sides import Side, Sizes, normal, plainly, relative_error
from benchmarks.timing import Here, Plan, interleave
from regard import nn as mechanisms

Inputs = Callable[[Sizes], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Subject:
    """How a mechanism is made and called: its name, the arguments as they are written, and what goes in."""

    kind: str
    arguments: tuple[object, ...]
    options: dict[str, object]
    inputs: Inputs
    call: Callable[..., Any] = plainly

    @property
    def made(self) -> str:
        """As one writes it."""
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return f"{self.kind}({', '.join([*map(repr, self.arguments), *options])})"

    @property
    def exact(self) -> bool:
        """Does it compute its formula, as its card says, and approximate nothing?"""
        return getattr(mechanisms, self.kind).card.exact

    def side(self, sizes: Sizes) -> Side:
        """The same weights every time. What begins at zero is drawn, so that nothing it scales is hidden."""
        torch.default_generator.manual_seed(SEED)
        module: nn.Module = getattr(mechanisms, self.kind)(*self.arguments, **self.options)
        if self.exact:
            _wake(module)
        return Side(module, self.inputs(sizes), self.call)


def _wake(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in module.parameters():
            if not bool(weight.any()):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


def subjects(sizes: Sizes) -> list[Subject]:
    """One for each card."""
    return [*_mixers(sizes), *_sparse(sizes), *_with_context(sizes), *_images(sizes)]


def _subject(
    kind: str, *arguments: object, inputs: Inputs, call: Callable[..., Any] = plainly, **more: object
) -> Subject:
    return Subject(kind, arguments, more, inputs, call)


def _tokens(sizes: Sizes) -> tuple[Tensor]:
    return (normal(1, sizes.length, sizes.width),)


def _and_context(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Tokens, and an eighth as many of another kind."""
    return (*_tokens(sizes), normal(1, sizes.length // 8, sizes.width, seed=1))


def _mixers(sizes: Sizes) -> list[Subject]:
    plain = (
        "MultiHeadAttention", "EncoderBlock", "GatedAttention", "OutputGatedAttention", "ForgettingAttention",
        "KNNMemory", "MemoryAttention", "RecurrentMemory", "TransformerXLMemory", "LinearAttention",
        "EfficientAttention", "NystromAttention", "PerformerAttention",
    )  # fmt: skip
    width, heads, n = sizes.width, sizes.heads, sizes.length
    return [
        *(_subject(kind, width, heads, inputs=_tokens) for kind in plain),
        _subject("TransformerEncoder", width, heads, 2, inputs=_tokens),
        _subject("LinformerAttention", width, heads, max_length=n, projected_length=sizes.slots, inputs=_tokens),
        _subject("HierarchicalAttention", width, inputs=_tokens, call=_by_sentences),
        _subject("PerceiverResampler", width, heads, depth=2, inputs=_tokens),
        _subject("S4D", width, inputs=_tokens),
        _subject("SelectiveStateSpace", width, inputs=_tokens),
    ]


def _by_sentences(module: nn.Module, x: Tensor) -> Any:
    """A document of as many paragraphs as each has sentences and each of those has tokens."""
    count = round(x.shape[1] ** (1 / 3))
    return module(x, structure=[[[count] * count] * count])


def _sparse(sizes: Sizes) -> list[Subject]:
    width, heads, block = sizes.width, sizes.heads, sizes.block
    return [
        _subject("LongformerAttention", width, heads, window=sizes.window, inputs=_tokens, call=_first_is_global),
        _subject("BigBirdAttention", width, heads, block_size=block, inputs=_tokens),
        _subject("BlockAttention", width, heads, block_size=2 * block, inputs=_tokens),
        _subject("DilatedAttention", width, heads, step=2, window=sizes.window // 2, inputs=_tokens),
        _subject("StridedAttention", width, heads, stride=block, inputs=_tokens),
        _subject("TopKAttention", width, heads, topk=32, inputs=_tokens),
    ]


def _first_is_global(module: nn.Module, x: Tensor) -> Any:
    return module(x, global_tokens=1)


def _with_context(sizes: Sizes) -> list[Subject]:
    width, heads = sizes.width, sizes.heads
    return [
        _subject("DecoderBlock", width, heads, inputs=_and_context),
        _subject("TransformerDecoder", width, heads, 2, inputs=_and_context),
        _subject("CrossModalAttention", width, heads, inputs=_and_context, call=_both_streams),
        _subject("CoAttention", width, heads, inputs=_and_context, call=_both_streams),
        _subject("GatedCrossAttention", width, heads, inputs=_and_context),
        _subject("CLIPLoss", inputs=_embeddings),
        _subject("SigLIPLoss", inputs=_embeddings),
    ]


def _both_streams(module: nn.Module, text: Tensor, image: Tensor) -> Tensor:
    return torch.cat(module(text, image), 1)


def _embeddings(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """As many images as texts, and each somewhat like its text."""
    image = normal(sizes.length, sizes.width)
    return image, 0.5 * image + normal(sizes.length, sizes.width, seed=1)


def _two_images(sizes: Sizes) -> tuple[Tensor]:
    """Two, since a batch norm over single numbers needs more than one."""
    return (normal(2, sizes.channels, sizes.side, sizes.side),)


def _images(sizes: Sizes) -> list[Subject]:
    gates = (
        "BAM", "CBAM", "ChannelGate", "CoordinateAttention", "EffectiveSqueezeExcitation", "EfficientChannel",
        "GatherExcite", "GlobalContext", "NonLocal", "SelectiveKernel", "SpatialGate", "SqueezeExcitation",
    )  # fmt: skip
    grids = (
        "AxialAttention", "CrissCrossAttention", "HaloAttention", "MaxViTBlockAttention", "MaxViTGridAttention",
        "NeighborhoodAttention",
    )  # fmt: skip
    channels, heads = sizes.channels, sizes.heads
    return [
        *(_subject(kind, channels, inputs=_two_images) for kind in gates),
        *(_subject(kind, channels, heads, inputs=_two_images) for kind in grids),
    ]


# ------------------------------------------------------------------------------------------------- measuring


def told(subject: Subject, sizes: Sizes) -> dict[str, object]:
    """What the results say of any measurement of it."""
    shapes = [list(each.shape) for each in subject.inputs(sizes)]
    return {"made": subject.made, "shapes": shapes}


def time_of(subject: Subject, sizes: Sizes, direction: Direction, plan: Plan) -> dict[str, object]:
    """Median seconds of one direction."""
    seconds = interleave({"ours": Here([subject.side(sizes).run(direction)])}, plan)["ours"]
    name = "forward_seconds" if direction == "forward" else "training_seconds"
    return {**told(subject, sizes), name: statistics.median(seconds), "threads": torch.get_num_threads()}


def error_of(subject: Subject, sizes: Sizes) -> dict[str, object]:
    """Relative error of the output against the definition in float64.

    Of an exact mechanism: what rounding to float32 does. Of an approximation: how far it is from softmax attention with
    the same four maps.
    """
    side = subject.side(sizes)
    definition, kind = (side, "rounding") if subject.exact else (_softmax_attention(side), "approximation")
    found, exact = side.run("forward")(), definition.in_float64().run("forward")()
    return {**told(subject, sizes), "error": relative_error(found, exact), "error_kind": kind}


def _softmax_attention(side: Side) -> Side:
    """Multi-head attention with the maps of an approximation."""
    theirs: Any = side.module
    exact: Any = mechanisms.MultiHeadAttention(theirs.embed_dim, theirs.num_heads)
    with torch.no_grad():
        exact.in_proj_weight.copy_(theirs.in_proj_weight)
        exact.in_proj_bias.copy_(theirs.in_proj_bias)
        exact.out_proj.load_state_dict(theirs.out_proj.state_dict())
    return Side(exact, side.inputs)
