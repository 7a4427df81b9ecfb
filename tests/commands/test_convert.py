"""Data sets change their format and nothing else, as far as the new format can hold it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import voc_object, voc_xml, write_image

from lossmix_det.commands import main as lossmix
from lossmix_det.commands.convert import main
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load

SPLITS = ("train", "valid")


@pytest.fixture
def source(tmp_path) -> Path:
    """COCO with everything that it can say: flags, areas, ids, decimals, an image without boxes, sub-folders."""
    root = tmp_path / "source"
    rng = np.random.default_rng(0)
    for split in SPLITS:
        images, annotations = [], []
        for number in range(4):
            name = f"{split}/cam{number % 2}/{number}.png"
            write_image(root / name, 60, 40, seed=number)
            images.append({"id": f"{split}-{number}", "file_name": name, "width": 60, "height": 40})
            for _ in range(number):
                x, y = rng.uniform(0, 30, 2).round(2).tolist()
                box = [x, y, *rng.uniform(1, 9, 2).round(3).tolist()]
                area = round(box[2] * box[3] * 0.6, 3)
                entry = {
                    "image_id": images[-1]["id"],
                    "category_id": int(rng.choice([7, 3])),
                    "bbox": box,
                    "area": area,
                }
                annotations.append(entry | {"ignore": int(number == 2), "iscrowd": int(number == 3)})
        categories = [{"id": 7, "name": "zebra"}, {"id": 3, "name": "cat"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def read(root, split="train", *words):
    words = [f"datasets.mine.root={root}", f"datasets.mine.split={split}", "data.remember=false", *words]
    return load("mine", load_config(None, words), ["zebra", "cat"])


def by_name(image_set):
    """The boxes of each image by the end of its name, with all that is known about each."""
    table = {}
    for record in image_set.records:
        rows = zip(record.boxes.tolist(), record.classes, record.difficult, record.crowd, strict=True)
        name = "/".join(record.path.parts[-2:])
        table[name] = [(box, image_set.classes[label], bool(d), bool(c)) for box, label, d, c in rows]
    return table


def convert(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("how", ["link", "copy"])
def test_boxes_classes_and_images_survive(source, tmp_path, capsys, kind, how):
    assert convert(source, tmp_path / "new", "--to", kind, "--splits", *SPLITS, "--images", how) == 0
    for split in SPLITS:
        before, after = by_name(read(source, split)), by_name(read(tmp_path / "new", split))
        assert before.keys() == after.keys()
        for name, rows in before.items():
            kept = [row for row in rows if kind == "coco" or not row[3]]
            assert [row[1] for row in kept] == [row[1] for row in after[name]]
            boxes = [np.array([row[0] for row in each]).reshape(-1, 4) for each in (kept, after[name])]
            np.testing.assert_allclose(*boxes, atol=1e-4)
            if kind != "yolo":
                assert [row[2] for row in kept] == [row[2] for row in after[name]]
    image = next((tmp_path / "new").rglob("1.png"))
    assert image.is_symlink() == (how == "link")
    assert image.read_bytes() == (source / "train" / "cam1" / "1.png").read_bytes()


def test_coco_keeps_flags_areas_and_ids(source, tmp_path):
    convert(source, tmp_path / "new", "--to", "coco", "--splits", "train")
    before, after = read(source), read(tmp_path / "new")
    for key in ("boxes", "classes", "difficult", "crowd"):
        np.testing.assert_array_equal(getattr(before.records, key), getattr(after.records, key))
    np.testing.assert_allclose(before.records.areas, after.records.areas)
    assert list(after.ids.values()) == [f"train-{number}" for number in range(4)]


LOSSES = {
    "coco": ["lost: 2 numbers of classes; they count from 1", "lost: 6 outlines, if there were any, but their areas"],
    "voc": [
        "lost: 4 ids of images",
        "lost: 3 boxes of crowds, for which VOC has no flag",
        "lost: 6 areas that are not those of the box",
        "lost: 2 places of classes in their order; list them in data.classes",
    ],
    "yolo": [
        "lost: 4 ids of images",
        "lost: 3 boxes of crowds, for which YOLO has no flag",
        "lost: 2 marks of difficult boxes, which are now usual ones",
        "lost: 6 areas that are not those of the box",
    ],
}


@pytest.mark.parametrize("kind", list(LOSSES))
def test_what_is_lost_is_said(source, tmp_path, capsys, kind):
    convert(
        source, tmp_path / "new", "--to", kind, "--splits", "train", "classes=[zebra,cat]", "data.classes=[zebra,cat]"
    )
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("lost")] == LOSSES[kind]
    assert "train: 4 images, 6 boxes" in printed


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_a_voc_set_comes_back_as_it_was(voc_folder, tmp_path, capsys, kind):
    """By way of the other format; YOLO has no flag for what is difficult."""
    convert(voc_folder, tmp_path / "there", "--to", kind, "--splits", "train")
    convert(tmp_path / "there", tmp_path / "back", "--to", "voc", "--splits", "train", "data.classes=[cat,dog]")
    before, after = (
        load("mine", load_config(None, [f"datasets.mine.root={root}"])) for root in (voc_folder, tmp_path / "back")
    )
    np.testing.assert_array_equal(before.records.boxes, after.records.boxes)
    np.testing.assert_array_equal(before.records.classes, after.records.classes)
    assert after.records.difficult.tolist() == [False, kind != "yolo"]
    xml = next((tmp_path / "back").rglob("one.xml")).read_text()
    assert "<xmin>11</xmin>" in xml  # as in the original, without a point
    assert "<ymax>40</ymax>" in xml


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_a_set_without_splits_is_read_back_without_one(voc_folder, tmp_path, capsys, kind):
    assert convert(voc_folder, tmp_path / "new", "--to", kind) == 0
    assert len(load("mine", load_config(None, [f"datasets.mine.root={tmp_path / 'new'}"]))) == 2


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_a_split_of_any_name_is_read_back_by_it(voc_folder, tmp_path, capsys, kind):
    (voc_folder / "ImageSets" / "Main" / "trainval_2.txt").write_text("one\n")
    assert convert(voc_folder, tmp_path / "new", "--to", kind, "--splits", "trainval_2", "train") == 0
    assert len(read(tmp_path / "new", "trainval_2").records) == 1


def test_settings_of_the_data_set_are_heard(voc_folder, tmp_path, capsys):
    convert(voc_folder, tmp_path / "new", "--to", "coco", "--splits", "train", "pixel_origin=0", "format=voc")
    first = json.loads((tmp_path / "new" / "annotations" / "train.json").read_text())["annotations"][0]
    assert first["bbox"] == [1, 1, 29, 19]


def test_notes_are_printed_and_exif_is_reminded_of(voc_folder, tmp_path, capsys):
    (voc_folder / "Annotations" / "one.xml").write_text(voc_xml(voc_object("cat", 1, 1, 90, 20)))
    convert(voc_folder, tmp_path / "new", "--to", "yolo", "exif=ignore")
    printed = capsys.readouterr().out
    assert "noted: " in printed
    assert "was clipped" in printed
    assert "set exif: ignore for the new data set too" in printed


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_original_is_left_as_it_is(source, tmp_path, capsys):
    before = snapshot(source)
    convert(source, source / "converted", "--to", "voc", "--splits", *SPLITS, "--images", "copy")
    after = {path: content for path, content in snapshot(source).items() if "/converted/" not in path}
    assert after == before


REFUSED = [
    (["--to", "kitti"], "--to='kitti' is not one of voc, coco, yolo"),
    (["--to", "voc", "--images", "move"], "--images='move' is not one of link, copy"),
    (["--to", "voc", "--splits", "../up"], "a split is a name, not a path"),
    (["--to", "voc", "--splits", "dev"], "split 'dev' is in none of these"),
    (["--to", "voc", "--splits", "train", "pixel_origin=2"], "pixel_origin=2 lies outside of"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(source, tmp_path, capsys, words, message):
    assert convert(source, tmp_path / "new", *words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "datasets") == ["source"]


def test_a_folder_with_anything_in_it_is_not_written_to(voc_folder, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "thesis.txt").write_text("x")
    assert convert(voc_folder, tmp_path / "new", "--to", "voc") == 2
    assert "new is not empty; give a new folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "new") == ["thesis.txt"]
    assert convert(voc_folder, tmp_path / "new" / "thesis.txt", "--to", "voc") == 2


def test_an_empty_folder_may_be_there(voc_folder, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    assert convert(voc_folder, tmp_path / "new", "--to", "yolo") == 0


def test_the_folder_that_one_is_in_is_not_replaced(voc_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert convert(voc_folder, ".", "--to", "yolo") == 2
    assert ". is the folder that you are in" in capsys.readouterr().err


def test_a_link_to_an_empty_folder_is_filled(voc_folder, tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "new").symlink_to(tmp_path / "disk")
    assert convert(voc_folder, tmp_path / "new", "--to", "yolo") == 0
    assert (tmp_path / "new").is_symlink()
    assert (tmp_path / "disk" / "data.yaml").is_file()


def test_a_folder_may_be_called_like_a_setting(voc_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    voc_folder.rename(tmp_path / "data.v1")
    assert convert("data.v1", "data.v2", "--to", "yolo") == 0
    assert (tmp_path / "data.v2" / "data.yaml").is_file()


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_two_images_of_one_stem_are_not_mixed_up(tmp_path, capsys, kind):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for number, name in enumerate(("a.png", "a.jpg"), start=1):
        write_image(tmp_path / "source" / name)
        content["images"].append({"id": number, "file_name": name})
        content["annotations"].append({"image_id": number, "category_id": 1, "bbox": [1, 1, 5, 5]})
    (tmp_path / "source" / "a.json").write_text(json.dumps(content))
    assert convert(tmp_path / "source", tmp_path / "new", "--to", kind) == 2
    assert "another image has its name without suffix" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_two_images_that_would_be_one_file_are_not_mixed_up(voc_folder, tmp_path, capsys):
    """Two annotations of one image."""
    text = (voc_folder / "Annotations" / "one.xml").read_text()
    (voc_folder / "Annotations" / "copy.xml").write_text(text.replace("<size>", "<filename>one.png</filename><size>"))
    assert convert(voc_folder, tmp_path / "new", "--to", "coco") == 2
    assert "another image is written to images/all/one.png too" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ca\x01t", "ca\udce9t"])
def test_a_class_that_xml_cannot_hold_is_one_sentence(tmp_path, capsys, name):
    write_image(tmp_path / "source" / "a.png")
    annotations = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations}
    (tmp_path / "source" / "a.json").write_text(json.dumps(content | {"categories": [{"id": 1, "name": name}]}))
    assert convert(tmp_path / "source", tmp_path / "new", "--to", "voc") == 2
    assert "rename it" in capsys.readouterr().err


def test_it_is_a_command_of_lossmix(voc_folder, tmp_path, capsys):
    assert lossmix(["convert", str(voc_folder), str(tmp_path / "new"), "--to", "coco"]) == 0
    assert "all: 2 images, 2 boxes" in capsys.readouterr().out


def test_boxes_that_voc_files_cannot_hold_are_said_to_be_lost(tmp_path, capsys):
    root = tmp_path / "tiny"
    write_image(root / "a.png")
    boxes = [[10, 10, 1, 9], [10, 10, 0.5, 9], [10, 10, 1.5, 9]]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes],
    }
    (root / "instances.json").write_text(json.dumps(content))
    assert main([str(root), str(tmp_path / "voc"), "--to", "voc"]) == 0
    assert "lost: 2 boxes of at most one pixel" in capsys.readouterr().out
    found = load("mine", load_config(None, [f"datasets.mine.root={tmp_path / 'voc'}", "data.remember=false"]))
    assert found.records.boxes.tolist() == [[10, 10, 11.5, 19]]


def yolo_folder(root, *folders):
    """YOLO with one image and one box in each of some folders below it."""
    for number, folder in enumerate(folders):
        write_image(root / folder / f"{number}.png", 60, 40, seed=number)
        label = root / folder.replace("images", "labels") / f"{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.4 0.4\n")
    return root


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_yolo_becomes_anything_and_is_read_again(tmp_path, kind):
    """A new folder ``images`` around an old one would hide the labels from every reader."""
    root = yolo_folder(tmp_path / "old", "images/train/a", "images/train/b")
    (root / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    assert convert(root, tmp_path / "new", "--to", kind, "--splits", "train") == 0
    after = load("mine", load_config(None, [f"datasets.mine.root={tmp_path / 'new'}", "datasets.mine.split=train"]))
    assert [len(record.boxes) for record in after.records] == [1, 1]
    assert {record.path.parent.name for record in after.records} == {"a", "b"}


def test_a_folder_called_images_below_another_is_told(tmp_path, capsys):
    root = yolo_folder(tmp_path / "old", "a/images/x", "b/images/x")
    (root / "data.yaml").write_text("train: [a/images/x, b/images/x]\nnames: [cat]\n")
    assert convert(root, tmp_path / "new", "--to", "yolo", "--splits", "train") == 2
    assert "YOLO finds labels by the folder called images, and this one is below another" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
