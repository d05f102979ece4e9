"""Eight-bit ONNX weights back to floating point: W = (q - zero_point) * scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

QUANTIZED = "_quantized"


class Weights:
    """The initializers of one ONNX file, dequantised on demand."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        self.arrays: Mapping[str, np.ndarray] = {
            item.name: numpy_helper.to_array(item) for item in self.graph.initializer
        }

    def tensor(self, name: str) -> torch.Tensor:
        """An initializer by the name it had before quantisation."""
        if name in self.arrays:
            return torch.from_numpy(self.arrays[name].astype(np.float32))
        quantized = self.arrays[name + QUANTIZED].astype(np.float32)
        zero_point = self.arrays[f"{name}_zero_point"].astype(np.float32)
        return torch.from_numpy((quantized - zero_point) * self.arrays[f"{name}_scale"])

    def named(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors that kept their name from torch, the prefix taken off."""
        for full in self.arrays:
            name = full.removesuffix(QUANTIZED)
            if name.startswith(prefix) and not name.endswith(("_scale", "_zero_point")):
                yield name.removeprefix(prefix), self.tensor(name)

    def linear(self, node_type: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights of linear layers, which lost their name: found through the node that multiplies by them.

        Yields the node's path in dots (`block.0.layer.0.SelfAttention.q`) and the weight as torch keeps it.
        """
        sources = {node.output[0]: node.input[0] for node in self.graph.node if node.op_type == "DequantizeLinear"}
        for node in self.graph.node:
            if node.op_type != node_type:
                continue
            name = node.input[1]
            name = name if name in self.arrays else sources.get(name, "")  # past a DequantizeLinear
            if name.endswith(QUANTIZED):
                path = node.name.strip("/").rpartition("/MatMul")[0].replace("/", ".")
                yield path, self.tensor(name.removesuffix(QUANTIZED)).T.contiguous()
