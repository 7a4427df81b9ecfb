"""The format of a data set is told from its folder, or one sentence says what was looked for."""

from __future__ import annotations

import json

import pytest
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import find, load
from lossmix_det.errors import UserError

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20]}],
    "categories": [{"id": 1, "name": "cat"}],
}


def config(root, *overrides):
    return load_config(None, [f"datasets.mine.root={root}", *overrides])


def coco(root, image, file, name=None):
    write_image(root / image)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    images = [COCO["images"][0] | {"file_name": name or image.rpartition("/")[2]}]
    (root / file).write_text(json.dumps(COCO | {"images": images}))


LAYOUTS = [
    # where the image is, where the JSON, what it calls the image
    pytest.param("a.png", "instances.json", None, id="beside"),
    pytest.param("images/a.png", "result.json", "images/a.png", id="Label Studio"),
    pytest.param("images/a.png", "result.json", "images\\a.png", id="Label Studio on Windows"),
    pytest.param("images/a.png", "annotations/instances_default.json", "a.png", id="CVAT"),
    pytest.param("images/default/a.png", "annotations/instances_default.json", "a.png", id="Datumaro"),
    pytest.param("train2017/a.png", "annotations/instances_train2017.json", None, id="COCO"),
    pytest.param("data/a.png", "labels.json", None, id="FiftyOne"),
]


@pytest.mark.parametrize(("image", "file", "name"), LAYOUTS)
def test_a_coco_file_is_found_with_its_images(tmp_path, image, file, name):
    coco(tmp_path, image, file, name)
    found = load("mine", config(tmp_path))
    assert [record.path for record in found.records] == [tmp_path / image]
    assert found.records[0].boxes.tolist() == [[1, 2, 11, 22]]


def test_a_roboflow_export_is_read_split_by_split(tmp_path):
    for split in ("train", "valid", "test"):
        coco(tmp_path, f"{split}/a.png", f"{split}/_annotations.coco.json")
    for split, folder in (("train", "train"), ("valid", "valid"), ("val", "valid"), ("test", "test")):
        found = load("mine", config(tmp_path, f"datasets.mine.split={split}"))
        assert found.records[0].path == tmp_path / folder / "a.png"
    with pytest.raises(UserError, match=r"several of these: test/.*, train/.*, valid/.*; set split, or annotations"):
        load("mine", config(tmp_path))
    with pytest.raises(UserError, match="split 'dev' is in none of these"):
        load("mine", config(tmp_path, "datasets.mine.split=dev"))


def test_a_named_json_needs_no_format(tmp_path):
    coco(tmp_path, "a.png", "one.json")
    coco(tmp_path, "b.png", "two.json")
    assert find("mine", config(tmp_path, "datasets.mine.annotations=two.json")).format == "coco"


def test_voc_without_annotations_is_told_by_its_lists(tmp_path):
    write_image(tmp_path / "JPEGImages" / "a.png")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    assert find("mine", config(tmp_path)).format == "voc"


def test_images_alone_are_a_folder_also_beside_other_files(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "settings.json").write_text('{"images": 3}')
    (tmp_path / "notes.txt").write_text("0 seen on Monday")
    (tmp_path / "run.yaml").write_text("a: 1")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
    assert find("mine", config(tmp_path)).format == "folder"


def test_a_folder_that_is_nothing_known_is_told_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        UserError,
        match=r"format cannot be told; looked for: XML files .*\(voc\); a JSON .*\(coco\); "
        r"data.yaml .*\(yolo\); .*\(huggingface\); images alone \(folder\); set datasets.mine.format",
    ):
        find("mine", config(tmp_path))


def test_a_folder_of_two_formats_is_not_guessed(tmp_path):
    coco(tmp_path, "a.png", "instances.json")
    (tmp_path / "a.xml").write_text(voc_xml(voc_object("cat", 1, 1, 9, 9)))
    with pytest.raises(UserError, match="may be voc or coco; set datasets.mine.format to one of them"):
        find("mine", config(tmp_path))
    assert len(load("mine", config(tmp_path, "datasets.mine.format=voc"))) == 1


def test_what_was_chosen_is_logged(tmp_path, caplog):
    coco(tmp_path, "a.png", "instances.json")
    with caplog.at_level("INFO"):
        find("mine", config(tmp_path))
    assert f"data set mine: {tmp_path} is read as coco with instances.json" in caplog.text


def test_hidden_copies_of_annotations_are_not_looked_at(tmp_path):
    coco(tmp_path, "a.png", "instances.json")
    for copy in (".ipynb_checkpoints/instances-checkpoint.json", "._instances.json", ".cache/metadata.jsonl"):
        (tmp_path / copy).parent.mkdir(exist_ok=True)
        (tmp_path / copy).write_bytes((tmp_path / "instances.json").read_bytes() + b'"objects"')
    assert find("mine", config(tmp_path)).annotations == "instances.json"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_voc_is_told_in_every_encoding(tmp_path, encoding):
    write_image(tmp_path / "a.png")
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>' + voc_xml(voc_object("cat", 1, 1, 9, 9))
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert len(load("mine", config(tmp_path)).records.boxes) == 1
