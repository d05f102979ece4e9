"""Folders that `datasets` saved: read like JSONL and folders of images, with the row in what is said of a fault."""

from __future__ import annotations

import io
import itertools
import json
import types
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from PIL import Image

from regard._errors import DataError, DependencyError
from regard.recipes.image_classification.own_pictures import load_own
from regard.recipes.translation.data import own
from regard.training import saved_datasets
from regard.training.records import Document, Turn, read_dialogues, read_documents, read_images, read_pairs

PAIRS = [{"source": "one", "target": "一"}, {"source": " two ", "target": "二"}]


def saved(folder: Path, rows: list[dict[str, Any]], **columns: Any) -> Path:
    made = datasets.Dataset.from_list(rows)
    for name, feature in columns.items():
        made = made.cast_column(name, feature)
    made.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def picture(shade: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("L", (28, 28), shade).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def said(caught: pytest.ExceptionInfo[DataError]) -> str:
    return str(caught.value)


def test_pairs(tmp_path):
    assert read_pairs(saved(tmp_path, PAIRS)) == [("one", "一"), ("two", "二")]


def test_pairs_under_their_languages(tmp_path):
    rows = [
        {"id": "0", "translation": {"en": "one", "zh": "一"}},
        {"id": "1", "translation": {"en": "two", "zh": "二"}},
    ]
    folder = saved(tmp_path, rows)
    assert read_pairs(folder, ("en", "zh")) == [("one", "一"), ("two", "二")]
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert read_pairs(lines, ("en", "zh")) == [("one", "一"), ("two", "二")]
    with pytest.raises(DataError, match="row 1, translation: expected the key 'de', got 'en', 'zh'"):
        read_pairs(folder, ("en", "de"))
    with pytest.raises(DataError, match="row 1: expected the key 'source', got 'id', 'translation'"):
        read_pairs(folder)


def test_a_translator_is_trained_on_them_as_on_a_file(tmp_path):
    names = ["red", "blue", "old", "new", "high", "low", "wide", "long"]
    pairs = [(f"A {one} house and a {other} door number {n}.", f"{n}号是房子和门。{one}") for n, (one, other) in
             enumerate(itertools.permutations(names, 2))]  # fmt: skip
    lines = tmp_path / "pairs.tsv"
    lines.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    folder = saved(tmp_path, [{"translation": {"en": source, "zh": target}} for source, target in pairs])
    found = own(folder)
    assert found == own(lines)
    assert found.test


def test_documents(tmp_path):
    rows = [{"document": "long", "summary": "short"}, {"document": "alone", "summary": None}]
    assert read_documents(saved(tmp_path, rows)) == [Document("long", "short"), Document("alone", None)]


@pytest.mark.parametrize(
    "turns", [["Hi.", "Yes?"], [{"speaker": "A", "text": "Hi."}, {"speaker": "B", "text": "Yes?"}]]
)
def test_dialogues(tmp_path, turns):
    assert read_dialogues(saved(tmp_path, [{"turns": turns}])) == [(Turn("A", "Hi."), Turn("B", "Yes?"))]


def test_pictures_and_the_names_of_their_classes(tmp_path):
    rows = [{"image": picture(20 * n), "label": n % 2} for n in range(12)]
    folder = saved(tmp_path, rows, image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]))
    assert [each.label for each in read_images(folder)] == ["even", "odd"] * 6
    found = load_own(folder)
    assert found.classes == ("even", "odd")
    assert sum(len(part.labels) for part in (found.train, found.validation, found.test)) == 12


def test_a_picture_that_is_none_is_told_with_its_row(tmp_path):
    rows = [{"image": picture(20), "label": "a"}, {"image": {"bytes": b"no picture", "path": "x.png"}, "label": "b"}]
    folder = saved(tmp_path, rows, image=datasets.Image(decode=False))
    with pytest.raises(DataError, match=r"row 2': expected a picture that Pillow reads"):
        load_own(folder)


@pytest.mark.parametrize(
    ("read", "row", "told"),
    [
        (read_pairs, {"source": "a", "target": None}, "row 2: expected 'target' to be a text, got nothing"),
        (read_pairs, {"source": "a", "target": " "}, "row 2: 'target' is empty"),
        (read_documents, {"summary": "a"}, "row 2: expected 'document' to be a text, got nothing"),
    ],
)
def test_faults_are_told_with_their_row(tmp_path, read, row, told):
    good = {"source": "a", "target": "b", "document": "c", "summary": "d"}
    with pytest.raises(DataError) as caught:
        read(saved(tmp_path, [good, row]))
    assert said(caught) == f"{tmp_path / 'saved'}, {told}"


def test_a_class_that_is_not_known_is_no_label(tmp_path):
    rows = [{"image": picture(1), "label": -1}]
    folder = saved(tmp_path, rows, image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(DataError, match="row 1: expected 'label' to be a text, got nothing"):
        read_images(folder)


def test_a_picture_that_lies_elsewhere_is_refused(tmp_path):
    rows = [{"image": {"bytes": None, "path": "/elsewhere.png"}, "label": "a"}]
    with pytest.raises(
        DataError, match="row 1: expected a picture in the column 'image' with its bytes, got an object"
    ):
        read_images(saved(tmp_path, rows))


def test_several_parts_are_told_by_name(tmp_path):
    both = {name: datasets.Dataset.from_list(PAIRS) for name in ("train", "test")}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError) as caught:
        read_pairs(tmp_path / "both")
    assert said(caught).endswith("got several parts (train, test); name the folder of one of them")
    assert len(read_pairs(tmp_path / "both" / "train")) == 2
    (tmp_path / "both" / "dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match=r"both: expected a dataset as save_to_disk writes it, got a damaged one"):
        read_pairs(tmp_path / "both")


def cut(folder: Path) -> None:
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])


