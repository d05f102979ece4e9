"""Mechanisms beside others: who is compared is the same thing, absent peers are named, rows are kept, claims judged."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch
from benchmarks.module_contest import errors_of_line, time_line
from benchmarks.module_pairs import Line, Pair, bars
from benchmarks.module_results import Results, alike, pair_verdicts
from benchmarks.peers import Cannot
from benchmarks.sides import Side, Sizes, normal, relative_error

import regard
from benchmarks import attention, machine, mechanisms, module_memory, module_peers, module_survey
from tests import write_mechanisms
from tests.benchmarks.scripted import QUICK

SMALL = Sizes(
    length=64, causal_length=32, width=32, heads=2, window=8, slots=8, block=4, channels=32, side=8, images=2, grid=6,
    scan_length=12, scan_length_trained=8,
)  # fmt: skip
LINES = {line.name: line for line in mechanisms.lines()}
PAIRS = [(line.name, direction) for line in LINES.values() for direction in line.needed or ("forward",)]


@pytest.fixture
def numpy_state():
    """transformers' BigBird seeds numpy's global generator in every training forward."""
    import numpy as np

    state = np.random.get_state()
    yield
    np.random.set_state(state)


# Lines


@pytest.mark.usefixtures("numpy_state")
@pytest.mark.parametrize(("name", "direction"), PAIRS)
def test_both_sides_compute_the_same_or_say_why_not(name, direction):
    line = LINES[name]
    row = errors_of_line(line, direction, SMALL)
    if "reason" in row:
        assert row["reason"].startswith("not installed")
        pytest.skip(row["reason"])
    approximate = line.mechanism == "PerformerAttention"
    assert row["our_error"] < (2 if approximate else 1e-5)
    assert row["their_error"] < (2 if approximate else 1e-5)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_a_line_is_timed_in_pairs(direction):
    row = time_line(LINES["MultiHeadAttention"], direction, SMALL, QUICK)
    assert row["repeats"] == 3
    assert row["ratio"] > 0
    assert row["shape"] == [1, 64, 32]
    (verdict,) = pair_verdicts(row)
    assert (verdict.line, verdict.needed) == (f"MultiHeadAttention {direction}", ">= 2")


def line_of(ours, theirs, **more):
    x = (normal(1, 5, 4),)
    return Line("tiny", "Tiny", "somebody", lambda *_: Pair(Side(ours, x), Side(theirs, x), **more), bars(2, 2))


class Twice(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Failing(torch.nn.Linear):
    def forward(self, x):
        raise RuntimeError("no such kernel\nand a long trace")


def alike_weights(kind):
    theirs = torch.nn.Linear(4, 4)
    ours = kind(4, 4)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_what_computes_something_else_is_not_timed(direction):
    line = line_of(*alike_weights(Twice))
    assert "something else is computed" in time_line(line, direction, SMALL, QUICK)["reason"]
    assert "something else is computed" in errors_of_line(line, direction, SMALL)["reason"]
    same = line_of(*alike_weights(torch.nn.Linear))
    assert "our_seconds" in time_line(same, direction, SMALL, QUICK)
    assert errors_of_line(same, direction, SMALL)["our_error"] < 1e-6


def test_a_gradient_that_is_wrong_is_found():
    class Stopped(torch.nn.Linear):
        def forward(self, x):
            return super().forward(0.5 * x + 0.5 * x.detach())

    line = line_of(*alike_weights(Stopped))
    assert "reason" not in errors_of_line(line, "forward", SMALL)
    assert "something else is computed" in errors_of_line(line, "forward+backward", SMALL)["reason"]


def test_an_approximation_is_told_and_not_limited():
    line = line_of(*alike_weights(Twice), approximate=True)
    assert errors_of_line(line, "forward", SMALL)["our_error"] == pytest.approx(1)
    assert "our_seconds" in time_line(line, "forward", SMALL, QUICK)


def test_a_side_that_fails_says_so_in_one_line():
    row = time_line(line_of(*alike_weights(Failing)), "forward", SMALL, QUICK)
    assert row["reason"] == "Failing: RuntimeError: no such kernel"
    (verdict,) = pair_verdicts(row)
    assert (verdict.met, verdict.reason) == (None, row["reason"])


def test_an_error_beyond_the_peers_is_not_met():
    row = errors_of_line(LINES["Performer error at q, k of 0.25"], "forward", SMALL)
    if "reason" in row:
        pytest.skip(row["reason"])
    worse = {**row, "our_error": 2.0, "their_error": 1.0}
    assert [verdict.met for verdict in pair_verdicts(worse)] == [False]
    assert [verdict.measured for verdict in pair_verdicts(worse)] == [2.0]


def test_relative_error_takes_the_largest_and_nothing_that_is_not_finite():
    one = torch.ones(4)
    assert relative_error((one, 1.5 * one), (one, one)) == pytest.approx(0.5)
    assert relative_error((one / 0,), (one,)) == float("inf")
    assert relative_error((torch.ones(5),), (one,)) == float("inf")


def test_the_acceptance_table_is_whole():
    needed = {name: tuple(line.needed.values()) for name, line in LINES.items() if any(line.needed.values())}
    assert needed == {
        "MultiHeadAttention": (2, 2), "Longformer": (7, 8), "Linformer": (2.5, 2.5), "Performer": (4, 4),
        "Performer causal": (8, 8), "S4D": (10, 10), "SE": (1, 1), "CBAM": (1, 1), "ECA": (1, 1), "axial": (3, 3),
    }  # fmt: skip
    assert sum(line.error_needed is not None for line in LINES.values()) == 6
    assert len(module_memory.FORMS) == 10
    assert Sizes().length == 4096
    assert Sizes().causal_length == 1024


def test_what_the_peak_allows_is_told_beside_the_verdict(monkeypatch):
    line = LINES["MultiHeadAttention"]
    work = line.work(SMALL)
    assert (work.maps, work.attention) == (4 * 2 * 64 * 32 * 32, 2 * 2 * 64 * 64 * 32)
    assert work.of("forward+backward") == 3 * work.maps + 3.5 * work.attention
    monkeypatch.setattr(machine, "fma_peak", lambda *_: (2.0 * work.of("forward"), ""))
    row = time_line(line, "forward", SMALL, QUICK)
    assert row["most"] == pytest.approx(2.0 * row["their_seconds"])
    assert pair_verdicts({**row, "most": 1.5})[0].reason == "1.5 at this machine's FMA peak"
    monkeypatch.setattr(machine, "fma_peak", lambda *_: (None, "not known"))
    assert time_line(line, "forward", SMALL, QUICK)["most"] is None
    assert LINES["SE"].work is None


def test_work_counts_what_the_masks_keep():
    from regard.masks import Keys, SlidingWindow

    seen = SlidingWindow(8) | Keys(torch.arange(64)[None] == 0)
    pairs = int(seen.dense(64, 64).sum()) + 64
    assert LINES["Longformer"].work(SMALL).attention == pytest.approx(4 * pairs * 32, rel=0.02)


# Peers


def test_an_absent_peer_is_named_and_nothing_breaks(monkeypatch):
    for name in ("linformer", "linformer.linformer"):
        monkeypatch.setitem(sys.modules, name, None)
    row = time_line(LINES["Linformer"], "forward", SMALL, QUICK)
    assert row["reason"] == "not installed: linformer.linformer; pip install 'regard[bench]'"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert time_line(LINES["SE"], "forward", SMALL, QUICK)["reason"].startswith("not installed: timm")


def test_a_peer_that_does_not_load_says_why(monkeypatch, tmp_path):
    (tmp_path / "broken_peer.py").write_text("from torch import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Cannot, match="broken_peer does not load: cannot import name 'no_such_name'"):
        module_peers.package("broken_peer")


def test_timms_layers_leave_nothing_behind():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("a peer that the library does not need")
    before = set(sys.modules)
    assert module_peers.timm_layer("eca").EcaModule(8)
    assert not {name for name in set(sys.modules) - before if name.startswith("torchvision")}


def test_the_public_state_space_is_the_recurrence():
    torch.manual_seed(0)
    layer = module_peers.PublicS4D(3, state_dim=4).double()
    signal = torch.randn(1, 3, 9, dtype=torch.float64)
    weights = layer.kernel
    decay = torch.complex(-weights["log_A_real"].exp(), weights["A_imag"])
    step = weights["log_dt"].exp()[:, None]
    entry = torch.view_as_complex(weights["C"]) * ((step * decay).exp() - 1) / decay
    state, outputs = torch.zeros(3, 2, dtype=torch.complex128), []
    for token in signal[0].unbind(1):
        state = (step * decay).exp() * state + token[:, None]
        outputs.append(2 * (entry * state).sum(1).real + layer.D * token)
    expected = layer.output_linear(torch.nn.functional.gelu(torch.stack(outputs, 1)[None]))
    torch.testing.assert_close(layer(signal), expected)


# Memory


def test_peak_memory_of_a_form_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(module_memory, "LENGTHS", (256, 512))
    small = replace(SMALL, width=64)
    row = module_memory.peaks_of("elu-linear", small, "forward+backward")
    assert set(row["peak_bytes"]) == {"256", "512"}
    assert set(module_memory.peaks_of(module_memory.PUBLIC, small, "forward")["peak_bytes"]) == {"256"}


def test_a_form_that_fails_in_its_process_says_why():
    row = module_memory.peaks_of("Linformer", replace(SMALL, heads=5), "forward")
    assert row["reason"].startswith("n=4096: ArgumentError")
    (verdict,) = module_memory.verdicts({"Linformer forward": row})
    assert (verdict.met, verdict.reason) == (None, row["reason"])


def test_memory_is_linear_or_not_met():
    def row(form, short, long=None):
        peaks = {"4096": short} | ({} if long is None else {"16384": long})
        return {"form": form, "direction": "forward", "peak_bytes": peaks}

    rows = [row("Performer", 100, 420), row("Nystrom", 100, 440), row("S4D", 10, 40), row("public S4D", 190)]
    found = module_memory.verdicts({f"{each['form']} forward": each for each in rows})
    told = [(verdict.line, verdict.met) for verdict in found]
    assert told == [
        ("memory Performer forward", True), ("memory Nystrom forward", False), ("memory S4D forward", True),
        ("memory S4D forward", False),
    ]  # fmt: skip
    assert found[-1].measured == pytest.approx(10 / 190)


@pytest.mark.parametrize("form", module_memory.FORMS)
def test_every_form_runs(form):
    results = module_memory.side_of(form, SMALL).run("forward+backward")()
    assert all(each.isfinite().all() for each in results)


# Survey


def test_every_card_is_measured_by_the_survey_and_stands_in_the_results():
    cards = set(write_mechanisms.carded())
    kinds = [subject.kind for subject in module_survey.subjects(Sizes())]
    assert sorted(kinds) == sorted(cards), "a new mechanism: add it to benchmarks/module_survey.py"
    rows = write_mechanisms.measured()["survey"]
    wanted = {"made", "shapes", "error", "error_kind", "forward_seconds", "training_seconds"}
    assert not [kind for kind in kinds if wanted - rows.get(kind, {}).keys()], "python -m benchmarks.mechanisms"
    assert {subject.kind: subject.made for subject in module_survey.subjects(Sizes())} == {
        kind: row["made"] for kind, row in rows.items()
    }


@pytest.mark.parametrize("subject", module_survey.subjects(SMALL), ids=lambda subject: subject.kind)
def test_a_mechanism_is_measured(subject):
    row = module_survey.error_of(subject, SMALL)
    row |= module_survey.time_of(subject, SMALL, "forward+backward", QUICK)
    assert row["training_seconds"] > 0
    assert row["made"].startswith(f"{subject.kind}(")
    exact = getattr(regard.nn, subject.kind).card.exact
    assert row["error_kind"] == ("rounding" if exact else "approximation")
    assert 0 < row["error"] < (1e-5 if exact else 5)


def test_the_error_of_an_approximation_is_that_from_softmax_attention():
    subject = next(each for each in module_survey.subjects(SMALL) if each.kind == "NystromAttention")
    few, all_of_them = (
        module_survey.error_of(replace(subject, options={"num_landmarks": count}), SMALL)["error"] for count in (4, 64)
    )
    assert all_of_them < few / 2


def test_a_card_without_a_measurement_fails_the_page(monkeypatch):
    document = json.loads(json.dumps(write_mechanisms.measured()))
    del document["survey"]["CBAM"]
    monkeypatch.setattr(write_mechanisms, "measured", lambda: document)
    with pytest.raises(LookupError, match=r"CBAM is not measured: python -m benchmarks\.mechanisms --survey"):
        write_mechanisms.page()


def test_the_page_tells_what_was_measured():
    page, document = write_mechanisms.page(), write_mechanisms.measured()
    assert document["machine"]["processor"] in page
    assert all(row["made"] in page for row in document["survey"].values())
    assert "| SE forward | timm | 8 x 256 x 56 x 56 |" in page


# Results


def test_rows_of_other_runs_are_kept_on_the_same_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = tmp_path / "found.json"
    first = Results(path, SMALL)
    first.put("survey", "CBAM", {"error": 1e-7})
    first.put("pairs", "SE forward", {"reason": "not installed: timm"})
    first.save()
    second = Results(path, SMALL)
    second.put("survey", "CBAM", {"forward_seconds": 1.0})
    second.put("pairs", "SE forward", {"ratio": 2.0})
    assert second.sections["survey"]["CBAM"]["error"] == 1e-7
    assert second.sections["survey"]["CBAM"]["forward_seconds"] == 1.0
    assert "reason" not in second.sections["pairs"]["SE forward"]
    second.put("pairs", "SE forward", {"reason": "no more"})
    assert "ratio" not in second.sections["pairs"]["SE forward"]
    assert Results(path, Sizes()).sections["survey"] == {}, "other sizes"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environments = [Results(path, SMALL, timed=timed).machine["environment"] for timed in (True, False)]
    assert [found.get("OMP_NUM_THREADS") == "7" for found in environments] == [True, False]
    here = machine.describe()
    assert alike(here, here)
    assert not alike(here, {**here, "processor": "another"})
    assert not alike(here, {**here, "versions": {"torch": "0.1"}})


def test_a_broken_results_file_is_begun_anew(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("{")
    assert Results(path, SMALL).sections["survey"] == {}


# The command


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    monkeypatch.setattr(mechanisms, "SIZES", SMALL)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def command(*words):
    return mechanisms.app(words)


@pytest.mark.usefixtures("small")
def test_the_command_from_end_to_end(tmp_path, capsys):
    only = "pair: MultiHeadAttention forward+,error: MultiHeadAttention,time: CBAM,error: CBAM"
    words = ("--only", only, "--repeats", "2", "--seconds", "0.1", "--out", str(tmp_path))
    assert command(*words) == mechanisms.OK
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Beside the layers of others", "Mechanisms", "CBAM(32)", "Acceptance"))
    document = json.loads((tmp_path / "mechanisms.json").read_text())
    assert {"our_error", "ratio"} < document["pairs"]["MultiHeadAttention forward+backward"].keys()
    assert {"error", "forward_seconds", "training_seconds"} < document["survey"]["CBAM"].keys()
    assert command("--only", "error: CBAM", "--out", str(tmp_path), "--json") == mechanisms.OK
    assert json.loads(capsys.readouterr().out)["pairs"].keys() == document["pairs"].keys()


@pytest.mark.usefixtures("small")
def test_the_acceptance_table_decides_the_exit_code(tmp_path, monkeypatch):
    def with_needed(forward):
        line = replace(line_of(*alike_weights(torch.nn.Linear)), needed=bars(forward)) if forward else None
        monkeypatch.setattr(mechanisms, "lines", lambda: [line])
        return command("--acceptance", "--only", "pair: tiny", "--repeats", "2", "--out", str(tmp_path))

    assert with_needed(1e-9) == mechanisms.OK
    assert with_needed(1e9) == mechanisms.NOT_MET


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--only", "pair: turbo"), "nothing is called 'pair: turbo'"),
        (("--repeats", "0"), "repeats and threads must be at least 1"),
        (("--seconds", "0"), "seconds above 0"),
        (("--threads", "0"), "repeats and threads must be at least 1"),
    ],
)
@pytest.mark.usefixtures("small")
def test_wrong_usage_is_named(words, complaint, tmp_path, capsys):
    assert command(*words, "--out", str(tmp_path)) == mechanisms.WRONG_USAGE
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_only_what_is_timed_needs_a_quiet_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(attention.machine, "busy", lambda: "the load is high")
    assert command("--only", "time: CBAM forward", "--out", str(tmp_path)) == mechanisms.WRONG_USAGE
    assert "the load is high" in capsys.readouterr().err
    assert command("--only", "error: CBAM", "--out", str(tmp_path), "--survey") == mechanisms.OK
