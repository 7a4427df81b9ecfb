"""COCO files as exporters write them."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from conftest import write_image

from lossmix_det.config import load_config
from lossmix_det.data import memory
from lossmix_det.data.catalog import load
from lossmix_det.errors import UserError
from lossmix_det.evaluation.detect import coco_results, evaluate
from lossmix_det.structures import Instances


@pytest.fixture
def content():
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 2, "file_name": "b.png", "width": 60, "height": 40},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 30], "area": 321.5, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0, 0, 10.5, 10], "iscrowd": 0},
        ],
    }


@pytest.fixture
def read(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)

    def read(content, *overrides):
        (tmp_path / "instances.json").write_text(json.dumps(content))
        keys = [f"datasets.mine.root={tmp_path}", "datasets.mine.annotations=instances.json"]
        return load("mine", load_config(None, [*keys, *overrides]))

    return read


BOXES = [[10, 5, 30, 35]], [[0, 0, 10.5, 10]]


def assert_read(image_set):
    assert [record.boxes.tolist() for record in image_set.records] == list(BOXES)


# ------------------------------------------------------------------------------------------------------- sizes, areas


@pytest.mark.parametrize(
    "size", [("60", "40"), (60.0, 40.0), (0, 0), ("0", "0"), (None, None), (60, None), ("", ""), ("60.0", 40)]
)
def test_sizes_are_read_as_the_numbers_they_are_and_0_is_not_declared(content, read, size):
    for entry in content["images"]:
        entry["width"], entry["height"] = size if size[0] != "60.0" else (60, size[1])
    assert_read(read(content))


@pytest.mark.parametrize("size", [("wide", "high"), (60.5, 40), ([60], 40), (float("inf"), 40)])
def test_sizes_that_are_none_are_named(content, read, size):
    content["images"][1]["width"], content["images"][1]["height"] = size
    with pytest.raises(UserError, match=r"images\[1\] \(b.png\) has width .* which are no whole numbers"):
        read(content)


@pytest.mark.parametrize("area", [None, 0, "0"])
def test_an_area_of_null_or_0_is_that_of_the_box(content, read, area):
    content["annotations"][0]["area"] = area
    found = read(content)
    assert found.records[0].areas.tolist() == [600]
    assert found.problems.notes == []


@pytest.mark.parametrize("area", [-3, float("inf"), float("nan"), -float("inf")])
def test_an_area_that_is_none_is_that_of_the_box_and_noted(content, read, area):
    content["annotations"][0]["area"] = area
    found = read(content)
    assert found.records[0].areas.tolist() == [600]
    assert "1 areas are negative or not finite" in found.problems.notes[0]


def test_an_area_that_is_a_word_is_named(content, read):
    content["annotations"][1]["area"] = "large"
    with pytest.raises(UserError, match=r"annotations\[1\] has area 'large', which is no number"):
        read(content)


def test_an_area_may_be_text(content, read):
    content["annotations"][0]["area"] = "321.5"
    assert read(content).records[0].areas.tolist() == [321.5]


# -------------------------------------------------------------------------------------------------------------- ids

IDS = [
    # ids of the two images, those in their annotations
    pytest.param((1, 2), ("1", "2"), id="text in annotations"),
    pytest.param(("1", "2"), (1, 2), id="text in images"),
    pytest.param((1.0, 2.0), (1, 2), id="decimal point in images"),
    pytest.param((1, 2), (1.0, 2.0), id="decimal point in annotations"),
    pytest.param(("img-a", "img-b"), ("img-a", "img-b"), id="names"),
    pytest.param(("01", "1"), ("01", "1"), id="texts that are one number"),
    pytest.param((10**30, 2), (10**30, 2), id="beyond 64 bits"),
    pytest.param((20231127153000001, 20231127153000002), (20231127153000001, 20231127153000002), id="alike as doubles"),
    pytest.param(("b", 1), ("b", 1), id="a name and a number"),
    pytest.param((-1, 0), (-1, 0), id="negative"),
]


@pytest.mark.parametrize(("ids", "references"), IDS)
def test_ids_match_where_they_agree_and_are_written_as_they_are(content, read, ids, references):
    for entry, image_id in zip(content["images"], ids, strict=True):
        entry["id"] = image_id
    for entry, image_id in zip(content["annotations"], references, strict=True):
        entry["image_id"] = image_id
    found = read(content)
    assert_read(found)
    rows = [row for index, record in enumerate(found.records) for row in detections(found, index, record)]
    assert [row["image_id"] for row in rows] == [int(i) if type(i) is float else i for i in ids]
    assert evaluate(found, rows)["AP"] == pytest.approx(100)


def detections(image_set, index, record):
    import torch

    boxes, classes = torch.from_numpy(record.boxes.copy()), torch.from_numpy(record.classes.copy())
    return coco_results(image_set, index, boxes, Instances(boxes, classes, torch.ones(len(boxes))))


@pytest.mark.parametrize(("ids", "reference"), [(("01", "2"), 1), (("img-a", "2"), "img-c"), ((1, 2), "01")])
def test_ids_that_do_not_agree_are_not_matched(content, read, ids, reference):
    for entry, image_id in zip(content["images"], ids, strict=True):
        entry["id"] = image_id
    content["annotations"][0]["image_id"] = reference
    with pytest.raises(UserError, match=rf"annotations\[0\] belongs to image_id {reference!r}, which is not among"):
        read(content)


def test_text_ids_are_remembered(content, read, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "SETTLED", -1e9)
    for key, entries in (("id", content["images"]), ("image_id", content["annotations"])):
        for entry, name in zip(entries, ("x", "y"), strict=True):
            entry[key] = name
    first = read(content)
    monkeypatch.setattr("lossmix_det.data.records.probe", None)  # would fail
    config = [f"datasets.mine.root={tmp_path}", "datasets.mine.annotations=instances.json"]
    again = load("mine", load_config(None, config))
    assert again.ids == first.ids == {1: "x", 2: "y"}


@pytest.mark.parametrize("ids", [("1", "2"), (1.0, 2.0)])
def test_ids_of_categories_may_be_text(content, read, ids):
    for entry, number in zip(content["categories"], ids, strict=True):
        entry["id"] = number
    found = read(content)
    assert_read(found)
    assert found.category_ids == [1, 2]


def test_a_category_that_is_text_in_annotations_alone_is_matched(content, read):
    content["annotations"][0]["category_id"] = "1"
    assert_read(read(content))


# ---------------------------------------------------------------------------------------------------------- categories


def test_an_unused_parent_is_left_out_with_a_note(content, read):
    for entry in content["categories"]:
        entry["supercategory"] = "animals"
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    found = read(content)
    assert found.classes == ["cat", "dog"]
    assert "categories[0] 'animals' is left out: no annotation uses it" in found.problems.notes[0]


@pytest.mark.parametrize("position", [0, 2])
def test_an_unused_parent_with_the_name_of_a_class_is_left_out(content, read, position):
    content["categories"][0]["supercategory"] = "cat"
    content["categories"].insert(position, {"id": 0, "name": "cat", "supercategory": "none"})
    found = read(content)
    assert_read(found)
    assert found.category_ids == [1, 2]


def test_a_class_that_is_its_own_parent_stays(content, read):
    """COCO's person has the supercategory person."""
    content["categories"].append({"id": 3, "name": "person", "supercategory": "person"})
    assert read(content).classes == ["cat", "dog", "person"]


