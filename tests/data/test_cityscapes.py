import json
import sys

import numpy as np
import pytest
from conftest import write_image

from lossmix_det.commands import prepare_cityscapes
from lossmix_det.commands.options import run_tool
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load

STEM = "aachen/aachen_000000_000019"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMIX_DATASETS", str(tmp_path))
    objects = [
        {"label": "road", "polygon": [[0, 0], [59, 39], [3, 9]]},
        {"label": "car", "polygon": [[10, 5], [29, 5], [29, 24], [10, 24]]},
        {"label": "persongroup", "polygon": [[0, 0], [5, 9], [3, 9]]},
        {"label": "rider", "polygon": [[1, 1], [40, 9], [3, 9]], "deleted": 1},
        {"label": "bicycle", "polygon": [[40, 2], [45, 2], [45, 9], [40, 9]]},  # behind the pole, all of it
        {"label": "license plate", "polygon": [[10, 20], [29, 20], [29, 24], [10, 24]]},
        {"label": "pole", "polygon": [[20, 0], [50, 0], [50, 26], [20, 26]]},  # hides half of the car
        {"label": "bus", "polygon": [[-9, 30], [70, 30], [70, 60]]},
        {"label": "train", "polygon": [[-9, 30], [-5, 30], [-5, 60]]},
    ]
    for split in ("train", "val"):
        path = tmp_path / "cityscapes" / "gtFine" / split / f"{STEM}_gtFine_polygons.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"imgWidth": 60, "imgHeight": 40, "objects": objects}))
        fog = [("leftImg8bit_foggy", f"_foggy_beta_{level}") for level in ("0.005", "0.01", "0.02")]
        for folder, suffix in (("leftImg8bit", ""), *fog):
            write_image(tmp_path / "cityscapes" / folder / split / f"{STEM}_leftImg8bit{suffix}.png")
    return tmp_path / "cityscapes"


def convert(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["prepare_cityscapes.py", *words])
    return run_tool(prepare_cityscapes.main)


@pytest.mark.parametrize(
    "name", ["cityscapes_train", "cityscapes_val", "foggy_cityscapes_train", "foggy_cityscapes_val"]
)
def test_converted_annotations_are_read_by_name(root, monkeypatch, name):
    assert convert(monkeypatch) == 0
    found = load(name, load_config())
    (record,) = found.records
    assert [found.classes[index] for index in record.classes] == ["car", "person", "bus"]
    np.testing.assert_array_equal(record.boxes, [[10, 5, 20, 25], [0, 0, 6, 10], [0, 30, 60, 40]])
    assert record.crowd.tolist() == [False, True, False]
    assert ("foggy" in record.path.name) == ("foggy" in name)


def test_a_missing_folder_and_a_broken_file_are_one_sentence(root, monkeypatch, capsys, tmp_path):
    assert convert(monkeypatch, str(tmp_path / "nowhere")) == 2
    assert "no */*_gtFine_polygons.json" in capsys.readouterr().err
    (root / "gtFine" / "train" / f"{STEM}_gtFine_polygons.json").write_text('{"objects": 3}')
    assert convert(monkeypatch) == 2
    assert "not a polygon file of Cityscapes" in capsys.readouterr().err
    assert not (root / "annotations").exists()


def test_all_fog_levels_are_one_data_set(root, monkeypatch, capsys):
    assert convert(monkeypatch, "--fog", "0.005") == 0
    assert "the published data set has 8925 images, this one 3" in capsys.readouterr().err
    found = load("foggy_cityscapes_all_train", load_config())
    levels = [record.path.stem.rsplit("_", 1)[1] for record in found.records]
    assert levels == ["0.005", "0.01", "0.02"]
    assert all(np.array_equal(record.boxes, found.records[0].boxes) for record in found.records)
    assert load("foggy_cityscapes_val", load_config()).records[0].path.stem.endswith("0.005")


def test_missing_images_are_counted(root, monkeypatch, capsys):
    for path in (root / "leftImg8bit_foggy" / "val").rglob("*_0.01.png"):
        path.unlink()
    assert convert(monkeypatch) == 0
    assert "foggy_cityscapes_all_val: 1 of 3 images are not in" in " ".join(capsys.readouterr().err.split())
