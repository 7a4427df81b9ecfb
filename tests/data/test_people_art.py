"""Photos and art with people, from checkouts in small."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import write_image

from lossmix_det.commands import prepare_people_art
from lossmix_det.commands.options import run_tool
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load

XML = """<annotation><object><name>person</name>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox></object></annotation>"""
LISTS = {
    "train": "Cubism/a b.png 1\nphoto/c.png 1\n",
    "val": "Cubism/d.png -1\n",
    "test": "Pop (Art)/e.png 1\nCubism/f.png -1\n",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Images are 60 × 40 pixels."""
    monkeypatch.setenv("LOSSMIX_DATASETS", str(tmp_path))
    folder = tmp_path / "people_art"
    annotations = folder / "PeopleArt" / "Annotations"
    for split, lines in LISTS.items():
        annotations.mkdir(parents=True, exist_ok=True)
        (annotations / f"person_{split}.txt").write_text(lines)
        for line in lines.splitlines():
            name, flag = line.rsplit(" ", 1)
            write_image(folder / "PeopleArt" / "JPEGImages" / name, seed=len(name))
            if flag == "1":
                path = annotations / f"{name}.xml"
                path.parent.mkdir(exist_ok=True)
                path.write_text(XML)
    for place, names in (("vocpose/images", "12"), ("yolov1/testimg", "23")):
        for name in names:
            write_image(folder / place / f"{name}.jpg", seed=int(name))
    boxes = {"voc2012": "1.jpg 1 1 60 40 14 5 5 9 9 3\n", "voc2007": "2.jpg 2 3 90 90 14\n3.jpg 4 4 9 9 7\n"}
    for name in ("voc2012", "voc2007", "voc2007test"):
        (folder / "yolov1" / f"{name}.txt").write_text(boxes.get(name, ""))
    return folder


def convert(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["prepare_people_art.py", *words])
    return run_tool(prepare_people_art.main)


def names(image_set):
    return [record.path.name for record in image_set.records]


def test_what_is_written_is_read_by_name(root, monkeypatch, capsys):
    assert convert(monkeypatch) == 0
    assert "the published data set has 2917 images, this one 2" in capsys.readouterr().err
    photos = load("people_photos_train", load_config())
    assert names(photos) == ["1.jpg", "2.jpg"]  # 3.jpg shows no person
    assert photos.records[1].path.parent.parent.name == "vocpose"  # both have it; once is enough
    np.testing.assert_array_equal(photos.records[0].boxes, [[0, 0, 60, 40]])  # pixels from 1, here from 0
    np.testing.assert_array_equal(photos.records[1].boxes, [[1, 2, 60, 40]])  # cut at the edge
    train = load("people_art_train", load_config())
    assert names(train) == ["a b.png", "d.png"]  # and none of People-Art's own photos
    np.testing.assert_array_equal(train.records[0].boxes, [[10, 5, 30, 25]])
    assert len(train.records[1].boxes) == 0
    assert names(load("people_art_test", load_config())) == ["e.png", "f.png"]
    assert names(load("people_art_test_people", load_config())) == ["e.png"]
    assert names(load("people_art_test_small", load_config())) == ["e.png", "f.png"]


def test_the_small_test_set_has_images_of_all_styles(root, monkeypatch):
    """Of 450 images with people and 300 without, every third and every second one."""
    lines = [f"S{number // 10:02}/{number}.png 1" for number in range(450)]
    lines += [f"T{number // 10:02}/{number}.png -1" for number in range(300)]
    (root / "PeopleArt" / "Annotations" / "person_test.txt").write_text("\n".join(lines))
    for line in lines:
        name, flag = line.split()
        write_image(root / "PeopleArt" / "JPEGImages" / name, seed=0)
        if flag == "1":
            path = root / "PeopleArt" / "Annotations" / f"{name}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(XML)
    assert convert(monkeypatch) == 0
    content = json.loads((root / "annotations" / "art_test_small.json").read_text())
    found = [image["file_name"].split("/")[-2] for image in content["images"]]
    assert len(found) == 300
    assert set(found) == {f"S{number:02}" for number in range(45)} | {f"T{number:02}" for number in range(30)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "yolov1/voc2012.txt").write_text("1.jpg 1 1 60 40\n"), "voc2012.txt:1: not a list of"),
        (lambda root: (root / "yolov1/voc2012.txt").write_text("1.jpg 1 1 60 x 14\n"), "voc2012.txt:1: not a list of"),
        (
            lambda root: (root / "yolov1/voc2012.txt").write_text("1.jpg 9 9 1 1 14\n"),
            "voc2012.txt:1: not a list of boxes (the box (9.0, 9",
        ),
        (lambda root: (root / "yolov1/voc2012.txt").unlink(), "voc2012.txt: cannot be read"),
        (
            lambda root: (root / "PeopleArt/Annotations/person_val.txt").write_text("x.png\n"),
            "person_val.txt:1: not an im",
        ),
        (
            lambda root: (root / "PeopleArt/Annotations/Cubism/a b.png.xml").write_text("<a>"),
            "a b.png.xml: cannot be read",
        ),
        (lambda root: (root / "PeopleArt/JPEGImages/Cubism/d.png").unlink(), "d.png: cannot be read"),
        (lambda root: [path.unlink() for path in (root / "vocpose/images").iterdir()], "images: no *.jpg"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(root, monkeypatch, capsys, spoil, message):
    spoil(root)
    assert convert(monkeypatch) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (root / "annotations").exists()