def without_a_file(folder: Path) -> None:
    (arrow,) = folder.glob("*.arrow")
    arrow.unlink()


def of_other_state(folder: Path) -> None:
    (folder / "state.json").write_text("[]")


def of_no_state(folder: Path) -> None:
    (folder / "state.json").write_bytes(b"\xff")


def of_deep_state(folder: Path) -> None:
    (folder / "state.json").write_text("[" * 100_000)


def of_a_file_elsewhere(folder: Path) -> None:
    (arrow,) = folder.glob("*.arrow")
    arrow.rename(folder.parent / "elsewhere.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../elsewhere.arrow"}]}))


@pytest.mark.parametrize(
    "damage", [cut, without_a_file, of_other_state, of_no_state, of_deep_state, of_a_file_elsewhere]
)
def test_damage_is_told(tmp_path, damage):
    folder = saved(tmp_path, PAIRS)
    damage(folder)
    with pytest.raises(
        DataError, match=r"expected a dataset as save_to_disk writes it, got a damaged one \(.+\)\. Save it again\.$"
    ) as caught:
        read_pairs(folder)
    assert str(folder) in said(caught)


def test_an_empty_dataset_holds_no_record(tmp_path):
    folder = saved(tmp_path, PAIRS)
    datasets.load_from_disk(str(folder)).select([]).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="empty: holds no record"):
        read_pairs(tmp_path / "empty")


def test_columns_that_a_format_hides_are_read(tmp_path):
    shown = datasets.Dataset.from_list(PAIRS).with_format("numpy", columns=["source"])
    shown.save_to_disk(str(tmp_path / "saved"))
    assert read_pairs(tmp_path / "saved") == [("one", "一"), ("two", "二")]


@pytest.mark.parametrize("name", ["a::b", "a b%20c", "一"])
def test_a_folder_of_any_name(tmp_path, name):
    saved(tmp_path, PAIRS).rename(tmp_path / name)
    assert len(read_pairs(tmp_path / name)) == 2


def test_of_several_files_rows_are_counted_on(tmp_path):
    rows = [*PAIRS, {"source": "three", "target": ""}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    with pytest.raises(DataError, match="row 3: 'target' is empty"):
        read_pairs(tmp_path / "saved")


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (datasets.List(datasets.Image()), [{"bytes": None, "path": "https://nowhere.invalid/z.png"}]),
        (datasets.Image(), {"bytes": None, "path": "https://nowhere.invalid/z.png"}),
        (datasets.Audio(), {"bytes": b"no sound", "path": None}),
        (datasets.Value("timestamp[s]"), 10**18),
    ],
)
def test_columns_that_nobody_asked_for_are_not_decoded(tmp_path, feature, value):
    folder = saved(tmp_path, PAIRS[:1])
    text = datasets.Value("string")
    schema = datasets.Features(source=text, target=text, other=feature).arrow_schema
    table = pa.table([["one"], ["一"], pa.array([value], schema.field("other").type)], schema=schema)
    (file,) = folder.glob("*.arrow")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        stream.write_table(table)
    assert read_pairs(folder) == [("one", "一")]


def test_a_value_that_cannot_be_read_is_told_with_its_row(tmp_path):
    cut_in_two = pa.array([b"one", b"\xff"]).cast(pa.binary()).view(pa.string())
    made = datasets.Dataset(pa.table({"source": cut_in_two, "target": pa.array(["a", "b"])}))
    made.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"row 2: cannot be read \('utf-8' codec can't decode byte 0xff"):
        read_pairs(tmp_path / "saved")


def test_a_class_without_a_name_is_told(tmp_path):
    folder = saved(tmp_path, [{"image": picture(1), "label": 1}], image=datasets.Image())
    labels = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    loaded = datasets.load_from_disk(str(folder))
    made = datasets.Dataset(loaded.data.table.replace_schema_metadata(None), info=datasets.DatasetInfo(features=labels))
    made.save_to_disk(str(tmp_path / "other"))
    with pytest.raises(DataError, match="row 1: expected one of 1 classes, got number 1"):
        read_images(tmp_path / "other")


def test_a_name_that_is_too_long_for_any_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        read_pairs(tmp_path / ("x" * 300))


def test_a_translation_that_is_none(tmp_path):
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"translation": null}')
    with pytest.raises(
        DataError, match="line 1, translation: expected an object with the texts by language, got nothing"
    ):
        read_pairs(lines, ("en", "zh"))


def test_without_the_package_its_name_is_told(tmp_path, monkeypatch):
    folder = saved(tmp_path, PAIRS)

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(saved_datasets, "import_module", absent)
    with pytest.raises(DependencyError, match=r"'datasets': pip install 'regard\[datasets\]'"):
        read_pairs(folder)
    monkeypatch.setattr(saved_datasets, "import_module", lambda _: types.ModuleType("datasets"))  # a folder so called
    with pytest.raises(DependencyError, match="'datasets'"):
        read_pairs(folder)
