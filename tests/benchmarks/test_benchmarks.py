"""The benchmark's own workings: order, statistics, honesty, verdicts, files. Nothing here claims a speed."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from benchmarks.contest import Contest, Outcome, prepare_here
from benchmarks.peers import READINGS, Cannot
from benchmarks.problems import square
from benchmarks.timing import Here, Plan, interleave, median_ratio, pair_ratios, spread
from benchmarks.verdicts import (
    Claim,
    Limits,
    all_met,
    faster,
    judge,
    of_peak,
    speed_against,
    time_against,
    verdict_of,
)

from benchmarks import acceptance, attention, contest, machine, memory, peers, plots, report, small, survey
from tests.benchmarks.scripted import QUICK, TINY, Scripted, contest_of, entry

# Order


def test_each_rep_runs_every_contestant_once_and_the_first_takes_turns():
    log = []
    runners = {name: Scripted(name, log) for name in "abc"}
    times = interleave(runners, Plan(repeats=4, seconds=1e9))
    after_warming_up = [name for name, _ in log[6:]]
    assert "".join(after_warming_up) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(some) for name, some in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_reps_are_fewer_where_they_take_too_long_but_at_least_three():
    assert len(interleave({"a": Scripted("a", [], 10.0)}, Plan(repeats=15, seconds=60.0))["a"]) == 6
    assert len(interleave({"a": Scripted("a", [], 100.0)}, Plan(repeats=15, seconds=60.0))["a"]) == 3
    assert len(interleave({"a": Scripted("a", [], 100.0)}, Plan(repeats=2, seconds=60.0))["a"]) == 2


def test_a_rep_of_something_quick_is_many_calls():
    log = []
    interleave({"a": Scripted("a", log, 0.0001)}, Plan(repeats=1, least_seconds=0.005))
    assert log[-1] == ("a", 50)
    assert log[-2] == ("a", 1), "one call that is not counted brings caches back"


def test_a_change_of_thread_pool_waits_and_the_same_pool_does_not(monkeypatch):
    waits = []
    monkeypatch.setattr("benchmarks.timing.time.sleep", waits.append)
    interleave({"a": Scripted("a", []), "b": Scripted("b", [])}, Plan(repeats=2))
    assert waits == []
    runners = {"a": Scripted("a", []), "b": Scripted("b", [], pool="other")}
    interleave(runners, Plan(repeats=2, settle_seconds=0.25))
    assert waits == [0.25, 0.25], "a b, then b a: two changes"


def test_no_runner_no_times():
    assert interleave({}, Plan()) == {}


def test_runs_take_turns_call_by_call():
    seen = []
    Here([lambda: seen.append("first") or (), lambda: seen.append("second") or ()]).sample(3)
    assert seen == ["first", "second", "first"]


# Statistics


def test_what_disturbs_both_of_a_pair_does_not_count():
    ours, theirs = [1.0, 1.0, 50.0, 1.0, 1.0], [2.0, 2.0, 100.0, 2.0, 2.1]
    assert pair_ratios(theirs, ours) == pytest.approx([2, 2, 2, 2, 2.1])
    assert median_ratio(theirs, ours) == 2


def test_pairs_need_as_many_times():
    with pytest.raises(ValueError, match="argument 2 is"):
        pair_ratios([1.0], [1.0, 2.0])


def test_spread_is_half_the_quartiles_distance():
    assert spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.1)
    assert spread([3.0]) == 0.0


# Verdicts


def test_a_verdict_says_by_how_much():
    good = verdict_of("line", "x", 3.0, needed=2.4, at_most=False)
    assert (good.met, good.needed, good.margin) == (True, ">= 2.4", pytest.approx(0.25))
    bad = verdict_of("line", "x", 1.8, needed=2.4, at_most=False)
    assert (bad.met, bad.margin) == (False, pytest.approx(-0.25))
    low = verdict_of("line", "x", 3.3, needed=4.4, at_most=True)
    assert (low.met, low.needed, low.margin) == (True, "<= 4.4", pytest.approx(0.25))
    assert verdict_of("line", "x", 4.5, needed=4.4, at_most=True).met is False
    assert verdict_of("line", "x", 2.4, needed=2.4, at_most=False).met is True


def test_what_was_not_measured_is_not_met():
    found = contest_of(ours="no such backend", sdpa=[1.0])
    verdict = judge("line", Claim("x", 2.0, faster(entry("ours"), entry("sdpa"))), found, Limits())
    assert (verdict.met, verdict.measured, verdict.reason) == (None, None, "ours: no such backend")
    assert not all_met([verdict])
    assert not all_met([])
    assert all_met([verdict_of("line", "x", 1.0, needed=1.0, at_most=False)])


def test_the_best_peer_counts_of_those_that_ran():
    found = contest_of(ours=[1.0, 1.0], slow=[9.0, 9.0], quick=[2.0, 2.0], absent="not installed")
    three = [entry(name) for name in ("slow", "quick", "absent")]
    assert faster(entry("ours"), *three)(found, Limits()) == 2.0
    with pytest.raises(Cannot, match="absent: not installed"):
        faster(entry("ours"), entry("absent"))(found, Limits())


def test_fractions_of_what_the_machine_can_do():
    found, limits = contest_of(ours=[0.5]), Limits()
    with pytest.raises(Cannot, match="FMA peak is not known"):
        of_peak(entry("ours"))(found, limits)
    limits.peaks["fp32"] = 4.0 * TINY.flops
    assert of_peak(entry("ours"))(found, limits) == 0.5


def test_whoever_only_reads_is_timed_and_not_judged():
    for name in READINGS:
        runner, error = prepare_here(name, TINY)
        assert math.isnan(error)
        assert runner.sample(2) > 0


def test_two_problems_of_one_contest():
    short, long = entry("ours"), entry("ours", square(48, heads=2, kv_heads=2, head_dim=16, value_dim=16))
    found = Contest([Outcome(short, [1.0]), Outcome(long, [2.0])], 0.0)
    assert time_against(long, short)(found, Limits()) == 2.0
    assert speed_against(long, short)(found, Limits()) == 2.0, "four times the work in twice the time"


def test_the_peak_is_the_most_that_was_seen(monkeypatch):
    seen = iter([3e11, 5e11, 4e11])
    monkeypatch.setattr(machine.regard.measure, "fma_peak", lambda *_: next(seen), raising=False)
    limits = Limits()
    for _ in range(3):
        limits.look({"fp32"})
    assert limits.peak("fp32") == 5e11


def test_a_peak_that_cannot_be_measured_leaves_a_reason(monkeypatch):
    monkeypatch.delattr(machine.regard.measure, "fma_peak", raising=False)
    assert machine.fma_peak("fp32", 1) == (None, "this regard has no measure.fma_peak")


def test_the_acceptance_table_is_whole():
    lines = acceptance.lines("regard-native")
    assert len({line.name for line in lines}) == len(lines) == 22
    claims = [claim for line in lines for claim in line.claims]
    assert [sum(claim.what == what for claim in claims) for what in ("x SDPA", "of the FMA peak")] == [19, 3]
    assert [claim.needed for claim in claims if claim.at_most] == [4.4]
    for line in lines:
        labels = [some.label for some in line.entries]
        assert len(set(labels)) == len(labels)
        assert all(peers.find_peer(some.name) for some in line.entries)


def test_memory_is_compared_for_each_byte_that_must_be_returned():
    plain, dropout, table, wide = (some.problem for some in survey.memory_entries("ours", "forward+backward"))
    found = [memory.Memory(entry("ours", problem), 2 * problem.result_bytes) for problem in (plain, dropout, table)]
    found.append(memory.Memory(entry("ours", wide), 3 * wide.result_bytes))
    verdicts = survey.memory_verdicts(found)
    assert [verdict.met for verdict in verdicts] == [True, True, False]
    assert verdicts[2].measured == 1.5
    assert verdicts[2].reason == "bytes against bytes: 2.25"
    found[1] = memory.Memory(found[1].entry, None, "no kernel")
    assert survey.memory_verdicts(found)[0].met is None


# Small shapes


def test_what_is_allowed_is_the_larger_of_a_ratio_and_a_constant():
    assert small.excess([100e-6], [90e-6]) == pytest.approx(-5e-6), "15 us more than 90"
    assert small.excess([1100e-6], [1000e-6]) == pytest.approx(1100e-6 - 1000e-6 / 0.95)
    assert small.excess([20e-6, 20e-6, 900e-6], [10e-6] * 3) < 0, "one disturbed rep is no hole"


def test_holes_are_named_and_counted():
    cells = [small.Cell("ours", TINY, 90e-6, 20e-6, 55e-6), small.Cell("ours", TINY, 20e-6, 20e-6, -15e-6)]
    verdict = small.verdicts(cells)[0]
    assert (verdict.met, verdict.measured, verdict.reason) == (False, 1, "n=24 d=16: 90 against 20 us")
    assert small.verdicts(cells[1:])[0].met is True
    absent = [small.Cell("ours", TINY, 0.0, 0.0, 0.0, "no such backend")]
    assert (small.verdicts(absent)[0].met, small.verdicts(absent)[0].reason) == (None, "no such backend")


def test_what_looks_like_a_hole_is_timed_again(monkeypatch):
    asked = []

    def held(entries, plan):
        asked.append(plan.repeats)
        slow = 1.0 if len(asked) == 1 else 1e-6
        return Contest([Outcome(some, [1e-6 if some.name == "sdpa" else slow]) for some in entries], 0.0)

    monkeypatch.setattr(small, "hold", held)
    assert [cell.hole for cell in small.measure(("ours",), [TINY], QUICK)] == [False]
    assert asked == [3, 9]


def test_every_small_shape_is_there():
    assert len(list(small.problems())) == 22 * 5 * 2 * 2


# Files


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "made" / "results.json"
    report.write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="JSON compliant"):
        report.write_json({"a": math.nan}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    report.write_json({"a": 1}, path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def document_of(*lengths, peak=1e12):
    outcomes = [Outcome(entry(name, square(n)), [1e-3 * n]) for n in lengths for name in ("regard-native", "sdpa")]
    found = report.Report({}, "regard-native", contests=[Contest(outcomes, 0.0)])
    found.memory = [memory.Memory(entry("sdpa", square(n)), 1000 * n) for n in lengths]
    if peak is not None:
        found.limits.peaks["fp32"] = peak
    return found.as_json()


def test_plots_are_written(tmp_path):
    written = plots.draw(document_of(64, 128), tmp_path, "some")
    names = [f"some-{kind}-fp32-forward-d64.png" for kind in ("time", "peak", "memory")]
    assert [path.name for path in written] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_plot_without_numbers_is_left_out(tmp_path):
    kinds = [path.name.split("-")[1] for path in plots.draw(document_of(64, 128, peak=None), tmp_path, "some")]
    assert kinds == ["time", "memory"]
    assert plots.draw(document_of(64), tmp_path, "one") == []


def test_every_contestant_has_a_line_of_its_own():
    attending = {name for name, peer in peers.PEERS.items() if peer.attends}
    assert attending | {"regard"} == set(plots._STYLES)
    looks = [(marker, dashes) for _, marker, dashes in plots._STYLES.values()]
    assert len(set(looks)) == len(looks)


# The command


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.1, 0.1, 0.1))


@pytest.fixture
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def command(*words):
    return attention.app(words)


TINY_SURVEY = ("--lengths", "16,32", "--head-dims", "16", "--patterns", "dense", "--repeats", "2", "--backend", "sdpa")


def test_a_busy_machine_is_refused_unless_told_otherwise(monkeypatch, tmp_path, capsys, keep_threads):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.51 * (os.cpu_count() or 1), 0.0, 0.0))
    words = (*TINY_SURVEY, "--only", "fp32-forward", "--peers", "sdpa", "--out", str(tmp_path))
    assert command(*words) == attention.WRONG_USAGE
    assert "--anyway" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert command(*words, "--anyway") == attention.OK
    assert "TIMINGS ARE NOT TO BE TRUSTED" in capsys.readouterr().err


def test_a_survey_from_end_to_end(tmp_path, capsys, idle, keep_threads):
    peers_asked = "sdpa,eager,activated"
    words = (*TINY_SURVEY, "--only", "fp32-forward,bf16-forward+backward", "--peers", peers_asked, "--json")
    assert command(*words, "--out", str(tmp_path), "--name", "mine", "--threads", "1") == attention.OK
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document == json.loads((tmp_path / "mine.json").read_text())
    assert err == "", "no bar where nobody watches"
    assert document["finished"]
    assert document["machine"]["threads"] == 1
    assert document["machine"]["versions"]["torch"] == torch.__version__
    assert len(document["load_before"]) == len(document["load_after"]) == 3
    assert document["seed"] == 20261122
    outcomes = [outcome for some in document["contests"] for outcome in some["outcomes"]]
    assert len(outcomes) == 2 * 2 * 4
    assert all(len(outcome["seconds"]) == 2 for outcome in outcomes if "seconds" in outcome)
    assert all("seconds" in outcome or outcome["reason"] for outcome in outcomes)
    assert (tmp_path / "mine-time-fp32-forward-d16.png").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--only", "fp16"), "no part is called 'fp16'; there are: fp32-forward"),
        (("--lengths", "16,x"), "lengths takes whole numbers of at least 1, not '16,x'"),
        (("--lengths", "0"), "lengths takes whole numbers"),
        (("--patterns", "star"), "no pattern is called 'star'"),
        (("--peers", "turbo"), "no contestant is called 'turbo'"),
        (("--repeats", "0"), "repeats must be at least 1"),
        (("--seconds", "0"), "seconds must be above 0"),
        (("--threads", "-1"), "threads must be at least 1"),
    ],
)
def test_wrong_usage_is_named(words, complaint, tmp_path, capsys, idle, keep_threads):
    assert command(*words, "--out", str(tmp_path)) == attention.WRONG_USAGE
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_acceptance_table_decides_the_exit_code(monkeypatch, tmp_path, capsys, idle, keep_threads):
    ours, sdpa = entry("regard-sdpa"), entry("sdpa")

    def with_needed(needed):
        line = acceptance.Line("tiny", (ours, sdpa), (Claim("x SDPA", needed, faster(ours, sdpa)),))
        monkeypatch.setattr(acceptance, "lines", lambda _: [line])
        words = ("--acceptance", "--backend", "sdpa", "--only", "tiny", "--repeats", "2", "--out", str(tmp_path))
        return command(*words)

    assert with_needed(1e-9) == attention.OK
    assert with_needed(1e9) == attention.NOT_MET
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("needed", "measured", "met", "NO", "-100.0%"))
    verdict = json.loads((tmp_path / "acceptance.json").read_text())["verdicts"][0]
    assert (verdict["line"], verdict["needed"], verdict["met"]) == ("tiny", ">= 1e+09", False)


def test_what_was_found_is_kept_when_a_run_is_cut_short(monkeypatch, tmp_path, idle, keep_threads):
    real, held = contest.hold, []

    def cut_short(entries, plan):
        if held:
            raise KeyboardInterrupt
        held.append(entries)
        return real(entries, plan)

    monkeypatch.setattr(attention, "hold", cut_short)
    with pytest.raises(KeyboardInterrupt):
        attention.run(only="fp32-forward", lengths="16,32", peers="sdpa", backend="sdpa", repeats=2, out=tmp_path)
    document = json.loads((tmp_path / "attention.json").read_text())
    assert (document["finished"], len(document["contests"])) == (False, 1)
