"""RetinaNet and FCOS held against torchvision's own losses, gradients and detections, to 1e-5 throughout."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from stock import CANVAS, ONE_STAGE, make, stock_losses
from torch.testing import assert_close

from lossmix_det.config import MixingConfig
from lossmix_det.engines import HasFeatures, ScoresBoxes, to_device
from lossmix_det.engines.one_stage.encoding import OneStageEncoding
from lossmix_det.mixing import RULES, Mix, blend, supervise
from lossmix_det.structures import ImageBatch, Instances, Supervision

SIZES = ((96, 120), (128, 80), (100, 100))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


SLOW = {"retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"}
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ONE_STAGE]


@pytest.fixture(scope="module", params=PARAMS)
def detector(request):
    return make(request.param)


@pytest.fixture(scope="module", params=["retinanet_slim", "fcos_slim"])
def small(request):
    return make(request.param)


def truth(*rows: tuple[float, float, float, float, int]) -> Instances:
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Instances(values[:, :4], values[:, 4].long())


TRUTHS_A = (
    truth((10, 12, 50, 60, 0), (60, 20, 110, 80, 2)),
    truth((5, 40, 70, 110, 1)),
    truth((30, 30, 60, 70, 3), (10, 60, 40, 95, 3), (50, 5, 95, 40, 0)),
)
TRUTHS_B = (truth((20, 30, 90, 90, 3)), truth((10, 10, 40, 40, 0), (30, 60, 78, 120, 2)), truth((5, 5, 60, 50, 1)))
EMPTY = (Instances.empty(),) * 3


def images(count: int = 3, seed: int = 1) -> ImageBatch:
    pixels = torch.rand(count, 3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(seed))
    batch = ImageBatch(pixels, SIZES[:count])
    return ImageBatch(torch.where(batch.valid(), pixels, 0.0), SIZES[:count])


def losses(detector, batch: ImageBatch, *supervisions: Supervision) -> dict[str, torch.Tensor]:
    encoding = detector.encode(batch)
    parts = [detector.losses(encoding, supervision) for supervision in supervisions]
    return {name: sum(part[name] for part in parts) for name in detector.loss_names}


def gradients(detector, total: torch.Tensor) -> dict[str, torch.Tensor | None]:
    detector.zero_grad(set_to_none=True)
    total.backward()
    return {name: parameter.grad for name, parameter in detector.named_parameters()}


def weighted(truths, weights: list[float], **more: float) -> Supervision:
    return Supervision(tuple(truths), torch.tensor(weights), torch.tensor(weights), **more)


def one_by_one(detector, batch: ImageBatch, truths, weights: list[float]) -> dict[str, torch.Tensor]:
    """Stock losses of each image alone on the same canvas, weighted and averaged over the images."""
    total: dict[str, torch.Tensor] = defaultdict(float)
    for index, weight in enumerate(weights):
        single = ImageBatch(batch.pixels[index : index + 1], batch.sizes[index : index + 1])
        for name, value in stock_losses(detector, single, truths[index : index + 1]).items():
            total[name] = total[name] + weight * value / len(weights)
    return total


def assert_same(detector, ours, theirs) -> None:
    for name in detector.loss_names:
        assert_close(ours[name], torch.as_tensor(theirs[name]), **CLOSE)


def assert_same_gradients(ours, theirs) -> None:
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in theirs.values())
    for name, gradient in ours.items():
        if theirs[name] is None:
            assert gradient is None, name
            continue
        scale = theirs[name].abs().max().clamp(min=1.0)
        assert_close(gradient / scale, theirs[name] / scale, **CLOSE)


@pytest.mark.parametrize("truths", [TRUTHS_A, TRUTHS_B, (TRUTHS_A[0], EMPTY[0], TRUTHS_A[2])], ids=["A", "B", "empty"])
def test_weight_one_gives_the_stock_losses(detector, truths):
    ours = losses(detector, images(), Supervision.full(truths))
    stock = stock_losses(detector, images(), truths)
    assert all(value > 0 for value in stock.values())
    assert_same(detector, ours, stock)


def test_no_boxes_at_all_is_legal_and_teaches_background(detector):
    """The divisor is then 1, not 0; gradients are 0 and not missing, because other processes may have some."""
    ours, stock = losses(detector, images(), Supervision.full(EMPTY)), stock_losses(detector, images(), EMPTY)
    assert stock["class"] > 0
    assert_same(detector, ours, stock)
    assert all(ours[name] == 0 for name in detector.loss_names[1:])
    assert all(
        gradient is not None
        for name, gradient in gradients(detector, sum(ours.values())).items()
        if detector.get_parameter(name).requires_grad
    )


@pytest.mark.parametrize("lam", [0.3, 0.85])
def test_two_truths_give_the_interpolated_stock_losses_and_gradients(detector, lam):
    stock: dict[str, torch.Tensor] = defaultdict(float)
    for truths, weight in ((TRUTHS_A, lam), (TRUTHS_B, 1 - lam)):
        for name, value in stock_losses(detector, images(), truths).items():
            stock[name] = stock[name] + weight * value
    stock_gradients = gradients(detector, sum(stock.values()))
    ours = losses(detector, images(), weighted(TRUTHS_A, [lam] * 3), weighted(TRUTHS_B, [1 - lam] * 3))
    assert_same(detector, ours, stock)
    assert_same_gradients(gradients(detector, sum(ours.values())), stock_gradients)


def test_every_image_has_a_lam_of_its_own():
    """RetinaNet's stock losses are a mean over images, so that images alone are an oracle."""
    detector, lam = make("retinanet_slim"), [0.2, 0.9, 0.55]
    rest = [1 - value for value in lam]
    ours = losses(detector, images(), weighted(TRUTHS_A, lam), weighted(TRUTHS_B, rest))
    first, second = (one_by_one(detector, images(), *pair) for pair in ((TRUTHS_A, lam), (TRUTHS_B, rest)))
    assert_same(detector, ours, {name: first[name] + second[name] for name in detector.loss_names})


