"""A detector from a file finds what an evaluation of its run finds."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, voc_object, voc_xml, write_image
from PIL import Image
from runs import trainer
from torch.testing import assert_close
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn as mobilenet

from lossmix_det.commands import evaluate as cli
from lossmix_det.config import ModelConfig, load_config
from lossmix_det.data.catalog import load
from lossmix_det.engines import build_detector
from lossmix_det.engines.export import export_model
from lossmix_det.engines.recorded import Reading, recorded_of
from lossmix_det.errors import UserError
from lossmix_det.evaluation import Predictor
from lossmix_det.evaluation.predictor import find_weights, kept
from lossmix_det.files import save_tensors
from lossmix_det.structures import Instances

TURNED = 0x0112  # EXIF orientation


def animals(root, name="dog"):
    """Images of unlike sizes, the last of which EXIF turns upright."""
    (root / "Annotations").mkdir(parents=True)
    for index, (width, height) in enumerate([(64, 64), (130, 70), (50, 90), (97, 61), (80, 48)]):
        path = write_image(root / "JPEGImages" / f"{index}.jpg", width, height, seed=index)
        size = (width, height)
        if index == 4:
            exif = Image.Exif()
            exif[TURNED] = 6
            with Image.open(path) as image:
                image.copy().save(path, exif=exif, quality=95)
            size = (height, width)
        objects = voc_object(name, 5, 8, 40, 30) + voc_object("cat", 3, 5, 30, 40)
        (root / "Annotations" / f"{index}.xml").write_text(voc_xml(objects, *size))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with an average, on images that it reads at 72 pixels, and its data set."""
    folder = tmp_path_factory.mktemp("run")
    root = animals(folder / "animals")
    words = [f"datasets.mine.root={root}", "data.train=[mine]", "data.test=[mine]", "ema.decay=0.5"]
    words += ["data.augment.test_size=72", "data.augment.max_size=100", "train.steps=3", "data.batch_size=2"]
    it = trainer(folder / "run", *words)
    assert it.train()
    return folder / "run", root


def rows_of_evaluation(folder, weights, tmp_path):
    """{file name: [[x, y, w, h, score, class], …]}, as `--eval-only` writes it.

    One image at a time: GroupNorm looks at the padding too, and how much there is depends on the other images.
    """
    config = load_config(folder / "config.yaml", [f"output_dir={tmp_path}", "data.test_batch_size=1"])
    words = ["--config-file", str(folder / "config.yaml"), f"output_dir={tmp_path}", f"model.weights={weights}"]
    assert cli.main([*words, "data.test_batch_size=1"]) == 0
    numbers = load("mine", config).category_ids
    (path,) = (tmp_path / "inference").glob("*/detections_mine.json")
    table: dict[str, list] = {}
    for row in json.loads(path.read_text()):
        entry = [*row["bbox"], row["score"], numbers.index(row["category_id"])]
        table.setdefault(row["file_name"], []).append(entry)
    return table


def rows_of(found: Instances):
    boxes = torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], dim=1)
    return torch.cat([boxes, found.scores[:, None], found.classes[:, None].float()], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "step", "export", "state dict"])
