"""Stages that do not learn keep the running statistics of their BatchNorm, on both engines and in plain Detectron2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import trainer
from stock import options
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.structures import ImageBatch

VGG = Path(__file__).resolve().parents[2] / "configs" / "detectron2" / "vgg16.yaml"
TIMM = {"MODEL.TIMM.NAME": "test_resnet", "MODEL.TIMM.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 3}
MODELS = {
    "resnet": {"architecture": "resnet18_fpn", "norm": "batch", "trainable_layers": 2},
    "mobilenet": {
        "architecture": "fasterrcnn_mobilenet_v3_large_fpn",
        "norm": "batch",
        "trainable_layers": 2,
    },
    "timm": {"architecture": "timm/test_resnet", "norm": "batch", "trainable_layers": 2},
    "detectron2_timm": {"engine": "detectron2", "detectron2_options": options("timm", **TIMM)},
    "detectron2_vgg": {
        "engine": "detectron2",
        "detectron2_config": str(VGG),
        "detectron2_options": ["MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"],
    },
}


def build(name: str):
    if "detectron2" in name:
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    if "timm" in name:
        pytest.importorskip("timm", reason="timm is not installed")
    return build_detector(ModelConfig(**MODELS[name]), 3)


def norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: part for name, part in model.named_modules() if isinstance(part, _BatchNorm)}


def images() -> ImageBatch:
    return ImageBatch(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), ((64, 96), (64, 80)))


@pytest.mark.parametrize("trains_again", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_statistics_move_where_the_norm_learns_and_nowhere_else(name, trains_again):
    detector = build(name)
    if trains_again:
        detector.eval().train()
    before = {name: part.running_mean.clone() for name, part in norms(detector).items()}
    detector.encode(images())
    moved = {name for name, part in norms(detector).items() if not torch.equal(part.running_mean, before[name])}
    learning = {name for name, part in norms(detector).items() if part.weight.requires_grad}
    assert learning
    assert learning < set(before)
    assert moved == learning


@pytest.mark.parametrize("name", ["detectron2_timm", "detectron2_vgg"])
def test_they_stay_in_a_plain_loop_of_detectron2_as_well(name):
    """There the model is Detectron2's own, and nothing of ours but the backbone hears that training begins."""
    model = build(name).model.eval().train()
    still = {name for name, part in norms(model).items() if not part.training}
    assert still == {name for name, part in norms(model).items() if not part.weight.requires_grad}
    assert still


def test_they_stay_through_a_run_and_its_average(tmp_path):
    words = (
        "model.architecture=resnet18_fpn",
        "model.norm=batch",
        "model.trainable_layers=2",
        "train.steps=3",
        "ema.decay=0.5",
    )
    run = trainer(tmp_path, *words)
    before = {name: part.running_mean.clone() for name, part in norms(run.state.detector).items()}
    run.train()
    student, average = norms(run.state.detector), norms(run.state.teacher.module)
    for name, part in student.items():
        assert torch.equal(part.running_mean, before[name]) != part.weight.requires_grad, name
        assert torch.equal(average[name].running_mean, before[name]) != part.weight.requires_grad, name
