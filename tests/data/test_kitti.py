import sys

import numpy as np
import pytest
from conftest import write_image

from lossmix_det.commands import prepare_kitti
from lossmix_det.commands.options import run_tool
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load

LABELS = """Car 0.00 0 -1.57 10.5 5.25 30.0 25.0 1.5 1.6 3.7 1.0 1.7 20.0 -1.5
Pedestrian 0.00 0 0.2 1 2 9 30 1.9 0.5 1.2 1.8 1.5 8.4 0.01
DontCare -1 -1 -10 40 5 50 20 -1 -1 -1 -1000 -1000 -1000 -10
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMIX_DATASETS", str(tmp_path))
    folder = tmp_path / "kitti" / "training"
    (folder / "label_2").mkdir(parents=True)
    for number, labels in enumerate((LABELS, "")):
        (folder / "label_2" / f"00000{number}.txt").write_text(labels)
        write_image(folder / "image_2" / f"00000{number}.png", seed=number)
    return tmp_path / "kitti"


def convert(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["prepare_kitti.py", *words])
    return run_tool(prepare_kitti.main)


def test_converted_labels_are_read_by_name(root, monkeypatch, capsys):
    assert convert(monkeypatch) == 0
    assert "the published data set has 7481 images, this one 2" in capsys.readouterr().err
    found = load("kitti_train", load_config(None, ["data.classes=[car]"]))
    assert [len(record.boxes) for record in found.records] == [1, 0]
    np.testing.assert_array_equal(found.records[0].boxes, [[10.5, 5.25, 30, 25]])
    assert found.records[0].size == (40, 60)
    everything = load("kitti_train", load_config())
    assert [everything.classes[index] for index in everything.records[0].classes] == ["car", "pedestrian"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "training/label_2/000000.txt").write_text("Car 0 0\n"), "000000.txt:1: not a label"),
        (lambda root: (root / "training/label_2/000001.txt").write_text("Boat 0 0 0 1 2 3 4\n"), "unknown type 'Boat'"),
        (
            lambda root: (root / "training/label_2/000000.txt").write_text("Car 0 0 0 9 2 3 4\n"),
            "000000.txt:1: not a label",
        ),
        (
            lambda root: (root / "training/label_2/000000.txt").write_text("Car 0 0 0 9 9 3 4\n"),
            "000000.txt:1: not a label",
        ),
        (
            lambda root: (root / "training/label_2/000000.txt").write_text("Car 0 0 0 1 2 nan 4\n"),
            "000000.txt:1: not a label",
        ),
        (lambda root: (root / "training/label_2/000000.txt").write_bytes(b"Car \xff\n"), "000000.txt: cannot be read"),
        (lambda root: (root / "training/image_2/000001.png").unlink(), "000001.png: cannot be read"),
        (lambda root: [path.unlink() for path in (root / "training/label_2").iterdir()], "no *.txt; unpack"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(root, monkeypatch, capsys, spoil, message):
    spoil(root)
    assert convert(monkeypatch) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not (root / "annotations").exists()