def test_two_used_categories_of_one_name_are_refused(content, read):
    content["categories"][0]["name"] = "dog"
    with pytest.raises(UserError, match=r"categories\[1\] repeats the name 'dog'"):
        read(content)


# ---------------------------------------------------------------------------------------------------------------- boxes

HAIRLINES = [[50, 20, 1e-6, 9], [23, 13, 1e-9, 12], [23, 13, 12, 1e-5], [59.9999999, 3, 8, 8], [-8, 3, 8.000001, 8]]


@pytest.mark.parametrize("bbox", HAIRLINES)
def test_a_box_without_area_in_single_precision_is_one_sentence(content, read, bbox):
    content["annotations"][0]["bbox"] = bbox
    with pytest.raises(UserError, match=r"annotations\[0\]: box .* has no area"):
        read(content)
    assert len(read(content, "data.on_error=skip").problems.skipped) == 1


def test_numbers_of_a_box_may_be_text(content, read):
    content["annotations"][0]["bbox"] = ["10", "5", "20", "30.0"]
    assert_read(read(content))


@pytest.mark.parametrize("bbox", [["10", "5", "x", "30"], [None] * 4, [10, 5, 20, 30, 45.0], {}, [[1], 2, 3, 4]])
def test_what_is_no_box_is_named(content, read, bbox):
    content["annotations"][0]["bbox"] = bbox
    with pytest.raises(UserError, match=r"annotations\[0\] has bbox .* not four numbers"):
        read(content)


@pytest.mark.parametrize("bbox", [[], None])
def test_a_polygon_without_box_becomes_the_box_around_it(content, read, bbox):
    content["annotations"][0] |= {"bbox": bbox, "segmentation": [[10, 5, 30, 5, 20, 25], [15, 30, 18, 35, 12, 33]]}
    found = read(content)
    assert_read(found)
    assert "1 polygons or rotated boxes became the upright box around them" in found.problems.notes[0]


