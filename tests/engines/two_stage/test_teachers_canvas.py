"""Soft labels of images that the teacher saw on another canvas than the student."""

from __future__ import annotations

import pytest
import torch
from stock import CLASSES, make, options
from torch.testing import assert_close

from lossmix_det.config import ModelConfig
from lossmix_det.engines import SoftTeacher, build_detector
from lossmix_det.engines.two_stage.encoding import AnchorGrid
from lossmix_det.engines.two_stage.first_stage import _in_teachers_encoding
from lossmix_det.engines.two_stage.samples import soft_samples
from lossmix_det.engines.two_stage.second_stage import _in_teachers_images
from lossmix_det.structures import ImageBatch, Instances, Supervision

SETTINGS = {"slim": {}, "detectron2_fpn": {"engine": "detectron2", "detectron2_options": options("fpn")}}
BOXES = torch.tensor([[10.0, 10, 40, 40], [10, 80, 40, 120], [10, 40, 40, 100]])


@pytest.mark.parametrize(
    ("levels", "canvas", "strides"),
    [
        (((50, 74, 15),), (800, 1199), [16]),  # a VGG16 rounds down
        (((51, 75, 15),), (801, 1199), [16]),  # a ResNet rounds up
        (((24, 40, 3), (12, 20, 3), (3, 5, 3), (2, 3, 3)), (96, 160), [4, 8, 32, 64]),  # the last reaches beyond
    ],
)
def test_strides_are_those_of_the_network_and_all_anchors_of_a_full_image_lie_inside(levels, canvas, strides):
    grid = AnchorGrid(levels, canvas)
    assert grid.strides == strides
    assert grid.inside([canvas], torch.device("cpu")).all()
    half = grid.inside([(canvas[0] // 2, canvas[1])], torch.device("cpu")).float().mean()
    assert 0.4 < float(half) < 0.62


@pytest.mark.parametrize("name", ["slim", "detectron2_fpn"])
def test_what_lies_beyond_the_teachers_image_is_not_asked_for(name):
    """A mixed image is larger than the target image that the teacher saw; the teacher does not know the rest."""
    if name.startswith("detectron2"):
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    detector = build_detector(ModelConfig(**SETTINGS[name]), CLASSES).eval()
    with torch.no_grad():
        seen = detector.encode(ImageBatch(torch.rand(1, 3, 64, 64), ((60, 64),), (1,)))
        mixed = detector.encode(ImageBatch(torch.rand(1, 3, 128, 128), ((128, 128),), (1,)))
    soft = soft_samples(
        Supervision.full([Instances(torch.zeros(0, 4), torch.zeros(0).long(), teacher_image=0)]),
        torch.zeros(3, dtype=torch.int64),
        BOXES,
    )

    mask, _, inside = _in_teachers_images(seen, soft, BOXES)
    assert mask.tolist() == [True, False, True]
    assert inside.tolist() == [[10, 10, 40, 40], [10, 40, 40, 60]]
    there = _in_teachers_encoding(mixed, seen, soft, torch.zeros(3).long(), torch.tensor([0, 1, 2]))
    assert there.tolist() == [0, 1, 2]  # the first cell of the finest level is the same
    last = torch.full((3,), len(mixed.anchors[0]) - 1)
    assert _in_teachers_encoding(mixed, seen, soft, torch.zeros(3).long(), last).tolist() == [-1] * 3


def test_soft_offsets_lead_to_the_teachers_box_where_anchors_lie_beside_one_another():
    """torchvision spaces the anchors of its coarsest level by the canvas: 96 / 2 = 48 pixels here, there 64."""
    detector = make("resnet18_fpn", deterministic=False).eval()
    with torch.no_grad():
        seen = detector.encode(ImageBatch(torch.rand(1, 3, 96, 96), ((96, 96),), (1,)))
        mixed = detector.encode(ImageBatch(torch.rand(1, 3, 128, 128), ((128, 128),), (1,)))
    seen.deltas = torch.zeros_like(seen.deltas)  # so that the teacher's boxes are its anchors
    soft = soft_samples(
        Supervision.full([Instances(torch.zeros(0, 4), torch.zeros(0).long(), teacher_image=0)]),
        torch.zeros(3, dtype=torch.int64),
        BOXES,
    )
    index = torch.arange(len(mixed.anchors[0]) - 3, len(mixed.anchors[0]))  # of the last cell of the coarsest level
    there = _in_teachers_encoding(mixed, seen, soft, torch.zeros(3).long(), index)
    assert there.tolist() == list(range(len(seen.anchors[0]) - 3, len(seen.anchors[0])))
    anchors, wanted = mixed.anchors[0][index], seen.anchors[0][there]
    assert not torch.equal(anchors, wanted)
    objectness, offsets = torch.ones(3), torch.full((3, 4), 9.0)
    teacher = SoftTeacher(detector, seen)
    detector.rpn._ask_about_anchors(teacher, soft, there, torch.ones(3, dtype=torch.bool), anchors, objectness, offsets)
    decoded = detector.model.rpn.box_coder.decode_single(offsets, anchors)
    assert_close(decoded, wanted, rtol=1e-4, atol=1e-3)
