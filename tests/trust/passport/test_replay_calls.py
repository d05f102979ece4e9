"""Attention calls replayed without their model: on every backend, in every dtype, by callables; and parts of calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import regard
from regard._errors import ArgumentError
from regard.masks import Causal, Dense, Documents, SlidingWindow
from regard.observation.call import AttentionCall
from regard.positions import ALiBi, RoPE, Shaw
from regard.trust.passport import record, replay
from regard.trust.passport.calls import Asked, as_question, cost, fitted, truth_of
from regard.trust.passport.folder import read
from regard.trust.passport.plan import budget_bytes
from tests.trust.passport.small import states

native = pytest.mark.skipif(bool(regard.backends._library.why_absent()), reason="the native core is absent")


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention with a window and a bias, computed by the native core."""
    folder = tmp_path_factory.mktemp("calls") / "windowed"
    options = {"mask": Causal() & SlidingWindow(3), "bias": states(1, 2, 9, 9, seed=1), "backend": "auto"}
    record(partial(regard.attention, **options), [states(1, 2, 9, 8, seed=n) for n in (2, 3, 4)], folder)
    return folder


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("backend", ["native", "sdpa", "eager", "torch"])
def test_every_backend_passes_in_every_dtype(windowed: Path, backend: str, dtype: str | None) -> None:
    found = replay(windowed, backend=backend, dtype=dtype)
    assert found.passed, str(found)
    assert {row.part for row in found.rows} == {"output", "query", "key", "value", "bias"}
    assert {row.same_bits is None for row in found.rows if row.part == "output"} == {dtype is not None}


def wrong(change: Callable[[dict[str, Any]], object]) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, bias: Tensor) -> Tensor:
        given: dict[str, Any] = {"query": query, "key": key, "value": value, "mask": mask, "bias": bias}
        change(given)
        return regard.attention(**given, backend="eager")

    return attend


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "a window that is one wider": lambda given: given.update(mask=Causal() & SlidingWindow(4)),
    "no causality": lambda given: given.update(mask=SlidingWindow(3)),
    "another scale": lambda given: given.update(scale=0.3),
    "no bias": lambda given: given.update(bias=given["bias"] * 0),
    "a bias without its gradient": lambda given: given.update(bias=given["bias"].detach() + 0 * given["bias"]),
    "heads that changed places": lambda given: given.update(value=given["value"].flip(1)),
}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_callable_fails(windowed: Path, name: str, dtype: str | None) -> None:
    found = replay(windowed, backend=wrong(WRONG[name]), dtype=dtype)
    assert not found.passed
    assert found.first_difference == "Called"
    parts = {row.part for row in found.rows if row.state == "differs"}
    assert parts == {"bias"} if "without its gradient" in name else "output" in parts


def test_what_a_target_does_not_offer_is_refused_and_does_not_pass(windowed: Path) -> None:
    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    found = replay(windowed, backend=plain)
    assert [row.state for row in found.rows] == ["refused"]
    assert not found.passed
    assert found.first_difference is None
    with pytest.raises(ArgumentError, match="target: expected a backend's name"):
        replay(windowed, backend=3)


def test_an_error_that_is_no_refusal_is_a_difference(windowed: Path) -> None:
    def broken(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, bias: Tensor) -> Tensor:
        raise ZeroDivisionError("twice")

    found = replay(windowed, backend=broken)
    assert not found.passed
    assert [(row.state, row.note) for row in found.rows] == [("differs", "ZeroDivisionError: twice")]


def test_who_gives_no_gradient_is_judged_by_its_output_and_told(windowed: Path) -> None:
    def detached(query: Tensor, key: Tensor, value: Tensor, *, mask: Any, bias: Tensor) -> Tensor:
        return regard.attention(query, key, value, mask=mask, bias=bias).detach()

    found = replay(windowed, backend=detached)
    told = {row.part: (row.state, row.note) for row in found.rows}
    assert told["gradients"] == ("refused", "what it gives has no gradient")
    assert told["output"][0] == "passed"


def test_without_recorded_gradients_none_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "forward.passport"
    states = torch.randn(1, 2, 5, 8)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    record(attend, [states] * 3, path, gradients=False)
    for backend in ("flex", "native", lambda query, key, value: regard.attention(query, key, value).detach()):
        found = replay(path, backend=backend)
        assert found.passed, str(found)
        assert [row.part for row in found.rows] == ["output"]


def test_a_device_that_is_not_here(windowed: Path) -> None:
    for name in ("foo", "cuda:99"):
        with pytest.raises(ArgumentError, match=rf"device: expected one that is here, got '{name}'"):
            replay(windowed, device=name)


