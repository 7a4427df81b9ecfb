"""Features mixed within a network equal a network that is taken apart and put together by hand."""

from __future__ import annotations

import pytest
import torch
from stock import CANVAS, make
from torch.testing import assert_close

from lossmix_det.engines import FeatureMix
from lossmix_det.structures import ImageBatch, Instances, Supervision

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SIZES = ((96, 120), (128, 80), (100, 100))


TORCHVISION = ["slim", "retinanet_slim", "fcos_slim"]


TIMM = ["timm_lite0", "timm_convnext", "detectron2_timm_convnext", "retinanet_timm"]


@pytest.fixture(scope="module", params=[*TORCHVISION, "detectron2_fpn", "detectron2_c4", *TIMM])
def detector(request):
    return make(request.param)


@pytest.fixture(scope="module", params=[*TORCHVISION, "detectron2_c4"])
def plain(request):
    """Whose backbone can be taken apart into its body and, with torchvision, its pyramid."""
    return make(request.param)


@pytest.fixture(scope="module", params=[*TORCHVISION, "detectron2_fpn"])
def with_pyramid(request):
    return make(request.param)


def images() -> ImageBatch:
    pixels = torch.rand(3, 3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(1))
    batch = ImageBatch(pixels, SIZES, (7, 8, 9))
    return ImageBatch(torch.where(batch.valid(), pixels, 0.0), SIZES, (7, 8, 9))


def mix(stage: str, lam: float = 0.3) -> FeatureMix:
    """Two mixed images of three: the first with the last, the second alone."""
    shares = torch.tensor([[lam, 1 - lam], [1.0, 0.0]])
    return FeatureMix(stage, torch.tensor([[0, 2], [1, 0]]), shares, ((100, 120), (128, 80)))


def by_hand(features: torch.Tensor, lam: float = 0.3) -> torch.Tensor:
    return torch.stack([lam * features[0] + (1 - lam) * features[2], features[1]])


def taken_apart(detector, batch: ImageBatch, stage: str, lam: float = 0.3) -> dict[str, torch.Tensor]:
    """Levels of the backbone with the features mixed behind a stage, written out for a ResNet."""
    backbone, inputs = detector.model.backbone, detector.normalise(batch)
    if hasattr(backbone, "body"):
        x, parts = inputs.tensors, dict(backbone.body.named_children())
        outputs = {name: backbone.body.return_layers.get(name) for name in parts}
    else:
        x, parts = inputs.tensor, _stages_of(backbone)
        outputs = {name: name if name in backbone._out_features else None for name in parts}
    ends = [name for name in parts if name.startswith(("layer", "res"))]
    levels = {}
    for name, part in parts.items():
        x = part(x)
        if name == ends[int(stage) - 1]:
            levels = {key: by_hand(level, lam) for key, level in levels.items()}
            x = by_hand(x, lam)
        if outputs[name] is not None:
            levels[outputs[name]] = x
    return backbone.fpn(levels) if hasattr(backbone, "body") else levels


def _stages_of(body) -> dict[str, torch.nn.Module]:
    return {"stem": body.stem, **dict(zip(body.stage_names, body.stages, strict=True))}


def stages(detector) -> list[str]:
    return [stage for stage in detector.stages() if stage != "fpn"]


def test_every_stage_is_named_from_the_first_to_the_last(detector):
    names = detector.stages()
    assert names[: len(stages(detector))] == [str(number) for number in range(1, len(stages(detector)) + 1)]
    assert len(stages(detector)) >= 3


