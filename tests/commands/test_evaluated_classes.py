"""Which classes `--eval-only` takes the outputs of weights for."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import voc_object, voc_xml, write_image

from lossmix_det.commands import evaluate as cli
from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.engines.classes import COCO_LABELS
from lossmix_det.files import save_tensors

pytestmark = pytest.mark.slow


@pytest.fixture
def animals(tmp_path):
    """Own test data of the classes dog and cat."""
    root = tmp_path / "animals"
    (root / "Annotations").mkdir(parents=True)
    for index in range(2):
        write_image(root / "JPEGImages" / f"{index}.png", 64, 64, seed=index)
        objects = voc_object("dog", 5, 8, 40, 30) + voc_object("cat", 30, 35, 60, 60)
        (root / "Annotations" / f"{index}.xml").write_text(voc_xml(objects, 64, 64))
    return root


def weights(path, classes: int, engine: dict | None = None):
    torch.manual_seed(0)
    save_tensors(build_detector(ModelConfig(), classes).exported(), path)
    if engine:
        path.with_suffix(".json").write_text(json.dumps(engine))
    return path


def evaluate(tmp_path, animals, *words: str) -> int:
    settings = [f"datasets.mine.root={animals}", "data.test=[mine]", "data.workers=0", "data.augment.min_sizes=[64]"]
    return cli.main([*settings, "train.device=cpu", f"output_dir={tmp_path / 'run'}", *words])


def classes_of_results(tmp_path) -> list[str]:
    (path,) = (tmp_path / "run" / "inference").glob("*/results.json")
    return list(json.loads(path.read_text())["model"]["mine"]["classes"])


def test_the_order_that_labels_are_taken_in_is_said_where_weights_do_not_say_it(tmp_path, animals, capsys):
    """Nobody has named a training set either."""
    assert evaluate(tmp_path, animals, f"model.weights={weights(tmp_path / 'w.pth', 2)}") == 0
    said = capsys.readouterr().err
    assert "w.pth names no classes: its labels are taken as cat, dog, in this order; if they were trained in" in said
    assert classes_of_results(tmp_path) == ["cat", "dog"]


def test_an_order_that_is_set_is_said_without_advice(tmp_path, animals, capsys):
    words = [f"model.weights={weights(tmp_path / 'w.pth', 2)}", "data.classes=[dog,cat]"]
    assert evaluate(tmp_path, animals, *words) == 0
    assert "its labels are taken as dog, cat, in this order\n" in capsys.readouterr().err
    assert classes_of_results(tmp_path) == ["dog", "cat"]


def test_classes_that_weights_name_are_those_of_the_test_where_no_training_set_is_named(tmp_path, animals, capsys):
    export = weights(tmp_path / "w.pth", 2, {"engine": "torchvision", "classes": ["dog", "cat"]})
    assert evaluate(tmp_path, animals, f"model.weights={export}") == 0
    assert "names no classes" not in capsys.readouterr().err
    assert classes_of_results(tmp_path) == ["dog", "cat"]


def test_a_head_of_cocos_91_outputs_is_evaluated_on_some_of_its_classes(tmp_path, animals, capsys):
    words = [f"model.weights={weights(tmp_path / 'w.pth', 90)}", "model.score_threshold=0"]
    assert evaluate(tmp_path, animals, *words) == 0
    assert classes_of_results(tmp_path) == ["cat", "dog"]
    (path,) = (tmp_path / "run" / "inference").glob("*/detections_mine.json")
    assert {row["category_id"] for row in json.loads(path.read_text())} <= {1, 2}


def test_classes_that_coco_does_not_know_are_refused_with_those_that_it_knows(tmp_path, animals, capsys):
    path = animals / "Annotations" / "0.xml"
    path.write_text(path.read_text().replace("cat", "catt"))
    words = [f"model.weights={weights(tmp_path / 'w.pth', 90)}", "data.classes=[catt,dog]"]
    (animals / "Annotations" / "1.xml").unlink()
    assert evaluate(tmp_path, animals, *words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "w.pth knows no class 'catt' (did you mean 'cat'?); its classes are person, bicycle" in said
    assert "N/A" not in said
    assert COCO_LABELS[-1] in said


def test_a_head_of_neither_number_is_refused(tmp_path, animals, capsys):
    assert evaluate(tmp_path, animals, f"model.weights={weights(tmp_path / 'w.pth', 5)}") == 2
    assert "is not of this model" in capsys.readouterr().err


def test_weights_that_name_their_classes_are_scored_without_the_training_data(tmp_path, animals):
    """It may lie elsewhere by now. The classes of the weights come in another order than those of the test data."""
    trained = weights(tmp_path / "w.pth", 2, {"engine": "torchvision", "classes": ["dog", "cat"]})
    gone = f"datasets.gone.root={tmp_path / 'gone'}"
    assert evaluate(tmp_path, animals, gone, "data.train=[gone]", f"model.weights={trained}") == 0
    assert classes_of_results(tmp_path) == ["dog", "cat"]
