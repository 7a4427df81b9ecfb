"""What nothing teaches where losses are left out is declared, because processes wait for all other gradients."""

from __future__ import annotations

import pytest
import torch
from stock import CANVAS, CLASSES, options

from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.structures import ImageBatch, Instances, Supervision

RPN, ROI = {"rpn_class", "rpn_box"}, {"roi_class", "roi_box"}
TRUTH = Instances(torch.tensor([[10.0, 12, 50, 60], [60, 20, 110, 80]]), torch.tensor([0, 2]))


def build(name: str):
    if name == "torchvision":
        return build_detector(ModelConfig(), CLASSES)
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    return build_detector(ModelConfig(engine="detectron2", detectron2_options=options(name)), CLASSES)


@pytest.mark.parametrize(
    "left_out",
    [{"roi_box"}, {"rpn_class", "roi_class"}, RPN, ROI, RPN | {"roi_box"}],
    ids=lambda names: "+".join(sorted(names)),
)
@pytest.mark.parametrize("name", ["torchvision", "fpn", "c4_two_fc", "c4_res5"])
def test_what_learns_nothing_without_some_losses_is_declared(name, left_out):
    detector = build(name)
    images = ImageBatch(torch.rand(2, 3, CANVAS, CANVAS), ((CANVAS, CANVAS),) * 2)
    named = detector.losses(detector.encode(images), Supervision.full((TRUTH, TRUTH)))
    frozen = {id(parameter) for parameter in detector.parameters() if not parameter.requires_grad}
    sum(value for key, value in named.items() if key not in left_out).backward()
    without = {key for key, p in detector.named_parameters() if p.grad is None and id(p) not in frozen}
    declared = {id(p) for part in detector.taught_only_by(left_out) for p in part.parameters()} - frozen
    assert without == {key for key, p in detector.named_parameters() if id(p) in declared}
