"""Weights under the names that other programs and other versions give them, held to what torchvision itself loads."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from runs import assert_same_tensors
from torch import Tensor, nn
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
)

from lossmix_det.config import ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.engines.classes import COCO_LABELS, OfFewerClasses, labels_of
from lossmix_det.engines.weights import load_weights
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances

FASTER = ("faster_rcnn", "fasterrcnn_mobilenet_v3_large_fpn")
RETINA = ("retinanet", "retinanet_resnet50_fpn")
FCOS = ("fcos", "fcos_resnet50_fpn")
STOCK = {
    FASTER: fasterrcnn_mobilenet_v3_large_fpn,
    RETINA: retinanet_resnet50_fpn,
    FCOS: fcos_resnet50_fpn,
}


def before_0_13(name: str) -> str:
    """The name of a tensor then: FPN's and the heads' layers were bare, with ReLUs between those of heads."""
    name = re.sub(r"(fpn\.\w+_blocks\.\d+)\.0\.", r"\1.", name)
    name = re.sub(r"(rpn\.head\.conv)\.0\.0\.", r"\1.", name)
    return re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda found: f"{found[1]}.{2 * int(found[2])}.", name)


RENAMINGS = {
    "as they are": lambda name: name,
    "before 0.13": before_0_13,
    "DataParallel": lambda name: f"module.{name}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning before 0.13": lambda name: f"model.detector.{before_0_13(name)}",
}


def stock(which: tuple[str, str]) -> nn.Module:
    torch.manual_seed(1)
    return STOCK[which](weights=None, weights_backbone=None, num_classes=4)


def loaded(tmp_path, which: tuple[str, str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What our detector holds after it was asked for these weights, without gaps."""
    torch.save(state, tmp_path / "w.pth")
    config = ModelConfig(detector=which[0], architecture=which[1], weights=str(tmp_path / "w.pth"), norm="batch")
    classes = {"faster_rcnn": 3, "retinanet": 3, "fcos": 3}[which[0]]
    return dict(build_detector(config, classes, strict=True).exported())


@pytest.mark.parametrize("renaming", RENAMINGS.values(), ids=RENAMINGS)
def test_every_tensor_is_found_under_its_other_names(tmp_path, renaming):
    state = stock(FASTER).state_dict()
    renamed = {renaming(name): value for name, value in state.items()}
    assert_same_tensors(loaded(tmp_path, FASTER, renamed), dict(state))


@pytest.mark.slow
@pytest.mark.parametrize("which", [RETINA, FCOS], ids=["retinanet", "fcos"])
def test_heads_of_one_stage_are_found_under_their_other_names(tmp_path, which):
    """FCOS has numbers of today that look like RetinaNet's of then; it is left as it is."""
    state = stock(which).state_dict()
    rename = RENAMINGS["Lightning before 0.13"] if which is RETINA else RENAMINGS["Lightning"]
    assert_same_tensors(loaded(tmp_path, which, {rename(name): value for name, value in state.items()}), dict(state))


def test_the_old_names_are_those_that_torchvision_itself_accepts():
    state = stock(FASTER).state_dict()
    renamed = {before_0_13(name): value for name, value in state.items()}
    assert len(set(renamed) - set(state)) == 10
    other = STOCK[FASTER](weights=None, weights_backbone=None, num_classes=4)
    other.load_state_dict(renamed)
    assert_same_tensors(dict(other.state_dict()), dict(state))


def test_of_two_models_in_one_file_the_first_is_taken_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = stock(FASTER).state_dict()
    both = {f"student.{name}": value for name, value in state.items()}
    both |= {f"teacher.{name}": torch.zeros_like(value) for name, value in state.items()}
    assert_same_tensors(loaded(tmp_path, FASTER, {**both, "steps": torch.tensor(3)}), dict(state))
    assert "names in the file without 'student.' before them" in caplog.text


# ----------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("detector", "head", "outputs"),
    [
        ("faster_rcnn", "roi_heads.box_predictor.cls_score.bias", 91),
        ("retinanet", "module.head.classification_head.cls_logits.bias", 91 * 9),
        ("fcos", "head.classification_head.cls_logits.bias", 91),
    ],
)
def test_a_head_of_91_outputs_is_cocos(detector, head, outputs):
    assert labels_of("w.pth", detector, {head: torch.zeros(outputs)}) == COCO_LABELS
    assert labels_of("w.pth", detector, {head: torch.zeros(outputs - 9)}) is None
    assert labels_of("w.pth", detector, {}) is None


def test_weights_of_torchvisions_store_are_described_there():
    assert labels_of("FCOS_ResNet50_FPN_Weights.COCO_V1", "fcos", {}) == COCO_LABELS
    assert (COCO_LABELS[0], COCO_LABELS[16], COCO_LABELS[89]) == ("person", "cat", "toothbrush")
    assert len(set(COCO_LABELS) - {"N/A"}) == 80


class Finds(nn.Module):
    """Finds one object of each label."""

    def detect(self, images):
        boxes = torch.arange(16.0).view(4, 4)
        return [Instances(boxes, torch.arange(4), torch.tensor([0.9, 0.8, 0.7, 0.6]))] * len(images)


def test_detections_of_unwanted_classes_are_left_out_and_the_others_numbered_anew():
    model = OfFewerClasses(Finds(), ["person", "N/A", "dog", "car"], ["car", "person"])
    found = model.detect(ImageBatch(torch.zeros(2, 3, 32, 32), ((32, 32),) * 2))
    assert [one.classes.tolist() for one in found] == [[1, 0]] * 2
    assert [round(score, 1) for score in found[0].scores.tolist()] == [0.9, 0.6]
    assert found[0].boxes[1].tolist() == [12, 13, 14, 15]


def test_weights_that_are_not_finite_are_refused():
    model = nn.Linear(2, 2)
    state = model.state_dict() | {"bias": torch.tensor([1.0, float("nan")])}
    with pytest.raises(UserError, match="bias holds numbers that are not finite; use an earlier checkpoint"):
        load_weights(model, state, "w.pth")
