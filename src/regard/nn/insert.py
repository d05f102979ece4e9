"""Attention into a network that exists, its checkpoint kept (guide 2.2).

    insert_attention(model, "cbam", after="layer2")            # one place
    insert_attention(model, "se", after="layer*.conv2")        # every place that fits the pattern
    remove_attention(model)                                    # as it was

The network's own modules stay what and where they are, so every key of its state_dict stays: the gates are held by one
more child of the model, `regard_attention`, and a forward hook sends each place's output through its gate.

How checkpoints load:
- one from before: `model.load_state_dict(old, strict=False)`; what is missing are the keys that begin with
  `regard_attention.` and nothing else. With strict=True torch refuses, as it does for any missing weight. Or load first
  and insert then.
- one with gates, into a model with the same gates: strict=True. Into a model without them: its keys that begin with
  `regard_attention.` are unexpected, which strict=False leaves out.

By default each gate is blended in, `x + blend * (gate(x) - x)` with a learned blend that begins at 0 (the idea of
SkipInit and ReZero: De and Smith 2020; Bachlechner et al. 2020), so a trained network computes at first exactly what it
computed before, and learns how much attention it wants. Time and memory are the gate's, and one pass for the blend.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regard._errors import ArgumentError, ShapeError, UnsupportedError
from regard._shapes import shape_of
from regard.nn._arguments import require_positive
from regard.nn.channel import ChannelGate, EffectiveSqueezeExcitation, EfficientChannel, SqueezeExcitation
from regard.nn.coordinate import CoordinateAttention
from regard.nn.gather_excite import GatherExcite
from regard.nn.global_context import GlobalContext
from regard.nn.halo import HaloAttention
from regard.nn.non_local import NonLocal
from regard.nn.selective_kernel import SelectiveKernel
from regard.nn.spatial import BAM, CBAM, SpatialGate

Start = Literal["identity", "paper"]

HOLDER = "regard_attention"
"""The model's child that holds the gates."""

_MECHANISMS: dict[str, Callable[..., nn.Module]] = {
    "bam": BAM,
    "cbam": CBAM,
    "channel": ChannelGate,
    "coordinate": CoordinateAttention,
    "eca": EfficientChannel,
    "effective_se": EffectiveSqueezeExcitation,
    "gather_excite": GatherExcite,
    "global_context": GlobalContext,
    "halo": HaloAttention,
    "non_local": NonLocal,
    "se": SqueezeExcitation,
    "selective_kernel": SelectiveKernel,
    "spatial": SpatialGate,
}


def insert_attention(
    model: nn.Module,
    mechanism: str | Callable[..., nn.Module],
    *,
    after: str | Sequence[str],
    channels: int | None = None,
    example: Tensor | None = None,
    start: Start = "identity",
    **options: Any,
) -> nn.Module:
    """Send the output of some of a model's modules through attention. Changes the model and returns it.

    Args:
        model: any network whose modules at these places give one image tensor (batch, channels, height, width).
        mechanism: "bam", "cbam", "channel", "coordinate", "eca", "effective_se", "gather_excite", "global_context",
            "halo", "non_local", "se", "selective_kernel" or "spatial"; or what makes a module from
            `(channels, **options)`. The module must give an image of the size it takes.
        after: names of modules as in `model.named_modules()`, such as "layer2" or "features.3". `*`, `?` and `[...]`
            make a pattern, within one part of a name between dots: "layer*.conv2" does not fit "layer1.0.conv2",
            "layer*.*.conv2" does.
        channels: of the images there. Found out unless given: from the weights where the place is a convolution or a
            normalisation, else by one forward pass of `example` (in evaluation mode, without gradients, with nothing
            left changed).
        example: an input of the model, for that pass; an image is made up unless given.
        start: "identity" blends the gate in with a learned factor that begins at 0; "paper" is the mechanism alone. One
            that starts as the identity by itself (NonLocal, GlobalContext that adds) is left alone either way.
        options: of the mechanism. `device` and `dtype` are those of the weights at the place, unless given.

    Returns:
        The model.

    Raises:
        ArgumentError: no module fits a name, a place has attention already, or no mechanism has this name.
        UnsupportedError: a place that is never called, gives no image, or whose channels could not be found out.
    """
    make = _maker(mechanism)
    if start not in {"identity", "paper"}:
        raise ArgumentError("start", expected="identity or paper", got=repr(start), do="Take one of these.")
    places = _places(model, (after,) if isinstance(after, str) else after)
    held = _holder(model)
    taken = [name for name in places if held is not None and _key(name) in held]
    if taken:
        raise ArgumentError(
            "after",
            expected="places without attention",
            got=", ".join(taken),
            do="Call remove_attention(model) first, or name other places.",
        )
    if channels is not None:
        require_positive(channels=channels)
    widths = dict.fromkeys(places, channels) if channels is not None else _channels(model, places, example)
    made = {
        name: _made(place, make, widths[name], {**_like(place, model), **options}, start)
        for name, place in places.items()
    }
    if held is None:
        held = _Holder()
        model.add_module(HOLDER, held)
    for name, gate in made.items():
        held.hold(name, gate, places[name])
    return model


