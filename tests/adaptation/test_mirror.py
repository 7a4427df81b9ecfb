"""Boxes that the teacher finds in the mirror image too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from adapting import COUNT, SURE, WIDTH, adapting, batch, found
from torch.testing import assert_close

from lossmix_det.adaptation.mirror import agreed, mirrored
from lossmix_det.adaptation.pseudo_labels import select
from lossmix_det.config import PseudoLabelConfig, load_config
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances

SIZE = (40, 60)
ACROSS = torch.tensor([True, False, True, False])  # the coordinates that a mirror changes


def test_boxes_that_the_mirror_image_confirms_teach_their_mean():
    """Worked by hand, in an image 100 pixels wide: x becomes 100 - x."""
    labels = select(
        found((10, 10, 30, 30, 0, 0.9), (40, 10, 60, 30, 1, 0.8), (60, 10, 80, 30, 2, 0.7), (10, 60, 30, 80, 0, 0.6)),
        torch.full((3,), 0.5),
        (100, 100),
        PseudoLabelConfig(score=0.5, box_agreement=0.6),
    )
    mirror = found(
        (70, 10, 90, 34, 0, 0.9),  # the first, 24 instead of 20 high: an overlap of 20 / 24
        (40, 10, 60, 30, 0, 0.9),  # where the second is, of another class
        (10, 10, 30, 30, 2, 0.3),  # the third, 10 pixels beside it: an overlap of 1 / 3
    )
    result = agreed(labels, mirror, 100, 0.6)
    assert result.box_weights.tolist() == [1, 0, 0, 0]
    assert result.boxes.tolist() == [[10, 10, 30, 32], *labels.boxes[1:].tolist()]
    assert (result.classes.tolist(), result.scores.tolist()) == (labels.classes.tolist(), labels.scores.tolist())
    assert agreed(labels, found(), 100, 0.0).box_weights.tolist() == [0] * 4
    assert len(agreed(labels[:0], mirror, 100, 0.6)) == 0


def test_boxes_must_be_confirmed_and_sure_if_both_are_asked_for():
    config = PseudoLabelConfig(score=0.5, box_score=0.8, box_agreement=0.5)
    detections = found((1, 1, 20, 20, 0, 0.6), (5, 5, 30, 30, 1, 0.85))
    labels = select(detections, torch.full((3,), 0.5), SIZE, config)
    mirror = found((SIZE[1] - 20, 1, SIZE[1] - 1, 20, 0, 0.9), (SIZE[1] - 30, 5, SIZE[1] - 5, 30, 1, 0.9))
    assert agreed(labels, mirror, SIZE[1], 0.5).box_weights.tolist() == [1, 0]  # best first


def test_images_are_mirrored_within_their_own_size():
    pixels = torch.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4).float()
    images = ImageBatch(pixels, ((2, 4), (1, 3)))
    result = mirrored(images)
    assert torch.equal(result.pixels[0], pixels[0].flip(-1))
    assert torch.equal(result.pixels[1, :, :1, :3], pixels[1, :, :1, :3].flip(-1))
    assert torch.equal(result.pixels[1, :, 1:], pixels[1, :, 1:])
    assert torch.equal(result.pixels[1, :, :, 3:], pixels[1, :, :, 3:])
    assert torch.equal(mirrored(result).pixels, pixels)


@pytest.mark.parametrize(
    ("kind", "key", "unset"),
    [("soft", "box_agreement=0.5", "null"), ("soft", "box_score=0.5", "null"), ("hard", "temperature=2.0", "1.0")],
)
def test_what_the_kind_of_labels_does_not_read_is_refused(kind, key, unset):
    with pytest.raises(UserError, match=f"{key} has no effect with pseudo_labels.kind={kind}; set {unset}"):
        load_config(None, [f"pseudo_labels.kind={kind}", f"pseudo_labels.{key}"])


def test_boxes_teach_where_the_teacher_finds_them_in_the_mirror_image(tmp_path, monkeypatch):
    """A teacher that sees the same from both sides teaches what it would without a mirror; a blind one, no box."""
    every, it = (
        adapting(tmp_path / name, *SURE, f"pseudo_labels.{key}")
        for name, key in (("a", "box_score=0.0"), ("b", "box_agreement=0.9"))
    )
    target, teacher = batch().target, it.state.teacher.module
    expected, _ = every.state.labeller.label(every.state.teacher.module, target, 0)
    seen = []

    def detect(images: ImageBatch) -> list[Instances]:
        seen.append(images.pixels)
        sides = [(WIDTH - one.boxes)[:, [2, 1, 0, 3]] for one in plain]
        return [replace(one, boxes=torch.where(ACROSS, x, one.boxes)) for one, x in zip(plain, sides, strict=True)]

    with torch.no_grad():
        plain = teacher.eval().detect(target.weak.to_float())
    monkeypatch.setattr(teacher, "detect", detect)
    found, _ = it.state.labeller.label(teacher, target, 0)
    assert torch.equal(seen[0], target.weak.to_float().pixels.flip(-1))
    assert sum(map(len, expected.truths)) >= 2
    assert torch.equal(found.box_weights, expected.box_weights)
    for one, other in zip(found.truths, expected.truths, strict=True):
        assert_close(one.boxes, other.boxes)
        assert torch.equal(one.box_weights, other.box_weights)
    monkeypatch.setattr(teacher, "detect", lambda images: [Instances.empty() for _ in images.sizes])
    found, _ = it.state.labeller.label(teacher, target, 0)
    assert [truth.box_weights.sum() for truth in found.truths] == [0] * COUNT
