"""The comparison of other people's tests tells whose failure it is."""

from __future__ import annotations

import json

from tests.others.compare import main

SAMPLE = """
import os
import pathlib
import pytest
import torch

HERE = pathlib.Path(__file__).parent


class TestAttention:
    @pytest.mark.parametrize("length", [3, 5])
    def test_numbers(self, length):
        query = torch.randn(1, 2, length, 8)
        weights = torch.softmax(query @ query.mT * 8**-0.5, -1)
        found = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        torch.testing.assert_close(found, weights @ query)

    def test_of_one(self):
        assert os.environ["WITH_REGARD"] != "active"


def test_of_both():
    assert torch.ones(1) == 2


def test_of_torch():
    assert os.environ["WITH_REGARD"] != "no"


def test_by_chance():
    if os.environ["WITH_REGARD"] == "active" and not (HERE / "seen").exists():
        (HERE / "seen").touch()
        raise ValueError


@pytest.mark.parametrize("name", ["there"] if os.environ["WITH_REGARD"] != "active" else ["elsewhere"])
def test_that_vanishes(name):
    pass


def test_who_computes():
    from regard.integrations.torch_sdpa import is_active

    assert is_active() == (os.environ["WITH_REGARD"] == "active")
"""


def test_it_tells_whose_failure_it_is(tmp_path, capsys):
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    told = tmp_path / "told.json"
    arguments = ["--folder", str(tmp_path), "--again", "1", "--planted", "--out", str(told), "--", "test_sample.py"]
    assert main(arguments) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(told.read_text())
    assert found == {
        "plain": {"passed": 6, "skipped": 0, "failed": 2, "error": 0},
        "active": {"passed": 5, "skipped": 0, "failed": 3, "error": 0},
        "fails with regard alone": [
            "test_sample.TestAttention::test_of_one",
            "test_sample::test_that_vanishes[there]",
        ],
        "fails by chance": ["test_sample::test_by_chance"],
        "fails with plain torch alone": ["test_sample::test_of_torch"],
        "fails in both": ["test_sample::test_of_both"],
        "sees a wrong kernel": 2,
    }