POSITIONS = {
    "alibi": ALiBi(2, align="top_left"),
    "rope": RoPE(8),
    "shaw": Shaw(8, max_distance=2),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_recorded_with_their_tables(tmp_path: Path, name: str) -> None:
    given = [states(1, 2, 5, 8, seed=n) for n in (2, 3, 4)]
    record(partial(regard.attention, position=POSITIONS[name]), given, tmp_path / "a")
    found = replay(tmp_path / "a", backend="eager")
    assert found.passed, str(found)
    tables = {f"position.{key}" for key, _ in POSITIONS[name].named_parameters()}
    assert {row.part for row in found.rows} == {"output", "query", "key", "value", *tables}


def test_a_mask_of_no_kind_that_regard_knows_is_written_out(tmp_path: Path) -> None:
    pattern = states(1, 2, 5, 5) > 0
    pattern[..., 0] = True
    record(partial(regard.attention, mask=Dense(pattern) | Causal()), [states(1, 2, 5, 8, seed=n) for n in (2, 3, 4)],
           tmp_path / "a")  # fmt: skip
    (call,) = read(tmp_path / "a").contents.calls
    assert call.options["mask"]["kind"] == "Dense"
    assert replay(tmp_path / "a", backend="eager").passed


def big(**options: Any) -> AttentionCall:
    """A call of 3 samples, 4 heads on 2, 40 queries; 64 keys."""
    query, key, value = states(3, 4, 40, 8, seed=1), states(3, 2, 64, 8, seed=2), states(3, 2, 64, 8, seed=3)
    output = regard.attention(query, key, value, enable_gqa=True, **options)
    return AttentionCall(query, key, value, options, "regard", output=output)


PARTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "structure": {"mask": Causal(align="bottom_right") & SlidingWindow(9, align="bottom_right")},
    "for each sample": {"mask": states(3, 1, 40, 64) > -1},
    "for each head": {"mask": Dense(states(1, 4, 40, 64) > -1), "sink": states(4)},
    "bias": {"bias": states(4, 40, 64, seed=5)[None], "softcap": 3.0},
    "bias for all queries": {"bias": states(3, 1, 1, 64, seed=5)},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_call_that_is_too_large_is_made_smaller_and_stays_true(name: str) -> None:
    asked = as_question(big(**PARTS[name]))
    whole = cost(asked.question)
    kept: list[str] = []
    for room in (whole, 2 * whole // 3, whole // 3, whole // 6, whole // 8):
        part = fitted(asked, room)
        if part is None:
            break
        assert cost(part.question) <= room
        # Its own answer is that part of the whole call's.
        found = truth_of(part.question).output
        assert part.output is not None
        torch.testing.assert_close(found, part.output.double(), rtol=0, atol=2e-6)
        kept.append(part.kept)
    assert kept[0] == ""
    assert kept[1].endswith("of 3 samples")
    assert kept[-1].startswith("1 of 3 samples, 2 of 4 heads")
    assert any(entry.endswith(" of 40 queries") for entry in kept)
    assert fitted(asked, 3000) is None


def test_a_position_over_all_queries_is_not_cut(tmp_path: Path) -> None:
    asked = as_question(big(position=ALiBi(4, align="bottom_right")))
    one = fitted(asked, cost(asked.question) // 3)
    assert one is not None
    assert one.kept == "1 of 3 samples"
    assert fitted(asked, cost(asked.question) // 4) is None


def test_parts_of_calls_are_told_and_replayed(tmp_path: Path) -> None:
    given = [states(2, 2, 200, 8, seed=n) for n in (2, 3, 4)]
    mask = Documents([150, 50]) & Causal()
    found = record(partial(regard.attention, mask=mask), given, tmp_path / "a", budget="300 kB")
    assert any(line.startswith("of the attention of Called 1 of 2 samples") for line in found.contents.left_out)
    replayed = replay(tmp_path / "a", backend="auto")
    assert replayed.passed, str(replayed)
    assert {row.note for row in replayed.rows} == {f"of the call {found.contents.calls[0].kept}"}
    assert budget_bytes("300 kB") >= (tmp_path / "a" / "tensors.safetensors").stat().st_size - 20_000


def test_a_query_that_sees_nothing_and_a_bias_that_forbids(tmp_path: Path) -> None:
    bias = states(1, 1, 5, 5)
    bias[..., 2, :] = -math.inf
    bias[..., :, 4] = torch.finfo(torch.float32).min
    given = [states(1, 2, 5, 8, seed=n) for n in (2, 3, 4)]
    record(partial(regard.attention, bias=bias), given, tmp_path / "a")
    for backend in ("eager", "sdpa", "auto"):
        found = replay(tmp_path / "a", backend=backend)
        assert found.passed, str(found)
        assert {row.part for row in found.rows} == {"output", "query", "key", "value"}  # no gradient of such a bias


def test_asked_is_what_was_seen() -> None:
    call = big(mask=states(3, 1, 40, 64) > -1)
    asked = as_question(call)
    assert isinstance(asked, Asked)
    assert asked.question.options["enable_gqa"] is True
    assert isinstance(asked.question.options["mask"], Dense)
