"""A batch on several canvases gives what it gives on one, as far as padding does not reach into a network's answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from stock import CLASSES, make, options
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from lossmix_det.adaptation.alignment import Alignment
from lossmix_det.config import AlignmentConfig, ModelConfig
from lossmix_det.engines import SoftTeacher, build_detector, canvases
from lossmix_det.engines.canvases import in_order, partition, plan, row_order
from lossmix_det.structures import Domains, ImageBatch, Instances, Supervision
from lossmix_det.training.student_batch import StudentBatch

SIZES = ((100, 150), (150, 84), (84, 148), (148, 100), (52, 52))
ENGINES = ["slim", "detectron2_fpn", "detectron2_c4"]
ONE_STAGE = ["retinanet_slim", "fcos_slim"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

FROZEN = {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64}
SETTINGS = {
    "slim": {"norm": "frozen"},
    "retinanet_slim": {"norm": "frozen", "detector": "retinanet"},
    "fcos_slim": {"norm": "frozen", "detector": "fcos"},
    "detectron2_fpn": {"engine": "detectron2", "detectron2_options": options("fpn", **FROZEN)},
    "detectron2_c4": {"engine": "detectron2", "detectron2_options": options("c4_two_fc", **FROZEN)},
}


@pytest.fixture(autouse=True)
def _canvases_cost_little(monkeypatch):
    monkeypatch.setitem(canvases.COST_OF_A_CANVAS, "cpu", 6000)


def pixels_of(groups, sizes) -> int:
    sides = [[-(-max(sizes[index][side] for index in group) // 32) * 32 for side in (0, 1)] for group in groups]
    return sum(len(group) * height * width for group, (height, width) in zip(groups, sides, strict=True))


def partitions(items):
    """All ways to group items, by brute force."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        for position in range(len(groups)):
            yield [*groups[:position], [first, *groups[position]], *groups[position + 1 :]]
        yield [[first], *groups]


# --------------------------------------------------------------------------------------------- which canvases


@pytest.mark.parametrize(
    ("sizes", "cost", "groups"),
    [
        (((64, 64),) * 3, 0, [(0, 1, 2)]),
        (((600, 800), (800, 600), (600, 800)), 1000, [(0, 2), (1,)]),
        (((600, 800), (800, 600), (600, 800)), 10**6, [(0, 1, 2)]),  # another canvas costs more than the padding
        (((33, 33), (64, 64)), 0, [(0, 1)]),  # both take 64×64
        (((32, 32),), 5, [(0,)]),
    ],
)
def test_canvases_that_waste_least(sizes, cost, groups):
    assert partition(sizes, cost) == groups


@pytest.mark.parametrize("cost", [0, 20_000, 150_000])
def test_canvases_against_all_groupings(cost):
    """Never worse than one canvas or one per image, and within 1 % of the best of all groupings on average."""
    rng = np.random.default_rng(1)
    ours, best = [], []
    for _ in range(60):
        shapes = rng.choice([(375, 500), (500, 375), (333, 500), (500, 500), (600, 320)], 6)
        sizes = [(int(h * s), int(w * s)) for (h, w), s in zip(shapes, rng.uniform(1.1, 1.6, 6), strict=True)]
        totals = [pixels_of(groups, sizes) + cost * len(groups) for groups in partitions(list(range(6)))]
        groups = partition(sizes, cost)
        assert sorted(itertools.chain(*groups)) == list(range(6))
        ours.append(pixels_of(groups, sizes) + cost * len(groups))
        best.append(min(totals))
        assert ours[-1] <= pixels_of([range(6)], sizes) + cost
        assert ours[-1] <= pixels_of([[index] for index in range(6)], sizes) + 6 * cost
    assert sum(ours) <= 1.01 * sum(best)