def test_every_image_has_a_lam_of_its_own_under_one_divisor_for_the_batch():
    """FCOS divides by the foreground of the batch: the images' numerators, from stock, are weighted one by one."""
    detector, lam = make("fcos_slim"), [0.2, 0.9, 0.55]
    counts = [foreground(detector, index) for index in range(3)]
    assert len(set(counts)) > 1
    ours = losses(detector, images(), weighted(TRUTHS_A, lam))
    sums = one_by_one(detector, images(), TRUTHS_A, [3 * n * value for n, value in zip(counts, lam, strict=True)])
    assert_same(detector, ours, {name: value / sum(counts) for name, value in sums.items()})


def foreground(detector, index: int) -> int:
    """How many anchors of an image torchvision matches to its boxes of truth A, read from its own division."""
    batch, counts = images(), []
    single = ImageBatch(batch.pixels[index : index + 1], batch.sizes[index : index + 1])
    original = detector.model.head.compute_loss

    def count(targets, outputs, anchors, matches):
        counts.extend(int((match >= 0).sum()) for match in matches)
        return original(targets, outputs, anchors, matches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector.model.head, "compute_loss", count)
        stock_losses(detector, single, TRUTHS_A[index : index + 1])
    return counts[0]


@pytest.mark.parametrize("name", ["retinanet_slim", "fcos_slim"])
def test_the_images_normalizer_is_the_mean_over_images_alone(name):
    detector, lam = make(name, normalizer="images"), [0.2, 0.9, 0.55]
    truths = (TRUTHS_A[0], TRUTHS_A[1], EMPTY[0])
    ours = losses(detector, images(), weighted(truths, lam))
    assert_same(detector, ours, one_by_one(detector, images(), truths, lam))


def test_an_image_of_weight_zero_changes_nothing(detector):
    """Neither its pixels nor its truth reach any loss or gradient."""
    batch, other = images(seed=1), images(seed=2)
    swapped = ImageBatch(torch.cat([batch.pixels[:2], other.pixels[2:]]), batch.sizes)
    weights = [0.4, 1.0, 0.0]
    first = losses(detector, batch, weighted(TRUTHS_A, weights))
    first_gradients = gradients(detector, sum(first.values()))
    second = losses(detector, swapped, weighted((*TRUTHS_A[:2], TRUTHS_B[2]), weights))
    assert_same(detector, first, second)
    assert_same_gradients(gradients(detector, sum(second.values())), first_gradients)