@pytest.mark.parametrize("number", [0, 1, -1])
def test_levels_are_those_of_a_network_that_mixes_behind_that_stage(plain, number):
    stage, batch = stages(plain)[number], images()
    expected = taken_apart(plain, batch, stage)
    with plain.mixing_points().mixing(mix(stage)):
        found = plain.levels_of(plain.normalise(batch))
    assert found.keys() == expected.keys()
    for name, level in found.items():
        assert_close(level, expected[name], **CLOSE)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_levels_of_detectron2s_body_are_mixed_behind_that_stage(number):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    detector = make("detectron2_fpn")
    body, batch = detector.model.backbone.bottom_up, images()
    stage = stages(detector)[number]
    x, expected = body.stem(detector.normalise(batch).tensor), {}
    for index, (name, part) in enumerate(zip(body.stage_names, body.stages, strict=True), start=1):
        x = part(x)
        if str(index) == stage:
            x = by_hand(x)
            expected = {key: by_hand(level) for key, level in expected.items()}
        expected[name] = x
    with detector.mixing_points().mixing(mix(stage)):
        found = body(detector.normalise(batch).tensor)
    for name, level in found.items():
        assert_close(level, expected[name], **CLOSE)


def test_the_pyramids_levels_are_the_weighted_sums_of_its_levels(with_pyramid):
    inputs = with_pyramid.normalise(images())
    whole = with_pyramid.levels_of(inputs)
    with with_pyramid.mixing_points().mixing(mix("fpn")):
        found = with_pyramid.levels_of(inputs)
    for name, level in found.items():
        assert_close(level, by_hand(whole[name]), **CLOSE)


def truths() -> list[Instances]:
    return [
        Instances(torch.tensor([[10.0, 12, 50, 60]]), torch.tensor([0])),
        Instances(torch.tensor([[5.0, 40, 70, 110]]), torch.tensor([1])),
    ]


def test_a_share_of_one_gives_the_losses_of_the_images_alone(detector):
    batch = images()
    alone = FeatureMix(stages(detector)[1], torch.tensor([[0, 2], [1, 2]]), torch.tensor([[1.0, 0], [1, 0]]), SIZES[:2])
    expected = detector.losses(detector.encode(batch.take([0, 1])), Supervision.full(truths()))
    found = detector.losses(detector.encode_mixed(batch, alone), Supervision.full(truths()))
    for name, value in expected.items():
        assert_close(found[name], value, **CLOSE)


def test_exchanged_images_with_the_other_share_give_the_same_losses(detector):
    batch, stage = images(), stages(detector)[0]
    size, shares = ((100, 120),), torch.tensor([[0.3, 0.7]])
    one = FeatureMix(stage, torch.tensor([[0, 2]]), shares, size)
    other = FeatureMix(stage, torch.tensor([[2, 0]]), shares.flip(1), size)
    keyed = [ImageBatch(batch.pixels, batch.sizes, (7, 7, 7)), Supervision.full(truths()[:1])]
    losses = [detector.losses(detector.encode_mixed(keyed[0], each), keyed[1]) for each in (one, other)]
    for name, value in losses[0].items():
        assert_close(losses[1][name], value, **CLOSE)


def test_the_network_is_as_it_was_after_mixing(detector):
    inputs = detector.normalise(images())
    before = detector.levels_of(inputs)
    with detector.mixing_points().mixing(mix(detector.stages()[0])):
        detector.levels_of(inputs)
    after = detector.levels_of(inputs)
    for name, level in before.items():
        assert torch.equal(level, after[name])


def test_three_sources_are_summed_by_their_shares():
    features = torch.rand(3, 2, 4, 4)
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    three = FeatureMix("1", torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1]]), shares, ((4, 4),) * 3)
    found = three(features)
    assert_close(found[0], 0.2 * features[0] + 0.5 * features[1] + 0.3 * features[2])
    assert torch.equal(found[1], features[2])
    assert torch.equal(found[2], features[2])


def test_a_part_of_a_mix_needs_only_the_images_that_are_seen_in_it():
    whole = FeatureMix(
        "1",
        torch.tensor([[0, 3], [1, 2], [2, 0]]),
        torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]),
        ((4, 4), (5, 5), (6, 6)),
    )
    part, needed = whole.take([0, 2])
    assert needed == [0, 2, 3]
    assert part.sizes == ((4, 4), (6, 6))
    features = torch.rand(4, 2, 3, 3)
    assert_close(part(features[needed]), whole(features)[[0, 2]])
    alone, needed = whole.take([1])
    assert needed == [1]
    assert torch.equal(alone(features[[1]]), features[[1]])
