"""The native core's weights and statistics: what the torch code gives, every option, any length, little memory."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard import masks, positions
from regard.backends import _library, _native_observe
from regard.masks import Causal
from regard.measure import peak_bytes
from regard.observation.statistics import KINDS, Statistics
from tests.observation.problems import filled, randn
from tests.observation.test_statistics import by_formula, pooled_by_loops
from tests.option_table import SINGLES, Value, spec_of

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason="this installation has no native core")

ALLOWED = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
DTYPES = tuple(ALLOWED)
WITHOUT_MEANING = {"return_lse", "dropout_p", "seed", "enable_gqa", "additive"}
"""Options of attention that no weight depends on."""


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the native core was asked, for each time that it could be."""
    answers: list[bool] = []
    really = _native_observe.serves
    monkeypatch.setattr(_native_observe, "serves", lambda problem: answers.append(really(problem)) or answers[-1])
    return answers


def on_torch(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(_native_observe, "serves", lambda _: False)
        return function()


def assert_close(name: str, found: Tensor | None, want: Tensor, dtype: torch.dtype) -> None:
    assert found is not None, name
    size = max(1.0, float(want.abs().nan_to_num(0, 0, 0).max())) if want.numel() else 1.0
    torch.testing.assert_close(
        found.to(want.dtype),
        want,
        rtol=0,
        atol=ALLOWED[dtype] * size,
        equal_nan=True,
        msg=lambda text: f"{name}: {text}",
    )


def assert_same(found: Statistics, want: Statistics, dtype: torch.dtype, weights: Tensor) -> None:
    for name, tensor in vars(want).items():
        if name == "top_keys":
            assert found.top_keys is not None
            assert found.top_keys.sort(-1).values.diff().ne(0).all(), "a key was named twice"
            assert_close("weights of the top keys", found.top_weights, weights.gather(-1, found.top_keys), dtype)
        elif tensor is not None:
            assert_close(name, getattr(found, name), tensor, dtype)


def cast(options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The options in another dtype; a position, which changes in place, in float32 at least, as its tables are then."""
    tables = torch.promote_types(dtype, torch.float32)
    found = dict(options)
    for name, option in options.items():
        if isinstance(option, torch.nn.Module):
            found[name] = option.to(tables)
        elif isinstance(option, Tensor) and option.is_floating_point():
            found[name] = option.to(dtype)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [v for v in SINGLES if v.aspect not in {"dtype", "gradient"}], ids=str)
def test_every_option_against_the_reference(value: Value, dtype: torch.dtype, served: list[bool]) -> None:
    case = spec_of(value, next(v for v in SINGLES if str(v) == "gradient=none")).case()
    query, key, values = (tensor.to(dtype) for tensor in (case.query, case.key, case.value))
    options = {name: option for name, option in case.options.items() if name not in WITHOUT_MEANING}
    options = cast(options, dtype)
    with torch.no_grad():
        found = regard.statistics(query, key, values, want=KINDS, topk=3, pooled=3, **options)
        weights = regard.weights(query, key, **options)
        assert served == [True, True]
        exact = [tensor.double() for tensor in (query, key, values)]
        for name, want in by_formula(*exact, cast(options, torch.float64)).items():
            assert_close(name, getattr(found, name), want, dtype)
    assert_close("top_weights", found.top_weights, weights.topk(3).values, dtype)
    assert found.top_keys is not None
    assert_close("top_keys", weights.gather(-1, found.top_keys), weights.topk(3).values, dtype)
    assert_close("pooled", found.pooled, pooled_by_loops(weights, 3), dtype)


RAGGED: dict[str, Callable[[int, int, int], dict[str, Any]]] = {
    "nothing": lambda *_: {},
    "causal": lambda *_: {"mask": Causal("bottom_right")},
    "window and sink": lambda _, __, heads: {
        "mask": masks.SlidingWindow(20, 11, align="top_left"), "sink": randn(heads)
    },
    "two intervals": lambda *_: {"mask": masks.GlobalTokens(1) | masks.SlidingWindow(9, align="top_left")},
    "a pair in fifty": lambda q_len, kv_len, _: {"mask": torch.rand(q_len, kv_len) < 0.02},
    "bias that forbids, and softcap": lambda q_len, kv_len, _: {
        "bias": torch.where(torch.rand(1, 1, q_len, kv_len) < 0.3, -math.inf, randn(1, 1, q_len, kv_len)),
        "softcap": 2.0,
    },
    "content by distance": lambda *_: {"position": filled(positions.Shaw(16, 5, align="bottom_right"), torch.float64)},
}  # fmt: skip


@pytest.mark.parametrize("lengths", [(1, 1), (1, 300), (65, 1), (64, 64), (63, 129), (130, 257), (200, 300)])
@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_length_against_torch(
    lengths: tuple[int, int], name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q_len, kv_len = lengths
    query, key = randn(2, 4, q_len, 16, dtype=dtype), randn(2, 2, kv_len, 16, dtype=dtype)
    options = cast(RAGGED[name](q_len, kv_len, 4), dtype)
    with torch.no_grad():

        def statistics() -> Statistics:
            return regard.statistics(query, key, key, want=KINDS, topk=min(5, kv_len), pooled=7, **options)

        def weights(**chosen: Any) -> Tensor:
            return regard.weights(query, key, **options, **chosen)

        whole = weights()
        assert_close("weights", whole, on_torch(weights, monkeypatch), dtype)
        assert_same(statistics(), on_torch(statistics, monkeypatch), dtype, whole)
        rows, cols = [q_len - 1, 0, -1, q_len // 2], [kv_len // 3, 0, kv_len - 1, 0]
        for some in (rows, slice(None, None, 30)):
            for part in (cols, slice(None, None, 3), slice(None, None, 40)):
                tile = weights(heads=[3, 0], rows=some, cols=part)
                assert_close("tile", tile, whole[:, [3, 0]][:, :, some][..., part], dtype)


def test_threads_and_repetition_change_no_bit() -> None:
    query, key = torch.randn(1, 3, 700, 16), torch.randn(1, 3, 900, 16)

    def everything() -> list[Tensor]:
        found = regard.statistics(query, key, mask=Causal("bottom_right"), topk=4, pooled=9)
        return [tensor for tensor in vars(found).values() if tensor is not None]

    threads, first = torch.get_num_threads(), everything()
    assert len(first) == 8
    try:
        for count in (1, 2, 3, threads):
            torch.set_num_threads(count)
            assert all(map(torch.equal, everything(), first)), count
    finally:
        torch.set_num_threads(threads)


def test_equal_scores_name_the_first_keys_and_rows_are_filled_up() -> None:
    query, key = torch.zeros(1, 1, 70, 4), torch.randn(1, 1, 70, 4)
    found = regard.statistics(query, key, mask=Causal(), want=(), topk=3)
    assert found.top_keys is not None
    assert found.top_weights is not None
    assert found.top_keys[0, 0].eq(torch.arange(3)).all()
    assert found.top_weights[0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert found.top_weights[0, 0, 1].tolist() == [0.5, 0.5, 0.0]


def test_more_of_the_largest_weights_than_the_core_keeps() -> None:
    query, key = torch.randn(1, 1, 5, 4), torch.randn(1, 1, 90, 4)
    weights = regard.weights(query, key)
    for count in (_native_observe.MOST_TOP, _native_observe.MOST_TOP + 1, 100):
        top = regard.statistics(query, key, want=(), topk=count).top_weights
        assert top is not None
        torch.testing.assert_close(top, weights.topk(min(count, 90)).values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "key", "bias", "sink", "every key"])
def test_what_is_not_finite_is_as_torch_has_it(where: str, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, bias, sink = (
        torch.randn(1, 2, 70, 8),
        torch.randn(1, 2, 80, 8),
        torch.randn(1, 2, 70, 80),
        torch.zeros(2),
    )
    if where == "every key":
        query[0, 1, 7], key[0, 1] = 1.0, bad
    else:
        {"query": query[0, 1, 7], "key": key[0, 0, 60], "bias": bias[0, 0, 9], "sink": sink}[where][1] = bad

    def all_there_is() -> list[Tensor]:
        options: dict[str, Any] = {"mask": Causal("bottom_right"), "bias": bias, "sink": sink}
        found = regard.statistics(query, key, key, want=KINDS, pooled=3, **options)
        kept = [tensor for tensor in vars(found).values() if tensor is not None]
        return [*kept, regard.weights(query, key, **options), regard.weights(query, key, rows=[7, 3], cols=[60])]

    for found, want in zip(all_there_is(), on_torch(all_there_is, monkeypatch), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_scores_that_overflow_are_not_an_empty_row(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.full((1, 1, 3, 4), -1e30), torch.full((1, 1, 5, 4), 1e30)
    for options in ({}, {"bias": torch.zeros(1, 1, 3, 5)}, {"bias": torch.full((1, 1, 3, 5), -math.inf)}):
        found = regard.weights(query, key, **options)
        want = on_torch(lambda options=options: regard.weights(query, key, **options), monkeypatch)
        torch.testing.assert_close(found, want, equal_nan=True)


def test_gradients_and_transforms_go_through_torch(served: list[bool]) -> None:
    query, key = torch.randn(1, 2, 6, 8, requires_grad=True), torch.randn(1, 2, 6, 8)
    entropy = regard.statistics(query, key, want=("entropy",)).entropy
    assert entropy is not None
    entropy.sum().backward()
    assert query.grad is not None
    per_sample = torch.vmap(lambda q: regard.weights(q, key))(query.detach()[None])
    torch.testing.assert_close(per_sample[0], regard.weights(query.detach(), key), rtol=0, atol=1e-6)
    assert served == [False, False, True] or not any(served[:-1])


def test_memory_of_a_long_text() -> None:
    length = 8192
    query, key = torch.randn(1, 1, length, 8), torch.randn(1, 1, length, 8)
    peak = peak_bytes(lambda: regard.statistics(query, key, mask=Causal(), topk=4, pooled=32))
    assert peak < length * length // 100


def test_memory_that_torch_does_not_see() -> None:
    """The core's own memory, in a process of its own: what is resident must not grow by a map, 256 MiB."""
    program = """
import resource, torch, regard
from regard.masks import Causal
run = lambda n: regard.statistics(*torch.randn(2, 1, 1, n, 8).unbind(), mask=Causal(), topk=4, pooled=32)
run(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(8192)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 32 * 1024  # KiB
