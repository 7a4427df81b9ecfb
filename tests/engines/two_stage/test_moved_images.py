"""Soft labels of an image that was moved are read where the teacher saw the same place."""

from __future__ import annotations

import pytest
import torch
from stock import make
from torch.testing import assert_close

from lossmix_det.engines import SoftTeacher
from lossmix_det.engines.two_stage.encoding import AnchorGrid
from lossmix_det.structures import ImageBatch, Instances, Supervision

GRID = AnchorGrid(levels=((8, 6, 3), (4, 3, 2)), canvas=(64, 48))  # strides 8 and 16


def places() -> list[tuple[int, int, int, int]]:
    """(level, row, column, kind) of every anchor, in order."""
    return [
        (level, row, column, kind)
        for level, (rows, columns, count) in enumerate(GRID.levels)
        for row in range(rows)
        for column in range(columns)
        for kind in range(count)
    ]


@pytest.mark.parametrize("offset", [(0, 0), (16, 0), (0, -32), (-16, 16), (5, 11), (640, 0)])
def test_anchors_are_found_by_brute_force(offset):
    """The anchor of the same level and kind whose cell lies so many whole cells further up and left."""
    known = {place: index for index, place in enumerate(places())}
    index = torch.arange(len(known))
    found = GRID.shifted(index, torch.tensor([offset], dtype=torch.float32).expand(len(known), 2))
    for (level, row, column, kind), there in zip(places(), found.tolist(), strict=True):
        stride = (8, 16)[level]
        down, right = (round(side / stride) for side in offset)
        assert there == known.get((level, row - down, column - right, kind), -1)


def test_each_anchor_may_have_moved_by_another_offset():
    offsets = torch.tensor([[0.0, 0.0], [8.0, 0.0]])
    assert GRID.shifted(torch.tensor([20, 20]), offsets).tolist() == [20, 20 - 6 * 3]


@pytest.mark.parametrize("name", ["slim", "detectron2_fpn"])
def test_a_student_that_sees_a_moved_image_is_taught_what_the_teacher_saw(name):
    """The student answers for the moved image what the teacher answered before: every loss is that of agreement."""
    detector = make(name).eval()
    images = ImageBatch(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(3)), ((128, 128),), (5,))
    offset = (32, 64)
    truth = Instances(torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([1]), teacher_image=0)
    moved = truth.moved(offset, (128, 128))
    assert moved.boxes.tolist() == [[74.0, 42.0, 124.0, 92.0]]
    with torch.no_grad():
        encoding = detector.encode(images)
    teacher = SoftTeacher(detector, encoding)
    for stage, names in ((detector.rpn, ("rpn_class", "rpn_box")), (detector.roi, ("roi_class", "roi_box"))):
        still = stage.losses(encoding, Supervision.full([truth]), teacher)
        wrong = stage.losses(encoding, Supervision.full([moved]), teacher)
        assert set(still) == set(names)
        # Not moved, student and teacher agree; asked about another place, they do not.
        assert float(still[names[1]].detach()) == pytest.approx(0, abs=1e-6)
        assert float(wrong[names[1]].detach()) > 1e-4


def test_the_teachers_scores_are_those_of_the_place_in_its_own_image():
    """A teacher whose every anchor says its own number, so that it can be told which one was asked."""
    detector = make("slim", deterministic=False).eval()
    images = ImageBatch(torch.rand(1, 3, 128, 128), ((128, 128),), (5,))
    with torch.no_grad():
        encoding = detector.encode(images)
    numbers = torch.arange(len(encoding.objectness), dtype=torch.float32)
    encoding.objectness = numbers / len(numbers)
    truth = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), teacher_image=0).moved(
        (32, -32), (128, 128)
    )
    asked = []
    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def spy(logits, targets, reduction):
        asked.append((logits.detach(), targets.detach()))
        return bce(logits, targets, reduction=reduction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lossmix_det.engines.two_stage.first_stage.F.binary_cross_entropy_with_logits", spy)
        detector.rpn.losses(encoding, Supervision.full([truth]), SoftTeacher(detector, encoding))
    logits, targets = asked[0]
    index = (logits * len(numbers)).round().long()
    there = encoding.canvases[0].grid.shifted(index, torch.tensor([[32.0, -32.0]]).expand(len(index), 2))
    seen = there >= 0
    assert 0 < int(seen.sum()) < len(index)
    assert_close(targets[seen], (there[seen].float() / len(numbers)).sigmoid())
    assert not targets[~seen].any()  # what the teacher has not seen is background
