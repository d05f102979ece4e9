"""A failure is made as small as it can be, and told as lines of Python that fail in the same way."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from regard.trust.verify import examiner, verify
from regard.trust.verify.cases import PAIRS, PLAIN, sized
from regard.trust.verify.edge_cases import EDGES
from regard.trust.verify.smallest_case import smallest_case
from tests.trust.verify import planted
from tests.trust.verify.planted import BUGS, Planted

ROOT = Path(__file__).parents[3]


def only_failure(target, case, **how):
    report = verify(target, only=(case,), **how)
    return report.failed[0]


# ------------------------------------------------------------------------------------------------- smallest


def test_every_size_is_at_its_least():
    smallest = smallest_case(PLAIN, lambda case: case.sizes.kv_len > 5)
    assert smallest.sizes == sized(1, 6, batch=1, heads=1, head_dim=1)


def test_sizes_that_belong_together_stay_together():
    grouped = replace(PLAIN, sizes=sized(heads=12, kv_heads=3))
    smallest = smallest_case(grouped, lambda case: case.sizes.group > 1)
    assert (smallest.sizes.heads, smallest.sizes.kv_heads) == (2, 1)


def test_options_that_do_not_matter_go():
    pair = next(case for case in PAIRS if case.name == "grouped-and-mask")
    assert set(smallest_case(pair, lambda case: "mask" in case.options).options) == {"mask"}


def test_what_an_edge_is_about_stays():
    edge = next(case for case in EDGES if case.name == "nan-in-masked-key")
    smallest = smallest_case(edge, lambda _: True)
    assert smallest.changes == edge.changes
    assert set(smallest.options) == {"mask"}


def test_nothing_smaller_fails():
    assert smallest_case(PLAIN, lambda _: False) is PLAIN


def test_it_ends_in_time():
    asked = []
    smallest_case(PLAIN, lambda case: bool(asked.append(case)), seconds=0.0)
    assert asked == []


# ----------------------------------------------------------------------------------------------------- lines


def run_here(lines, **scope):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec("\n".join(lines), scope)  # noqa: S102 - written by verify
    return told.getvalue().splitlines()


def test_the_smallest_shape_is_in_the_lines():
    failure = only_failure(planted.wrong_beyond_five_keys, "long")
    assert "drawn(" in failure.lines[2]
    assert ", 1, 1, 1, 1), drawn(" in failure.lines[2]
    assert failure.lines[2].count(", 1, 1, 6, 1)") == 2


FAILURES = [
    (planted.wrong_beyond_five_keys, "many-keys"),
    (planted.options_ignored, "padding"),
    (planted.options_ignored, "bias-forbidding"),
    (planted.options_ignored, "rope"),
    (planted.options_ignored, "pairs-of-each-head"),
    (planted.softcap_ignored, "softcap-then-mask"),
    ("torch", "nan-in-masked-value"),
    ("torch", "causal-with-scale-negative"),
    ("torch", "scale-nan"),
]


@pytest.mark.parametrize(("target", "case"), FAILURES, ids=lambda each: getattr(each, "__name__", str(each)))
def test_the_lines_print_the_failure(target, case):
    failure = only_failure(target, case)
    *code, comment = failure.lines
    assert 4 <= len(code) <= 6
    assert comment.removeprefix("# ") in run_here(code)
    assert comment.split(":")[0] == f"# {failure.told[0].split(':')[0]}"


def test_the_lines_run_in_a_process_of_their_own():
    failure = only_failure(planted.options_ignored, "documents")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(failure.lines)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    assert failure.lines[-1].removeprefix("# ") in done.stdout.splitlines()
    assert failure.lines[-1].startswith("# output: error")


def test_a_crash_is_made_smaller_too():
    failure = only_failure(planted.raises_beyond_five_keys, "plain")
    assert failure.lines[2].count(", 1, 1, 6, 1)") == 2
    with pytest.raises(IndexError, match="index 5 is out of bounds"):
        run_here(failure.lines)
    assert failure.lines[-1] == "# IndexError: index 5 is out of bounds"


def test_a_callable_without_a_name_is_called_examined():
    def local(query, key, value):
        return planted.wrong_beyond_five_keys(query, key, value)

    failure = only_failure(local, "plain")
    assert failure.lines[0] == "# examined: the callable that was given to verify"
    assert failure.lines[-1].removeprefix("# ") in run_here(failure.lines, examined=local)


def test_a_backend_with_a_bug_is_reproduced_with_what_was_given():
    backend = Planted("native", BUGS["groups-interleaved"][0])
    failure = only_failure(backend, "grouped-and-mask")
    assert failure.lines[-1].removeprefix("# ") in run_here(failure.lines, examined=backend)
    assert "mask" not in failure.lines[-2]


def test_other_dtypes_and_layouts_are_in_the_lines():
    def local(query, key, value):
        return planted.wrong_beyond_five_keys(query, key, value)

    report = verify(local, only=("plain", "laid-every-other"))
    lines = {(case.name, case.dtype): case.lines for case in report.failed}
    assert "dtype=torch.bfloat16" in lines["plain", "bfloat16"][3]
    assert lines["laid-every-other", "float32"][4] == "query, key, value = map(every_other, (query, key, value))"
    for told in lines.values():
        assert told[-1].removeprefix("# ") in run_here(told, examined=local)


def test_reducing_ends_in_time(monkeypatch):
    monkeypatch.setattr(examiner, "REDUCING_SECONDS", 0.0)
    failure = only_failure(planted.wrong_beyond_five_keys, "many-keys")
    assert "2048" in failure.lines[2]
