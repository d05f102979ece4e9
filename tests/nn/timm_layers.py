"""timm's layers without timm: its package imports torchvision, of which there may be no build for this torch.

`timm.layers` alone needs one class of torchvision, which none of the modules compared here uses.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import pytest
import torch


def layer(room: str) -> types.ModuleType:
    """The module timm.layers.<room>; the test is skipped where timm is not installed."""
    if "timm" in sys.modules:
        return importlib.import_module(f"timm.layers.{room}")
    found = importlib.util.find_spec("timm")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    before = set(sys.modules)
    sys.modules["timm"] = package = types.ModuleType("timm")
    package.__path__ = list(found.submodule_search_locations)
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.BatchNorm2d
    try:
        return importlib.import_module(f"timm.layers.{room}")
    finally:  # nobody else is to meet half a package
        for name in set(sys.modules) - before:
            if name.split(".")[0] in {"timm", "torchvision"}:
                _KEPT[name] = sys.modules.pop(name)


_KEPT: dict[str, types.ModuleType] = {}