def test_detections_are_those_of_eval_only(run, tmp_path, kind):
    """On files whose size, shape and EXIF orientation differ, to 1e-4 of a pixel and of a score."""
    folder, root = run
    step = folder / "checkpoints" / "step_0000003.pt"
    bare = shutil.copy(folder / "export" / "ema.pth", tmp_path / "bare.pth")
    path = {"folder": folder, "step": step, "export": folder / "export" / "ema.pth", "state dict": bare}[kind]
    more = {"reading": Reading(72, 100), "classes": ["cat", "dog"]} if kind == "state dict" else {}
    predictor = Predictor.load(path, **more)
    assert predictor.classes == ["cat", "dog"]
    expected = rows_of_evaluation(folder, step, tmp_path)
    assert len(expected) == 5
    for name, rows in expected.items():
        found = rows_of(predictor(root / "JPEGImages" / name))
        assert len(found) >= 5
        assert_close(found, torch.tensor(rows, dtype=torch.float32), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_paths_arrays_and_pictures_of_pillow_are_alike_and_batches_too(run):
    folder, root = run
    predictor = Predictor.load(folder)
    paths = [root / "JPEGImages" / f"{index}.jpg" for index in (1, 4)]
    with Image.open(paths[1]) as turned:
        upright = np.array(turned.convert("RGB").transpose(Image.Transpose.ROTATE_270))  # what orientation 6 asks for
        results = [predictor(turned), predictor(upright), predictor(str(paths[1])), predictor.predict(paths)[1]]
        assert turned.size == (80, 48)
    assert upright.shape == (80, 48, 3)
    for found in results[1:]:
        assert_close(rows_of(found), rows_of(results[0]), atol=1e-4, rtol=0)
    assert results[0].boxes[:, 3].max() > 48


@pytest.mark.slow
def test_how_the_run_read_its_images_is_recorded_in_checkpoint_and_export(run, tmp_path):
    folder, _ = run
    for path in (folder / "checkpoints" / "step_0000003.pt", folder / "export" / "student.pth"):
        assert recorded_of(str(path)).reading == Reading(72, 100, "full", exif=True)
    config = load_config(folder / "config.yaml", ["datasets.mine.exif=ignore", "data.high_bit_depth=stretch"])
    export_model(build_detector(config.model, 2), config, ["cat", "dog"], tmp_path / "other.pth")
    recorded = recorded_of(str(tmp_path / "other.pth"))
    assert recorded.reading == Reading(72, 100, "stretch", exif=False)
    assert recorded.classes == ["cat", "dog"]


@pytest.mark.slow
def test_the_last_checkpoint_that_can_be_read_is_taken_then_the_export(run, tmp_path, caplog):
    folder, _ = run
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("best.pt"))
    places = tmp_path / "copy" / "checkpoints"
    (places / "step_0000009.pt").write_bytes(b"cut short")
    assert find_weights(tmp_path / "copy") == str(places / "step_0000003.pt")
    assert "step_0000009.pt: damaged checkpoint" in caplog.text
    shutil.rmtree(places)
    assert find_weights(tmp_path / "copy") == str(tmp_path / "copy" / "export" / "ema.pth")


