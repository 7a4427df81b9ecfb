"""Soft labels of mixed images: what the student sees of a sample is not all that the teacher saw, or more."""

from __future__ import annotations

import pytest
import torch
from stock import CLASSES, options
from torch.testing import assert_close

from lossmix_det.config import MixingConfig, ModelConfig
from lossmix_det.engines import SoftTeacher, build_detector
from lossmix_det.engines.two_stage import second_stage
from lossmix_det.engines.two_stage.samples import SoftSamples
from lossmix_det.mixing import Mix, Recipe, blend
from lossmix_det.structures import ImageBatch, Instances, Supervision
from lossmix_det.visible import Visible

SETTINGS = {"slim": {}, "detectron2_fpn": {"engine": "detectron2", "detectron2_options": options("fpn")}}
SIDE = 96


@pytest.fixture(params=list(SETTINGS))
def pair(request):
    """A student, and a teacher that sees objects everywhere and moves their boxes."""
    if request.param.startswith("detectron2"):
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    torch.manual_seed(0)
    student, teacher = (build_detector(ModelConfig(**SETTINGS[request.param]), CLASSES) for _ in range(2))
    with torch.no_grad():
        for parameter in teacher.model.roi_heads.box_predictor.parameters():
            parameter.normal_(std=0.3)
        for layer in teacher.last_layers()[:2]:  # of the RPN: objectness and offsets
            layer.weight.normal_(std=0.1)
    return student.train(), teacher.eval()


class Told:
    """What a stage was told of its soft samples: the student's boxes, and what it should make of them."""

    def __init__(self, stage) -> None:
        self.calls, same = [], stage._to_the_same

        def remembering(soft, chosen, theirs, deltas, ours):
            offsets, taught = same(soft, chosen, theirs, deltas, ours)
            self.calls.append((theirs, ours, stage.moved(theirs, deltas) + soft.offsets[chosen], offsets))
            return offsets, taught

        stage._to_the_same, self.stage = remembering, stage

    def __iter__(self):
        """The teacher's boxes, the student's, where the teacher's lead to, and where the student's are to lead."""
        theirs, ours, meant, offsets = (torch.cat(parts) for parts in zip(*self.calls, strict=True))
        return iter((theirs, ours, meant, self.stage.moved(ours, offsets)))


@torch.no_grad()
def test_a_sample_that_reaches_beyond_the_teachers_image_is_led_to_the_teachers_box(pair):
    student, teacher = pair
    seen = teacher.encode(ImageBatch(torch.rand(1, 3, 64, 64), ((64, 64),), (1,)))
    mixed = student.encode(ImageBatch(torch.rand(1, 3, SIDE, SIDE), ((SIDE, SIDE),), (1,)))
    truth = Instances(torch.tensor([[20.0, 20, 60, 60]]), torch.tensor([1]), teacher_image=0)
    told = Told(student.roi)
    student.roi.losses(mixed, Supervision.full([truth]), SoftTeacher(teacher, seen))
    theirs, ours, meant, led = told
    cut = (theirs != ours).any(dim=1)
    assert 5 < int(cut.sum()) < len(cut)
    assert_close(led, meant, atol=1e-3, rtol=1e-5)


def halves(images: list[int]) -> Mix:
    """The left half of each image beside the right half of its partner; the share is seen to lie in the mask."""
    masks = torch.zeros(len(images), 2, 8, 8)
    masks[:, 0, :, :4], masks[:, 1, :, 4:] = 1, 1
    partners = torch.tensor([images, images[::-1]]).T
    return Mix(partners, torch.full((len(images), 2), 0.5), masks)


