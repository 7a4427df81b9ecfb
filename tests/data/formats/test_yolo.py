"""YOLO data sets as Ultralytics, Roboflow, CVAT, Label Studio, makesense and LabelImg lay them out."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from conftest import write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load, load_target
from lossmix_det.errors import UserError

BOX = "0 0.5 0.5 0.5 0.25\n"  # of a 60×40 image: 15…45, 15…25
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def put(root, image, text=BOX, label=None):
    write_image(root / image)
    if text is not None:
        path = root / (label or image.replace("images", "labels").replace(".png", ".txt"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(root, *overrides):
    return load("mine", load_config(None, [f"datasets.mine.root={root}", *overrides]))


def files(image_set):
    return [os.path.relpath(record.path, image_set.root) for record in image_set.records]


@pytest.fixture
def yolo(tmp_path):
    put(tmp_path, "images/train/a.png", BOX + "1 0.25 0.5 0.5 1\n")
    put(tmp_path, "images/val/b.png")
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


TRAIN = "datasets.mine.split=train"


def test_boxes_are_shares_of_the_image(yolo):
    found = read(yolo, TRAIN)
    np.testing.assert_allclose(found.records[0].boxes, [[15, 15, 45, 25], [0, 0, 30, 40]])
    assert found.records[0].areas.tolist() == [300, 1200]
    assert (found.classes, found.category_ids) == (["cat", "dog"], [0, 1])


YAMLS = [
    # the YAML, the folder of the images of the split
    pytest.param("train: images/train\nval: x\nnames: {0: cat, 1: dog}", "images/train", id="names as a table"),
    pytest.param("train: images/train\nnames: {'1': dog, '0': cat}", "images/train", id="numbers as text"),
    pytest.param("path: .\ntrain: images/train\nnc: 2\nnames: [cat, dog]", "images/train", id="path"),
    pytest.param("path: ../datasets/mine\ntrain: images/train\nnames: [cat, dog]", "images/train", id="path elsewhere"),
    pytest.param("train: ../train/images\nval: ../valid/images\nnames: [cat, dog]", "train/images", id="Roboflow"),
    pytest.param("train: [images/a, images/b]\nnames: [cat, dog]", "images/a", id="several folders"),
    pytest.param("train: train.txt\nnames: [cat, dog]", "images/a", id="a list"),
]


@pytest.mark.parametrize(("yaml", "folder"), YAMLS)
def test_the_yaml_says_where_the_images_are(tmp_path, yaml, folder):
    put(tmp_path, f"{folder}/a.png")
    (tmp_path / "images" / "b").mkdir(parents=True)
    write_image(tmp_path / "images" / "b" / "b.png")
    (tmp_path / "train.txt").write_text(f"./{folder}/a.png\n")
    (tmp_path / "data.yaml").write_text(yaml)
    found = read(tmp_path, TRAIN)
    assert files(found)[0] == f"{folder}/a.png"
    assert found.classes == ["cat", "dog"]
    np.testing.assert_allclose(found.records[0].boxes, [[15, 15, 45, 25]])


def test_val_and_valid_are_one_split(yolo):
    for split in ("val", "valid", "validation"):
        assert files(read(yolo, f"datasets.mine.split={split}")) == ["images/val/b.png"]


def test_a_split_may_have_any_name_in_the_yaml(yolo):
    (yolo / "data.yaml").write_text(f"{YAML}trainval: [images/train, images/val]\nfold_1: images/val\n")
    assert files(read(yolo, "datasets.mine.split=trainval")) == ["images/train/a.png", "images/val/b.png"]
    assert files(read(yolo, "datasets.mine.split=fold_1")) == ["images/val/b.png"]
    with pytest.raises(UserError, match="no such split, 'names'"):
        read(yolo, "datasets.mine.split=names")


def test_a_split_must_be_named_where_there_are_several(yolo):
    with pytest.raises(UserError, match="data.yaml: has the splits train, val; set split to one of them"):
        read(yolo)
    with pytest.raises(UserError, match=r"data.yaml: no such split, 'test' \(found: train, val\)"):
        read(yolo, "datasets.mine.split=test")


@pytest.mark.parametrize(
    ("image", "label", "names", "overrides"),
    [
        ("images/a.png", "labels/a.txt", "classes.txt", []),
        ("images/train/a.png", "labels/train/a.txt", "classes.txt", [TRAIN]),
        ("train/images/a.png", "train/labels/a.txt", "classes.txt", [TRAIN]),
        ("a.png", "a.txt", "classes.txt", []),
        ("obj_train_data/a.png", "obj_train_data/a.txt", "obj.names", []),
        ("images/images/a.png", "images/labels/a.txt", "classes.txt", []),
        ("photos/a.png", "txt/a.txt", "classes.txt", ["datasets.mine.images=photos", "datasets.mine.annotations=txt"]),
        ("a.png", "txt/a.txt", "classes.txt", ["datasets.mine.annotations=./txt/"]),
    ],
)
def test_layouts_without_yaml_are_told_from_the_folder(tmp_path, image, label, names, overrides):
    put(tmp_path, image, label=label)
    (tmp_path / names).write_text("cat\ndog\n")
    found = read(tmp_path, *overrides)
    assert found.classes == ["cat", "dog"]
    np.testing.assert_allclose(found.records[0].boxes, [[15, 15, 45, 25]])


def test_a_list_of_darknet_is_read(tmp_path):
    put(tmp_path, "obj_train_data/a.png", label="obj_train_data/a.txt")
    put(tmp_path, "obj_train_data/b.png", label="obj_train_data/b.txt")
    write(tmp_path, **{"obj.names": "cat\n", "train.txt": "data/obj_train_data/b.png\ndata/obj_train_data/b.png\n"})
    found = read(tmp_path, TRAIN)
    assert files(found) == ["obj_train_data/b.png"]
    assert any("b.png is listed before, and taken once" in line for line in found.problems.left_out)


def test_polygons_become_the_box_around_them_and_are_noted(yolo):
    (yolo / "labels" / "train" / "a.txt").write_text("1 0.1 0.2 0.5 0.9 0.3 0.5\n")
    found = read(yolo, TRAIN, "data.classes=[cat,dog]")
    np.testing.assert_allclose(found.records[0].boxes, [[6, 8, 30, 36]], atol=1e-5)
    assert "1 polygons became the upright box around them" in found.problems.notes[0]


@pytest.mark.parametrize(
    ("shape", "keypoints"), [("[2, 2]", "0.1 0.2 0.7 0.8"), ("[2, 3]", "0.1 0.2 2 0.7 0.8 1"), ("[1, 3]", "0.1 0.2 2")]
)
def test_the_box_of_a_pose_is_read_and_its_keypoints_are_not(yolo, shape, keypoints):
    (yolo / "data.yaml").write_text(f"{YAML}kpt_shape: {shape}\n")
    (yolo / "labels" / "train" / "a.txt").write_text(f"1 0.5 0.5 0.5 0.25 {keypoints}\n")
    found = read(yolo, TRAIN, "data.classes=[cat,dog]")
    np.testing.assert_allclose(found.records[0].boxes, [[15, 15, 45, 25]])


def test_a_shape_of_keypoints_that_is_none_is_one_sentence(yolo):
    (yolo / "data.yaml").write_text(f"{YAML}kpt_shape: many\n")
    with pytest.raises(UserError, match=r"data.yaml: kpt_shape must be \[keypoints, numbers of each\]"):
        read(yolo, TRAIN)


def test_images_without_objects_do_not_hide_what_the_format_is(tmp_path):
    for number in range(25):
        put(tmp_path, f"{number:03}.png", "" if number < 24 else BOX)
    (tmp_path / "classes.txt").write_text("cat\n")
    assert sum(len(record.boxes) for record in read(tmp_path).records) == 1


def test_images_without_text_file_have_no_object_and_are_noted(yolo):
    write_image(yolo / "images" / "train" / "c.png")
    found = read(yolo, TRAIN)
    assert [len(record.boxes) for record in found.records] == [2, 0]
    assert "1 images have no text file" in found.problems.notes[0]


def test_text_files_without_image_are_listed(tmp_path):
    put(tmp_path, "images/a.png")
    write(tmp_path, **{"labels/b.txt": BOX, "classes.txt": "cat"})
    assert any("labels/b.txt: not read, because it has no image" in line for line in read(tmp_path).problems.left_out)


def test_a_set_of_which_no_image_has_a_text_file_is_refused(yolo):
    (yolo / "labels").rename(yolo / "etiquetas")
    with pytest.raises(UserError, match="no image has a text file, .*a.png for one; it is looked for in labels"):
        read(yolo, TRAIN)


BAD_LINES = [
    pytest.param("0 0.5 0.5 0.5", "has 3 numbers behind the class, not four", id="three numbers"),
    pytest.param("0 0.5 0.5 0.5 0.5 0.9", "has 5 numbers behind the class", id="with a score"),
    pytest.param("cat 0.5 0.5 0.5 0.5", "is not a class number and four numbers", id="a name"),
    pytest.param(
        "2 0.5 0.5 0.5 0.5", "is of class 2, but the 2 names are numbered from 0", id="class beyond the names"
    ),
    pytest.param("-1 0.5 0.5 0.5 0.5", "is of class -1", id="negative class"),
    pytest.param("0.5 0.5 0.5 0.5 0.5", "is of class 0.5", id="half a class"),
    pytest.param("0 30 20 10 10", "is not in shares of the image, from 0 to 1; is it in pixels", id="pixels"),
    pytest.param("0 0.5 0.5 0 0.5", "has no area", id="no width"),
    pytest.param("0 0.5 0.5 1e-9 0.5", "has no area", id="hairline"),
    pytest.param("0 nan 0.5 0.5 0.5", "is not finite", id="nan"),
    pytest.param("nan 0.5 0.5 0.5 0.5", "is of class nan", id="class nan"),
    pytest.param("0 inf 0.5 0.5 0.5", "is not finite", id="inf"),
    pytest.param("0", "has 0 numbers", id="class alone"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_one_message_or_skipped(yolo, line, message):
    (yolo / "labels" / "train" / "a.txt").write_text(f"{BOX}\n{line}\n")
    with pytest.raises(UserError, match=rf"labels/train/a.txt:3.*{message}"):
        read(yolo, TRAIN)
    found = read(yolo, TRAIN, "data.on_error=skip")
    assert len(found.problems.skipped) == 1
    assert len(found.records[0].boxes) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 30])
def test_a_text_file_that_is_none_is_one_sentence(yolo, content):
    (yolo / "labels" / "train" / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match="a.txt"):
        read(yolo, TRAIN)


def test_names_stay_as_they_are_written(yolo):
    (yolo / "data.yaml").write_text("names: [007, yes, null, 1e3]\ntrain: images/train\nval:\ntest: null\n")
    assert read(yolo).classes == ["007", "yes", "null", "1e3"]


def test_a_folder_of_another_machine_is_found_by_its_end_of_two_names(yolo):
    (yolo / "data.yaml").write_text("names: [cat, dog]\ntrain: /content/set/images/train\nval: /x/y/train\n")
    assert files(read(yolo, TRAIN)) == ["images/train/a.png"]
    with pytest.raises(UserError, match="'/x/y/train' is no folder"):
        read(yolo, "datasets.mine.split=val")


BAD_YAMLS = [
    ("names: [cat, cat]\ntrain: images/train", "has 'cat' twice"),
    ("names: {0: cat, 2: dog}\ntrain: images/train", "names must be numbered 0, 1, 2, … without gaps"),
    ("names: cat\ntrain: images/train", "names must be a list of names"),
    ("names: [cat, '']\ntrain: images/train", "names must be a list of names"),
    ("names: [cat, dog]\ntrain: pictures", "train: 'pictures' is no folder and no list of images below"),
    ("names: [cat, dog]\ntrain: /etc", "train: '/etc' is no folder and no list of images below"),
    ("names: [cat, dog]\ntrain: ../../..", "is no folder and no list|holds no image"),
    ("- cat\n- dog", "is not a YAML file with names"),
    ("names: [cat", "not valid YAML"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\ntrain: images/train", "names must be a list of names"),
]


@pytest.mark.parametrize(("text", "message"), BAD_YAMLS)
def test_a_yaml_that_says_something_else_is_one_sentence(yolo, text, message):
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read(yolo, TRAIN, "datasets.mine.format=yolo", "datasets.mine.annotations=data.yaml")


def test_names_may_be_given_in_the_configuration(tmp_path):
    put(tmp_path, "images/a.png", "1 0.5 0.5 0.5 0.25\n")
    with pytest.raises(UserError, match="neither data.yaml nor classes.txt names them; list their names under classes"):
        read(tmp_path)
    found = read(tmp_path, "datasets.mine.classes=[cat,dog]")
    assert [found.classes[label] for label in found.records.classes] == ["dog"]


def test_two_yaml_files_with_names_are_not_guessed(yolo):
    (yolo / "data.yaml").rename(yolo / "first.yaml")
    (yolo / "second.yaml").write_text(YAML)
    with pytest.raises(UserError, match="several YAML files name classes: first.yaml, second.yaml; set annotations"):
        read(yolo, TRAIN)
    assert len(read(yolo, TRAIN, "datasets.mine.annotations=second.yaml")) == 1


def test_an_unlabelled_target_is_read(yolo):
    for path in (yolo / "labels" / "train").iterdir():
        path.unlink()
    config = load_config(None, [f"datasets.mine.root={yolo}", TRAIN])
    found = load_target("mine", config, ["cat", "dog"])
    assert len(found) == 1
    assert not found.labelled


def test_a_split_that_is_nowhere_is_told_where_it_was_looked_for(tmp_path):
    put(tmp_path, "images/a.png")
    (tmp_path / "classes.txt").write_text("cat")
    with pytest.raises(UserError, match="no split 'train'; looked for .*images/train"):
        read(tmp_path, TRAIN)


def test_two_images_of_one_stem_are_not_both_given_one_text_file(yolo):
    write_image(yolo / "images" / "train" / "a.jpg")
    with pytest.raises(
        UserError, match=r"train/a.jpg: 2 images have this name without suffix, and one text file, .*a.txt"
    ):
        read(yolo, TRAIN)


@pytest.mark.parametrize("name", ["test", "train", "val", "valid", "classes"])
def test_an_image_may_be_called_like_a_list_or_the_names(tmp_path, name):
    """Its text file holds boxes; a list of images or of names never does."""
    put(tmp_path, "images/a.png")
    put(tmp_path, f"images/{name}.png", BOX + BOX)
    write(tmp_path, **{"classes.txt": "cat", "train.txt": "images/a.png\n"})
    found = read(tmp_path)
    assert dict(zip(files(found), (len(record.boxes) for record in found.records), strict=True)) == {
        "images/a.png": 1,
        f"images/{name}.png": 2,
    }
    assert found.classes == ["cat"]


def test_a_text_file_that_holds_no_box_is_no_lost_label(tmp_path):
    put(tmp_path, "a.png")
    write(tmp_path, **{"README.txt": "0.5 megapixels, see http://example.org", "classes.txt": "cat"})
    problems = read(tmp_path).problems
    assert not any("because it has no image" in line for line in problems.left_out)


@pytest.mark.parametrize(
    ("line", "said"), [("0 50 40 20 20", "is it in pixels?"), ("0 0,5 0,5 0,2 0,2", "is not a class number and four")]
)
def test_labels_that_are_no_shares_are_said_where_names_show_that_they_are_labels(tmp_path, line, said):
    put(tmp_path, "a.png", line)
    write(tmp_path, **{"classes.txt": "cat"})
    with pytest.raises(UserError, match=f"a.txt:1: {line} {said}|a.txt:1: {line} .*{re.escape(said)}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"), [("cat\ndog\ncat", "names 'cat' twice"), ("cat\n\ndog", "has an empty line")]
)
def test_names_that_leave_a_number_in_doubt_are_refused(tmp_path, names, said):
    put(tmp_path, "a.png")
    write(tmp_path, **{"classes.txt": names})
    with pytest.raises(UserError, match=f"classes.txt {said}"):
        read(tmp_path)