def noisy(model):
    """Scores over the whole range from random weights."""
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if name.endswith(("cls_score.weight", "cls_logits.weight", "bbox_pred.weight")):
            torch.nn.init.normal_(value, std=0.05)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_plain_model_of_torchvision_finds_what_torchvision_finds(tmp_path, caplog, named):
    """Oracle: the model itself, on images that need no resizing, because both resize in another way."""
    model = noisy(mobilenet(weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=200))
    path = tmp_path / "plain.pth"
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    reading = Reading(96, 200)
    predictor = Predictor.load(path, classes=["a", "b", "c"] if named else None, reading=reading)
    assert predictor.classes == (["a", "b", "c"] if named else ["class 1", "class 2", "class 3"])
    assert named != ("plain.pth does not name its 3 classes" in caplog.text)
    for seed, (width, height) in enumerate([(96, 96), (150, 96), (96, 130)]):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        with torch.no_grad():
            (expected,) = model([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
        found = predictor(pixels)
        assert len(found) > 5
        assert_close(found.boxes, expected["boxes"], atol=1e-4, rtol=0)
        assert_close(found.scores, expected["scores"], atol=1e-4, rtol=0)
        assert torch.equal(found.classes + 1, expected["labels"])


ARCHITECTURES = [
    *(("faster_rcnn", "slim"), ("retinanet", "slim"), ("fcos", "slim"), ("faster_rcnn", "resnet18_fpn")),
    *(("faster_rcnn", "fasterrcnn_mobilenet_v3_large_fpn"), ("fcos", "resnet34_fpn"), ("retinanet", "resnet18_fpn")),
]


@pytest.mark.parametrize(("detector", "architecture"), ARCHITECTURES)
def test_the_network_is_told_from_names_and_shapes_alone(tmp_path, detector, architecture):
    model = ModelConfig(detector=detector, architecture=architecture)
    save_tensors(build_detector(model, 5).exported(), tmp_path / "w.pth")
    recorded = recorded_of(str(tmp_path / "w.pth"))
    assert (recorded.model.detector, recorded.model.architecture) == (detector, architecture)
    assert recorded.num_classes == 5
    assert recorded.classes is None


def test_cocos_labels_are_known(tmp_path):
    model = ModelConfig(architecture="resnet18_fpn")
    save_tensors(build_detector(model, 90).exported(), tmp_path / "w.pth")
    assert recorded_of(str(tmp_path / "w.pth")).classes[:2] == ["person", "bicycle"]


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True])
def test_an_export_of_detectron2_finds_what_its_detector_finds(tmp_path, moved):
    """Also where the configuration that it was trained with is gone."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    shutil.copytree(ROOT / "configs" / "detectron2", tmp_path / "own")
    yaml = tmp_path / "own" / "small_fpn.yaml"
    words = ["model.engine=detectron2", f"model.detectron2_config={yaml}", "data.augment.min_sizes=[64]"]
    config = load_config(None, [*words, "model.score_threshold=0.1"])
    detector = build_detector(config.model, 3)
    noisy(detector.model)
    export_model(detector, config, ["a", "b", "c"], tmp_path / "model.pth")
    if moved:
        shutil.rmtree(tmp_path / "own")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "model.pth")
    expected = Predictor(detector, ["a", "b", "c"], Reading(64, 1333))(pixels)
    assert len(expected)
    assert_close(rows_of(predictor(pixels)), rows_of(expected), atol=1e-4, rtol=0)


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "holds no checkpoint"),
        (lambda path: torch.save({"conv.weight": torch.zeros(3)}, path), "is no detector of torchvision"),
        (lambda path: path.write_text("hello"), "cannot be read as weights"),
    ],
)
def test_what_is_no_detector_gets_a_sentence(tmp_path, make, said):
    make(tmp_path / "w.pth")
    with pytest.raises(UserError, match=said):
        Predictor.load(tmp_path / "w.pth")


def test_an_onnx_file_that_is_not_there_is_said():
    with pytest.raises(UserError, match="model.onnx: no such file or folder; give a checkpoint, an export"):
        find_weights("model.onnx")


def test_an_unknown_network_is_refused(tmp_path):
    state = build_detector(ModelConfig(), 2).exported()
    state["backbone.body.extra.weight"] = torch.zeros(3)
    save_tensors(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="is a faster_rcnn of a network that is not known here"):
        recorded_of(str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("classes", "said"), [(["a"], "has 2 classes; --classes names 1"), (["a", "a"], "has 2 classes; --classes names 1")]
)
def test_names_that_do_not_fit_are_refused(tmp_path, classes, said):
    save_tensors(build_detector(ModelConfig(), 2).exported(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=said):
        Predictor.load(tmp_path / "w.pth", classes=classes)


def test_other_names_than_those_recorded_are_refused(tmp_path):
    export_model(build_detector(ModelConfig(), 2), load_config(), ["a", "b"], tmp_path / "w.pth")
    assert Predictor.load(tmp_path / "w.pth", classes=["a", "b"]).classes == ["a", "b"]
    with pytest.raises(UserError, match="names its classes itself: a, b; leave --classes out"):
        Predictor.load(tmp_path / "w.pth", classes=["b", "a"])


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), dtype=np.uint8), [1, 2]])
def test_arrays_of_another_kind_are_refused(image):
    predictor = Predictor(build_detector(ModelConfig(), 2), ["a", "b"], Reading(32, 64))
    with pytest.raises(ValueError, match=r"an image must be a path, a PIL image, or \(H, W, 3\) uint8 RGB, got"):
        predictor(image)
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    assert_close(rows_of(predictor(grey)), rows_of(predictor(np.stack([grey] * 3, axis=2))))


# ------------------------------------------------------------------------------------------------------------- results


def instances():
    boxes = torch.tensor([[1.0, 2, 30, 40], [5, 6, 7, 8], [0, 0, 9, 9]])
    return Instances(boxes, torch.tensor([1, 0, 1]), torch.tensor([0.9, 0.5, 0.2]))


def test_detections_are_kept_by_score_and_class():
    assert kept(instances(), ["a", "b"], 0.5).scores.tolist() == pytest.approx([0.9, 0.5])
    assert kept(instances(), ["a", "b"], 0.0, ["b"]).classes.tolist() == [1, 1]
    assert len(kept(instances(), ["a", "b"], 0.3, [])) == 0


def test_detections_become_those_of_supervision():
    pytest.importorskip("supervision", reason="supervision is not installed")
    found = instances().to_supervision(["a", "b"])
    assert found.xyxy.tolist() == instances().boxes.tolist()
    assert found.class_id.tolist() == [1, 0, 1]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert found.data["class_name"].tolist() == ["b", "a", "b"]
    assert replace(instances(), scores=None).to_supervision().confidence is None
    assert len(Instances.empty().to_supervision(["a"])) == 0


def test_without_supervision_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"^to_supervision needs the package supervision; pip install supervision$"):
        instances().to_supervision()