@pytest.mark.parametrize("segmentation", [[[]], {"counts": "x", "size": [3, 3]}, [[1, 2]]])
def test_an_outline_that_is_no_polygon_is_one_sentence(content, read, segmentation):
    content["annotations"][0] |= {"bbox": [], "segmentation": segmentation}
    with pytest.raises(UserError, match=r"annotations\[0\] has no bbox, and its segmentation"):
        read(content)


def test_a_rotation_beside_the_box_is_applied(content, read):
    """By 90° about (20, 20), 20×30 becomes 30×20."""
    content["annotations"][0]["attributes"] = {"occluded": False, "rotation": 90.0}
    np.testing.assert_allclose(read(content).records[0].boxes, [[5, 10, 35, 30]], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- file names


def test_an_absolute_path_inside_of_the_root_is_read(content, read, tmp_path):
    content["images"][0]["file_name"] = str(tmp_path / "a.png")
    found = read(content)
    assert_read(found)
    assert found.file_name(found.records[0].path) == "a.png"


def test_a_root_behind_a_link_is_the_root_all_the_same(content, read, tmp_path):
    content["images"][0]["file_name"] = str(tmp_path / "a.png")
    read(content)
    link = tmp_path.parent / f"{tmp_path.name}_link"
    link.symlink_to(tmp_path)
    overrides = [f"datasets.mine.root={link}", "datasets.mine.annotations=instances.json"]
    assert_read(load("mine", load_config(None, overrides)))


@pytest.mark.parametrize("name", ["/home/ann/project/a.png", "C:\\Users\\ann\\a.png", "D:/project/a.png"])
def test_an_absolute_path_of_another_machine_is_found_by_its_end(content, read, name):
    content["images"][0]["file_name"] = name
    found = read(content)
    assert_read(found)
    assert "1 absolute paths of another place were found by their end" in found.problems.notes[0]


def test_a_base_name_is_found_in_a_sub_folder(content, read, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / "deep" / "er" / "a.png")
    found = read(content)
    assert_read(found)
    assert "1 images were found by their name in another folder" in found.problems.notes[0]


def test_a_base_name_that_is_there_twice_is_not_guessed(content, read, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "a.png", tmp_path / folder / "a.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a.png is missing; there are 2 images of that name, x/a.png and y/a.png"):
        read(content)


def test_an_image_of_the_same_name_in_another_folder_is_another_image(content, read, tmp_path):
    (tmp_path / "right").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "right" / "a.png")
    content["images"][0]["file_name"] = "left/a.png"
    with pytest.raises(UserError, match="left/a.png is missing"):
        read(content)


@pytest.mark.parametrize(
    ("name", "how"),
    [("a.PNG", "only by letter case"), ("a.png ", "only by blanks"), ("A .png", "only by letter case and blanks")],
)
def test_a_name_that_hardly_differs_is_shown_with_what_differs(content, read, name, how):
    content["images"][0]["file_name"] = name
    with pytest.raises(UserError, match=f"is missing; 'a.png' is there, which differs {how}"):
        read(content)


@pytest.mark.parametrize("name", ["a.jpg", "A.jpeg"])
def test_a_name_of_another_suffix_is_shown_the_file_that_is_there(content, read, name):
    content["images"][0]["file_name"] = name
    with pytest.raises(UserError, match=f"{name} is missing; 'a.png' is there;"):
        read(content)


def test_an_image_that_is_listed_twice_is_one_with_the_boxes_of_both_entries(content, read):
    content["images"][1]["file_name"] = "./a.png"
    content["annotations"].append(content["annotations"][0] | {"id": 3, "image_id": 2})
    found = read(content)
    assert [record.boxes.tolist() for record in found.records] == [[*BOXES[0], *BOXES[1]]]
    assert [found.classes[label] for label in found.records.classes] == ["cat", "dog"]
    assert "1 entries are of images that are listed before, and were put together" in found.problems.notes[0]


def test_a_pipe_in_place_of_an_image_or_the_file_is_not_opened(content, read, tmp_path):
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png cannot be read \(it is no regular file\)"):
        read(content)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"pipe.json: cannot be read \(it is no regular file\)"):
        read(content, "datasets.mine.annotations=pipe.json")


def test_nested_lists_without_end_are_one_sentence(tmp_path):
    (tmp_path / "bomb.json").write_text('{"images": ' + "[" * 100000)
    keys = ["datasets.mine.format=coco", f"datasets.mine.root={tmp_path}", "datasets.mine.annotations=bomb.json"]
    with pytest.raises(UserError, match="bomb.json"):
        load("mine", load_config(None, keys))


def test_half_a_character_in_a_class_is_read(content, read):
    """JSON can say what no encoding can."""
    content["categories"][0]["name"] = "ca\ud800t"
    assert read(content).classes == ["ca\ud800t", "dog"]
