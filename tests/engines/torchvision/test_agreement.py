"""One detector in its five forms finds the same on the same images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import trainer
from test_networks import plain_slim

from lossmix_det.commands import main as lossmix
from lossmix_det.engines.onnx import OUTPUTS, same_detections
from lossmix_det.engines.recorded import Reading
from lossmix_det.evaluation import Predictor
from lossmix_det.structures import Instances

SIZES = ((96, 128), (60, 80), (72, 72), (144, 192), (108, 72))  # rows and columns that become whole pixels when resized


def pictures(folder):
    """Coarse noise, in which a detector of three steps sees something."""
    rng, paths = np.random.default_rng(0), []
    for index, (rows, columns) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (rows // 12, columns // 12, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.png")
        Image.fromarray(coarse.repeat(12, axis=0).repeat(12, axis=1)).save(paths[-1])
    return paths


def arrays(found: Instances) -> dict[str, np.ndarray]:
    columns = (found.boxes, found.classes, found.scores)
    return dict(zip(OUTPUTS, (column.numpy() for column in columns), strict=True))


def natively(model, path) -> dict[str, np.ndarray]:
    """What torchvision finds by itself, the background not counted."""
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
    with torch.no_grad():
        (found,) = model([pixels])
    return arrays(Instances(found["boxes"], found["labels"] - 1, found["scores"]))


@pytest.mark.slow
def test_run_checkpoint_export_onnx_file_and_native_model_find_the_same(tmp_path):
    """To 1e-2 of a pixel and 1e-4 of a score; the native model is built of torchvision's parts alone."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    run, words = tmp_path / "run", ["train.steps=3", "ema.decay=0.5", "model.score_threshold=0.0"]
    it = trainer(run, *words, "data.augment.test_size=72", "data.augment.max_size=120")
    assert it.train()
    export = run / "export" / "ema.pth"
    assert lossmix(["export", str(export), "--output", str(tmp_path / "a.onnx")]) == 0
    native = plain_slim(json.loads(export.with_suffix(".json").read_text())).eval()
    native.load_state_dict(torch.load(export, weights_only=True))
    forms = {
        "checkpoint": Predictor.load(run / "checkpoints" / "step_0000003.pt"),
        "export": Predictor.load(export),
        "onnx": Predictor.load(tmp_path / "a.onnx"),
    }
    own = Predictor(it.state.teacher.module.eval(), it.state.classes, Reading(72, 120))
    for path in pictures(tmp_path):
        wanted = arrays(own(path))
        assert len(wanted["scores"]) > 10
        for name, predictor in forms.items():
            assert same_detections(arrays(predictor(path)), wanted), f"{name}, {path.name}"
        assert same_detections(natively(native, path), wanted), path.name