def test_a_canvas_that_saves_less_than_it_costs_is_not_made(monkeypatch):
    batch = ImageBatch(torch.zeros(2, 3, 128, 128), ((128, 96), (96, 128)))
    saved = 2 * (128 * 128 - 128 * 96)
    for cost, expected in ((saved // 3, ((128, 96), (96, 128))), (saved, ((128, 128),) * 2)):
        monkeypatch.setitem(canvases.COST_OF_A_CANVAS, "cpu", cost)
        assert plan(batch) == expected


def test_values_come_back_in_the_order_of_the_batch():
    indices, counts = [(1, 3), (0, 2)], [2, 1, 0, 3]
    assert in_order(indices, [["b", "d"], ["a", "c"]]) == ["a", "b", "c", "d"]
    computed = torch.tensor([10, 30, 31, 32, 0, 1])  # image 1, image 3, image 0; image 2 has no row
    assert computed[row_order(indices, counts)].tolist() == [0, 1, 10, 30, 31, 32]
    assert row_order([(0, 1)], [4, 5]) is None


# ------------------------------------------------------------------------------------- several canvases or one


def pointwise(name: str, layout: str, **settings):
    """A detector whose every cell sees one pixel, so that padding reaches into no other cell.

    Objectness is positive inside of an image of positive pixels and 0 in the padding, and fewer anchors propose than
    lie inside, so that none of the padding does.
    """
    if name.startswith("detectron2"):
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    torch.manual_seed(0)
    detector = build_detector(ModelConfig(canvases=layout, **SETTINGS[name], **settings), CLASSES).train()
    with torch.no_grad():
        for parent in list(detector.modules()):
            for child, part in parent.named_children():
                if isinstance(part, nn.GroupNorm):  # whose mean is over the padding too
                    setattr(parent, child, nn.Identity())
        for part in detector.modules():
            if isinstance(part, nn.Conv2d):
                middle = part.weight.shape[2] // 2, part.weight.shape[3] // 2
                kept = part.weight[:, :, middle[0], middle[1]].clone()
                part.weight.zero_()[:, :, middle[0], middle[1]] = kept
            if isinstance(part, nn.MaxPool2d):
                part.kernel_size, part.padding = 1, 0
        if name in ENGINES:
            _propose_inside(detector, name)
    return detector


def _propose_inside(detector, name: str) -> None:
    if name == "slim":
        rpn = detector.model.rpn
        rpn.head.cls_logits.weight.abs_().mul_(300)
        rpn.head.bbox_pred.weight.mul_(100)
        for limits in (rpn._pre_nms_top_n, rpn._post_nms_top_n):
            limits.update(training=9, testing=9)
    else:
        rpn = detector.model.proposal_generator
        rpn.rpn_head.objectness_logits.weight.abs_()
        rpn.rpn_head.anchor_deltas.weight.mul_(3)
        rpn.pre_nms_topk = dict.fromkeys(rpn.pre_nms_topk, 3)
        stem = detector.model.backbone.bottom_up.stem if hasattr(detector.model.backbone, "bottom_up") else None
        stem = stem or detector.model.backbone.stem
        stem.forward = lambda x: F.relu(stem.conv1(x))[:, :, ::2, ::2]


def truth(*rows) -> Instances:
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Instances(values[:, :4], values[:, 4].long())


TRUTHS = (
    truth((10, 12, 60, 60, 0), (60, 20, 140, 80, 2)),
    truth((5, 40, 70, 110, 1)),
    truth(),
    truth((30, 30, 60, 70, 3), (10, 60, 40, 95, 3)),
    truth((5, 5, 50, 40, 1)),
)


def images(seed: int = 1) -> ImageBatch:
    """On one canvas; every image is well above the mean of normalisation, so that no feature is that of padding."""
    batch = ImageBatch(
        torch.rand(5, 3, 160, 160, generator=torch.Generator().manual_seed(seed)) / 2 + 0.5, SIZES, tuple(range(5))
    )
    return ImageBatch(torch.where(batch.valid(), batch.pixels, 0.0), SIZES, batch.keys)


def losses_and_gradients(detector, supervised, teacher=None, announced=False):
    detector.zero_grad()
    encoding = detector.encode(images())
    if announced:
        detector.announce(encoding, supervised)
    parts = [detector.losses(encoding, supervision, teacher) for supervision in supervised]
    losses = {name: sum(part[name] for part in parts) for name in detector.loss_names}
    sum(losses.values()).backward()
    gradients = {name: value.grad.clone() for name, value in detector.named_parameters() if value.grad is not None}
    return encoding, losses, gradients


def supervisions() -> list[Supervision]:
    """Two truths for some of the images, weighted; one image teaches nothing by its first."""
    others = tuple(Instances(item.boxes * 0.8, (item.classes + 1) % CLASSES) for item in TRUTHS)
    weights = torch.tensor([0.6, 1.0, 0.5, 0.9, 0.0])
    return [Supervision(TRUTHS, weights, weights), Supervision(others, 1 - weights, 1 - weights)]


@pytest.mark.parametrize("name", ENGINES)
def test_losses_are_the_same_whether_or_not_all_truths_are_announced(name, monkeypatch):
    """Where they are, the heads of a second stage see all samples of all canvases in one call."""
    detector, calls = pointwise(name, "few"), []
    if hasattr(detector, "roi"):
        judge = detector.roi.judge
        monkeypatch.setattr(detector.roi, "judge", lambda pooled: calls.append(len(pooled)) or judge(pooled))
    _, apart, wanted = losses_and_gradients(detector, supervisions())
    one_by_one = list(calls)
    calls.clear()
    encoding, joined, gradients = losses_and_gradients(detector, supervisions(), announced=True)
    for loss in detector.loss_names:
        assert apart[loss] > 0
        assert_close(joined[loss], apart[loss], **CLOSE)
    for parameter, gradient in gradients.items():
        assert_close(gradient, wanted[parameter], rtol=1e-4, atol=1e-5)
    if hasattr(detector, "roi"):
        assert len(one_by_one) == 2
        assert calls == [sum(one_by_one)]  # and a proposal that both truths sample is still scored once
        assert not encoding.scored.announced


@pytest.mark.parametrize("name", ENGINES)
def test_losses_gradients_and_detections_are_those_of_one_canvas(name):
    several, single = (pointwise(name, layout) for layout in ("few", "one"))
    ours, losses, gradients = losses_and_gradients(several, supervisions())
    stock, expected, wanted = losses_and_gradients(single, supervisions())
    assert (len(ours.canvases), len(stock.canvases)) == (3, 1)
    assert [len(canvas.indices) for canvas in ours.canvases] == [2, 2, 1]
    for mine, theirs in zip(ours.proposals, stock.proposals, strict=True):
        assert_close(mine, theirs, **CLOSE)
    for loss in several.loss_names:
        assert expected[loss] > 0
        assert_close(losses[loss], expected[loss], **CLOSE)
    assert gradients.keys() == wanted.keys()
    for parameter, gradient in gradients.items():
        assert_close(gradient, wanted[parameter], rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(several.detect(images()), single.detect(images()), strict=True):
        assert_close(mine.boxes, theirs.boxes, rtol=1e-5, atol=1e-3)
        assert_close(mine.scores, theirs.scores, **CLOSE)


@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_stage_losses_differ_by_the_background_of_the_padding_alone(name):
    """Stock takes a loss of every anchor, also of the padding; there is less of it."""
    several, single = (pointwise(name, layout) for layout in ("few", "one"))
    ours, losses, _ = losses_and_gradients(several, supervisions())
    stock, expected, _ = losses_and_gradients(single, supervisions())
    assert len(ours.canvases) == 3
    for loss in several.loss_names[1:]:
        assert expected[loss] > 0
        assert_close(losses[loss], expected[loss], **CLOSE)
    # One small box at the same place in every image, so that all have as many foreground anchors.
    same = [Supervision.full((TRUTHS[4],) * len(SIZES))]
    less, more = (losses_and_gradients(detector, same)[1]["class"] for detector in (several, single))
    pairs = zip(ours.anchors, stock.anchors, strict=True)
    anchors = sum(len(on_one) - len(on_its_own) for on_its_own, on_one in pairs)
    logits = stock.canvases[0].logits[4, -1].detach()  # the last anchor of the smallest image lies in its padding
    of_padding = sigmoid_focal_loss(logits, torch.zeros_like(logits)).sum()
    canvas = ours.canvases[0]
    foreground = sum(int((match >= 0).sum()) for match in several.match(canvas, canvas.anchors[:1], [TRUTHS[4].boxes]))
    assert_close(more - less, anchors * of_padding / (foreground * len(SIZES)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [*ENGINES, *ONE_STAGE])
def test_detections_of_several_canvases_are_those_of_each_canvas_alone(name):
    detector = make(name, deterministic=False)
    detector.stock.show_all(detector)
    together = detector.detect(images())
    for canvas in detector.lay_out(images()):
        for index, alone in zip(canvas.indices, detector.detect(canvas.images), strict=True):
            assert len(alone)
            assert_close(together[index].boxes, alone.boxes)
            assert_close(together[index].scores, alone.scores)


@pytest.mark.parametrize("name", ["slim", "detectron2_fpn"])
def test_soft_labels_are_those_of_one_canvas(name):
    """The teacher sees each image on another canvas than the student does."""
    soft = [Instances(item.boxes, item.classes, teacher_image=index) for index, item in enumerate(TRUTHS)]
    results = []
    for student, teacher in (("few", "one"), ("one", "one"), ("one", "few")):
        detector = pointwise(name, student)
        other = pointwise(name, teacher).eval()
        with torch.no_grad():
            seen = SoftTeacher(other, other.encode(images(2)), 2.0)
        results.append(losses_and_gradients(detector, [Supervision.full(soft)], seen)[1])
    for loss in results[1]:
        assert results[1][loss] > 0
        assert_close(results[0][loss], results[1][loss], **CLOSE)
        assert_close(results[2][loss], results[1][loss], **CLOSE)


@pytest.mark.parametrize("name", ["slim", "retinanet_slim"])
def test_alignment_is_that_of_one_canvas(name):
    parts = ["image", "instance"] if name == "slim" else ["image"]
    shares, weights = torch.tensor([0.0, 1.0, 0.3, 0.0, 1.0]), torch.tensor([1.0, 0.5, 1.0, 1.0, 0.5]) / 3
    losses = []
    for layout in ("few", "one"):
        detector = pointwise(name, layout)
        torch.manual_seed(0)
        alignment = Alignment(AlignmentConfig(parts=parts), detector)
        for part in alignment.modules():
            if isinstance(part, nn.Conv2d):
                with torch.no_grad():
                    kept = part.weight[:, :, 1, 1].clone()
                    part.weight.zero_()[:, :, 1, 1] = kept
        encoding = detector.encode(images())
        losses.append(alignment(detector, encoding, encoding.images.sizes, Domains(shares, weights, weights)))
    for loss in losses[0]:
        assert_close(losses[0][loss], losses[1][loss], **CLOSE)


# ----------------------------------------------------------------------------------------------- what it keeps


@pytest.mark.parametrize("name", ["slim", "detectron2_fpn"])
def test_the_samples_of_an_image_do_not_depend_on_its_canvas(name):
    """Not even where the network's answers do: anchors are drawn by their place, those of the padding last."""
    samples = []
    for layout in ("few", "one"):
        detector = make(name, deterministic=False, canvases=layout)
        chosen = []
        choose = detector.rpn.sampler._choose
        detector.rpn.sampler._choose = lambda *given, choose=choose, chosen=chosen: (
            chosen.append(choose(*given)) or (chosen[-1])
        )
        encoding = detector.encode(images())
        detector.losses(encoding, Supervision.full(TRUTHS))
        samples.append(
            [
                {tuple(box) for mask in masks for box in anchors[mask].tolist()}
                for masks, anchors in zip(chosen, encoding.anchors, strict=True)
            ]
        )
    for few, one, (height, width) in zip(*samples, SIZES, strict=True):
        assert few == one
        assert len(few) == detector.rpn.sampler.batch_size_per_image
        middles = [((y1 + y2) / 2, (x1 + x2) / 2) for x1, y1, x2, y2 in few]
        assert all(y < height + 32 and x < width + 32 for y, x in middles)


def test_a_network_that_takes_any_size_is_given_no_padding(monkeypatch):
    """As Detectron2 pads its C4 networks; even where one more canvas would cost more than it saves."""
    monkeypatch.setattr(canvases, "COST_OF_A_CANVAS", dict.fromkeys(canvases.COST_OF_A_CANVAS, 2**30))
    batch = ImageBatch(torch.rand(2, 3, 96, 128), ((90, 101), (65, 110)))
    (canvas,) = canvases.few(batch, multiple=1)
    assert canvas.images.canvas == (90, 110)
    (canvas,) = canvases.few(batch, multiple=32)
    assert canvas.images.canvas == (96, 128)


def test_micro_batches_keep_the_canvases_of_the_whole_batch():
    """So that gradients that are accumulated are those of the batch, on a network that padding does reach."""
    detector = make("slim", canvases="few")
    batch = images().take([0, 1, 2, 3])
    whole = detector.losses(detector.encode(batch), Supervision.full(TRUTHS[:2] + TRUTHS[3:4] + TRUTHS[3:4]))
    student = StudentBatch(batch, {"source": [Supervision.full(TRUTHS[:2] + TRUTHS[3:4] + TRUTHS[3:4])]}, blocks=[2, 2])
    parts = [detector.losses(detector.encode(part.images), part.supervisions["source"][0]) for part in student.split(2)]
    assert len({canvas for part in student.split(2) for canvas in part.images.canvases}) == 2
    for name in ("rpn_class", "roi_class"):
        assert_close(sum(part[name] for part in parts) / 2, whole[name], **CLOSE)


def test_a_norm_that_learns_from_its_batch_sees_all_of_it(monkeypatch):
    detector = build_detector(ModelConfig(norm="batch"), 4)
    seen = []
    detector.model.backbone.register_forward_hook(lambda _module, given, _output: seen.append(tuple(given[0].shape)))
    detector.train().encode(images())
    assert seen == [(5, 3, 160, 160)]
    seen.clear()
    detector.detect(images())  # with running statistics
    assert len(seen) == 3
    assert sum(count for count, *_ in seen) == 5
    seen.clear()
    build = build_detector(ModelConfig(norm="frozen"), 4)
    build.model.backbone.register_forward_hook(lambda _module, given, _output: seen.append(tuple(given[0].shape)))
    build.train().encode(images())
    assert len(seen) == 3