def remove_attention(model: nn.Module) -> nn.Module:
    """Take out what `insert_attention` put in; the model computes what it computed before. Returns the model.

    Raises:
        ArgumentError: nothing was inserted into this model (into a part of it: call this on that part).
    """
    held = _holder(model)
    if held is None:
        raise ArgumentError(
            "model",
            expected="a model that insert_attention was called on",
            got=f"{type(model).__name__} without a child {HOLDER!r}",
            do="Call it on the same module as insert_attention.",
        )
    held.release()
    delattr(model, HOLDER)
    return model


class _Holder(nn.ModuleDict):
    """The gates by place. As a module it changes nothing: an nn.Sequential that holds it also calls it."""

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[RemovableHandle] = []

    def hold(self, name: str, gate: _Inserted, place: nn.Module) -> None:
        self[_key(name)] = gate
        self._handles.append(place.register_forward_hook(_Through(gate, name)))

    def release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(self, image: Any) -> Any:
        return image


class _Inserted(nn.Module):
    """A gate at its place, with the blend where there is one."""

    def __init__(self, gate: nn.Module, blend: nn.Parameter | None) -> None:
        super().__init__()
        self.gate = gate
        self.blend = blend

    def forward(self, image: Tensor) -> Tensor:
        found = cast("Tensor", self.gate(image))
        if found.shape != image.shape:
            raise ShapeError(
                "the inserted attention's output",
                expected=f"an image of the size it takes, {shape_of(image)}",
                got=shape_of(found),
                do="What follows in the model expects that size: choose other options.",
            )
        return found if self.blend is None else torch.lerp(image, found.to(image.dtype), self.blend.to(image.dtype))


