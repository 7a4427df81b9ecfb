"""The target's images are read whatever its labels are like."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import Config, DatasetConfig
from lossmix_det.data.catalog import load_target
from lossmix_det.data.loaders import target_loader, training_loader
from lossmix_det.errors import UserError


def config(**entry) -> Config:
    result = Config(datasets={"drawings": DatasetConfig(**entry)})
    result.data.augment.min_sizes = [40]
    result.data.workers = 0
    return result


def names(image_set) -> list[str]:
    return [record.path.name for record in image_set.records]


def test_usable_labels_come_along_to_be_measured(voc_folder):
    found = load_target("drawings", config(root=str(voc_folder)), ["cat", "dog"])
    assert found.labelled
    assert names(found) == ["one.png", "two.png"]


@pytest.mark.parametrize("fault", ["malformed", "other classes", "missing", "no folder"])
def test_labels_of_no_use_are_said_and_not_looked_at(voc_folder, caplog, fault):
    xml = voc_folder / "Annotations" / "one.xml"
    if fault == "malformed":
        xml.write_text("<annotation>")
    elif fault == "other classes":
        xml.write_text(voc_xml(voc_object("lamp", 1, 1, 30, 20)))
    elif fault == "missing":
        xml.unlink()
    else:
        xml.unlink(), (voc_folder / "Annotations" / "two.xml").unlink(), (voc_folder / "Annotations").rmdir()
    found = load_target("drawings", config(root=str(voc_folder), split="train"), ["cat", "dog"])
    assert not found.labelled
    assert names(found) == ["one.png", "two.png"]
    assert sum(len(record.boxes) for record in found.records) == 0
    assert "target drawings: its labels cannot be used" in caplog.text


def test_a_coco_file_without_annotations_lists_its_images(tmp_path):
    write_image(tmp_path / "a.png")
    content = {"images": [{"id": 4, "file_name": "a.png", "width": 60, "height": 40}]}
    (tmp_path / "test.json").write_text(json.dumps(content))
    entry = {"format": "coco", "root": str(tmp_path), "annotations": "test.json"}
    found = load_target("drawings", config(**entry), ["cat"])
    assert names(found) == ["a.png"]
    assert not found.labelled


def test_a_bare_folder_is_a_target(voc_folder):
    entry = {"format": "folder", "root": str(voc_folder / "JPEGImages")}
    assert not load_target("drawings", config(**entry), ["cat"]).labelled


def test_a_missing_image_is_a_fault_all_the_same(voc_folder):
    (voc_folder / "JPEGImages" / "two.png").unlink()
    with pytest.raises(UserError, match=r"two.jpg is missing"):
        load_target("drawings", config(root=str(voc_folder), split="train"), ["cat", "dog"])


def test_the_target_stream_gives_both_views_of_every_image_in_an_order_of_its_own(voc_folder):
    settings = config(root=str(voc_folder))
    settings.data.batch_size, settings.data.target_batch_size = 1, 2
    sets = [load_target("drawings", settings, ["cat", "dog"])]
    views, _ = next(iter(target_loader(sets, settings.data, seed=0)))
    assert len(views.weak) == len(views.strong) == 2
    assert views.weak.sizes == views.strong.sizes
    assert not torch.equal(views.weak.pixels, views.strong.pixels)
    assert sorted(len(truth) for truth in views.truths) == [0, 1]  # the one without a box is not left out
    source, _ = next(iter(training_loader(sets, settings.data, seed=0)))
    assert not set(source.weak.keys) & set(views.weak.keys)
    again = iter(target_loader(sets, settings.data, seed=0))
    later = [next(again)[0].weak.keys for _ in range(3)][2]
    resumed, _ = next(iter(target_loader(sets, settings.data, seed=0, start=2)))
    assert resumed.weak.keys == later


@pytest.mark.parametrize("keep", [True, False])
def test_what_does_not_count_comes_beside_the_truths_of_the_target(tmp_path, voc_folder, keep):
    """The difficult dog; its box is mirrored along with the image."""
    settings = config(root=str(voc_folder), split="train")
    settings.data.batch_size, settings.data.keep_difficult = 2, keep
    settings.data.augment.flip = 1.0
    views, _ = next(iter(target_loader([load_target("drawings", settings, ["cat", "dog"])], settings.data, seed=0)))
    number = next(index for index, truth in enumerate(views.truths) if len(truth))
    truth, uncounted = views.truths[number], views.uncounted[number]
    assert truth.classes.tolist() == [0]
    assert uncounted.objects.classes.tolist() == [1]
    assert uncounted.objects.boxes.tolist() == [[0, 5, 50, 40]]
    assert uncounted.crowd.tolist() == [False]
    assert [len(other.objects) for other in views.uncounted] == [number == 0, number == 1]


def test_crowds_of_the_target_come_beside_its_truths(tmp_path):
    write_image(tmp_path / "a.png")
    boxes = {"image_id": 4, "area": 100, "category_id": 1}
    annotations = [
        {**boxes, "id": 1, "bbox": [1, 2, 10, 10], "iscrowd": 0},
        {**boxes, "id": 2, "bbox": [20, 5, 30, 20], "iscrowd": 1},
    ]
    images = [{"id": 4, "file_name": "a.png", "width": 60, "height": 40}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "test.json").write_text(json.dumps(content))
    settings = config(format="coco", root=str(tmp_path), annotations="test.json")
    settings.data.batch_size, settings.data.augment.flip = 1, 0.0
    sets = [load_target("drawings", settings, ["cat"])]
    views, _ = next(iter(target_loader(sets, settings.data, seed=0)))
    assert views.truths[0].boxes.tolist() == [[1, 2, 11, 12]]
    assert views.uncounted[0].objects.boxes.tolist() == [[20, 5, 50, 25]]
    assert views.uncounted[0].crowd.tolist() == [True]
    trained, _ = next(iter(training_loader(sets, settings.data, seed=0)))
    assert trained.uncounted is None
    assert len(trained.truths[0]) == 1
