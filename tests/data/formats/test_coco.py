import json

import numpy as np
import pytest
from conftest import write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import find, load, load_sets
from lossmix_det.data.loaders import teaches
from lossmix_det.errors import UserError


@pytest.fixture
def content():
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 3, "file_name": "sub/b.png", "width": 60, "height": 40},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 30], "area": 321.5, "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 10.5, 10], "iscrowd": 1},
        ],
    }


@pytest.fixture
def load_coco(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "sub" / "b.png")

    def read(content, *overrides):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "instances.json").write_text(text)
        keys = {"format": "coco", "root": tmp_path, "annotations": "instances.json", "images": "images"}
        config = load_config(None, [*(f"datasets.mine.{key}={value}" for key, value in keys.items()), *overrides])
        return load("mine", config)

    return read


def test_boxes_classes_crowds_and_areas_are_read(content, load_coco):
    found = load_coco(content)
    assert found.classes == ["cat", "dog"]
    assert found.category_ids == [2, 18]
    first, second = found.records
    np.testing.assert_array_equal(first.boxes, [[10, 5, 30, 35]])
    np.testing.assert_array_equal(second.boxes, [[0, 0, 10.5, 10]])
    assert (first.image_id, second.image_id) == (7, 3)
    assert first.areas.tolist() == [321.5]
    assert second.areas.tolist() == [105.0]
    assert second.crowd.tolist() == [True]


def test_spaces_around_a_category_are_no_part_of_its_name(content, load_coco):
    content["categories"][1]["name"] = " cat\n"
    assert load_coco(content, "data.classes=[cat,dog]").classes == ["cat", "dog"]
    content["categories"][0]["name"] = "cat"
    with pytest.raises(UserError, match=r"categories\[1\] repeats the name 'cat'"):
        load_coco(content)


def test_crowds_are_never_trained_on(content, load_coco):
    found = load_coco(content)
    assert [teaches(record, keep_difficult=True).tolist() for record in found.records] == [[True], [False]]


def test_category_numbers_follow_names(content, load_coco):
    found = load_coco(content, "data.classes=[dog,wolf]")
    assert found.category_ids == [18, 20]
    assert found.records[0].classes.tolist() == [0]


BAD_ENTRIES = [
    # where in the file, what it becomes, what the message says
    pytest.param("annotations", {"bbox": [10, 5, 0, 30]}, r"annotations\[0\]: box .* has no area", id="zero area"),
    pytest.param(
        "annotations", {"bbox": [100, 5, 5, 5]}, r"annotations\[0\]: box .* outside of the 60×40", id="outside"
    ),
    pytest.param("annotations", {"bbox": [1, 2, 3]}, r"annotations\[0\] has bbox \[1, 2, 3\]", id="three numbers"),
    pytest.param("annotations", {"bbox": "1,2,3,4"}, "not four numbers", id="text"),
    pytest.param("annotations", {"category_id": 5}, r"annotations\[0\] has category_id 5", id="category"),
    pytest.param("annotations", {"image_id": 99}, "belongs to image_id 99", id="image"),
    pytest.param("images", {"file_name": "c.png"}, r"images\[0\] \(c.png\): image .* is missing", id="missing image"),
    pytest.param("images", {"file_name": "../a.png"}, r"images\[0\] .*leads out of", id="climbs"),
    pytest.param("images", {"width": 61}, "says 61×40 pixels, but a.png has 60×40", id="size"),
    pytest.param("images", {"id": 3}, r"images\[1\] repeats the id 3", id="repeated id"),
    pytest.param("images", {"id": None}, r"images\[0\] needs a whole number or a text as id", id="no id"),
    pytest.param("images", {"id": [7]}, r"images\[0\] needs a whole number or a text as id", id="id is a list"),
    pytest.param("images", {"width": "wide"}, r"images\[0\] .* has width 'wide'", id="width is a word"),
]


@pytest.mark.parametrize(("part", "change", "message"), BAD_ENTRIES)
def test_a_bad_entry_is_one_message_with_its_index(content, load_coco, part, change, message):
    content[part][0] |= change
    with pytest.raises(UserError, match=message) as error:
        load_coco(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("part", "change", "message"), BAD_ENTRIES)
