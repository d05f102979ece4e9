"""Which pairs (query, key) may attend, as values that combine with `&`, `|` and `~`.

>>> mask = Causal() & SlidingWindow(128)
>>> mask.dense(4, 4)  # bool, True = may attend
>>> mask.blocks(16384, 16384, 128)  # what a sparse kernel needs, without the pairs
>>> mask.draw("mask.png")
"""

from typing import TYPE_CHECKING

from regard._lazy import lazily

if TYPE_CHECKING:
    from regard.masks._base import Indices as Indices
    from regard.masks._base import Mask as Mask
    from regard.masks._block_map import BlockMap as BlockMap
    from regard.masks.bigbird import BigBird as BigBird
    from regard.masks.blocks import Blocks as Blocks
    from regard.masks.causal import Causal as Causal
    from regard.masks.dense import Dense as Dense
    from regard.masks.dilated import Dilated as Dilated
    from regard.masks.documents import Documents as Documents
    from regard.masks.global_tokens import GlobalTokens as GlobalTokens
    from regard.masks.grid import Axial as Axial
    from regard.masks.grid import CrissCross as CrissCross
    from regard.masks.grid import GridBlocks as GridBlocks
    from regard.masks.grid import Neighborhood as Neighborhood
    from regard.masks.keys import Keys as Keys
    from regard.masks.padding import Padding as Padding
    from regard.masks.prefix import PrefixLM as PrefixLM
    from regard.masks.window import SlidingWindow as SlidingWindow

__getattr__ = lazily(
    __name__,
    {
        "regard.masks._base": (
            "Indices",
            "Mask",
        ),
        "regard.masks._block_map": ("BlockMap",),
        "regard.masks.bigbird": ("BigBird",),
        "regard.masks.blocks": ("Blocks",),
        "regard.masks.causal": ("Causal",),
        "regard.masks.dense": ("Dense",),
        "regard.masks.dilated": ("Dilated",),
        "regard.masks.documents": ("Documents",),
        "regard.masks.global_tokens": ("GlobalTokens",),
        "regard.masks.grid": (
            "Axial",
            "CrissCross",
            "GridBlocks",
            "Neighborhood",
        ),
        "regard.masks.keys": ("Keys",),
        "regard.masks.padding": ("Padding",),
        "regard.masks.prefix": ("PrefixLM",),
        "regard.masks.window": ("SlidingWindow",),
    },
)

__all__ = [
    "Axial",
    "BigBird",
    "BlockMap",
    "Blocks",
    "Causal",
    "CrissCross",
    "Dense",
    "Dilated",
    "Documents",
    "GlobalTokens",
    "GridBlocks",
    "Indices",
    "Keys",
    "Mask",
    "Neighborhood",
    "Padding",
    "PrefixLM",
    "SlidingWindow",
]


def __dir__() -> list[str]:
    return __all__
