"""What `regard.observe` leaves behind (nothing) and keeps alive (q, k, v)."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import _get_current_function_mode_stack as mode_stack

import regard
from regard.observation import huggingface, huggingface_call, mask_requests
from tests.observation.modules import EMBED, HEADS, LENGTH, Sdpa, build, four_d

transformers = pytest.importorskip("transformers")

from tests.observation import hf_models  # noqa: E402


def world() -> list[Any]:
    """Everything global that observing touches."""
    computing, masking = transformers.AttentionInterface, transformers.AttentionMaskInterface
    return [
        dict(computing._global_mapping),
        dict(masking._global_mapping),
        computing.__dict__["get_interface"],
        torch.overrides.has_torch_function,
        list(module_hooks._global_forward_hooks),
        list(module_hooks._global_forward_pre_hooks),
        list(module_hooks._global_forward_hooks_always_called),
        mode_stack(),
        list(huggingface._listeners),
        list(huggingface._replaced),
        dict(mask_requests._requests),
        dict(huggingface_call._joins),
    ]


@contextmanager
def untouched() -> Iterator[None]:
    before = world()
    yield
    after = world()
    assert before == after
    for first, second in zip(before[:2], after[:2], strict=True):
        assert all(first[name] is second[name] for name in first)


class Failing(nn.Module):
    """Attends, then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Sdpa(four_d)

    def forward(self, states: Tensor) -> Tensor:
        self.inner(states)
        message = "the model failed"
        raise RuntimeError(message)


def test_nothing_is_left_behind() -> None:
    model, inputs = hf_models.build("t5")
    with untouched(), torch.no_grad(), regard.observe(model) as seen:
        model(**inputs)
    assert len(seen.layers) == 6


def test_nothing_is_left_behind_by_a_model_that_fails() -> None:
    states = torch.randn(2, LENGTH, EMBED)
    with untouched():
        with pytest.raises(RuntimeError, match="the model failed"), regard.observe(Failing()) as seen:
            Failing()(states)
        assert seen.layers == []
        model = Failing()
        with regard.observe(model) as seen:
            for _ in range(2):
                with pytest.raises(RuntimeError, match="the model failed"):
                    model(states)
    assert [layer.name for layer in seen.layers] == ["inner"]  # the second pass was counted as a new one


def test_observations_nest_and_each_sees_its_own_model() -> None:
    outer, states = build("encoder")
    inner, other = build("sdpa, causal")
    with untouched():
        with torch.no_grad(), regard.observe(outer) as first, regard.observe(inner) as second:
            outer(states)
            inner(other)
        with torch.no_grad(), regard.observe(outer) as whole, regard.observe(outer.encoder.layers[1]) as part:  # type: ignore[union-attr]
            outer(states)
    assert (len(first.layers), len(second.layers)) == (2, 1)
    assert (len(whole.layers), len(part.layers)) == (2, 1)
    assert torch.equal(whole.layers[1].weights(), part.layers[0].weights())


def test_nested_observations_of_one_hugging_face_model_agree() -> None:
    model, inputs = hf_models.build("llama")
    with untouched(), torch.no_grad(), regard.observe(model) as first, regard.observe(model) as second:
        model(**inputs)
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert len(first.layers) == 2
    assert torch.equal(first.layers[1].weights(), second.layers[1].weights())


def test_an_open_observation_is_not_opened_again() -> None:
    model, states = build("sdpa")
    with untouched():
        seen = regard.observe(model)
        with seen, pytest.raises(regard.RegardError, match="already open"):
            seen.__enter__()
        with seen:
            model(states)
        assert len(seen.layers) == 1


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("kind", ["torch", "hugging face"])
def test_two_threads_observe_their_own_models(kind: str) -> None:
    runs = 20
    failures: list[BaseException] = []
    start = threading.Barrier(2)

    def made(index: int) -> tuple[nn.Module, dict[str, Tensor]]:
        if kind == "torch":
            model, states = build(("encoder, padding", "sdpa, causal")[index])
            return model, {"states": states}
        return hf_models.build(("llama", "t5")[index])

    models = [made(index) for index in range(2)]
    counts = (2, 1) if kind == "torch" else (2, 6)

    def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        return hf_models.outputs(model, inputs) if kind != "torch" else [model(**inputs)]

    def work(index: int) -> None:
        try:
            model, inputs = models[index]
            with torch.no_grad():
                outputs(model, inputs)  # a thread's first product may have another number of threads than its second
                wanted = outputs(model, inputs)
            start.wait()
            for _ in range(runs):
                with torch.no_grad(), regard.observe(model) as seen:
                    found = outputs(model, inputs)
                assert all(map(torch.equal, found, wanted))
                assert len(seen.layers) == counts[index]
                seen.layers[-1].weights(rows=0)
        except BaseException as problem:
            failures.append(problem)

    with untouched():
        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


# ------------------------------------------------------------------------------------- what is kept


class Marked(torch.autograd.Function):
    """The identity; its node in the graph can be watched."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, mark: Any) -> Tensor:
        ctx.mark = mark
        return states.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None


class Mark:
    """Something to hold on to."""


@pytest.mark.parametrize("what", ["states", "mask", "bias of regard", "multihead mask", "relative bias"])
def test_the_graph_is_not_kept_alive(what: str) -> None:
    mark = Mark()
    watched = weakref.ref(mark)
    leaf = torch.zeros(LENGTH, LENGTH, requires_grad=True)
    layers = _observed_with(what, Marked.apply(leaf, mark))
    del mark
    gc.collect()
    assert watched() is None
    assert layers[0].weights().shape[-1] == LENGTH


def _observed_with(what: str, mask: Tensor) -> list[regard.ObservedLayer]:
    states = torch.randn(2, LENGTH, EMBED)
    if what == "relative bias":
        return _observed_with_relative_bias(mask)
    if what == "states":
        model: nn.Module = Sdpa(four_d)
        states = states + mask.sum()
    elif what == "mask":
        model = Sdpa(four_d, attn_mask=mask)
    elif what == "multihead mask":
        from tests.observation.modules import SelfAttention

        model = SelfAttention({"attn_mask": mask, "need_weights": False})
    else:
        from tests.observation.modules import Regard

        model = Regard(bias=mask, backend="eager")
    with regard.observe(model) as seen:
        model(states)
    if hasattr(model, "options"):
        model.options = {}  # the test's own reference to the mask
    return seen.layers


def _observed_with_relative_bias(mask: Tensor) -> list[regard.ObservedLayer]:
    model, _ = hf_models.build("t5")
    attention = model.encoder.block[0].layer[0].SelfAttention  # type: ignore[union-attr]
    with regard.observe(model) as seen:
        attention(torch.randn(1, LENGTH, 32), position_bias=mask.expand(1, 4, -1, -1))
    return seen.layers


def test_what_is_kept_of_long_texts_is_small() -> None:
    length = 2048
    model = Sdpa(four_d, is_causal=True)
    with torch.no_grad(), regard.observe(model) as seen:
        model(torch.randn(1, length, EMBED))
    kept = sum(tensor.untyped_storage().nbytes() for tensor in seen.layers[0].call.tensors().values())
    assert kept < 60 * length * EMBED < length * length * HEADS


def test_layers_of_a_stack_share_their_relative_bias() -> None:
    model, inputs = hf_models.build("t5")
    with torch.no_grad(), regard.observe(model) as seen:
        model(**inputs)
    first, second = (layer.call.options["bias"] for layer in seen.layers[:2])
    assert first is not None
    assert second is not None
    assert first.data_ptr() == second.data_ptr()
