"""What every engine must keep, held against the engine's own stock losses. Equality is to 1e-5 throughout."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from stock import CANVAS, CLASSES, ENGINES, make, stock_losses
from torch import nn
from torch.testing import assert_close

from lossmix_det.config import MixingConfig, ModelConfig
from lossmix_det.engines import build_detector
from lossmix_det.mixing import RULES, Mix, blend, supervise
from lossmix_det.structures import ImageBatch, Instances, Supervision

SIZES = ((96, 120), (128, 80), (100, 100))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

SLOW = {"resnet18_fpn", "timm_pvt", "timm_mambaout", "detectron2_timm_convnext", "detectron2_timm_pvt"}
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ENGINES]
ONE_STAGE = ["retinanet_slim", "fcos_slim", "retinanet_timm", "fcos_timm"]


@pytest.fixture(scope="module", params=[*PARAMS, *ONE_STAGE])
def detector(request):
    # 512 samples of an image this small cannot be had, so that images differ in their number of samples.
    return make(request.param)


@pytest.fixture(scope="module", params=["slim", "detectron2_fpn", "retinanet_slim", "fcos_slim"])
def small(request):
    return make(request.param)


# What only detectors of two stages have: sampling, objectness, background samples. Those of one stage have tests of
# the same facts in one_stage/test_one_stage_losses.py.


@pytest.fixture(scope="module", params=PARAMS)
def two_stage(request):
    return make(request.param)


@pytest.fixture(scope="module", params=["slim", "detectron2_fpn"])
def small_two_stage(request):
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


def images(count: int = 3, seed: int = 1) -> ImageBatch:
    pixels = torch.rand(count, 3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(seed))
    batch = ImageBatch(pixels, SIZES[:count])
    return ImageBatch(torch.where(batch.valid(), pixels, 0.0), SIZES[:count])


def losses(detector, batch: ImageBatch, *supervisions: Supervision) -> dict[str, torch.Tensor]:
    encoding = detector.encode(batch)
    parts = [detector.losses(encoding, supervision) for supervision in supervisions]
    return {name: sum(part[name] for part in parts) for name in detector.loss_names}


def gradients(detector, total: torch.Tensor) -> dict[str, torch.Tensor]:
    detector.zero_grad()
    total.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in detector.named_parameters()
    }


def weighted(truths, weights: list[float]) -> Supervision:
    return Supervision(tuple(truths), torch.tensor(weights), torch.tensor(weights))


def test_weight_one_gives_the_stock_losses(detector):
    batch = images()
    ours = losses(detector, batch, Supervision.full(TRUTHS_A))
    stock = stock_losses(detector, batch, TRUTHS_A)
    for name in detector.loss_names:
        assert stock[name] > 0
        assert_close(ours[name], stock[name], **CLOSE)


def test_weight_one_gives_the_stock_losses_where_images_differ_in_their_number_of_samples(small_two_stage):
    """More samples are asked for than the proposals can give, so that each image has another number of them."""
    for size in (256, 512):
        before = small_two_stage.stock.ask_for(small_two_stage, size)
        ours, stock = (
            losses(small_two_stage, images(), Supervision.full(TRUTHS_A)),
            stock_losses(small_two_stage, images(), TRUTHS_A),
        )
        small_two_stage.stock.ask_for(small_two_stage, before)
        for name in small_two_stage.loss_names:
            assert_close(ours[name], stock[name], **CLOSE)


@pytest.mark.parametrize("architecture", ["fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_weight_one_gives_the_stock_losses_of_the_other_architectures(architecture):
    detector = make(architecture, norm="frozen", roi_samples=64)
    for part in detector.modules():
        if isinstance(part, nn.BatchNorm2d):  # of the box head; its statistics move from call to call
            part.eval()
    batch = images(2)
    ours = losses(detector, batch, Supervision.full(TRUTHS_A[:2]))
    stock = stock_losses(detector, batch, TRUTHS_A[:2])
    for name in detector.loss_names:
        assert_close(ours[name], stock[name], **CLOSE)


def test_stock_random_sampling_is_kept_when_images_have_no_keys():
    """The same global seed gives the same samples as stock torchvision, in the same order."""
    detector = make(deterministic=False)
    batch = images()
    torch.manual_seed(5)
    ours = losses(detector, batch, Supervision.full(TRUTHS_A))
    torch.manual_seed(5)
    stock = stock_losses(detector, batch, TRUTHS_A)
    for name in detector.loss_names:
        assert_close(ours[name], stock[name], **CLOSE)


@pytest.mark.parametrize("shares", [(0.3, 0.7), (0.2, 0.5, 0.3)])
def test_two_and_three_truths_give_the_interpolated_stock_losses_and_gradients(detector, shares):
    batch = images()
    sources = list(zip((TRUTHS_A, TRUTHS_B, TRUTHS_A[1:] + TRUTHS_A[:1]), shares, strict=False))
    stock: dict[str, torch.Tensor] = defaultdict(float)
    for truths, weight in sources:
        for name, value in stock_losses(detector, batch, truths).items():
            stock[name] = stock[name] + weight * value
    total_stock = sum(stock.values())
    stock_gradients = gradients(detector, total_stock)
    ours = losses(detector, batch, *(weighted(truths, [share] * 3) for truths, share in sources))
    for name in detector.loss_names:
        assert_close(ours[name], stock[name], **CLOSE)
    for name, gradient in gradients(detector, sum(ours.values())).items():
        scale = stock_gradients[name].abs().max().clamp(min=1.0)
        assert_close(gradient / scale, stock_gradients[name] / scale, **CLOSE)
    assert any(gradient.abs().max() > 0 for gradient in stock_gradients.values())


@pytest.mark.parametrize(("lam", "truths"), [(1.0, TRUTHS_A), (0.0, TRUTHS_B)])
def test_lam_at_its_ends_is_one_of_the_two_images(small, lam, truths):
    """Through pixels, sizes and truths: λ = 1 is A and λ = 0 is B."""
    batch = images()
    partner = torch.tensor([1, 2, 0])
    shares = torch.full((3,), lam)
    mix = Mix(torch.stack([torch.arange(3), partner], dim=1), torch.stack([shares, 1 - shares], dim=1))
    partners = tuple(TRUTHS_A[index] for index in partner)
    images_mixed = blend(batch, mix)
    rule = RULES["lossmix"](MixingConfig())
    mixed = losses(small, images_mixed, *supervise(TRUTHS_A, mix, images_mixed, rule))
    if lam == 1.0:
        alone = stock_losses(small, batch, TRUTHS_A)
    else:
        turned = ImageBatch(batch.pixels[partner], tuple(batch.sizes[index] for index in partner))
        alone = stock_losses(small, turned, partners)
    for name in small.loss_names:
        assert_close(mixed[name], alone[name], **CLOSE)


def test_an_image_of_weight_zero_changes_nothing(detector):
    """Neither its pixels nor its truth reach any loss or gradient."""
    batch, other = images(seed=1), images(seed=2)
    swapped = ImageBatch(torch.cat([batch.pixels[:2], other.pixels[2:]]), batch.sizes)
    weights = [0.4, 1.0, 0.0]
    first = losses(detector, batch, weighted(TRUTHS_A, weights))
    first_gradients = gradients(detector, sum(first.values()))
    second = losses(detector, swapped, weighted((*TRUTHS_A[:2], TRUTHS_B[2]), weights))
    for name in detector.loss_names:
        assert_close(first[name], second[name], **CLOSE)
    for name, gradient in gradients(detector, sum(second.values())).items():
        assert_close(gradient, first_gradients[name], **CLOSE)


def test_a_supervision_without_any_weight_is_zero(small):
    found = losses(small, images(), weighted(TRUTHS_A, [0.0, 0.0, 0.0]))
    assert all(value == 0 for value in found.values())


def test_no_boxes_at_all_is_legal_and_teaches_background(two_stage):
    batch = images()
    empty = (Instances.empty(),) * 3
    ours, stock = losses(two_stage, batch, Supervision.full(empty)), stock_losses(two_stage, batch, empty)
    assert ours["rpn_box"] == ours["roi_box"] == 0
    for name in ("rpn_class", "roi_class"):
        assert stock[name] > 0
        assert_close(ours[name], stock[name], **CLOSE)


def test_a_batch_of_unequal_images_equals_the_sum_over_its_images(small_two_stage):
    """Each with its own λ and on the same canvas, one by one against stock torchvision, averaged over the images."""
    batch = images()
    lam = [0.2, 0.9, 0.55]
    ours = losses(small_two_stage, batch, weighted(TRUTHS_A, lam), weighted(TRUTHS_B, [1 - value for value in lam]))
    expected: dict[str, torch.Tensor] = defaultdict(float)
    for index, value in enumerate(lam):
        single = ImageBatch(batch.pixels[index : index + 1], batch.sizes[index : index + 1])
        for truths, weight in ((TRUTHS_A, value), (TRUTHS_B, 1 - value)):
            for name, loss in stock_losses(small_two_stage, single, truths[index : index + 1]).items():
                expected[name] = expected[name] + weight * loss / len(lam)
    for name in small_two_stage.loss_names:
        assert_close(ours[name], expected[name], **CLOSE)


def test_the_images_normalizer_holds_the_sum_over_images_when_their_samples_differ():
    detector = make(roi_samples=512, normalizer="images")
    batch = images()
    ours = losses(detector, batch, Supervision.full(TRUTHS_A))
    for name in detector.loss_names:
        alone = [
            stock_losses(detector, ImageBatch(batch.pixels[i : i + 1], batch.sizes[i : i + 1]), TRUTHS_A[i : i + 1])
            for i in range(3)
        ]
        assert_close(ours[name], sum(found[name] for found in alone) / 3, **CLOSE)


def test_class_and_box_weights_are_separate(small_two_stage):
    batch = images()
    supervision = Supervision(TRUTHS_A, torch.full((3,), 0.5), torch.zeros(3))
    ours, stock = losses(small_two_stage, batch, supervision), stock_losses(small_two_stage, batch, TRUTHS_A)
    assert ours["rpn_box"] == ours["roi_box"] == 0
    assert_close(ours["roi_class"], 0.5 * stock["roi_class"], **CLOSE)
    assert_close(ours["rpn_class"], 0.5 * stock["rpn_class"], **CLOSE)


def test_instance_weights_of_one_are_the_union(small):
    batch = images()
    union = tuple(Instances.union(a, b) for a, b in zip(TRUTHS_A, TRUTHS_B, strict=True))
    pairs = [(a.weighted(1.0, 1.0), b.weighted(1.0, 1.0)) for a, b in zip(TRUTHS_A, TRUTHS_B, strict=True)]
    weighted_union = tuple(Instances.union(*pair) for pair in pairs)
    ones = torch.ones(3)
    ours = losses(small, batch, Supervision(weighted_union, ones, ones, background_weight=1.0))
    stock = stock_losses(small, batch, union)
    for name in small.loss_names:
        assert_close(ours[name], stock[name], **CLOSE)


def test_positives_carry_the_weight_of_their_box_and_background_its_setting(small_two_stage):
    """With the boxes of one image weighted 0, what is left is background and the other boxes."""
    batch = images(1)
    joined = Instances.union(TRUTHS_A[0], TRUTHS_B[0])
    ones = torch.ones(1)

    def loss(weight_a: float, weight_b: float, background: float) -> dict[str, torch.Tensor]:
        a = Instances.union(TRUTHS_A[0].weighted(weight_a, weight_a), TRUTHS_B[0].weighted(weight_b, weight_b))
        return losses(small_two_stage, batch, Supervision((a,), ones, ones, background))

    only_a, only_b, only_background = loss(1, 0, 0), loss(0, 1, 0), loss(0, 0, 1)
    whole = stock_losses(small_two_stage, batch, (joined,))
    mixed = loss(0.3, 0.7, 0.5)
    for name in small_two_stage.loss_names:
        assert_close(only_a[name] + only_b[name] + only_background[name], whole[name], **CLOSE)
        assert_close(mixed[name], 0.3 * only_a[name] + 0.7 * only_b[name] + 0.5 * only_background[name], **CLOSE)
    assert only_background["rpn_box"] == only_background["roi_box"] == 0
    assert only_a["roi_class"] > 0
    assert only_b["roi_box"] > 0


def test_background_weight_holds_for_an_image_without_boxes(small_two_stage):
    bare = Instances.empty().weighted(0.5, 0.5)
    ones = torch.ones(1)
    half = losses(small_two_stage, images(1), Supervision((bare,), ones, ones, 0.5))
    full = stock_losses(small_two_stage, images(1), (Instances.empty(),))
    assert_close(half["roi_class"], 0.5 * full["roi_class"], **CLOSE)


def test_swapping_the_images_and_lam_changes_nothing(small):
    """Image and loss are symmetric under A ↔ B, λ ↔ 1 - λ, also with random samples by key."""
    detector = build_detector(ModelConfig(**small.stock.settings), CLASSES).train()
    detector.load_state_dict(small.state_dict())
    batch = ImageBatch(images(2).pixels, ((128, 128),) * 2)
    results = []
    for order, lam in (([0, 1], 0.3), ([1, 0], 0.7)):
        pixels = torch.lerp(batch.pixels[order[1]], batch.pixels[order[0]], lam)[None]
        mixed = ImageBatch(pixels, ((128, 128),), (77,))
        pair = [(TRUTHS_A[0],), (TRUTHS_B[1],)]
        supervisions = [weighted(pair[place], [weight]) for place, weight in zip(order, (lam, 1 - lam), strict=True)]
        results.append(losses(detector, mixed, *supervisions))
    for name in small.loss_names:
        assert_close(results[0][name], results[1][name], **CLOSE)


def test_keys_give_an_image_the_same_samples_in_any_batch():
    torch.manual_seed(0)
    detector = build_detector(ModelConfig(), CLASSES).train()
    batch = ImageBatch(images().pixels, SIZES, (11, 12, 13))
    whole = losses(detector, batch, Supervision.full(TRUTHS_A))
    torch.rand(7)  # the global generator must not matter
    parts = [
        losses(detector, single, Supervision.full(TRUTHS_A[index : index + 1]))
        for index, single in enumerate(batch.take([place]) for place in range(3))
    ]
    for name in detector.loss_names:
        assert_close(whole[name], sum(part[name] for part in parts) / 3, **CLOSE)


def test_a_supervision_of_another_batch_is_refused(small):
    with pytest.raises(ValueError, match="supervision is of 2 images, the encoding of 3"):
        small.losses(small.encode(images()), Supervision.full(TRUTHS_A[:2]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((50, 10, 50, 60, 0), r"truth of image 1: box \[50.0, 10.0, 50.0, 60.0\] is no xyxy box with an area"),
        ((50, 60, 10, 10, 0), r"is no xyxy box with an area"),
        ((float("nan"), 10, 50, 60, 0), r"box \[nan, 10.0, 50.0, 60.0\] is no xyxy box with an area"),
        ((0, 10, float("inf"), 60, 0), r"is no xyxy box with an area"),
        ((10, 10, 50, 60, CLASSES), rf"truth of image 1: class {CLASSES} is not one of 0…{CLASSES - 1}"),
        ((10, 10, 50, 60, -1), r"truth of image 1: class -1 is not one of 0…"),
    ],
)
def test_a_truth_that_no_loss_can_be_computed_of_is_refused(small, row, said):
    truths = (TRUTHS_A[0], truth((5, 40, 70, 110, 1), row), TRUTHS_A[2])
    with pytest.raises(ValueError, match=said):
        losses(small, images(), Supervision.full(truths))
    losses(small, images(), weighted(truths, [1.0, 0.0, 1.0]))  # the truth of an image that teaches nothing


def test_detections_are_those_of_the_plain_model(detector):
    """Same weights, same unequal images, through the engine's own list interface in evaluation mode."""
    detector.stock.show_all(detector)
    batch = images()
    ours = detector.detect(batch)
    assert detector.training
    detector.eval()
    with torch.no_grad():
        stock = detector.stock.detections(detector, batch)
    detector.train()
    for mine, theirs in zip(ours, stock, strict=True):
        assert len(mine) > 0
        assert_close(mine.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
        assert_close(mine.scores, theirs.scores, **CLOSE)
        assert_close(mine.classes, theirs.classes)


def test_images_in_bytes_are_the_same_images(small_two_stage):
    whole = (images().pixels * 255).to(torch.uint8)
    bytes_, floats = (ImageBatch(pixels, SIZES) for pixels in (whole, whole / 255))
    assert torch.equal(small_two_stage.encode(bytes_).objectness, small_two_stage.encode(floats).objectness)


def test_boxes_stay_float32_under_mixed_precision(small_two_stage):
    """bfloat16 counts pixels beyond 512 in fours."""
    batch = images()
    with torch.autocast("cpu", torch.bfloat16):
        encoding = small_two_stage.encode(batch)
        found = small_two_stage.losses(encoding, Supervision.full(TRUTHS_A))
    assert encoding.objectness.dtype == torch.bfloat16
    assert {boxes.dtype for boxes in (*encoding.anchors, *encoding.proposals)} == {torch.float32}
    for mine, full in zip(encoding.anchors, small_two_stage.encode(batch).anchors, strict=True):
        assert torch.equal(mine, full)
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_heads_are_what_each_loss_alone_teaches(small_two_stage):
    """The gradient of one loss reaches its own last layer and no other's."""
    for name in small_two_stage.loss_names:
        found = losses(small_two_stage, images(), Supervision.full(TRUTHS_A))
        reached = gradients(small_two_stage, found[name])
        for other, head in zip(small_two_stage.loss_names, small_two_stage.last_layers(), strict=True):
            weight = next(key for key, p in small_two_stage.named_parameters() if p is head.weight)
            assert (reached[weight].abs().max() > 0) == (other == name)