class _Through:
    """The forward hook. An object and no closure, so that a deep copy of a model goes through its own gates."""

    def __init__(self, gate: _Inserted, name: str) -> None:
        self.gate = gate
        self.name = name

    def __call__(self, module: nn.Module, args: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise UnsupportedError({self.name: _what_it_gives(output)}, do=_ELSEWHERE)
        return cast("Tensor", self.gate(output))


_ELSEWHERE = "Insert after a module that gives one image tensor (batch, channels, height, width)."


def _what_it_gives(output: object) -> str:
    given = f"a tensor {shape_of(output)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    return f"its output is {given}, no image"


def _maker(mechanism: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if not isinstance(mechanism, str):
        return mechanism
    if mechanism not in _MECHANISMS:
        raise ArgumentError(
            "mechanism",
            expected=f"one of {', '.join(_MECHANISMS)}",
            got=repr(mechanism),
            do="Or pass a class that is made with (channels, **options).",
        )
    return _MECHANISMS[mechanism]


def _holder(model: nn.Module) -> _Holder | None:
    held = getattr(model, HOLDER, None)
    return held if isinstance(held, _Holder) else None


def _key(name: str) -> str:
    """A name of a place as a key of a ModuleDict, which may hold no dots and no names of its own methods.

    No two places have one key: "a__b" is not taken for "a.b".
    """
    key = name.replace("__", "_-_").replace(".", "__")
    return f"{key}__" if hasattr(_Holder, key) else key


def _places(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that the patterns name, in the model's order. Raises ArgumentError."""
    every = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    names = {name: each for name, each in every if name and name.split(".")[0] != HOLDER}
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            near = sorted({name for name in names if name.count(".") == pattern.count(".")}) or sorted(names)
            raise ArgumentError(
                "after",
                expected="the name of a module, or a pattern",
                got=repr(pattern),
                do=f"Such as {', '.join(near[:6])}. A * stays within one part of a name.",
            )
    return {name: each for name, each in names.items() if any(_fits(name, pattern) for pattern in patterns)}


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))


def _made(
    place: nn.Module, make: Callable[..., nn.Module], channels: int, options: dict[str, Any], start: Start
) -> _Inserted:
    gate = make(channels, **options)
    if start == "paper" or bool(getattr(gate, "starts_as_identity", False)):
        return _Inserted(gate, None).train(place.training)
    blend = torch.zeros((), device=options.get("device"), dtype=options.get("dtype"))
    return _Inserted(gate, nn.Parameter(blend)).train(place.training)


def _like(place: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Device and dtype of the first floating-point weight of the place, or else of the model."""
    for module in (place, model):
        for weight in module.parameters():
            if weight.is_floating_point():
                return {"device": weight.device, "dtype": weight.dtype}
    return {}


def _channels(model: nn.Module, places: dict[str, nn.Module], example: Tensor | None) -> dict[str, int]:
    """The channels of each place's output: told by its own weights, or else seen in a forward pass."""
    widths = {name: _told(place) for name, place in places.items()}
    unknown = {name: places[name] for name, width in widths.items() if width is None}
    seen = _seen(model, unknown, example) if unknown else {}
    return {name: seen[name] if width is None else width for name, width in widths.items()}


def _told(place: nn.Module) -> int | None:
    if isinstance(place, (nn.Conv2d, nn.ConvTranspose2d)):
        return place.out_channels
    if isinstance(place, nn.BatchNorm2d):
        return place.num_features
    if isinstance(place, nn.GroupNorm):
        return place.num_channels
    return None


def _seen(model: nn.Module, places: dict[str, nn.Module], example: Tensor | None) -> dict[str, int]:
    outputs: dict[str, object] = {}
    handles = [place.register_forward_hook(_Note(outputs, name)) for name, place in places.items()]
    try:
        with _as_it_was(model):
            _run(model, _made_up(model) if example is None else example, made_up=example is None)
    finally:
        for handle in handles:
            handle.remove()
    refused = {name: "the model never calls it" for name in places if name not in outputs}
    refused |= {n: _what_it_gives(o) for n, o in outputs.items() if not isinstance(o, Tensor) or o.dim() != 4}
    if refused:
        raise UnsupportedError(refused, do=_ELSEWHERE)
    return {name: cast("Tensor", output).shape[1] for name, output in outputs.items()}


class _Note:
    def __init__(self, outputs: dict[str, object], name: str) -> None:
        self.outputs, self.name = outputs, name

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        self.outputs[self.name] = output


@contextmanager
def _as_it_was(model: nn.Module) -> Generator[None]:
    """Evaluation mode without gradients; modes and torch's random numbers are put back."""
    modes = {module: module.training for module in model.modules()}
    drawn = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        torch.set_rng_state(drawn)


def _made_up(model: nn.Module) -> Tensor:
    """An image for the first convolution."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise UnsupportedError(
            {type(model).__name__: "it has no nn.Conv2d to make up an image for"}, do="Pass channels=, or example=."
        )
    weight = first.weight
    return torch.zeros(1, first.in_channels, 64, 64, device=weight.device, dtype=weight.dtype)


def _run(model: nn.Module, example: Tensor, *, made_up: bool) -> None:
    try:
        model(example)
    except Exception as error:
        first = re.split(r"\n", str(error), maxsplit=1)[0]
        given = "an image made up" if made_up else "the example"
        raise UnsupportedError(
            {type(model).__name__: f"{given}, {shape_of(example)}, does not pass through it ({first})"},
            do="Pass channels=, or example= with an input that the model takes.",
        ) from error