def test_an_image_of_weight_zero_counts_as_an_image(small):
    """Of three images one is left out: two thirds of what the two are alone."""
    batch = images()
    ours = losses(small, batch, weighted(TRUTHS_A, [1.0, 1.0, 0.0]))
    two = stock_losses(small, ImageBatch(batch.pixels[:2], batch.sizes[:2]), TRUTHS_A[:2])
    assert_same(small, ours, {name: value * 2 / 3 for name, value in two.items()})


def test_mean_over_takes_the_place_of_the_number_of_images(small):
    ours = losses(small, images(), weighted(TRUTHS_A, [1.0, 1.0, 0.0], mean_over=2.0))
    two = stock_losses(small, ImageBatch(images().pixels[:2], SIZES[:2]), TRUTHS_A[:2])
    assert_same(small, ours, two)


def test_a_mixed_image_whose_partner_has_no_box_is_not_alone_in_its_sum():
    """FCOS divides by the foreground it finds; one image without any stands beside two that count as an average one."""
    detector, batch = make("fcos_slim"), images()
    own, other = weighted(TRUTHS_A, [0.5, 1.0, 1.0]), weighted(EMPTY, [0.5, 0.0, 0.0])
    counts = [foreground(detector, index) for index in range(3)]
    average = (0.5 * counts[0] + counts[1] + counts[2]) / 3  # the weights of both truths add up to 3
    alone = stock_losses(detector, ImageBatch(batch.pixels[:1], batch.sizes[:1]), EMPTY[:1])["class"]  # divided by 1
    encoding = detector.encode(batch)
    with torch.autocast("cpu", torch.bfloat16):  # counts stay exact
        detector.announce(encoding, [own, other])
    first, second = detector.losses(encoding, own), detector.losses(encoding, other)
    assert_close(second["class"], 0.5 * alone / (2 * average), **CLOSE)
    assert_same(detector, first, losses(detector, batch, own))
    assert not encoding.matched


def test_kinds_of_images_without_boxes_add_up_to_their_batch(small):
    """Where no image has a box the divisor is 1 for each kind of images, as it is for the whole batch."""
    whole = losses(small, images(), Supervision.full(EMPTY))
    kinds = [weighted(EMPTY, weights, mean_over=3.0) for weights in ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])]
    assert_same(small, losses(small, images(), *kinds), whole)


def test_a_supervision_without_any_weight_is_zero(small):
    assert all(value == 0 for value in losses(small, images(), weighted(TRUTHS_A, [0.0] * 3)).values())


def test_class_and_box_weights_are_separate(small):
    """Centerness is weighted as boxes are."""
    ours = losses(small, images(), Supervision(TRUTHS_A, torch.full((3,), 0.5), torch.zeros(3)))
    assert all(ours[name] == 0 for name in small.loss_names[1:])
    assert_close(ours["class"], 0.5 * stock_losses(small, images(), TRUTHS_A)["class"], **CLOSE)


def test_instance_weights_of_one_are_the_union(small):
    mix = Mix(torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.full((3, 2), 0.5))
    rule = RULES["lossmix_instance"](MixingConfig(weight_sum=2.0))  # 2 · 0.5 for every box
    batch = blend(images(), mix)
    union = tuple(Instances.union(TRUTHS_A[index], TRUTHS_A[(index + 1) % 3]) for index in range(3))
    stock = stock_losses(small, batch, union)
    assert_same(small, losses(small, batch, *supervise(TRUTHS_A, mix, batch, rule)), stock)


