"""Image folders of Hugging Face with metadata.jsonl."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load, load_target
from lossmix_det.errors import UserError

ROWS = [
    {"file_name": "a.png", "objects": {"bbox": [[1, 2, 10, 20], [5.5, 6, 7, 8]], "categories": ["cat", "dog"]}},
    {"file_name": "sub/b.png", "objects": {"bbox": [], "categories": []}},
]


@pytest.fixture
def read(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "a.png")
        write_image(tmp_path / split / "sub" / "b.png")

    def read(rows, *overrides, load=load):
        for split in ("train", "test"):
            text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
            (tmp_path / split / "metadata.jsonl").write_text(text + "\n")
        return load(
            "mine", load_config(None, [f"datasets.mine.root={tmp_path}", "datasets.mine.split=train", *overrides])
        )

    return read


def numbered(rows):
    return json.loads(json.dumps(rows).replace('"cat"', "0").replace('"dog"', "1"))


def test_boxes_and_names_are_read(read):
    found = read(ROWS)
    assert found.classes == ["cat", "dog"]
    np.testing.assert_array_equal(found.records[0].boxes, [[1, 2, 11, 22], [5.5, 6, 12.5, 14]])
    assert [found.file_name(record.path) for record in found.records] == ["a.png", "sub/b.png"]


def test_the_split_must_be_named_where_there_are_several(read):
    with pytest.raises(UserError, match="several of these: test/metadata.jsonl, train/metadata.jsonl; set split"):
        read(ROWS, "datasets.mine.split=''")


def test_the_folder_of_one_split_needs_none(read, tmp_path):
    read(ROWS)
    assert len(load("mine", load_config(None, [f"datasets.mine.root={tmp_path}/test"]))) == 2


def test_numbers_are_named_by_the_configuration(read):
    found = read(numbered(ROWS), "datasets.mine.classes=[cat,dog]")
    assert found.records.classes.tolist() == [0, 1]
    assert found.category_ids == [0, 1]
    with pytest.raises(UserError, match="categories are numbers; list their names under classes"):
        read(numbered(ROWS))


def test_objects_may_be_a_list_of_tables(read):
    rows = [{"file_name": "a.png", "objects": [{"bbox": [1, 2, 10, 20], "category": "cat"}]}]
    np.testing.assert_array_equal(read(rows).records[0].boxes, [[1, 2, 11, 22]])


def test_images_are_a_target_without_their_objects(read):
    found = read(ROWS, load=lambda name, config: load_target(name, config, ["cat", "bird"]))
    assert len(found) == 2
    assert not found.labelled


BAD_ROWS = [
    ("{", "metadata.jsonl:1: malformed JSON"),
    ("[1]", "metadata.jsonl:1: has no file_name"),
    ({"file_name": ""}, "metadata.jsonl:1: has no file_name"),
    ({"file_name": "../x.png"}, "leads out of"),
    ({"file_name": "a.png", "objects": 3}, "objects is neither a table of lists nor a list of tables"),
    ({"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]]}}, "two lists of one length"),
    ({"file_name": "a.png", "objects": {"bbox": [[1, 2, 3]], "categories": ["cat"]}}, "not four numbers and a class"),
    ({"file_name": "a.png", "objects": {"bbox": [None], "categories": ["cat"]}}, "not four numbers and a class"),
    ({"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [None]}}, "not four numbers and a class"),
    (
        {"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [7]}},
        "category 7, not four numbers and a class: its name, or its number from 0 to 1",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_line_is_one_message_or_skipped(read, row, message):
    words = ["datasets.mine.classes=[cat,dog]", "datasets.mine.annotations=train/metadata.jsonl"]
    with pytest.raises(UserError, match=message):
        read([row, ROWS[1]], *words)
    good = {"file_name": "sub/b.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]}}
    assert len(read([row, good], *words, "data.on_error=skip").problems.skipped) == 1


def test_a_missing_file_is_named(tmp_path):
    keys = ["datasets.mine.format=huggingface", f"datasets.mine.root={tmp_path}"]
    with pytest.raises(UserError, match="metadata.jsonl: no such file"):
        load("mine", load_config(None, keys))


def test_an_image_with_a_line_for_each_box_is_one_image(read):
    boxes = ([1, 2, 10, 20], [5, 6, 7, 8])
    rows = [{"file_name": "a.png", "objects": {"bbox": [box], "categories": ["cat"]}} for box in boxes]
    found = read(rows)
    assert [len(record.boxes) for record in found.records] == [2]
    assert "1 entries are of images that are listed before" in found.problems.notes[0]


def test_ends_of_lines_inside_of_a_text_and_those_of_windows_are_read(read, tmp_path):
    row = {"file_name": "a.png", "text": "one\u2028two", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]}}
    assert len(read([json.dumps(row, ensure_ascii=False) + "\r"])) == 1


@pytest.mark.parametrize("as_tables", [False, True])
def test_crowds_difficult_objects_and_areas_are_read(read, as_tables):
    objects = {**ROWS[0]["objects"], "iscrowd": [0, True], "difficult": [1, 0], "area": [100, None]}
    if as_tables:
        objects = [dict(zip(objects, values, strict=True)) for values in zip(*objects.values(), strict=True)]
    (record, _) = read([{**ROWS[0], "objects": objects}, ROWS[1]]).records
    assert (record.crowd.tolist(), record.difficult.tolist()) == ([False, True], [True, False])
    assert record.areas.tolist() == [100.0, 56.0]
