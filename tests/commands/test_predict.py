"""`lossmix predict`: from a file of weights and some images to files, without touching the images."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest
import torch
from conftest import write_image

from lossmix_det.commands import main as lossmix
from lossmix_det.config import as_dict, load_config
from lossmix_det.engines import build_detector
from lossmix_det.engines.backbones import BACKBONES
from lossmix_det.engines.export import export_model
from lossmix_det.files import save_tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An export whose scores are spread over the whole range."""
    folder = tmp_path_factory.mktemp("weights")
    config = load_config(None, ["data.augment.min_sizes=[64]", "model.score_threshold=0.0"])
    torch.manual_seed(0)
    detector = build_detector(config.model, 2)
    torch.nn.init.normal_(detector.model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    export_model(detector, config, ["cat", "dog"], folder / "export.pth")
    return folder / "export.pth"


@pytest.fixture
def shots(tmp_path):
    for seed, name in enumerate(["a.png", "sub/a.png", "sub/b.png"]):
        write_image(tmp_path / "shots" / name, 60 + 20 * seed, 60, seed=seed)
    return tmp_path / "shots"


def predict(*words):
    return lossmix(["predict", *map(str, words)])


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_everything_is_written_and_the_images_stay_as_they_are(weights, shots, tmp_path, capsys):
    before, output = hashes(shots), tmp_path / "out"
    options = ["--write", "drawn", "coco", "yolo", "csv", "--score", 0.3, "--device", "cpu"]
    assert predict(weights, shots, "--output", output, *options) == 0
    assert hashes(shots) == before
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == sorted(
        [
            *("drawn/a.jpg", "drawn/sub/a.jpg", "drawn/sub/b.jpg", "predictions.csv", "predictions.json"),
            *("labels/a.txt", "labels/sub/a.txt", "labels/sub/b.txt", "labels/classes.txt"),
        ]
    )
    content = json.loads((output / "predictions.json").read_text())
    assert content["annotations"]
    assert min(row["score"] for row in content["annotations"]) >= 0.3
    printed = capsys.readouterr().out
    assert printed == f"3 images, {len(content['annotations'])} detections scoring at least 0.3, in {output}\n"


@pytest.mark.slow
def test_classes_are_chosen_by_name_and_batches_change_nothing(weights, shots, tmp_path):
    rows = []
    for number, words in enumerate([["--only", "dog"], ["--batch-size", 1], ["--batch-size", 3]]):
        output = tmp_path / str(number)
        assert predict(weights, shots, "--output", output, "--write", "coco", "--score", 0.2, *words) == 0
        rows.append(json.loads((output / "predictions.json").read_text())["annotations"])
    assert {row["category_id"] for row in rows[0]} == {2}
    assert [row["bbox"] for row in rows[0]] == [row["bbox"] for row in rows[1] if row["category_id"] == 2]
    assert len(rows[1]) == len(rows[2])
    for one, other in zip(rows[1], rows[2], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


@pytest.mark.slow
def test_a_broken_file_is_reported_and_the_status_tells(weights, shots, tmp_path, capsys):
    (shots / "sub" / "broken.jpg").write_text("hello")
    assert predict(weights, shots, "--output", tmp_path / "out", "--write", "csv") == 1
    printed = capsys.readouterr()
    assert "3 images, " in printed.out
    assert f"1 files could not be read; listed in {tmp_path / 'out' / 'problems.txt'}" in printed.out
    (line,) = (tmp_path / "out" / "problems.txt").read_text().splitlines()
    assert line.startswith(f"{shots / 'sub' / 'broken.jpg'}: cannot be read (")
    assert line in printed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--write", "coc"], "--write='coc' is not one of drawn, coco, yolo, csv (did you mean 'coco'?)"),
        (["--score", "2"], "--score 2.0 lies outside of 0 … 1"),
        (["--batch-size", "0"], "--batch-size 0 is too small"),
        (["--only", "dgo"], "no class 'dgo' (did you mean 'dog'?); the classes are cat, dog"),
        (["--exif", "maybe"], "--exif='maybe' is not one of apply, ignore"),
        (["--device", "cud"], "--device cud cannot be used"),
        (["--classes", "x", "y"], "names its classes itself: cat, dog; leave --classes out"),
    ],
)
def test_what_cannot_be_meant_gets_a_sentence(weights, shots, tmp_path, capsys, words, said):
    assert predict(weights, shots, "--output", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(weights, shots, tmp_path, capsys):
    assert predict(weights, shots, "--output", shots) == 2
    assert f"{shots} is not empty; name a new folder by --output" in capsys.readouterr().err


@pytest.fixture
def own_part(tmp_path, monkeypatch):
    """The weights of a run whose backbone a module adds, as that of another process: nobody has imported it yet."""
    (tmp_path / "my_parts.py").write_text(
        "from lossmix_det.engines.backbones import BACKBONES\nBACKBONES['mine'] = BACKBONES['slim']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKBONES, "mine", BACKBONES["slim"])  # so that it is gone again in the end
    config = load_config(None, ["data.imports=[my_parts]", "model.architecture=mine"])
    detector = build_detector(config.model, 2)
    export_model(detector, config, ["cat", "dog"], tmp_path / "export.pth")
    state = {"config": as_dict(config), "classes": ["cat", "dog"], "student": detector.exported(), "step": 1}
    save_tensors(state, tmp_path / "checkpoint.pt")
    monkeypatch.delitem(BACKBONES, "mine")
    yield tmp_path
    sys.modules.pop("my_parts", None)


@pytest.mark.parametrize("name", ["export.pth", "checkpoint.pt"])
def test_weights_that_need_code_of_ones_own_say_so_and_run_it_only_if_told(own_part, shots, tmp_path, capsys, name):
    words = [own_part / name, shots, "--output", tmp_path / "out", "--device", "cpu"]
    assert predict(*words) == 2
    said = capsys.readouterr().err
    assert "model.architecture='mine' is not one of" in said
    assert "its run imported my_parts: if that adds parts of the model, say --import my_parts" in said
    assert "my_parts" not in sys.modules
    assert predict(*words, "--import", "no_parts") == 2
    assert "--import: no_parts cannot be imported (ModuleNotFoundError" in capsys.readouterr().err
    assert predict(*words, "--import", "my_parts") == 0