@torch.no_grad()
def test_where_an_image_is_hidden_its_teacher_is_not_asked_and_boxes_end_where_it_is_hidden(pair):
    student, teacher = pair
    pool = ImageBatch(torch.rand(2, 3, SIDE, SIDE), ((SIDE, SIDE),) * 2, (1, 2))
    boxes = torch.tensor([[10.0, 10, 90, 50], [60.0, 30, 90, 80]])
    truths = [Instances(boxes, torch.tensor([0, 1]), teacher_image=image) for image in range(2)]
    mix, recipe = halves([0, 1]), Recipe(MixingConfig(mixer="cutmix", least_visible=0.25))
    mixed = blend(pool, mix)
    supervisions = recipe.supervise(truths, mix, mixed)
    seen, encoding = teacher.encode(pool), student.encode(mixed)
    middle = SIDE / 2
    for k, supervision in enumerate(supervisions):
        for stage in (student.rpn, student.roi):
            told = Told(stage)
            stage.losses(encoding, supervision, SoftTeacher(teacher, seen))
            _, ours, meant, led = told
            ours, meant = ours.clamp(0, SIDE), meant.clamp(0, SIDE)
            left, right = ours[:, 0], ours[:, 2]
            inside = (right.clamp(max=middle) - left).clamp(min=0) if k == 0 else (right - left.clamp(min=middle))
            assert (inside / (right - left) > 0.2).all()  # anchors may reach beyond the image, which nobody sees
            sides = meant[:, 2] - meant[:, 0]
            share = (
                (meant[:, 2].clamp(max=middle) - meant[:, 0])
                if k == 0
                else (meant[:, 2] - meant[:, 0].clamp(min=middle))
            )
            part = (meant[:, 0] < middle) & (meant[:, 2] > middle) & (share > 0.26 * sides)  # of which enough is seen
            assert stage is student.rpn or (len(ours) > 3 and part.any())  # few anchors are matched
            edge = led[part, 2] if k == 0 else led[part, 0]
            assert_close(edge, torch.full_like(edge, middle), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_what_the_hidden_part_is_taught_is_its_hard_truth(pair, monkeypatch):
    """Nothing of the image is seen there: no object, though the teacher sees one wherever it is asked."""
    student, teacher = pair
    pool = ImageBatch(torch.rand(2, 3, SIDE, SIDE), ((SIDE, SIDE),) * 2, (1, 2))
    boxes = torch.tensor([[10.0, 10, 40, 50], [60.0, 30, 90, 80]])
    truths = [Instances(boxes, torch.tensor([0, 1]), teacher_image=image) for image in range(2)]
    mix, recipe = halves([0, 1]), Recipe(MixingConfig(mixer="cutmix"))
    mixed = blend(pool, mix)
    own = recipe.supervise(truths, mix, mixed)[0]
    seen, encoding = teacher.encode(pool), student.encode(mixed)
    targets, real = [], second_stage.F.cross_entropy

    def spy(logits, wanted, reduction):
        targets.append(wanted)
        return real(logits, wanted, reduction=reduction)

    monkeypatch.setattr(second_stage.F, "cross_entropy", spy)
    sampled = student.roi._sample(encoding, own)
    student.roi.losses(encoding, own, SoftTeacher(teacher, seen))
    hidden = torch.cat(sampled.boxes)[:, 0] >= SIDE / 2
    assert hidden.sum() > 3
    assert (targets[0][hidden, student.roi.background] == 1).all()
    assert (targets[0][~hidden, student.roi.background] < 1).any()


WHOLE, HALF = torch.full((1, 1), 1.0), torch.tensor([[1.0, 0.0]])  # all is seen, or the left half


@pytest.mark.parametrize(
    ("meant", "mask", "least", "expected"),
    [
        ([20.0, 10, 60, 50], HALF, 0.1, [20.0, 10, 48, 50]),
        ([20.0, 10, 60, 50], HALF, 0.8, None),  # 28 of 40 pixels are seen
        ([20.0, 10, 60, 50], WHOLE, 0.8, [20.0, 10, 60, 50]),
        ([47.5, 10, 90, 50], HALF, 0.1, None),
        ([47.5, 10, 90, 50], HALF, 0.0, None),  # half a pixel is no box
        ([47.9999962, 10, 90, 50], HALF, 0.0, None),
        ([48.0, 10, 90, 50], HALF, 0.0, None),
        ([60.0, 10, 90, 50], HALF, 0.0, None),
        ([10.0, 10, 10.5, 10.5], HALF, 0.1, [10.0, 10, 10.5, 10.5]),  # small, but not cut
        ([100.0, 10, 120, 50], WHOLE, 0.0, None),  # beyond the image
    ],
)
def test_a_box_is_taught_as_far_as_it_is_seen_or_not_at_all(meant, mask, least, expected):
    boxes, chosen = torch.tensor([meant]), torch.ones(1, dtype=torch.bool)
    soft = SoftSamples(chosen, torch.zeros(1), torch.zeros(1, 4), [(chosen, Visible(mask, (SIDE, SIDE), least))])
    found, taught = soft.clipped(boxes, chosen)
    assert bool(taught) == (expected is not None)
    assert_close(found, torch.tensor([meant if expected is None else expected]))


@pytest.mark.parametrize("cells", [7, 14, 28])
def test_boxes_that_end_where_the_mask_does_keep_finite_offsets(pair, cells):
    """Canvases of any width: what lies within rounding of a border is either a box with an area or is not taught."""
    student, _ = pair
    for width in range(600, 1400, 37):
        mask = torch.zeros(cells, cells)
        mask[:, : cells // 2] = 1
        edge = torch.full((9,), width * (cells // 2) / cells)
        for place in range(1, 9):
            edge[place] = torch.nextafter(edge[place - 1], torch.tensor(0.0))
        meant = torch.stack([edge, torch.full_like(edge, 10), edge + 80, torch.full_like(edge, 60)], dim=1)
        chosen = torch.ones(9, dtype=torch.bool)
        covers = [(chosen, Visible(mask, (width, width), 0.0))]
        soft = SoftSamples(chosen, torch.zeros(9), torch.zeros(9, 4), covers)
        ours = meant + torch.tensor([-40.0, 0, -40, 0])
        offsets, taught = student.roi._to_the_same(soft, chosen, meant, torch.zeros(9, 4), ours)
        assert offsets.isfinite().all()
        assert not taught.any()


@torch.no_grad()
def test_a_box_that_is_not_seen_teaches_no_regression(pair):
    """The teacher says that every object lies in the hidden half: only classes are taught."""
    student, teacher = pair
    pool = ImageBatch(torch.rand(2, 3, SIDE, SIDE), ((SIDE, SIDE),) * 2, (1, 2))
    truths = [Instances(torch.tensor([[10.0, 10, 60, 50]]), torch.tensor([0]), teacher_image=image) for image in (0, 1)]
    mix = halves([0, 1])
    mixed = blend(pool, mix)
    own = Recipe(MixingConfig(mixer="cutmix")).supervise(truths, mix, mixed)[0]
    seen, encoding = teacher.encode(pool), student.encode(mixed)
    hidden = torch.tensor([SIDE / 2 + 4, 10, SIDE - 4, 60])
    for stage, names in ((student.rpn, ("rpn_class", "rpn_box")), (student.roi, ("roi_class", "roi_box"))):
        usual = stage.losses(encoding, own, SoftTeacher(teacher, seen))
        moved, stage.moved = stage.moved, lambda boxes, offsets: hidden.expand(len(boxes), 4)
        unseen = stage.losses(encoding, own, SoftTeacher(teacher, seen))
        stage.moved = moved
        assert usual[names[1]] > 0
        assert unseen[names[1]] == 0
        assert unseen[names[0]] == usual[names[0]] > 0


def test_soft_truths_cannot_be_joined():
    soft = Instances(torch.tensor([[10.0, 10, 40, 50]]), torch.tensor([0]), teacher_image=0)
    with pytest.raises(ValueError, match="no boxes that could be joined"):
        Instances.union(Instances.empty(), soft)
