"""A mask as it is written on a command line: `causal+window:4,0+padding:12,7`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.masks import Mask

EXAMPLES = (
    "causal, causal:bottom_right, window:4,0 (before, after), padding:12,7 (real keys of each sample), "
    "padding:12,7,left, documents:5,7, blocks:4, prefix:3, dilated:3,2, global:2"
)


def mask_of(text: str) -> Mask:
    """The mask that parts joined by `+` make together: a pair attends where all of them let it.

    Raises ArgumentError for an unknown part, and MaskError for numbers that make no mask.
    """
    parts = [_part(part.strip()) for part in text.split("+")]
    met = parts[0]
    for part in parts[1:]:
        met = met & part
    return met


def _part(text: str) -> Mask:
    from regard._errors import ArgumentError

    name, _, rest = text.partition(":")
    make = _makers().get(name)
    words = [word.strip() for word in rest.split(",") if word.strip()]
    numbers = [int(word) for word in words if word.lstrip("-").isdigit()]
    said = [word for word in words if not word.lstrip("-").isdigit()]
    if make is None or len(said) > 1:
        raise ArgumentError("--mask", expected=EXAMPLES, got=repr(text), do="Join several with +.")
    try:
        return make(numbers, said[0] if said else None)
    except (TypeError, IndexError) as problem:
        raise ArgumentError("--mask", expected=EXAMPLES, got=repr(text), do="Count its numbers again.") from problem


def _makers() -> Mapping[str, Callable[[list[int], Any], Mask]]:
    from regard import masks

    return {
        "causal": lambda numbers, align: masks.Causal(align=_nothing(numbers, align)),
        "window": lambda numbers, align: masks.SlidingWindow(*numbers, align=align),
        "padding": lambda numbers, side: masks.Padding(_some(numbers), side=side or "right"),
        "documents": lambda numbers, said: masks.Documents(_nothing(said, _some(numbers))),
        "blocks": lambda numbers, align: masks.Blocks(*numbers, align=align),
        "prefix": lambda numbers, align: masks.PrefixLM(*numbers, align=align),
        "dilated": lambda numbers, align: masks.Dilated(*numbers, align=align),
        "global": lambda numbers, align: masks.GlobalTokens(*numbers, align=align),
    }


def _some(numbers: list[int]) -> list[int]:
    if not numbers:
        raise TypeError("no numbers")
    return numbers


def _nothing(unwanted: object, wanted: Any) -> Any:
    if unwanted:
        raise TypeError(f"{unwanted!r} means nothing here")
    return wanted
