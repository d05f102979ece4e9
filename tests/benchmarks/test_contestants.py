"""Who takes part is right or says why not, here and in other processes; wrong answers are not timed."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from benchmarks.contest import hold
from benchmarks.peers import Cannot, Peer, callable_of
from benchmarks.problems import Problem, allowed, make_inputs, mask_of, square
from benchmarks.worker import Worker

from benchmarks import checking, memory, peers, survey
from benchmarks import worker as worker_module
from tests.benchmarks.scripted import QUICK, TINY, Scripted, entry

# Problems


@pytest.mark.parametrize("pattern", survey.PATTERNS)
def test_the_benchmarks_own_pattern_is_that_of_the_mask(pattern):
    problem = square(24, pattern=pattern, radius=4, global_tokens=2)
    mine, mask = allowed(problem, torch.arange(24)), mask_of(problem)
    assert torch.equal(mine, torch.ones(24, 24, dtype=torch.bool) if mask is None else mask.dense(24, 24))
    assert problem.visible_pairs == int(mine.sum())


def test_useful_work_counts_visible_pairs():
    causal = square(100, heads=3, head_dim=16, value_dim=32, pattern="causal")
    assert causal.visible_pairs == 5050
    assert causal.flops == 2 * (16 + 32) * 5050 * 3
    assert square(10, direction="forward+backward").flops == 3.5 * square(10).flops


def test_bytes_that_must_move():
    train = square(10, heads=1, kv_heads=1, head_dim=4, value_dim=8, direction="forward+backward")
    assert train.result_bytes == 4 * 10 * (8 + 4 + 4 + 8)


def test_inputs_are_the_same_in_every_process_and_differ_between_copies():
    first, again, other = make_inputs(TINY), make_inputs(TINY), make_inputs(TINY, copy=1)
    assert torch.equal(first.query, again.query)
    assert not torch.equal(first.query, other.query)


# Contestants


@pytest.mark.parametrize("direction", survey.DIRECTIONS)
@pytest.mark.parametrize("dtype", survey.DTYPES)
@pytest.mark.parametrize("pattern", survey.PATTERNS)
@pytest.mark.parametrize("name", ["regard-sdpa", "sdpa", "eager", "openvino", "onnxruntime"])
def test_a_contestant_is_right_or_says_why_not(name, pattern, dtype, direction):
    problem = Problem(**{**vars(TINY), "pattern": pattern, "dtype": dtype, "direction": direction})
    outcome = hold([entry(name, problem)], QUICK).outcomes[0]
    if outcome.ran:
        assert len(outcome.seconds) == 3
        assert outcome.error <= checking.TOLERANCE[dtype]
    else:
        assert name in {"openvino", "onnxruntime"}
        assert outcome.reason


@pytest.mark.parametrize("name", ["regard-sdpa", "sdpa", "eager"])
def test_a_learned_table_and_a_wide_value_are_right(name):
    for fields in ({"extra": "bias-table"}, {"value_dim": 32}, {"q_len": 1, "heads": 4}):
        direction = "forward" if "q_len" in fields else "forward+backward"
        problem = Problem(**{**vars(TINY), **fields, "direction": direction})
        outcome = hold([entry(name, problem)], QUICK).outcomes[0]
        assert outcome.ran, outcome.reason


def test_an_unknown_contestant_is_refused_by_name():
    with pytest.raises(ValueError, match="no contestant is called 'turbo'; there are: sdpa, flex"):
        peers.find_peer("turbo")


def test_an_instruction_level_needs_a_process_of_its_own():
    assert peers.find_peer("regard-native-avx2").environment == (("REGARD_ISA", "avx2"),)
    assert peers.find_peer("regard-native").environment == ()


def test_what_does_not_fit_in_memory_is_not_tried():
    with pytest.raises(Cannot, match=r"lay out .* GiB of scores"):
        peers.check_room(square(2**20), tensors=3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flex_says_that_it_has_no_backward():
    problem = Problem(**{**vars(TINY), "direction": "forward+backward"})
    assert "does not support backward on CPU" in hold([entry("flex", problem)], QUICK).outcomes[0].reason


def off_by_one(problem, inputs):
    wider = Problem(**{**vars(problem), "radius": problem.radius + 1})
    return peers.PEERS["sdpa"].prepare(wider, inputs)


@pytest.mark.parametrize("dtype", survey.DTYPES)
@pytest.mark.parametrize("direction", survey.DIRECTIONS)
def test_a_wrong_answer_is_not_timed(monkeypatch, dtype, direction):
    monkeypatch.setitem(peers.PEERS, "wrong", Peer(off_by_one))
    problem = square(200, dtype=dtype, direction=direction, pattern="window", radius=32, heads=2, kv_heads=2)
    found = hold([entry("wrong", problem), entry("sdpa", problem)], QUICK)
    assert not found.of(entry("wrong", problem)).ran
    assert "its answer is wrong" in found.of(entry("wrong", problem)).reason
    assert found.of(entry("sdpa", problem)).ran


def test_a_gradient_that_is_wrong_is_found():
    problem = Problem(**{**vars(TINY), "direction": "forward+backward"})
    inputs = make_inputs(problem)
    output, *gradients = callable_of("sdpa", problem, inputs)()
    assert checking.is_right(problem, checking.relative_error(problem, inputs, (output, *gradients)))
    gradients[1] = 1.01 * gradients[1]
    assert not checking.is_right(problem, checking.relative_error(problem, inputs, (output, *gradients)))


def test_nan_is_wrong_and_dropout_is_not_compared():
    inputs = make_inputs(TINY)
    nothing = (torch.full_like(inputs.query, math.nan),)
    assert not checking.is_right(TINY, checking.relative_error(TINY, inputs, nothing))
    drops = Problem(**{**vars(TINY), "extra": "dropout"})
    assert checking.is_right(drops, checking.relative_error(drops, inputs, nothing))
    assert not checking.is_right(TINY, math.nan)


def test_a_contestant_that_fails_says_so_in_one_line(monkeypatch):
    def fails(problem, inputs):
        raise RuntimeError("\n  no such kernel\nand a long trace")

    monkeypatch.setitem(peers.PEERS, "failing", Peer(fails))
    assert hold([entry("failing")], QUICK).outcomes[0].reason == "RuntimeError: no such kernel"


# Other processes


def test_a_worker_takes_its_turn_and_is_ended():
    found = hold([entry("sdpa"), entry("eager-pages-kept")], QUICK)
    assert [len(outcome.seconds) for outcome in found.outcomes] == [3, 3]
    with Worker("eager-pages-kept", TINY) as worker:
        assert worker.sample(2) > 0
        process = worker.process
    assert process.poll() is not None


def test_a_worker_that_cannot_says_why():
    with pytest.raises(Cannot, match="backend"):
        Worker("regard-turbo-avx2", TINY)


def test_a_worker_that_dies_is_told_from_one_that_answers():
    with Worker("eager-pages-kept", TINY) as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(Cannot, match="ended with status -9"):
            worker.sample(1)


FAULTS = """
import resource, torch
query = torch.randn(1, 256, 256, 16)
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.softmax(query @ query.mT, -1) @ query
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_pages_kept_are_kept():
    def faults(environment):
        told = {**os.environ, **environment}
        return int(subprocess.run([sys.executable, "-c", FAULTS], env=told, capture_output=True, check=True).stdout)

    assert faults(dict(peers.PAGES_KEPT)) < worker_module.FEW_PAGE_FAULTS
    assert faults({}) > 2**26 / 4096, "the default allocator gives the scores' pages back each time"


def test_a_worker_settles_until_no_page_is_new(monkeypatch):
    faults = iter([0, 5000, 5000, 6000, 6000, 6100])
    usage = type("Usage", (), {"ru_minflt": property(lambda _: next(faults))})()
    monkeypatch.setattr(worker_module.resource, "getrusage", lambda _: usage)
    log = []
    worker_module.settle(Scripted("a", log))
    assert log == [("a", 1)] * 3


def test_peak_memory_sees_the_scores():
    problem = square(512, heads=4, kv_heads=4)
    plain, fused = (memory.peak_of(entry(name, problem)) for name in ("eager", "sdpa"))
    assert plain.peak_bytes >= 1.5 * problem.score_bytes
    assert fused.peak_bytes < plain.peak_bytes / 2


def test_peak_memory_says_why_not():
    drops = Problem(**{**vars(TINY), "extra": "dropout"})
    found = memory.peak_of(entry("flex", drops))
    assert (found.peak_bytes, found.reason) == (None, "no rule for dropout is written for it")
