"""What is allowed, but probably not meant, is refused or noted."""

from __future__ import annotations

import json

import pytest
from conftest import voc_object, voc_xml, write_image

from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.data.images import probe
from lossmix_det.data.paths import listed
from lossmix_det.errors import UserError


@pytest.fixture
def read(tmp_path):
    """Read a COCO set of one image of 60×40 with these boxes and classes."""
    write_image(tmp_path / "a.png")

    def read(boxes, names=("cat", "dog"), *overrides):
        content = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
            "annotations": [
                {"image_id": 1, "category_id": number % len(names), "bbox": box} for number, box in enumerate(boxes)
            ],
        }
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return load("mine", load_config(None, [f"datasets.mine.root={tmp_path}", *overrides]))

    return read


def test_boxes_in_shares_of_the_image_are_refused_where_pixels_are_meant(read):
    with pytest.raises(UserError, match="all 2 boxes lie inside of the first pixel, so they seem to be in shares"):
        read([[0.2, 0.3, 0.4, 0.5], [0.1, 0.1, 0.9, 0.9]])
    assert len(read([[0.2, 0.3, 0.4, 0.5], [1, 1, 9, 9]]).records.boxes) == 2


def test_many_boxes_that_reach_out_are_said_to_be_perhaps_corners(read):
    notes = read([[40, 10, 60, 20], [5, 30, 15, 38]]).problems.notes
    assert notes[0].startswith(
        "mine: 2 of 2 boxes reach out of their image and were clipped; are they of images of another size, or corners"
    )
    assert len(notes) == 3
    assert len(read([[40, 10, 60, 20], *[[5, 5, 9, 9]] * 4]).problems.notes) == 1


@pytest.mark.parametrize(
    ("names", "how"),
    [(("Car", "car"), "letter case"), (("caf\u00e9", "cafe\u0301"), "accents"), (("a b", "a  b"), "by blanks")],
)
def test_classes_that_hardly_differ_are_noted(read, names, how):
    (note,) = read([[1, 1, 9, 9], [2, 2, 9, 9]], names).problems.notes
    assert how in note
    assert note.endswith("are they one?")


def test_a_class_of_the_configuration_that_hardly_differs_is_named(read):
    with pytest.raises(UserError, match="has no class 'Dog'; 'dog' is there, which differs only by letter case"):
        read([[1, 1, 9, 9]], ("cat", "dog"), "data.classes=[cat,Dog]")


def write_voc(root, text, image="one.png"):
    write_image(root / "JPEGImages" / image)
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{image.partition('.')[0]}.xml").write_text(text)


def load_voc(root):
    return load("mine", load_config(None, ["datasets.mine.format=voc", f"datasets.mine.root={root}"]))


CAT = voc_object("cat", 1, 1, 30, 20)


def test_boxes_without_an_object_are_a_fault_and_capital_letters_a_note(tmp_path):
    write_voc(tmp_path, voc_xml(CAT.replace("object>", "Object>").replace("bndbox", "BndBox")))
    found = load_voc(tmp_path)
    assert found.records[0].boxes.tolist() == [[0, 0, 30, 20]]
    assert "capital letters" in found.problems.notes[0]
    write_voc(tmp_path, voc_xml(CAT.replace("object>", "item>")))
    with pytest.raises(UserError, match="one.xml: has boxes, but no <object> that they belong to"):
        load_voc(tmp_path)


def test_the_file_name_of_another_image_is_noted(tmp_path):
    write_voc(tmp_path, voc_xml("<filename>two.png</filename>" + CAT))
    write_voc(tmp_path, voc_xml("<filename>two.png</filename>" + CAT), "two.png")
    (note,) = load_voc(tmp_path).problems.notes
    assert "1 XML files give the <filename> of another image; that of their own name is taken" in note


def test_an_image_that_an_annotation_finds_elsewhere_is_not_said_to_be_left_out(tmp_path):
    write_voc(tmp_path, voc_xml("<filename>one.png</filename>" + CAT))
    (tmp_path / "JPEGImages" / "cam").mkdir()
    (tmp_path / "JPEGImages" / "one.png").rename(tmp_path / "JPEGImages" / "cam" / "one.png")
    write_image(tmp_path / "JPEGImages" / "other.png")
    found = load_voc(tmp_path)
    (line,) = found.problems.left_out
    assert line.endswith("other.png: not read, because it has no annotation")


def test_a_picture_in_a_format_that_is_not_read_is_named(tmp_path):
    write_voc(tmp_path, voc_xml(CAT))
    (tmp_path / "JPEGImages" / "one.png").rename(tmp_path / "JPEGImages" / "one.heic")
    with pytest.raises(UserError, match=r"'one.heic' is there, whose format is not read; save it as JPEG or PNG"):
        load_voc(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS; fetch"),
        (b"\n<!DOCTYPE html><html>", "it is a web page; download"),
        (b"text", "it is damaged, or no image of a kind that Pillow reads"),
    ],
)
def test_what_was_saved_instead_of_an_image_is_named(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(OSError, match=reason):
        probe(tmp_path / "a.jpg")


def test_folders_of_the_system_are_left_out(tmp_path):
    for name in ("a.png", "@eaDir/a.png", "x/__MACOSX/b.png", "x/c.png"):
        write_image(tmp_path / name)
    found = listed(tmp_path)
    assert found.files == ["a.png", "x/c.png"]
    assert len(found.left_out) == 2
