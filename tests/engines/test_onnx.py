"""ONNX files find what the detector finds, on images of any size, and say what they are."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import write_image
from runs import TINY, trainer

from lossmix_det.commands.export import main
from lossmix_det.commands.predict import main as predict
from lossmix_det.config import load_config
from lossmix_det.engines import build_detector
from lossmix_det.engines import onnx as subject
from lossmix_det.engines.onnx import OUTPUTS, OnnxSession, Whole, same_detections, write_onnx
from lossmix_det.engines.recorded import Reading
from lossmix_det.errors import UserError
from lossmix_det.evaluation import Predictor

pytestmark = pytest.mark.slow
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ["car", "$x_2$ [/]", "猫"]


def detector_of(kind: str, *words: str):
    torch.manual_seed(1)
    config = load_config(None, [f"model.detector={kind}", "model.score_threshold=0.0", *words])
    return build_detector(config.model, len(CLASSES)).eval()


def photos() -> list[np.ndarray]:
    """Wide, tall, small and large ones, so that resizing does something each time."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8) for rows, columns in ((4, 9), (8, 5), (3, 3))]
    return [
        np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
        for image, scale in zip(coarse, (31, 40, 17), strict=True)
    ]


def test_a_file_that_could_not_be_compared_is_said_to_be_so(tmp_path, caplog):
    write_onnx(detector_of("retinanet", "model.score_threshold=0.9"), CLASSES, Reading(96, 160), tmp_path / "a.onnx")
    assert "finds nothing on the images of noise that the ONNX file was tried on" in caplog.text
    caplog.clear()
    write_onnx(detector_of("retinanet"), CLASSES, Reading(96, 160), tmp_path / "b.onnx")
    assert "finds nothing" not in caplog.text


def test_a_file_that_fails_on_an_image_is_refused_as_one_that_finds_something_else(tmp_path, monkeypatch):
    def fail(session, pixels):
        raise RuntimeError("Non-zero status code returned while running Reshape node\nmore")

    monkeypatch.setattr(subject, "_run", fail)
    with pytest.raises(UserError, match="finds something else than the detector on an image of 128×96 pixels"):
        write_onnx(detector_of("fcos"), CLASSES, Reading(96, 160), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "fcos"])
def test_a_file_finds_what_the_detector_finds(tmp_path, kind):
    reading = Reading(96, 160)
    detector = detector_of(kind)
    write_onnx(detector, CLASSES, reading, tmp_path / "a.onnx")
    file = Predictor.load(tmp_path / "a.onnx")
    assert file.classes == CLASSES
    assert file.reading == reading
    own = Predictor(detector, CLASSES, reading)
    for image in photos():
        found, wanted = file(image), own(image)
        assert len(found) > 10
        first, second = (
            dict(zip(OUTPUTS, (each.numpy() for each in (one.boxes, one.classes, one.scores)), strict=True))
            for one in (found, wanted)
        )
        assert same_detections(first, second)


def test_the_file_resizes_by_itself(tmp_path):
    reading, detector = Reading(64, 120), detector_of("faster_rcnn")
    write_onnx(detector, CLASSES, reading, tmp_path / "a.onnx")
    image = photos()[0]
    with torch.no_grad():
        found = Whole(detector.model, reading).eval()(torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255)))
    wanted = dict(zip(OUTPUTS, (part.numpy() for part in found), strict=True))
    assert same_detections(OnnxSession(tmp_path / "a.onnx")(image), wanted)


def test_a_file_that_would_find_something_else_is_not_written(tmp_path, monkeypatch):
    traced = subject._traced

    def of_other_weights(whole):
        content = traced(whole)
        with torch.no_grad():
            whole.model.rpn.head.cls_logits.weight.mul_(-1)
        return content

    monkeypatch.setattr(subject, "_traced", of_other_weights)
    with pytest.raises(UserError, match="finds something else than the detector on an image of 128×96 pixels"):
        write_onnx(detector_of("faster_rcnn"), CLASSES, Reading(96, 160), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def row(label, score, *box):
    return {"boxes": np.array([box], dtype=float), "classes": np.array([label]), "scores": np.array([score])}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (row(1, 0.50009, 0, 0, 5, 5.009), True),
        (row(1, 0.5002, 0, 0, 5, 5), False),
        (row(1, 0.5, 0, 0, 5, 5.02), False),
        (row(2, 0.5, 0, 0, 5, 5), False),
        ({"boxes": np.zeros((0, 4)), "classes": np.zeros(0), "scores": np.zeros(0)}, False),
    ],
)
def test_what_counts_as_the_same(other, same):
    assert same_detections(row(1, 0.5, 0, 0, 5, 5), other) is same


