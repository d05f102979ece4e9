"""regard: attention you can trust, see and afford.

`regard.attention` computes exact attention with every option honoured or refused; `regard.reference`
is the float64 oracle it is checked against; `regard.masks` say which pairs may attend and
`regard.positions` how distance matters; `regard.nn` has the mechanisms as modules with weights; `regard.observe`
shows the weights of any model without taking its fused kernels away; `regard.activate` gives every model the
native core; `regard.explain` has word alignment.

Names are imported when they are first used, so that `regard --help` need not wait for torch.
"""

from typing import TYPE_CHECKING

from regard._lazy import lazily
from regard._version import __version__ as __version__

if TYPE_CHECKING:
    from regard import explain as explain
    from regard import masks as masks
    from regard import nn as nn
    from regard import positions as positions
    from regard import reference as reference
    from regard._attention import Choice as Choice
    from regard._attention import Dispatch as Dispatch
    from regard._attention import attention as attention
    from regard._attention import dispatch as dispatch
    from regard._errors import ArgumentError as ArgumentError
    from regard._errors import CheckpointError as CheckpointError
    from regard._errors import DataError as DataError
    from regard._errors import DependencyError as DependencyError
    from regard._errors import MaskError as MaskError
    from regard._errors import NativeError as NativeError
    from regard._errors import RegardError as RegardError
    from regard._errors import ShapeError as ShapeError
    from regard._errors import UnsupportedError as UnsupportedError
    from regard.integrations.torch_sdpa import activate as activate
    from regard.integrations.torch_sdpa import deactivate as deactivate
    from regard.observation import Observation as Observation
    from regard.observation import ObservedLayer as ObservedLayer
    from regard.observation import Statistics as Statistics
    from regard.observation import observe as observe
    from regard.observation import statistics as statistics
    from regard.observation import weights as weights
    from regard.trust import passport as passport
    from regard.trust.audit import Audit as Audit
    from regard.trust.audit import audit as audit
    from regard.trust.verify import verify as verify

__getattr__ = lazily(
    __name__,
    {
        "regard.explain": (),
        "regard.masks": (),
        "regard.nn": (),
        "regard.positions": (),
        "regard.reference": (),
        "regard._attention": ("Choice", "Dispatch", "attention", "dispatch"),
        "regard._errors": (
            "ArgumentError",
            "CheckpointError",
            "DataError",
            "DependencyError",
            "MaskError",
            "NativeError",
            "RegardError",
            "ShapeError",
            "UnsupportedError",
        ),
        "regard.integrations.torch_sdpa": ("activate", "deactivate"),
        "regard.observation": ("Observation", "ObservedLayer", "Statistics", "observe", "statistics", "weights"),
        "regard.trust.audit": ("Audit", "audit"),
        "regard.trust.passport": (),
        "regard.trust.verify": ("verify",),
    },
)

__all__ = [
    "ArgumentError",
    "Audit",
    "CheckpointError",
    "Choice",
    "DataError",
    "DependencyError",
    "Dispatch",
    "MaskError",
    "NativeError",
    "Observation",
    "ObservedLayer",
    "RegardError",
    "ShapeError",
    "Statistics",
    "UnsupportedError",
    "__version__",
    "activate",
    "attention",
    "audit",
    "deactivate",
    "dispatch",
    "explain",
    "masks",
    "nn",
    "observe",
    "passport",
    "positions",
    "reference",
    "statistics",
    "verify",
    "weights",
]


def __dir__() -> list[str]:
    return __all__