def test_positives_carry_the_weight_of_their_box_and_background_its_setting(small):
    """With the boxes of one truth weighted 0, what is left is background and the other boxes."""
    joined = Instances.union(TRUTHS_A[0], TRUTHS_B[0])
    ones = torch.ones(1)

    def loss(weight_a: float, weight_b: float, background: float) -> dict[str, torch.Tensor]:
        pair = Instances.union(TRUTHS_A[0].weighted(weight_a, weight_a), TRUTHS_B[0].weighted(weight_b, weight_b))
        return losses(small, images(1), Supervision((pair,), ones, ones, background))

    only_a, only_b, only_background = loss(1, 0, 0), loss(0, 1, 0), loss(0, 0, 1)
    whole, mixed = stock_losses(small, images(1), (joined,)), loss(0.3, 0.7, 0.5)
    parts = (only_a, only_b, only_background)
    assert_same(small, {name: sum(part[name] for part in parts) for name in small.loss_names}, whole)
    for name in small.loss_names:
        assert_close(mixed[name], 0.3 * only_a[name] + 0.7 * only_b[name] + 0.5 * only_background[name], **CLOSE)
    assert all(only_background[name] == 0 for name in small.loss_names[1:])
    assert all(part[name] > 0 for part in (only_a, only_b) for name in small.loss_names)


def test_box_weights_of_instances_weigh_all_but_the_class(small):
    plain = losses(small, images(1), Supervision.full(TRUTHS_A[:1]))
    other = losses(small, images(1), Supervision.full([TRUTHS_A[0].weighted(1.0, 0.25)]))
    assert_close(other["class"], plain["class"], **CLOSE)
    for name in small.loss_names[1:]:
        assert_close(other[name], 0.25 * plain[name], **CLOSE)


def test_background_weight_holds_for_an_image_without_boxes(small):
    bare = Instances.empty().weighted(0.5, 0.5)
    half = losses(small, images(1), Supervision((bare,), torch.ones(1), torch.ones(1), 0.5))
    assert_close(half["class"], 0.5 * stock_losses(small, images(1), EMPTY[:1])["class"], **CLOSE)


def test_anchors_between_the_thresholds_teach_nothing():
    """RetinaNet leaves out anchors that overlap a box neither much nor little; their logits get no gradient."""
    detector = make("retinanet_slim")
    encoding = detector.encode(images())
    canvas = encoding.canvases[0]
    matches = detector.match(canvas, canvas.anchors, [item.boxes for item in TRUTHS_A])
    canvas.logits.retain_grad()
    detector.losses(encoding, Supervision.full(TRUTHS_A))["class"].backward()
    ignored = torch.stack(matches) == -2
    assert ignored.any()
    assert (canvas.logits.grad[ignored] == 0).all()
    assert (canvas.logits.grad[~ignored] != 0).any(dim=1).all()


def test_swapping_the_images_and_lam_changes_nothing(small):
    """Image and loss are symmetric under A ↔ B, λ ↔ 1 - λ."""
    batch, rule = replace(images(2), sizes=((CANVAS, CANVAS),) * 2), RULES["lossmix"](MixingConfig())
    results = []
    for order, lam in (([0, 1], 0.3), ([1, 0], 0.7)):
        mix = Mix(torch.tensor([order]), torch.tensor([[lam, 1 - lam]]))
        mixed = ImageBatch(torch.lerp(batch.pixels[order[1]], batch.pixels[order[0]], lam)[None], batch.sizes[:1])
        truths = (TRUTHS_A[0], TRUTHS_B[1])
        results.append(losses(small, mixed, *supervise(truths, mix, mixed, rule)))
    assert results[0]["box"] > 0
    assert_same(small, *results)


def test_a_supervision_of_another_batch_is_refused(small):
    with pytest.raises(ValueError, match="supervision is of 2 images, the encoding of 3"):
        small.losses(small.encode(images()), Supervision.full(TRUTHS_A[:2]))


# ------------------------------------------------------------------------------------------- detections, precision


