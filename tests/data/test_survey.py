"""The numbers of a survey, and what several data sets together tell."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from checked import survey
from conftest import voc_object, voc_xml
from PIL import Image

from lossmix_det.data.surveys import alike
from lossmix_det.report.dataset_numbers import numbers_of


def test_numbers_are_those_of_the_files(tmp_path):
    """Worked out by hand."""
    root = tmp_path / "data"
    (root / "Annotations").mkdir(parents=True)
    for name, value, objects in (
        ("a", (200, 100, 30), voc_object("cat", 1, 1, 10, 10) + voc_object("dog", 1, 1, 50, 80)),
        ("b", (100, 100, 100), ""),
        ("c", (0, 20, 40), voc_object("cat", 1, 1, 100, 100)),
    ):
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(np.full((120, 160, 3), value, dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(objects, 160, 120))
    (found,), _ = survey(root)
    numbers = numbers_of(found)
    assert numbers["classes"] == {"cat": 2, "dog": 1}
    assert (numbers["images"], numbers["boxes"], numbers["empty"], numbers["boxes_per_image"]) == (3, 3, 1, 1.0)
    assert numbers["image_size"] == [160, 120]
    assert numbers["box_areas"] == [1, 1, 1]
    assert numbers["box_side"][1] == round(np.sqrt(50 * 80), 1)
    assert numbers["colour"] == [100.0, pytest.approx(73.3), pytest.approx(56.7)]
    assert numbers["brightness"] == [pytest.approx((110 + 100 + 20) / 3, abs=0.05), pytest.approx(40.3, abs=0.05)]


def test_images_in_two_parts_are_found_by_their_pixels_and_are_a_fault(sound, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(sound / "voc", root)
    with Image.open(root / "JPEGImages" / "1.png") as image:  # the same pixels in other bytes
        pixels = image.convert("RGB")
    pixels.save(root / "JPEGImages" / "4.png", compress_level=1)
    pixels.save(root / "JPEGImages" / "2.png", compress_level=2)
    for number in (2, 4):
        shutil.copy(root / "Annotations" / "1.xml", root / "Annotations" / f"{number}.xml")
    _, comparison = survey(root)
    (within, between) = sorted(comparison.shared, key=lambda each: each.wrong)
    assert (within.first, within.second, within.count, within.wrong) == ("train", "train", 1, False)
    assert (between.first, between.second, between.count, between.wrong) == ("train", "val", 1, True)
    assert [Path(path).name for path in between.examples[0]] == ["1.png", "4.png"]
    (fault,) = comparison.faults()
    assert "1 images are in both train and val" in fault


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Car", "car", "bus"], [("Car", "car")]),
        (["tvmonitor", "tv"], [("tv", "tvmonitor")]),
        (["traffic light", "traffic-light"], [("traffic light", "traffic-light")]),
        (["dog", "dogs", "hog"], [("dog", "dogs")]),
        (["motorbike", "motorcycle", "bicycle"], [("motorbike", "motorcycle")]),
        (["platelet", "plateelt"], [("plateelt", "platelet")]),
        (["RBC", "WBC", "class 1", "class 2", "bus", "bush", "car", "cat", "train", "truck"], []),
    ],
)
def test_names_that_may_be_one(names, pairs):
    assert alike(names) == pairs


def test_boxes_that_repeat_an_earlier_one_are_noted(sound, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(sound / "voc", root)
    objects = voc_object("cat", 2, 3, 20, 30) * 2 + voc_object("dog", 2, 3, 20, 30)
    (root / "Annotations" / "0.xml").write_text(voc_xml(objects, 32, 40))
    surveys, _ = survey(root)
    assert any(
        line.startswith("train: 1 boxes are the same as an earlier one of their image") for line in surveys[0].notes
    )
    assert any(
        line.startswith("train: 1 boxes are the same as an earlier one of another class") for line in surveys[0].notes
    )