def test_a_run_is_exported_with_a_card(tmp_path, capsys):
    assert trainer(tmp_path / "run", "train.steps=1", "ema.decay=0", "data.classes=[circle,star]").train()
    output = tmp_path / "small_model.onnx"
    assert main([str(tmp_path / "run"), "--output", str(output)]) == 0
    text = output.with_suffix(".md").read_text()
    for words in (
        "# small\\_model",
        "circle, star",
        "shapes\\_photo\\_train (12 images)",
        "| student | shapes",
        "seed 0",
    ):
        assert words in text
    assert main([str(tmp_path / "run"), "--output", str(output)]) == 2
    assert "nothing is written over" in capsys.readouterr().err
    assert main([str(output), "--output", str(tmp_path / "b.onnx")]) == 2
    assert "is an ONNX file already" in capsys.readouterr().err
    image = write_image(tmp_path / "a.png")
    words = [str(output), str(image), "--output", str(tmp_path / "found")]
    assert predict([*words, "--size", "96"]) == 2
    assert "small_model.onnx resizes images itself, to a shorter side of" in capsys.readouterr().err
    assert predict([*words, "--device", "cuda"]) == 2
    assert "--device cuda cannot be used: ONNX files run on the CPU here" in capsys.readouterr().err
    assert predict(words) == 0


def test_the_card_of_a_checkpoint_has_its_own_step_and_scores(tmp_path):
    words = ["train.steps=3", "train.save_every=1", "train.keep_last=3", "train.eval_every=2", "ema.decay=0"]
    assert trainer(tmp_path / "run", *words).train()
    cards = []
    for step in (1, 2, 3):
        output = tmp_path / f"{step}.onnx"
        assert main([str(tmp_path / "run" / "checkpoints" / f"step_000000{step}.pt"), "--output", str(output)]) == 0
        cards.append(output.with_suffix(".md").read_text())
    assert all(f"* Steps: {step} of 3; seed 0." in text for step, text in enumerate(cards, start=1))
    assert "Its run measured none at step 1." in cards[0]
    assert "| student | shapes" in cards[1]
    assert "| student | shapes" in cards[2]
    (tmp_path / "run" / "results.json").unlink()  # as of a run that was stopped; its last score is of step 2
    rows = (tmp_path / "run" / "scores.csv").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "scores.csv").write_text("".join(rows[:2]))
    for file, said in (
        ("checkpoints/step_0000003.pt", "measured none at step 3"),
        ("export/student.pth", "Steps: not recorded"),
    ):
        output = tmp_path / f"again_{len(said)}.onnx"
        assert main([str(tmp_path / "run" / file), "--output", str(output)]) == 0
        assert said in output.with_suffix(".md").read_text()


def test_detectron2_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip("detectron2")
    words = ["model.engine=detectron2", "model.detectron2_config=configs/detectron2/small_fpn.yaml"]
    detector = build_detector(load_config(None, [*TINY, *words]).model, 2)
    with pytest.raises(UserError, match="of torchvision's detectors only; this one is Detectron2's"):
        write_onnx(detector, ["a", "b"], Reading(), tmp_path / "a.onnx")


def test_other_files_and_other_classes_are_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"bad.onnx: is no ONNX file written by `lossmix export`"):
        Predictor.load(tmp_path / "bad.onnx")
    write_onnx(detector_of("faster_rcnn"), CLASSES, Reading(64, 64), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="names its classes itself: car, "):
        Predictor.load(tmp_path / "a.onnx", classes=["a", "b", "c"])


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"ONNX files need onnxruntime.*pip install 'lossmix-det\[onnx\]'"):
        subject.library("onnxruntime")


def test_the_program_of_the_docs_finds_the_same(tmp_path, monkeypatch):
    import re

    from PIL import Image
    from runs import ROOT

    text = (ROOT / "docs" / "export.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "onnxruntime" in code)
    monkeypatch.chdir(tmp_path)
    reading, detector = Reading(96, 160), detector_of("faster_rcnn")
    write_onnx(detector, CLASSES, reading, tmp_path / "quick.onnx")
    image = np.random.default_rng(3).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(image).save("photo.jpg", quality=95)
    names: dict = {}
    exec(code, names)
    wanted = Predictor(detector, CLASSES, reading)("photo.jpg")
    np.testing.assert_allclose(names["scores"], wanted.scores, atol=1e-4)
    assert names["names"] == CLASSES
