"""`init_config` and `check_dataset` where a target or a test part has no labels, or none of a kind that is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_image
from test_first_config import CLASSES, write_voc

from lossmix_det.commands import main as lossmix
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load_sets, load_target


def without_labels(kind: str, root: Path) -> Path:
    """Images in the layout of a format, with nothing that says what they show."""
    if kind == "coco":
        images = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 64} for number in range(3)]
        (root / "annotations").mkdir(parents=True)
        (root / "annotations" / "image_info_test.json").write_text(json.dumps({"images": images, "categories": []}))
    if kind == "voc":
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "test.txt").write_text("0\n1\n2\n")
    if kind == "yolo":
        root.mkdir()
        (root / "data.yaml").write_text("test: images\nnames: [cat, dog]\n")
    for number in range(3):
        write_image(root / {"voc": "JPEGImages"}.get(kind, "images") / f"{number}.png", 64, 64, seed=number)
    return root


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_a_target_in_the_layout_of_a_format_needs_no_labels(tmp_path, capsys, kind):
    source = write_voc(tmp_path / "photos", {"train": 4, "val": 2})
    target = without_labels(kind, tmp_path / "drawings")
    words = [f"{target}:test"] if kind == "voc" else [str(target)]
    assert lossmix(["init_config", str(source), *words, "--output", str(tmp_path / "my.yaml")]) == 0
    config = load_config(tmp_path / "my.yaml")
    load_sets(config)
    assert len(load_target(config.data.target[0], config, list(CLASSES))) == 3
    assert config.data.test == ["source_val"]
    assert lossmix(["check_dataset", str(source), *words, "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    assert "is looked at without labels: " in capsys.readouterr().out


def test_scores_are_of_the_first_part_that_has_labels(tmp_path):
    """The test part of a challenge has none."""
    folders = [write_voc(tmp_path / name, {"train": 4, "val": 2, "test": 2}) for name in ("photos", "drawings")]
    for folder in folders:
        for number in (6, 7):
            (folder / "Annotations" / f"{number}.xml").unlink()
    assert lossmix(["init_config", *map(str, folders), "--output", str(tmp_path / "my.yaml")]) == 0
    config = load_config(tmp_path / "my.yaml")
    assert config.data.test == ["source_val", "target_test"]
    assert [len(each) for each in load_sets(config)[1]] == [2, 2]
    assert config.datasets["target_test"].split == "val"


def test_a_target_test_without_labels_is_refused(tmp_path, capsys):
    folders = [write_voc(tmp_path / name, {"train": 4, "val": 2}) for name in ("photos", "drawings")]
    words = [*map(str, folders), "--target-test", f"{without_labels('voc', tmp_path / 'bare')}:test"]
    assert lossmix(["init_config", *words, "--output", str(tmp_path / "my.yaml")]) == 2
    assert "bare: read as voc, and holds no box to measure with" in capsys.readouterr().err
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize(("name", "text"), [("annotations.xml", "<annotations><image/></annotations>"), ("a.csv", "x")])
def test_labels_of_a_kind_that_is_not_read_are_named(tmp_path, capsys, name, text):
    write_image(tmp_path / "export" / "images" / "a.png")
    (tmp_path / "export" / name).write_text(text)
    assert lossmix(["init_config", str(tmp_path / "export"), "--output", str(tmp_path / "my.yaml")]) == 2
    assert f"holds no box to learn from; labels in {name} are not read" in capsys.readouterr().err
