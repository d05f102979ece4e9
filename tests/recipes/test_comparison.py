"""Variants that are compared: what is finished is not computed again, unless the data are others."""

from __future__ import annotations

import datasets
import pytest
import torch

from regard.recipes.comparison import Variant, compare_variants, expected_seconds, own_data
from tests.recipes.translation_cases import tiny_task
from tests.training.run_translation import NO_CHANCE


@pytest.fixture
def trained_names(tmp_path):
    """How often each variant is reported on, by the data it is said to be trained on."""
    _, config = tiny_task(**{**NO_CHANCE, "steps": 1})
    variants = [Variant("one", config), Variant("other", config.model_copy(update={"num_heads": 1}))]
    calls: list[int] = []

    def compared(data):
        def report(task, model, config):
            calls.append(config.num_heads)
            return {"said": data}

        def make(config):
            return tiny_task(**config.model_dump())[0]

        calls.clear()
        found = compare_variants(variants, tmp_path, make_task=make, report=report, say=str, data=data)
        return list(calls), {name: result["said"] for name, result in found.items()}

    return compared


def test_a_finished_variant_is_not_computed_again_on_the_same_data(trained_names):
    assert trained_names("first") == ([4, 1], {"one": "first", "other": "first"})
    assert trained_names("first") == ([], {"one": "first", "other": "first"})


def test_results_on_other_data_are_none(trained_names):
    trained_names("first")
    assert trained_names("second") == ([4, 1], {"one": "second", "other": "second"})


def test_own_data_are_told_by_what_is_in_the_file(tmp_path):
    path = tmp_path / "own.tsv"
    assert own_data(None) == own_data(str(path)) == ""
    path.write_text("a\tb\n")
    before = own_data(str(path))
    path.write_text("a\tc\n")
    assert len(before) == 64
    assert own_data(str(path)) != before


def test_a_saved_dataset_is_told_by_its_rows(tmp_path):
    def digest(rows, **several):
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"), **several)
        return own_data(str(tmp_path / "saved"))

    first, second = [{"source": "a"}, {"source": "b"}], [{"source": "a"}, {"source": "c"}]
    assert len({digest(first), digest(second), digest(first, num_shards=2), digest(second, num_shards=2)}) == 4
    before = digest(first)
    (tmp_path / "saved" / "cache-1.arrow").write_bytes(b"what a filter left there")
    assert own_data(str(tmp_path / "saved")) == before


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_trial_takes_the_threads_of_the_training():
    task, config = tiny_task(**{**NO_CHANCE, "threads": 1})
    seen: set[int] = set()
    batch = task.batch
    task.batch = lambda indices: seen.add(torch.get_num_threads()) or batch(indices)
    expected_seconds(task, config, tries=1)
    assert seen == {1}


@pytest.mark.usefixtures("two_threads")
def test_the_test_takes_the_threads_of_the_training(tmp_path):
    task, config = tiny_task(**{**NO_CHANCE, "steps": 1, "threads": 1})
    found = compare_variants(
        [Variant("one", config)],
        tmp_path,
        make_task=lambda _: task,
        report=lambda *_: {"threads": torch.get_num_threads()},
        say=str,
    )
    assert found["one"]["threads"] == 1


@pytest.mark.parametrize(("accumulate", "processes", "most"), [(1, 1, 1.0), (4, 1, 0.25), (2, 2, 0.25)])
def test_the_trial_takes_no_more_memory_than_a_part_of_a_batch(monkeypatch, accumulate, processes, most):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    task, config = tiny_task(**{**NO_CHANCE, "accumulate": accumulate})
    sizes: list[int] = []
    batch = task.batch

    def counted(indices):
        sizes.append(len(indices))
        return batch(indices)

    task.batch = counted
    before = [parameter.clone() for parameter in task.model.parameters()]
    assert expected_seconds(task, config, tries=1) > 0
    assert max(sizes) <= -(-len(task.order(0)[0]) // round(1 / most))
    assert all(torch.equal(*pair) for pair in zip(before, task.model.parameters(), strict=True))