def test_detections_are_those_of_the_plain_model(detector):
    """Same weights, same unequal images, through the engine's own list interface in evaluation mode."""
    before = detector.model.score_thresh
    detector.stock.show_all(detector)
    ours = detector.detect(images())
    assert detector.training
    detector.eval()
    with torch.no_grad():
        stock = detector.stock.detections(detector, images())
    detector.train()
    detector.model.score_thresh = before
    for mine, theirs in zip(ours, stock, strict=True):
        assert len(mine) > 0
        assert mine.classes.min() >= 0
        assert_close(mine.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
        assert_close(mine.scores, theirs.scores, **CLOSE)
        assert_close(mine.classes, theirs.classes)


def test_images_in_bytes_are_the_same_images(small):
    whole = (images().pixels * 255).to(torch.uint8)
    bytes_, floats = (ImageBatch(pixels, SIZES) for pixels in (whole, whole / 255))
    assert torch.equal(small.encode(bytes_).canvases[0].logits, small.encode(floats).canvases[0].logits)


def test_mixed_precision_keeps_anchors_boxes_and_losses_in_float32(small):
    """bfloat16 counts pixels beyond 512 in fours."""
    full = losses(small, images(), Supervision.full(TRUTHS_A))
    with torch.autocast("cpu", torch.bfloat16):
        encoding = small.encode(images())
        found = small.losses(encoding, Supervision.full(TRUTHS_A))
        boxes = small.detect(images())
    canvas = encoding.canvases[0]
    assert canvas.logits.dtype == torch.bfloat16
    for mine, exact in zip(encoding.anchors, small.encode(images()).anchors, strict=True):
        assert torch.equal(mine, exact)
    assert {values.dtype for values in found.values()} == {item.boxes.dtype for item in boxes} == {torch.float32}
    localization = {name: values.float() for name, values in canvas.localization.items()}
    in_float32 = replace(canvas, logits=canvas.logits.float(), localization=localization)
    exact = small.losses(OneStageEncoding(encoding.images, [in_float32]), Supervision.full(TRUTHS_A))
    for name in small.loss_names:
        assert_close(found[name], full[name], rtol=0.05, atol=0.01)
        assert torch.equal(found[name], exact[name])


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_layout_changes_no_loss(small, channels_last):
    plain = losses(small, images(), Supervision.full(TRUTHS_A))
    other = to_device(copy.deepcopy(small), torch.device("cpu"), channels_last)
    assert_same(small, losses(other, images(), Supervision.full(TRUTHS_A)), plain)


# -------------------------------------------------------------------------------------------------- parts, capabilities


LEFT_OUT = [
    ("retinanet_slim", {"class"}, ["head.classification_head."]),
    ("retinanet_slim", {"box"}, ["head.regression_head."]),
    ("fcos_slim", {"class"}, ["head.classification_head."]),
    ("fcos_slim", {"box"}, ["head.regression_head.bbox_reg."]),
    ("fcos_slim", {"centerness"}, ["head.regression_head.bbox_ctrness."]),
    ("fcos_slim", {"box", "centerness"}, ["head.regression_head."]),
    ("fcos_slim", {"class", "box"}, ["head.classification_head.", "head.regression_head.bbox_reg."]),
]


@pytest.mark.parametrize(("name", "left_out", "prefixes"), LEFT_OUT)
def test_what_a_loss_alone_teaches_is_what_learns_nothing_without_it(name, left_out, prefixes):
    detector = make(name)
    named = losses(detector, images(), Supervision.full(TRUTHS_A))
    reached = gradients(detector, sum(value for key, value in named.items() if key not in left_out))
    without = {name for name, gradient in reached.items() if gradient is None}
    declared = {id(p) for part in detector.taught_only_by(left_out) for p in part.parameters()}
    assert without == {name for name, p in detector.named_parameters() if id(p) in declared}
    assert without == {name for name in reached if name.startswith(tuple(f"model.{prefix}" for prefix in prefixes))}


def test_features_can_be_looked_at_and_boxes_cannot_be_scored(detector):
    assert isinstance(detector, HasFeatures)
    assert not isinstance(detector, ScoresBoxes)
    (canvas,), levels = detector.features(detector.encode(images())), detector.levels()
    features = canvas.levels
    assert (canvas.indices, canvas.canvas) == ((0, 1, 2), (CANVAS, CANVAS))
    assert list(levels) == ["0", "1", "2"]
    assert {name: features[name].shape[1] for name in levels} == levels
    sides = [features[name].shape[2] for name in levels]
    assert sides == sorted(sides, reverse=True)