def test_a_bad_entry_is_skipped_and_listed(content, load_coco, part, change, message):
    content[part][0] |= change
    assert len(load_coco(content, "data.on_error=skip").problems.skipped) >= 1


def test_an_entry_without_bbox_is_named(content, load_coco):
    del content["annotations"][1]["bbox"]
    with pytest.raises(UserError, match=r"annotations\[1\] has no bbox"):
        load_coco(content)


@pytest.mark.parametrize("entry", [None, 3, {"image_id": [1], "category_id": 2, "bbox": [1, 1, 2, 2]}])
def test_an_entry_that_is_no_annotation_is_named(content, load_coco, entry):
    content["annotations"][0] = entry
    with pytest.raises(UserError, match=r"annotations\[0\] is not of the COCO layout"):
        load_coco(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [', r"instances.json:2: malformed JSON"),
        ("[1, 2]", "no list named 'images'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list named 'annotations'"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\] needs"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            r"categories\[1\] repeats the id 1",
        ),
    ],
)
def test_a_file_that_is_not_coco_is_refused(load_coco, text, message):
    with pytest.raises(UserError, match=message):
        load_coco(text)


def test_a_missing_file_is_named(tmp_path):
    keys = ["datasets.mine.format=coco", f"datasets.mine.root={tmp_path}", "datasets.mine.annotations=no.json"]
    with pytest.raises(UserError, match="no.json: no such annotation file"):
        load("mine", load_config(None, keys))
    with pytest.raises(UserError, match="format coco needs annotations"):
        load("mine", load_config(None, keys[:2]))


def test_classes_that_share_no_name_are_refused(content, load_coco):
    with pytest.raises(UserError, match="has none of the classes catt, wolf .did you mean 'cat'"):
        load_coco(content, "data.classes=[catt,wolf]")


def test_a_learned_class_without_any_training_box_is_refused(content, tmp_path, load_coco):
    load_coco(content)
    keys = {"format": "coco", "root": tmp_path, "annotations": "instances.json", "images": "images"}
    overrides = [f"datasets.mine.{key}={value}" for key, value in keys.items()]
    config = load_config(None, [*overrides, "data.train=[mine]", "data.test=[]", "data.classes=[cat,wolf]"])
    with pytest.raises(UserError, match="no box in mine is of class 'wolf'"):
        load_sets(config)


def test_a_class_that_only_the_file_names_and_no_box_has_is_said(content, tmp_path, load_coco, caplog):
    """Many exports list more categories than they use."""
    content["categories"].append({"id": 77, "name": "ghost"})
    load_coco(content)
    keys = {"format": "coco", "root": tmp_path, "annotations": "instances.json", "images": "images"}
    overrides = [f"datasets.mine.{key}={value}" for key, value in keys.items()]
    (found,), _ = load_sets(load_config(None, [*overrides, "data.train=[mine]", "data.test=[]"]))
    assert "ghost" in found.classes
    assert "no box in mine is of class 'ghost'; name the others in data.classes to leave it out" in caplog.text


def test_flags_written_as_text_are_understood(content, load_coco):
    content["annotations"][0]["iscrowd"] = "0"
    content["annotations"][1]["iscrowd"] = "1"
    assert [record.crowd.tolist() for record in load_coco(content).records] == [[False], [True]]


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1" * 5000])
def test_numbers_beyond_all_measure_are_one_sentence(content, load_coco, number):
    text = json.dumps(content).replace("321.5", number)
    with pytest.raises(UserError, match="instances.json"):
        load_coco(text)


def test_the_official_folder_is_read_by_its_files_of_instances(content, tmp_path):
    write_image(tmp_path / "val2017" / "a.png")
    write_image(tmp_path / "val2017" / "sub" / "b.png")
    (tmp_path / "annotations").mkdir()
    captions = {"images": content["images"], "annotations": [{"id": 1, "image_id": 7, "caption": "a dog"}]}
    for task, said in (("captions", captions), ("instances", content), ("person_keypoints", content)):
        for split in ("train", "val"):
            (tmp_path / "annotations" / f"{task}_{split}2017.json").write_text(json.dumps(said))
    config = load_config(None, [f"datasets.mine.root={tmp_path}", "datasets.mine.split=val"])
    assert find("mine", config).annotations == "annotations/instances_val2017.json"
    assert len(load("mine", config)) == 2
