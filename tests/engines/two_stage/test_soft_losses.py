"""The four soft losses beside a loop over anchors and proposals, one at a time, on both engines."""

from __future__ import annotations

import math

import pytest
import torch
from stock import CLASSES, options
from torch.testing import assert_close

from lossmix_det.config import ModelConfig
from lossmix_det.engines import SoftTeacher, build_detector
from lossmix_det.structures import ImageBatch, Instances, Supervision

SETTINGS = {
    "slim": {},
    "detectron2_fpn": {"engine": "detectron2", "detectron2_options": options("fpn")},  # offsets without classes
    "detectron2_c4": {"engine": "detectron2", "detectron2_options": options("c4_two_fc")},
}
SIZES = ((96, 128), (80, 96))
TEMPERATURE = 2.0


def loud(name: str, seed: int):
    """A detector that sees objects and moves boxes, though its weights are random."""
    torch.manual_seed(seed)
    detector = build_detector(ModelConfig(**SETTINGS[name]), CLASSES)
    with torch.no_grad():
        for layer, deviation in zip(detector.last_layers(), (0.1, 0.05, 0.5, 0.2), strict=True):
            layer.weight.normal_(std=deviation)
    return detector


def images() -> ImageBatch:
    torch.manual_seed(0)
    return ImageBatch(torch.rand(2, 3, 96, 128), SIZES, (11, 12))


def truths() -> tuple[Instances, ...]:
    boxes = ([[10.0, 10, 60, 60], [50, 30, 100, 90]], [[20.0, 10, 70, 60]])
    classes = ([0, 2], [1])
    return tuple(
        Instances(torch.tensor(of_image), torch.tensor(labels), teacher_image=index)
        for index, (of_image, labels) in enumerate(zip(boxes, classes, strict=True))
    )


def remembering(stage, chosen: list) -> None:
    """Let a stage say which candidates it has sampled of each image, and what these were matched to."""
    choose = stage._choose

    def choose_and_tell(candidates, of_truths, ranks):
        indices, matches = choose(candidates, of_truths, ranks)
        chosen.append([list(zip(*map(list, of_image), strict=True)) for of_image in zip(indices, matches, strict=True)])
        return indices, matches

    stage._choose = choose_and_tell


def cross_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    logits = logits.double()
    return -sum(float(p) * float(logits[k] - logits.exp().sum().log()) for k, p in enumerate(wanted))


def binary_cross_entropy(logit: float, wanted: float) -> float:
    return wanted * math.log1p(math.exp(-logit)) + (1 - wanted) * math.log1p(math.exp(logit))


@pytest.mark.parametrize("name", list(SETTINGS))
@torch.no_grad()
def test_all_four_losses_are_those_of_a_loop_over_single_samples(name):
    if name.startswith("detectron2"):
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    student, teacher, chosen = loud(name, 1).train(), loud(name, 2).eval(), []
    remembering(student.rpn, chosen)
    remembering(student.roi, chosen)
    encoding, seen = student.encode(images()), teacher.encode(images())
    found = student.losses(encoding, Supervision.full(truths()), SoftTeacher(teacher, seen, TEMPERATURE))
    expected = (
        *rpn_losses(student, encoding, seen, chosen[0]),
        *roi_losses(student, encoding, teacher, seen, chosen[1]),
    )
    for loss, value in zip(student.loss_names, expected, strict=True):
        assert value > 1e-3
        assert_close(float(found[loss]), value, rtol=2e-4, atol=1e-6)


def rpn_losses(student, encoding, seen, chosen) -> tuple[float, float]:
    count, class_sum, box_sum = sum(map(len, chosen)), 0.0, 0.0
    for image, samples in enumerate(chosen):
        for anchor, match in samples:
            row, other = int(encoding.starts[image] + anchor), int(seen.starts[image] + anchor)
            wanted = torch.sigmoid(seen.objectness[other] / TEMPERATURE)
            class_sum += binary_cross_entropy(float(encoding.objectness[row]), float(wanted))
            if match >= 0:
                box_sum += float(student.rpn.box_loss(encoding.deltas[row][None], seen.deltas[other][None]))
    weights = student.rpn.loss_weights
    divisor = student.rpn.quota * len(chosen) if student.rpn.quota else count  # Detectron2 divides by its quota
    return class_sum / divisor * weights[0], box_sum / divisor * weights[1]


def roi_losses(student, encoding, teacher, seen, chosen) -> tuple[float, float]:
    count, class_sum, box_sum = sum(map(len, chosen)), 0.0, 0.0
    background = student.roi.background
    for image, samples in enumerate(chosen):
        candidates = torch.cat([encoding.proposals[image], truths()[image].boxes])
        for index, _ in samples:
            one = [candidates[index][None] if other == image else candidates.new_zeros((0, 4)) for other in range(2)]
            ours, theirs = student.roi.score(encoding, one), teacher.roi.score(seen, one)
            class_sum += cross_entropy(ours.logits[0], (theirs.logits[0] / TEMPERATURE).softmax(0))
            label = int(theirs.logits[0].argmax())
            if label != background:  # there the teacher sees an object
                column = min(label, ours.deltas.shape[1] - 1)
                box_sum += float(student.roi.box_loss(ours.deltas[:, column], theirs.deltas[:, column]))
    weights = student.roi.loss_weights
    return class_sum / count * weights[0], box_sum / count * weights[1]
