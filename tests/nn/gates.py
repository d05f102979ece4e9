"""What the tests of the image gates share: drawn images, drawn weights, and two modules compared with all gradients."""

from __future__ import annotations

import torch
from torch import nn


def image(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drawn(module, seed=3):
    """All weights and statistics of a module drawn anew, so that no zero hides anything. Returns it, evaluating."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                number = torch.randn(buffer.shape, generator=generator)
                buffer.copy_(number.abs() + 0.5 if name.endswith("var") else number * 0.3)
    return module.eval()


def same(ours: nn.Module, theirs: nn.Module, inputs: torch.Tensor) -> None:
    """Equal outputs and gradients, of the input and of every weight, on the same weights.

    Evaluating in float32, and training in float64: a batch norm over few samples turns roundings of float32 into 1e-5.
    """
    drawn(theirs)
    ours.load_state_dict(theirs.state_dict())
    _compare(ours.eval(), theirs, inputs, 1e-5)
    _compare(ours.double().train(), theirs.double().train(), inputs.double(), 1e-10)
    for (name, mine), (_, its) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        close(name, mine.double(), its.double(), 1e-10)


def _compare(ours, theirs, inputs, tolerance):
    found, expected = _run(ours, inputs), _run(theirs, inputs)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        close(name, value, expected[name], tolerance)


def close(name, found, expected, tolerance=1e-5):
    """To `tolerance` of the largest number in it."""
    size = max(1.0, float(expected.detach().abs().max()))
    wrong = float((found - expected).detach().abs().max())
    assert wrong <= tolerance * size, f"{name}: {wrong} of {size}"


def _run(module, inputs):
    module.zero_grad()
    given = inputs.clone().requires_grad_()
    output = module(given)
    output.backward(image(*output.shape, seed=2, dtype=output.dtype))
    gradients = {name: weight.grad.clone() for name, weight in module.named_parameters()}
    return {"output": output.detach(), "input": given.grad, **gradients}
