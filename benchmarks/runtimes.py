"""OpenVINO and onnxruntime: each computes one attention node on torch's own memory, without copies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import Inputs, Problem, allowed


@dataclass(frozen=True)
class Bound:
    """A compiled model bound to torch's memory, which it only borrows: `borrowed` keeps that memory alive."""

    infer: Callable[[], object]
    output: Tensor
    borrowed: object

    def __call__(self) -> Tensor:
        """Run, and give the output, which the next run overwrites."""
        self.infer()
        return self.output


def openvino(problem: Problem, inputs: Inputs) -> Bound:
    """OpenVINO's own operator, computed in the dtype of the inputs."""
    import openvino as ov
    from openvino import opset13

    api: Any = ov
    operators: Any = opset13
    kind = api.Type.bf16 if problem.dtype == "bf16" else api.Type.f32
    tensors = _arguments(problem, inputs)
    parameters = [
        operators.parameter(list(t.shape), kind if t.is_floating_point() else api.Type.boolean) for t in tensors
    ]
    node = operators.scaled_dot_product_attention(*parameters, causal=problem.pattern == "causal")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if problem.dtype == "bf16" else "f32",
    }
    compiled = api.Core().compile_model(api.Model([node], parameters, "attention"), "CPU", settings)
    request = compiled.create_infer_request()
    output = torch.empty(_result_size(problem), dtype=inputs.query.dtype)
    shared = [_openvino_tensor(api, tensor) for tensor in (*tensors, output)]
    for place, tensor in enumerate(shared[:-1]):
        request.set_input_tensor(place, tensor)
    request.set_output_tensor(0, shared[-1])

    return Bound(request.infer, output, (tensors, shared))


def _openvino_tensor(api: Any, tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        flat = tensor.detach().view(torch.uint16).numpy().reshape(-1)
        return api.Tensor(flat, api.Shape(list(tensor.shape)), api.Type.bf16)
    return api.Tensor(tensor.detach().numpy(), shared_memory=True)


def onnxruntime(problem: Problem, inputs: Inputs) -> Bound:
    """The Attention operator of ONNX (opset 23)."""
    import onnxruntime as runtime  # pyright: ignore[reportMissingTypeStubs]

    api: Any = runtime
    options = api.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Its idle workers would spin on the cores of whoever comes next, for much longer than anybody waits here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    tensors = _arguments(problem, inputs)
    session = api.InferenceSession(_onnx_model(problem, tensors), options, providers=["CPUExecutionProvider"])
    output = torch.empty(_result_size(problem), dtype=inputs.query.dtype)
    binding = session.io_binding()
    for name, tensor in zip(_NAMES, tensors, strict=False):
        binding.bind_input(name, "cpu", 0, _onnx_type(tensor), list(tensor.shape), tensor.data_ptr())
    binding.bind_output("output", "cpu", 0, _onnx_type(output), list(output.shape), output.data_ptr())

    return Bound(functools.partial(session.run_with_iobinding, binding), output, tensors)


_NAMES = ("query", "key", "value", "mask")


def _onnx_model(problem: Problem, tensors: list[Tensor]) -> bytes:
    from onnx import helper

    make: Any = helper
    names = list(_NAMES[: len(tensors)])
    node = make.make_node("Attention", names, ["output"], is_causal=int(problem.pattern == "causal"))
    described = [
        make.make_tensor_value_info(name, _onnx_type(tensor), list(tensor.shape))
        for name, tensor in zip(names, tensors, strict=True)
    ]
    result = make.make_tensor_value_info("output", _onnx_type(tensors[0]), _result_size(problem))
    graph = make.make_graph([node], "attention", described, [result])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 23)], ir_version=11)
    return model.SerializeToString()


def _onnx_type(tensor: Tensor) -> int:
    from onnx import TensorProto

    proto: Any = TensorProto
    kinds = {torch.float32: proto.FLOAT, torch.bfloat16: proto.BFLOAT16, torch.bool: proto.BOOL}
    return kinds[tensor.dtype]


def _arguments(problem: Problem, inputs: Inputs) -> list[Tensor]:
    """Query, key, value, and a bool mask where the operator has no word for the pattern."""
    tensors = [inputs.query.detach(), inputs.key.detach(), inputs.value.detach()]
    if problem.pattern.startswith("window"):
        tensors.append(allowed(problem, torch.arange(problem.q_len)))
    return tensors


def _result_size(problem: Problem) -> list[int]:
    return [1, problem.heads, problem.q_len, problem.value_dim]
